"""No read of a device value once vision is launched: counted on the CPU as if each read made the host wait (recipe of
Section 5.4: no synchronisation), and by CUDA's own debug mode on a GPU."""

import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from test_encoded import build, chat
from tiny import tiny_inputs
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_argus import checks_argus, decode_loop_argus, text_argus, vision_argus
from modeling_argus.text_argus import ArgusTextModel
from modeling_argus.vision_argus import ArgusVisionModel

READING_OPS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2", "unique_dim", "equal",
               "bincount")  # fmt: skip
READING_METHODS = ("tolist", "numpy", "cpu", "__array__")  # the rest become one of those ops


def who_reads():
    """(whether the read is ours, "function file") of the call that led to the read that is going on."""
    frame, name = sys._getframe(2), None
    while frame is not None:
        file = frame.f_code.co_filename
        owner = frame.f_locals.get("self")
        owner = "" if owner is None or isinstance(owner, torch.nn.Module) else f"{type(owner).__name__}."
        place = f"{owner}{frame.f_code.co_name} ({'/'.join(file.split('/')[-2:])})"
        if "modeling_argus" in file.split("/")[-2:-1]:
            return True, name or place
        if "transformers" in file:
            name = name or place
            if "/generation/" in file:  # the loop itself; masks and caches are ours to call or not
                return False, name
        frame = frame.f_back
    return False, name or "the test"


class Reads:
    """While entered, lists every read of a tensor's values: (ours, who, whether vision was launched before)."""

    def __init__(self, monkeypatch, launches=ArgusVisionModel):
        """`launches`: what is taken for vision, where images are encoded already."""
        self.reads, self.vision_launched = [], False
        forward = launches.forward

        def launching(tower, *args, **kwargs):
            self.vision_launched = True
            return forward(tower, *args, **kwargs)

        monkeypatch.setattr(launches, "forward", launching)
        reads = self

        class Ops(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                name = function._schema.name.split("::")[1]
                by_mask = name.startswith("index") and any(
                    isinstance(index, torch.Tensor) and index.dtype == torch.bool
                    for each in args[1:]
                    for index in (each if isinstance(each, (list, tuple)) else ())
                )
                by_counts = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
                if name in READING_OPS or by_mask or by_counts:
                    reads.add()
                return function(*args, **(kwargs or {}))

        class Methods(TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                name = getattr(function, "__name__", "")
                # By the literal "cpu": a model's own device is one here, and stands for a GPU.
                to_host = name == "to" and "cpu" in [x for x in (*args, *(kwargs or {}).values()) if type(x) is str]
                if name in READING_METHODS or (to_host and not (kwargs or {}).get("non_blocking")):
                    reads.add()
                return function(*args, **(kwargs or {}))

        self.modes = (Methods(), Ops())

    def add(self):
        self.reads.append((*who_reads(), self.vision_launched))

    def __enter__(self):
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *error):
        for mode in reversed(self.modes):
            mode.__exit__(*error)

    def ours(self, after_vision=None):
        return [who for ours, who, after in self.reads if ours and after_vision in (None, after)]


def looks_at_what_has_arrived(who):
    """A check's outcome on the host, of which `settle` asks the event first; how a step ended, once the next runs."""
    return "settle (" in who or "_Run._look (" in who


@pytest.fixture
def as_if_on_a_gpu(monkeypatch):
    """Every read is one to avoid; what has been copied to the host is there once the loop has read its stop flag."""
    for module in (checks_argus, decode_loop_argus, text_argus, vision_argus):
        monkeypatch.setattr(module, "reading_waits", lambda tensor: True)


@torch.no_grad()
def test_the_counter_sees_reads(monkeypatch):
    x = torch.arange(3)
    for name, read in {
        "tolist": lambda: x.tolist(),
        "item": lambda: x.sum().item(),
        "bool": lambda: bool(x.any()),
        "index": lambda: x[x > 1],
        "nonzero": lambda: x.nonzero(),
        "numpy": lambda: x.numpy(),
        "masked_select": lambda: torch.masked_select(x, x > 1),
        "to": lambda: x.to("cpu"),
        "to, by name": lambda: x.to(device="cpu"),
        "repeat_interleave": lambda: x.repeat_interleave(x),
        "repeat_interleave, the function": lambda: torch.repeat_interleave(x, x, dim=0),
        "bincount": lambda: torch.bincount(x),
    }.items():
        with Reads(monkeypatch) as reads:
            read()
        assert reads.reads, name
    with Reads(monkeypatch) as reads:
        torch.where(x > 1, x, 0).cumsum(0)
        x.to("cpu", non_blocking=True).to(torch.int32).to(x.device)
        x.repeat_interleave(2)
    assert not reads.reads


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("tiles_per_row", [(2,), (2, 1), (1, 1)])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_generation_reads_nothing_once_vision_is_launched(
    model, monkeypatch, as_if_on_a_gpu, implementation, tiles_per_row, options, record_reads
):
    inputs = tiny_inputs(model, tiles_per_row=tiles_per_row)
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        with Reads(monkeypatch) as reads:
            model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, **options)
    finally:
        model.set_attn_implementation(before)
    assert reads.vision_launched
    late = [who for who in reads.ours(after_vision=True) if not looks_at_what_has_arrived(who)]
    assert late == []
    early = reads.ours(after_vision=False)
    assert len(early) <= 1, early  # generate's one read of the mask
    if not options:
        record_reads([who for ours, who, _ in reads.reads if not ours])


@torch.no_grad()
def test_a_mismatch_is_raised_with_the_first_token(model, monkeypatch, as_if_on_a_gpu):
    inputs = tiny_inputs(model, tiles_per_row=(2, 1))
    steps = []
    hook = model.lm_head.register_forward_hook(lambda *call: steps.append(1))
    try:
        for new_tokens in (1, 8):
            for tiles in (inputs["pixel_values"][:2], inputs["pixel_values"].repeat(2, 1, 1, 1)):
                steps.clear()
                with pytest.raises(ValueError, match=r"image tokens and tiles do not match: the rows hold \["):
                    model.generate(**{**inputs, "pixel_values": tiles}, max_new_tokens=new_tokens)
                assert len(steps) == 1
            raw = inputs["pixel_values"].float()
            with pytest.raises(ValueError, match="no normalised pixels: they hold values in"):
                model.generate(**{**inputs, "pixel_values": raw}, max_new_tokens=new_tokens)
            assert model.generate(**inputs, max_new_tokens=new_tokens).shape[0] == 2  # the model is as it was
    finally:
        hook.remove()
    with pytest.raises(ValueError, match="do not match"):  # outside of generate() at once
        model(**{**inputs, "pixel_values": inputs["pixel_values"][:1]})


@torch.no_grad()
def test_a_streamer_gets_no_token_of_a_refused_prompt(model, as_if_on_a_gpu):
    class Streamer:
        def __init__(self):
            self.put_shapes, self.ended = [], 0

        def put(self, value):
            self.put_shapes.append(tuple(value.shape))

        def end(self):
            self.ended += 1

    inputs = tiny_inputs(model, tiles_per_row=(2,))
    streamer = Streamer()
    model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, streamer=streamer)
    assert streamer.put_shapes == [tuple(inputs["input_ids"].shape), (1,), (1,), (1,)] and streamer.ended == 1
    streamer = Streamer()
    with pytest.raises(ValueError, match="do not match"):
        model.generate(**{**inputs, "pixel_values": inputs["pixel_values"][:1]}, max_new_tokens=3, streamer=streamer)
    assert streamer.put_shapes == [tuple(inputs["input_ids"].shape)]
    assert streamer.ended == 1  # whoever iterates over it in another thread goes on


@torch.no_grad()
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_sampling_does_not_fail_before_bad_pixels_are_refused(model, as_if_on_a_gpu, value):
    """On a GPU a sample from NaN probabilities would make the device unusable."""
    inputs = tiny_inputs(model, tiles_per_row=(2,))
    pixels = torch.full(inputs["pixel_values"].shape, value)
    with pytest.raises(ValueError, match="no normalised pixels"):
        model.generate(**{**inputs, "pixel_values": pixels}, do_sample=True, max_new_tokens=4)


@torch.no_grad()
def test_outcomes_are_looked_at_when_they_have_arrived():
    """A stand-in for a CUDA event that is not ready at first."""

    class Event:
        ready = False

        def query(self):
            return self.ready

        def synchronize(self):
            self.ready = True

    checks, event = checks_argus.DeferredChecks(), Event()
    checks._waiting.append((torch.tensor(False), event, "wrong", lambda: "why"))
    checks.settle()  # nothing has arrived
    with pytest.raises(ValueError, match="wrong: why"):
        checks.settle(wait=True)
    assert event.ready
    checks.settle(wait=True)  # said once


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA's sync debug mode needs a GPU")
@torch.no_grad()
def test_cuda_waits_for_nothing_of_ours(model, monkeypatch):
    device_model = model.to("cuda")
    try:
        inputs = {name: value.to("cuda") for name, value in tiny_inputs(model, tiles_per_row=(2, 1)).items()}
        device_model.generate(**inputs, max_new_tokens=4)
        launched = []
        forward = ArgusVisionModel.forward
        monkeypatch.setattr(
            ArgusVisionModel, "forward", lambda *args, **kwargs: (launched.append(1), forward(*args, **kwargs))[1]
        )
        late = []
        monkeypatch.setattr(
            warnings, "showwarning", lambda *args, **kwargs: late.append(who_reads()) if launched else None
        )
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            device_model.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert [who for ours, who in late if ours] == []
    finally:
        model.to("cpu")


# --- the task calls ---------------------------------------------------------------------------------------------------

RESULTS = "_read_back (modeling_argus/tasks_argus.py)"


def late_reads(reads) -> list[str]:
    """Ours, once vision is launched, and before the results."""
    late = [who for who in reads.ours(after_vision=True) if not looks_at_what_has_arrived(who)]
    while late and late[-1] == RESULTS:
        late.pop()
    return late


@pytest.fixture(scope="module")
def task_model():
    return build()


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize("questions", ["What?", ["What?", "Where is it?"], ["What?", "Why?"]])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"repetition_penalty": 1.5}])
def test_task_calls_read_nothing_once_vision_is_launched(
    task_model, photo, monkeypatch, as_if_on_a_gpu, questions, options
):
    model, processor = task_model
    with Reads(monkeypatch) as reads:
        model.answer(photo, questions, processor=processor, max_new_tokens=3, do_sample=False, **options)
    assert reads.vision_launched
    assert late_reads(reads) == []


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_encoded_images_are_asked_without_reads(task_model, photo, monkeypatch, as_if_on_a_gpu, kept, several):
    model, processor = task_model
    with Reads(monkeypatch) as reads:
        encoded = model.encode_images([photo, photo.rotate(90)], processor=processor)
    assert reads.vision_launched and late_reads(reads) == []
    early = [who.split()[0] for who in reads.ours(after_vision=False)]
    assert early.count("weights_mark") == 1
    ask = {"processor": processor, "max_new_tokens": 3, "do_sample": False}
    images, questions = ([[encoded[0], encoded[1]]], ["Which?"]) if several else (encoded[0], ["What?", "Where is it?"])
    if kept:
        model.answer(images, questions, **ask)
    with Reads(monkeypatch, launches=ArgusTextModel) as reads:
        model.answer(images, questions, **ask)
    assert reads.vision_launched and late_reads(reads) == []
    assert [who.split()[0] for who in reads.ours()].count("weights_mark") == 1


def test_with_prefix_reads_only_the_prompts(task_model, photo, monkeypatch, as_if_on_a_gpu):
    model, processor = task_model
    (encoded,) = model.encode_images(photo, processor=processor)
    inputs = chat(processor, [encoded], "What?")
    with Reads(monkeypatch, launches=ArgusTextModel) as reads:
        inputs = model.with_prefix(inputs, encoded)
    assert reads.vision_launched and late_reads(reads) == []
    assert {who.split()[0] for who in reads.ours()} == {"_lists", "weights_mark"}
    with Reads(monkeypatch, launches=ArgusTextModel) as reads:
        model.generate(**inputs, max_new_tokens=3)
    assert late_reads(reads) == []
