"""The sides of decode.py: transformers' caches, Argus in stages, and the limit that memory sets to all of them.

A side is a model, settings of `generate()` and what it changes while it runs; every change is undone after the call, so
that all sides of a process share two models' weights.
"""

import copy
import importlib.util
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from transformers.generation import CompileConfig

import modeling_argus.decode_state_argus as decode_state
import modeling_argus.generation_argus as generation
from modeling_argus.kernels_argus import choose

from .decode_prompts import Prompt
from .measuring import milliseconds
from .shapes import Shape

# Names of the sides in tables.
EAGER, STATIC = "transformers, eager", "transformers, static cache"
COMPILED = "transformers, static cache, compiled"
NORM, ROTARY = "+ fused RMSNorm", "+ fused rotary"
DEDUPLICATED, LOOP = "+ deduplicated: Argus, transformers' loop", "+ Argus' loop"
GRAPH, KERNELS = "+ CUDA graph", "+ decode kernels"
INT8 = "+ int8 weights (torchao)"


# --- what a side changes while it runs --------------------------------------------------------------------------------


@contextmanager
def known_images(reference, prompt: Prompt):
    """transformers' model gets the prompt's features for whatever pixels it is handed."""
    inner = reference.model

    @wraps(inner.get_image_features)  # generate() looks at its parameters
    def known(*args, **kwargs):
        return prompt.for_theirs(reference.dtype)

    inner.get_image_features = known
    try:
        yield
    finally:
        del inner.get_image_features


def _decoder(reference):
    """The text model of one of transformers' classes; 4.57's SmolVLM has no `get_decoder` that gives it."""
    return getattr(reference.model, "text_model", None) or reference.model.language_model


@contextmanager
def fused_norms(reference, kernels):
    """RMSNorm of transformers' decoder by one kernel in place of six."""
    norms = [m for m in _decoder(reference).modules() if type(m).__name__.endswith("RMSNorm")]

    def by_kernel(norm):
        return lambda x: kernels.rms_norm(x, norm.weight, norm.variance_epsilon)

    for norm in norms:
        norm.forward = by_kernel(norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


@contextmanager
def fused_rotary(reference, kernels):
    """Rotary of transformers' decoder by one kernel each for queries and keys, the sines' signs set once a step."""
    decoder = _decoder(reference)
    embedding, usual_embedding = decoder.rotary_emb, decoder.rotary_emb.forward
    module = sys.modules[type(decoder.layers[0].self_attn).__module__]
    usual = module.apply_rotary_pos_emb

    def signed(*args, **kwargs):
        cos, sin = usual_embedding(*args, **kwargs)
        half = sin.shape[-1] // 2
        return cos, torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)

    def rotate(q, k, cos, sin, *args, **kwargs):
        cos, sin = cos[:, None], sin[:, None]
        return kernels.rotary(q, cos, sin), kernels.rotary(k, cos, sin)

    embedding.forward, module.apply_rotary_pos_emb = signed, rotate
    try:
        yield
    finally:
        module.apply_rotary_pos_emb = usual
        del embedding.forward


@contextmanager
def without_graph():
    """Argus' loop launches its operations one by one, as on a CPU."""
    usual = decode_state.uses_graph
    decode_state.uses_graph = lambda device: False
    try:
        yield
    finally:
        decode_state.uses_graph = usual


@contextmanager
def counted():
    """Counts while the block runs: {"loops": answers by Argus' own loop, "buffers": made, "captures": of graphs}."""
    counts = dict.fromkeys(("loops", "buffers", "captures"), 0)
    places = ((generation, "decode"), (decode_state.DecodeState, "_allocate"), (decode_state, "capture"))
    usual = [getattr(*place) for place in places]

    def counting(function, name):
        def count(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return count

    for place, function, name in zip(places, usual, counts):
        setattr(*place, counting(function, name))
    try:
        yield counts
    finally:
        for place, function in zip(places, usual):
            setattr(*place, function)


# --- sides ------------------------------------------------------------------------------------------------------------


@dataclass
class Decoder:
    """One side: a model, settings of `generate()`, and context managers that hold while it runs.

    same_weights: whether its tokens have to be transformers'.
    """

    name: str
    model: Any
    ours: bool = False
    settings: dict = field(default_factory=dict)
    changes: tuple[Callable, ...] = ()
    same_weights: bool = True

    @torch.no_grad()
    def generate(self, prompt: Prompt, tokens: int, **settings):
        """Greedy: ids int64[B, tokens] of the new tokens, or with `return_dict_in_generate` the whole output."""
        options = {"max_new_tokens": tokens, "do_sample": False, **self.settings, **settings}
        images = known_images(self.model, prompt) if prompt.features is not None and not self.ours else nullcontext()
        with ExitStack() as stack:
            stack.enter_context(images)
            for change in self.changes:
                stack.enter_context(change())
            out = self.model.generate(**prompt.inputs(self.ours), **options)
        return out if settings.get("return_dict_in_generate") else out[:, prompt.ids.shape[1] :]

    def first_call(self, prompt: Prompt, tokens: int) -> tuple[float, list[list[int]]]:
        """(milliseconds, ids) of a call that compiles, captures and builds what later ones reuse.

        Raises:
            AssertionError: Argus handed over to transformers' loop where its own was to be measured, or the reverse.
        """
        for name in ("_cache", "_previous_max_cache_length"):  # a longer prompt's static cache would be used again
            vars(self.model).pop(name, None)
        with self.watched():
            return milliseconds(lambda: self.generate(prompt, tokens).tolist(), prompt.ids.device)

    @contextmanager
    def watched(self):
        """Counts as `counted` does, and refuses what another loop decoded than this side's; see `first_call`."""
        with counted() as counts:
            yield counts
        if self.ours and bool(counts["loops"]) == (self.settings.get("fast_decode") is False):
            loop = "Argus'" if counts["loops"] else "transformers'"
            raise AssertionError(f"{self.name}: decoded by {loop} loop")


def build_decoders(shape: Shape, reference, ours, compiled: bool | None = None) -> dict[str, Decoder]:
    """name -> side, slowest first.

    compiled: None means on CUDA, where `generate()` compiles a static cache's model by itself; on a CPU it has to be
        asked for, here and of transformers.
    """
    device = reference.device
    on_gpu = device.type == "cuda"
    static = {"cache_implementation": "static"}
    sides = [Decoder(EAGER, reference), Decoder(STATIC, reference, settings={**static, "disable_compile": True})]
    fused = choose("auto", device, needs_grad=False)
    norm, turn = (lambda f=f: f(reference, fused) for f in (fused_norms, fused_rotary))
    sides += [
        Decoder(NORM, reference, changes=(norm,)),
        Decoder(ROTARY, reference, changes=(norm, turn)),
        Decoder(DEDUPLICATED, ours, True, {"fast_decode": False}),
        Decoder(LOOP, sharing(ours, kernels="torch") if on_gpu else ours, True, changes=(without_graph,)),
    ]
    if on_gpu:  # the last one is Argus as it ships
        sides.append(Decoder(GRAPH, sharing(ours, kernels="torch"), True))
        sides.append(Decoder(KERNELS, ours, True))
    elif ours.dtype == torch.bfloat16 and importlib.util.find_spec("torchao") is not None:
        sides.append(Decoder(INT8, int8_copy(ours), True))
    if on_gpu if compiled is None else compiled:
        config = CompileConfig()
        config._compile_all_devices = True  # transformers' own switch for a CPU; its only one
        sides.append(Decoder(COMPILED, reference, settings={**static, "compile_config": config}))
    for side in sides:
        side.same_weights = not side.ours or shape.kind != "qwen3_vl"
    return {side.name: side for side in sides}


def sharing(model, copied: str = "-", kernels: str | None = None):
    """The model again over the same weights, but for copies of those whose names hold `copied`.

    It has buffers and graphs of its own: a model whose kernels changed from call to call would capture anew each time.
    """
    other = copy.deepcopy(model, {id(p): p for name, p in model.named_parameters() if copied not in name})
    other.config.kernels = kernels or model.config.kernels
    return other


def int8_copy(model):
    """The model with an int8 decoder and head, one scale a row."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    other = sharing(model)
    # New modules' weights take the old ones' places: the model that they are shared with keeps its own.
    quantize_(other.model.text_model, Int8WeightOnlyConfig())
    quantize_(other, Int8WeightOnlyConfig(), filter_fn=lambda module, name: name == "lm_head")
    return other


# --- physics ----------------------------------------------------------------------------------------------------------


def read_bandwidth(device, seconds: float = 1.0) -> float:
    """Bytes a second that this device reads from a tensor larger than its caches: the best of a sum and a product."""
    device = torch.device(device)
    data = torch.ones(2**30 if device.type == "cuda" else 2**26, device=device)
    rows, vector = data.view(-1, 4096), torch.ones(4096, device=device)
    best, start = float("inf"), time.perf_counter()
    while True:
        best = min(best, milliseconds(data.sum, device)[0], milliseconds(lambda: rows @ vector, device)[0])
        if time.perf_counter() - start > seconds:
            break
    return data.numel() * 4 / best * 1000


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a weight as it lies; of a quantised one those of its values and scales."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(stored_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.dtype.itemsize


def bytes_per_step(model, batch: int, context: float) -> int:
    """What a step of decoding cannot but read: the decoder's and the head's weights once, each row's keys and values.

    context: tokens in the cache, on average over the steps.
    """
    config, decoder = model.config.get_text_config(), _decoder(model)
    embedding = decoder.get_input_embeddings().weight
    weights = sum(stored_bytes(p) for p in decoder.parameters() if p is not embedding)
    weights += stored_bytes(model.get_output_embeddings().weight)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * context * batch
    return int(weights + cache * embedding.dtype.itemsize)
