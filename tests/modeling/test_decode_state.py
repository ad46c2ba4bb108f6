"""The decoding step can be captured: it takes nothing, reads nothing, and does the same at every position. What it
launches is counted, and graphs are followed with a stand-in that replays by calling."""

import copy
from collections import Counter

import pytest
import torch
from test_decode_loop import NEW, both, states
from tiny import SHAPES, tiny_config, tiny_inputs, tiny_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import modeling_argus.modeling_argus
from modeling_argus import (
    ArgusForConditionalGeneration,
    decode_state_argus,
    decode_weights_argus,
    text_argus,
    vision_argus,
)
from modeling_argus.decode_loop_argus import _Prompt
from modeling_argus.decode_state_argus import DecodeState
from modeling_argus.decode_weights_argus import DecodeWeights
from modeling_argus.kernels_argus import TORCH


class Ops(TorchDispatchMode):
    """Lists (operator, shapes, addresses of what is no intermediate result)."""

    def __init__(self, static=()):
        self.static, self.ops = {each.data_ptr() for each in static}, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        def shown(each):
            if isinstance(each, torch.Tensor):
                address = each.data_ptr() if each.data_ptr() in self.static else None
                return (tuple(each.shape), tuple(each.stride()), each.dtype, address)
            if isinstance(each, (list, tuple)):
                return tuple(map(shown, each))
            return each if not isinstance(each, float) else round(each, 9)

        self.ops.append((str(function), shown(args), shown(tuple((kwargs or {}).values()))))
        return function(*args, **(kwargs or {}))

    def computing(self):
        """Names of the operators that compute or copy: on a GPU, one launch each or more."""
        views = ("view", "slice", "select", "transpose", "expand", "unsqueeze", "split", "detach", "alias", "t.default",
                 "empty", "squeeze", "unbind", "permute", "reshape", "as_strided")  # fmt: skip
        return [name for name, *_ in self.ops if not any(name.split("aten.")[-1].startswith(view) for view in views)]


@pytest.fixture
def as_graph(monkeypatch):
    """Steps are captured by a stand-in for CUDA's: it lists the captures, and replays by calling."""
    captured = []

    def capture(step, device):
        captured.append(step)
        return step

    monkeypatch.setattr(decode_state_argus, "uses_graph", lambda device: True)
    monkeypatch.setattr(decode_state_argus, "capture", capture)
    return captured


def begun(model, rows=2, length=5):
    state = DecodeState(model, rows, 64)
    state.bind(DecodeWeights.of(model), TORCH)
    state.begin(length, None, None, torch.tensor([2]), torch.tensor(0))
    return state


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_does_the_same_at_two_positions(model, as_graph, rows):
    state = begun(model, rows)
    static = [each for each in vars(state).values() if isinstance(each, torch.Tensor)]
    traces = []
    for steps in (1, 23):
        for _ in range(steps - 1):
            state.step(chooses=True)
        with Ops([*static, *state.weights.tensors()]) as trace:
            state.forward_and_choose()
        state.length += 1
        traces.append(trace.ops)
    assert traces[0] == traces[1] and len(traces[0]) > 50
    assert int(state.slot) == state.length - 1
    forbidden = ("local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default", "lift_fresh")
    assert not [name for name, *_ in traces[0] if any(each in name for each in forbidden)]


# What a step launches on a CPU, by rows: a layer's norms, products, rotation, cache writes, attention, sums; then the
# embedding, the rotary rows, the head and the choice. transformers' loop is counted beside it.
PER_LAYER, BESIDES = 27, 23


@torch.no_grad()
def test_operators_of_a_step_are_counted(siglip_llama, record_ops):
    few, many = (tiny_model(text_config={"num_hidden_layers": layers}) for layers in (2, 6))
    counts = []
    for model in (few, many):
        state = begun(model, rows=1)
        state.length += 1
        with Ops() as ops:
            state.forward_and_choose()
        counts.append(ops.computing())
    per_layer = (len(counts[1]) - len(counts[0])) / 4
    besides = len(counts[0]) - 2 * per_layer
    ours, theirs = (loop_ops(siglip_llama, fast_decode=fast) for fast in (None, False))
    record_ops(per_layer, besides, len(ours), len(theirs))
    assert per_layer <= PER_LAYER and besides <= BESIDES
    names = " ".join(counts[1])
    for absent in (
        "repeat_interleave",
        "aten.cat",
        "aten.expand",
        "aten.clone",
        "triu",
        "masked_fill",
        "cos",
        "sin",
        "_to_copy",
    ):
        assert absent not in names, absent
    # Beside the step itself the loop copies out whether all rows have ended, looks at it, and no more.
    assert len(ours) <= 3 * PER_LAYER + BESIDES + 2
    sampled = loop_ops(siglip_llama, do_sample=True, top_k=0, repetition_penalty=1.2)
    # One copy of the logits in fp32, which a processor may write into, and that of the end; no ids put together.
    assert sum("_to_copy" in name for name in sampled) == 2
    assert not [name for name in sampled if "aten.cat" in name or "aten.clone" in name]


def loop_ops(model, **options):
    """The operators of one step of generate(): what three new tokens take more than two."""
    counts = []
    for new in (2, 3):
        with Ops() as ops:
            model.generate(**tiny_inputs(model, (1,)), max_new_tokens=new, **options)
        counts.append(Counter(ops.computing()))
    return list((counts[1] - counts[0]).elements())


@pytest.fixture
def record_ops(capsys):
    def show(per_layer, besides, ours, theirs):
        with capsys.disabled():
            print(f"\n{per_layer:g} operators a layer and {besides:g} besides; a step of generate() over 3 layers: "
                  f"{ours}, by transformers' loop {theirs}")  # fmt: skip

    return show


def test_a_second_call_captures_nothing(as_graph):
    model = tiny_model()
    ours, theirs = both(model, tiny_inputs(model, (2,)))
    assert torch.equal(ours, theirs) and len(as_graph) == 1
    for inputs in (tiny_inputs(model, (3,), seed=2), tiny_inputs(model, (1,), text_length=11, seed=3)):
        ours, theirs = both(model, inputs, max_new_tokens=2 * NEW)
        assert torch.equal(ours, theirs)
    assert len(as_graph) == 1 and len(states(model)) == 1
    for options in ({"temperature": 0.5}, {"temperature": 0.9, "top_k": 5}, {"top_p": 0.5}):
        ours, theirs = both(model, tiny_inputs(model, (2,)), do_sample=True, **options)
        assert torch.equal(ours, theirs)
    assert len(as_graph) == 2  # one step chooses itself, the other leaves it to processors and samplers
    model.generate(**tiny_inputs(model, (2, 1)), max_new_tokens=NEW)
    assert len(as_graph) == 3  # other rows, other buffers


def test_a_new_bucket_is_captured_once(as_graph, monkeypatch):
    monkeypatch.setattr(decode_state_argus, "BUCKET", 32)
    model = tiny_model()
    for length, captures in ((20, 1), (24, 1), (50, 2), (64, 2), (20, 2)):
        ours, theirs = both(model, tiny_inputs(model, (2,)), max_new_tokens=None, max_length=length)
        assert torch.equal(ours, theirs)
        assert len(as_graph) == captures, length
    assert [state.capacity for state in states(model)] == [64]


def test_buffers_that_grow_are_captured_anew(as_graph, monkeypatch):
    monkeypatch.setattr(decode_state_argus, "BUCKET", 16)
    monkeypatch.setattr(decode_state_argus, "_AHEAD", 1)
    model = tiny_model()
    ours, theirs = both(model, tiny_inputs(model, (2, 1)), max_new_tokens=100)
    assert torch.equal(ours, theirs)
    (state,) = states(model)
    assert state.capacity == 128 and len(as_graph) == 4


def test_other_weights_are_captured_anew(as_graph):
    model = tiny_model()
    inputs = tiny_inputs(model, (2,))
    model.generate(**inputs, max_new_tokens=NEW)
    layer = model.model.text_model.layers[0]
    with torch.no_grad():
        layer.mlp.down_proj.weight.mul_(2)  # in place: the graph reads it
    ours, theirs = both(model, inputs)
    assert torch.equal(ours, theirs) and len(as_graph) == 1
    layer.mlp.down_proj.weight = torch.nn.Parameter(layer.mlp.down_proj.weight.detach() * 2)
    ours, theirs = both(model, inputs)
    assert torch.equal(ours, theirs) and len(as_graph) == 2


@torch.no_grad()
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_on_a_gpu_nothing_meets_the_cpu(monkeypatch, shape):
    """Prompt and steps over tensors that have a CUDA device and no values: another device, or a read, would raise."""
    for module in (decode_state_argus, text_argus):
        monkeypatch.setattr(module, "choose", lambda *args, **kwargs: TORCH)
    for module in (modeling_argus.modeling_argus, vision_argus):
        monkeypatch.setattr(module, "require", lambda *args: None)
    monkeypatch.setattr(decode_weights_argus, "decode_weight", lambda linear: linear.weight.detach())
    with FakeTensorMode():
        with torch.device("cuda"):
            model = ArgusForConditionalGeneration(tiny_config(shape)).eval()
            ids, side = torch.zeros(2, 14, dtype=torch.int64), model.config.vision_config.image_size
            images = {"pixel_values": torch.zeros(3, 3, side, side, dtype=torch.uint8)}
            eos, pad = torch.zeros(2, dtype=torch.int64), torch.zeros((), dtype=torch.int64)
        state = DecodeState(model, 2, 64)
        state.bind(DecodeWeights.of(model), TORCH)
        for mask, is_padded in ((None, None), (torch.ones_like(ids), True), (torch.ones_like(ids), False)):
            prompt = _Prompt(model, ids, {"attention_mask": mask, **images}, is_padded)
            state.logits.copy_(prompt.read_into(state, eos, pad))
            state.choose()
            for _ in range(2):
                state.forward_and_choose()
            with pytest.raises(Exception, match=r"DataDependent|data-dependent|_local_scalar_dense"):
                bool(state.ended)
        with pytest.raises(RuntimeError, match="device"):
            state.token + torch.zeros(2, dtype=torch.int64)
        assert {each.device.type for each in vars(state).values() if isinstance(each, torch.Tensor)} == {"cuda"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: graphs are captured there alone")
@pytest.mark.parametrize("kernels", ["torch", "auto"])
@pytest.mark.parametrize("tiles", [(2,), (2, 1)])
def test_graphs_on_a_gpu(model, kernels, tiles):
    model = copy.deepcopy(model).cuda()
    model.config.kernels = kernels
    inputs = {name: value.cuda() for name, value in tiny_inputs(model, tiles).items()}
    for options in ({}, {"do_sample": True, "top_k": 5}, {"num_return_sequences": 2, "do_sample": True}):
        for _ in range(2):
            ours, theirs = both(model, inputs, **options)
            assert torch.equal(ours, theirs)
    assert all(state.graphs for state in states(model))
