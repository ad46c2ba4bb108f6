"""What one running `generate()` decodes with: static buffers, the step over them, and its CUDA graph (Section 5.4).

A step takes no arguments: where it stands, the token it reads and all that it writes are tensors at fixed addresses, so
it can be captured once and replayed for every token, of every later call that fits. States wait in a pool outside of
the module, which can still be copied, pickled and saved; a call borrows one and gives it back only if it ended well.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import DynamicCache

from .decode_weights_argus import DecodeWeights
from .kernels_argus import Kernels, choose
from .quantized_argus import Int8Weight
from .text_argus import rotary_embeddings

BUCKET = 256  # capacities are multiples of it: a graph serves every length below
_AHEAD = 1024  # tokens that room is made for at once; a longer answer makes the buffers grow
_MAX_FREE = 4  # states that a model keeps for later calls
MAX_EOS = 16  # ids that end an answer; more of them are looked at outside of the step
_POOL: "weakref.WeakKeyDictionary[nn.Module, list[DecodeState]]" = weakref.WeakKeyDictionary()
_POOL_LOCK, _CAPTURE_LOCK = threading.Lock(), threading.Lock()


def uses_graph(device: torch.device) -> bool:
    """Whether steps are replayed from a captured graph."""
    return device.type == "cuda"


def capture(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A CUDA graph's replay of one step; nothing is computed yet. Other threads may go on using the device."""
    graph = torch.cuda.CUDAGraph()
    # torch's own choice of a stream is one for the process, on the device of the first capture.
    stream = torch.cuda.Stream(device)
    with _CAPTURE_LOCK, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        step()
    return graph.replay


class DecodeState:
    """Buffers for `rows` rows of up to `capacity` tokens, the step over them, and its graphs.

    keys, values: float[layers, B, key-value heads, C, head_dim]; bias: float[B, C], 0 where a token is seen and -inf
    elsewhere; ids: int64[B, C + 1]; slot int64[1]: where the token that the step reads stands in all of these;
    positions int64[B]: its rotary position; token int64[B]; logits float[B, V], what the step gives.
    finished bool[B], ended bool[]: which rows have ended, and whether all have.
    """

    def __init__(self, model, rows: int, capacity: int):
        self.config = model.get_decoder().config
        self.rows, self.capacity, self.length = rows, 0, 0
        embedding = model.get_decoder().embed_tokens.weight
        self.dtype, self.device = embedding.dtype, embedding.device
        self.weights, self.kernels, self.addresses = None, None, None
        self.graphs: dict[str, Callable[[], None]] = {}
        self.is_biased = True  # whether attention is told which slots are seen; else it is all up to `length`
        self.given_back = None  # when the work of the call before has been done
        # A buffer made in inference mode could not be written outside of it.
        with torch.inference_mode(False), torch.no_grad():
            here = {"device": self.device}
            self.token, self.positions = torch.zeros(2, rows, dtype=torch.int64, **here)
            self.slot = torch.zeros(1, dtype=torch.int64, **here)
            self.logits = torch.zeros(rows, model.lm_head.weight.shape[0], dtype=self.dtype, **here)
            self.finished = torch.zeros(rows, dtype=torch.bool, **here)
            self.ended = torch.zeros((), dtype=torch.bool, **here)
            self.eos = torch.full((MAX_EOS,), -1, **here)
            self.pad = torch.zeros(1, dtype=torch.int64, **here)
        self._allocate(capacity)

    def _allocate(self, capacity: int) -> None:
        config, rows, held = self.config, self.rows, self.capacity
        heads, d = config.num_key_value_heads, config.head_dim
        new = {"dtype": self.dtype, "device": self.device}
        with torch.inference_mode(False), torch.no_grad():
            # Where attention looks at what is written alone, pages that nothing is written to cost nothing.
            empty = torch.zeros if self._looks_at_all else torch.empty
            keys = empty(config.num_hidden_layers, rows, heads, capacity, d, **new)
            values = empty(config.num_hidden_layers, rows, heads, capacity, d, **new)
            bias = torch.full((rows, capacity), -torch.inf, **new)
            ids = torch.zeros(rows, capacity + 1, dtype=torch.int64, device=self.device)
            if held:
                keys[:, :, :, :held], values[:, :, :, :held] = self.keys, self.values
                bias[:, :held], ids[:, : held + 1] = self.bias, self.ids
            cos, sin = rotary_embeddings(config, torch.arange(capacity, device=self.device)[None], self.dtype)
            self.cos, self.sin = cos[0, 0].contiguous(), sin[0, 0].contiguous()
        self.keys, self.values, self.bias, self.ids, self.capacity = keys, values, bias, ids, capacity
        self._forget_graphs()

    def _forget_graphs(self) -> None:
        """And that kernels have been built: some are made for one capacity."""
        self.graphs.clear()
        self.warm = False

    def fits(self, weights: DecodeWeights, rows: int, capacity: int) -> bool:
        embedding, head = weights.embedding, weights.head
        return (
            (self.rows, self.dtype, self.device) == (rows, embedding.dtype, embedding.device)
            and self.capacity >= capacity
            and self.logits.shape[1] == (head.values if isinstance(head, Int8Weight) else head).shape[0]
            and len(weights.layers) == len(self.keys)
        )

    def bind(self, weights: DecodeWeights, kernels: Kernels) -> None:
        """Takes the weights of this call; graphs of other weights, or kernels, are forgotten."""
        addresses = weights.addresses()
        if self.kernels is not kernels or self.addresses != addresses:
            self._forget_graphs()
        self.weights, self.kernels, self.addresses = weights, kernels, addresses

    def begin(self, length: int, mask, positions, eos: torch.Tensor | None, pad: torch.Tensor | None) -> None:
        """Makes ready for a prompt of `length` tokens.

        Args:
            mask: [B, T], zero for padding, or None.
            positions: int64[B], the rotary position of each row's last token; None counts from 0.
            eos: int64[n], ids that end a row; pad: int64[], what follows them.
        """
        self.length = length
        self.is_biased = mask is not None or self._looks_at_all
        self.bias.fill_(-torch.inf)
        if mask is None:
            self.bias[:, :length] = 0
        else:
            self.bias[:, :length].masked_fill_(mask[:, :length] != 0, 0)
        if self._looks_at_all:  # what another answer has left would reach this one through 0 * nan
            self.keys[:, :, :, length:].zero_()
            self.values[:, :, :, length:].zero_()
        self.slot.fill_(length - 1)
        self.positions.copy_(self.slot if positions is None else positions)
        self.finished.zero_()
        self.ended.zero_()
        self.eos.fill_(-1)
        if eos is not None:
            self.eos[: eos.numel()] = eos
        if pad is not None:
            self.pad.copy_(pad)

    @property
    def _looks_at_all(self) -> bool:
        """Whether attention is given the whole buffer: a graph cannot grow with the answer."""
        return self.device.type != "cpu" or uses_graph(self.device)

    def forward(self) -> None:
        """Reads `token` as the next one and writes the logits of the one that follows it."""
        weights, k, eps = self.weights, self.kernels, self.config.rms_norm_eps
        self.slot += 1
        self.positions += 1
        bias = self.bias.index_fill_(1, self.slot, 0) if self.is_biased else None
        span = self.capacity if self._looks_at_all else self.length
        x = F.embedding(self.token, weights.embedding)
        cos, sin = self.cos.index_select(0, self.positions), self.sin.index_select(0, self.positions)
        for layer, keys, values in zip(weights.layers, self.keys, self.values):
            q = k.norm_qkv_rotary(
                x, layer.input_norm, eps, layer.qkv, layer.qkv_bias, cos, sin, keys, values, self.slot
            )
            attended = k.decode_attention(q, keys, values, bias, self.slot, span)
            x = k.linear_add(attended, layer.o, x)
            x = k.linear_add(k.norm_gate_up(x, layer.post_norm, eps, layer.gate_up), layer.down, x)
        self.logits.copy_(k.norm_linear(x, weights.norm, eps, weights.head))

    def choose(self) -> None:
        """Takes the likeliest token of each row; rows that have ended get padding."""
        token = torch.where(self.finished, self.pad, self.logits.argmax(-1))
        self.finished |= (token[:, None] == self.eos).any(-1)
        self.ended.copy_(self.finished.all())
        self.token.copy_(token)
        self.ids.index_copy_(1, self.slot + 1, token[:, None])

    def forward_and_choose(self) -> None:
        self.forward()
        self.choose()

    def step(self, chooses: bool) -> None:
        """One token further, by a graph where there is one. The first step of all is run as it is, for what is built on
        first use; the second is captured."""
        if self.length == self.capacity:
            self._allocate(_longest(self.config, 2 * self.capacity))
        self.length += 1
        name = "forward_and_choose" if chooses else "forward"
        if not uses_graph(self.device):
            getattr(self, name)()
            return
        replay = self.graphs.get(name)
        if replay is None and self.warm:
            replay = self.graphs[name] = capture(getattr(self, name), self.device)
        if replay is not None:
            replay()
            return
        with _side_stream(self.device):
            getattr(self, name)()
        self.warm = True

    def as_cache(self, length: int) -> DynamicCache:
        """The first `length` tokens as a cache of transformers': copies, for the buffers are used again."""
        cache = DynamicCache(config=self.config)
        self.fill(cache, length)
        return cache

    def fill(self, cache: DynamicCache, length: int) -> None:
        """Appends to a cache what it lacks of the first `length` tokens."""
        held = cache.get_seq_length()
        for i in range(len(self.keys)):
            cache.update(self.keys[i, :, :, held:length].clone(), self.values[i, :, :, held:length].clone(), i)


class PromptCache(DynamicCache):
    """What the decoder takes for a cache while it reads the prompt: it writes straight into a state's buffers."""

    is_compileable = False

    def __init__(self, state: DecodeState, held: int = 0):
        """`held`: how many tokens the buffers hold before."""
        super().__init__()
        self.state, self.held = state, held

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.held

    def get_mask_sizes(self, query, layer_idx: int = 0) -> tuple[int, int]:
        """(keys, offset); 4.57 asks with the positions of the queries, 5.x with their number."""
        return self.held + (query.shape[0] if isinstance(query, torch.Tensor) else query), 0

    def update(self, key_states, value_states, layer_idx: int, *args, **kwargs):
        end = self.held + key_states.shape[2]
        keys, values = (each[layer_idx][:, :, :end] for each in (self.state.keys, self.state.values))
        keys[:, :, self.held :], values[:, :, self.held :] = key_states, value_states
        return (keys, values) if self.held else (key_states, value_states)


def _longest(config, length: int) -> int:
    """How far the table of rotary embeddings may reach: "dynamic" has other frequencies past the trained length."""
    dynamic = config.rope_parameters["rope_type"] == "dynamic"
    return min(length, config.max_position_embeddings) if dynamic else length


@contextlib.contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Runs what a graph will capture on a stream of its own, as CUDA asks for its first time."""
    if device.type != "cuda":
        yield
        return
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


@contextlib.contextmanager
def borrowed_state(model, rows: int, length: int, max_length: int) -> Iterator[DecodeState]:
    """A state with room for `length` tokens, and for `max_length` if that is not much more.

    Whatever raises in the block drops the state: nothing half-written is ever used again.
    """
    weights = DecodeWeights.of(model)
    embedding = weights.embedding
    kernels = choose(model.get_decoder().config.kernels, embedding.device, needs_grad=False, dtype=embedding.dtype)
    needed = -(-min(max_length, length + _AHEAD) // BUCKET) * BUCKET
    config = model.get_decoder().config
    needed = max(_longest(config, needed), length)
    with _POOL_LOCK:
        free = _POOL.setdefault(model, [])
        fitting = [state for state in free if state.fits(weights, rows, needed)]
        state = min(fitting, key=lambda each: each.capacity, default=None)
        if state is None:  # what is too small now, or lies elsewhere, is not kept beside a larger one
            free[:] = [each for each in free if each.rows != rows and each.device == embedding.device]
        else:
            free.remove(state)
    if state is None:
        try:
            state = DecodeState(model, rows, needed)
        except torch.OutOfMemoryError:  # what waits for other calls is given up for this one
            free_states(model)
            state = DecodeState(model, rows, needed)
    if state.given_back is not None:
        stream = torch.cuda.current_stream(state.device)
        stream.wait_event(state.given_back)
        for each in vars(state).values():  # it may be another stream than the one that they were made on
            if isinstance(each, torch.Tensor):
                each.record_stream(stream)
    state.bind(weights, kernels)
    try:
        yield state
    except torch.OutOfMemoryError:
        free_states(model)
        raise
    if state.device.type == "cuda":
        state.given_back = torch.cuda.Event()
        state.given_back.record(torch.cuda.current_stream(state.device))
    state.weights = None  # the addresses are enough, and the model may let its weights go
    with _POOL_LOCK:
        free = _POOL.setdefault(model, [])
        free.append(state)
        del free[:-_MAX_FREE]


def free_states(model) -> None:
    """Lets go of the buffers and graphs that wait for the model's next call."""
    with _POOL_LOCK:
        _POOL.pop(model, None)
