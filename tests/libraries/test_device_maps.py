"""accelerate's `device_map`: on one device, split, offloaded to disk; the tokens are those of a model that is whole."""

import threading

import accelerate
import pytest
import torch
import transformers
from transformers import TextIteratorStreamer

OLD = transformers.__version__.startswith("4.")


def split(model, text: str, half: bool = False) -> dict[str, str]:
    """A device_map with the text model, or the latter half of its layers, on `text`."""
    parts = {"model.vision_model": "cpu", "model.connector": "cpu", "lm_head": "cpu"}
    names = [name for name, _ in model.model.text_model.named_children() if name != "layers"]
    parts |= {f"model.text_model.{name}": "cpu" for name in names}
    layers = len(model.model.text_model.layers)
    return parts | {
        f"model.text_model.layers.{n}": text if not half or n >= layers // 2 else "cpu" for n in range(layers)
    }


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
def test_one_device(load, generated, expected, processor, picture, device_map):
    model = load(device_map=device_map)
    assert torch.equal(generated(model), expected)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert len(model.dense_caption([picture], processor=processor)) == 1


@pytest.mark.parametrize("half", [True, False], ids=["half of the layers", "all layers"])
def test_layers_on_disk(load, generated, expected, tmp_path, half):
    model = load(device_map=split(load(), "disk", half), offload_folder=tmp_path)
    offloaded = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    assert offloaded and all(name.startswith("model.text_model.layers.") for name in offloaded)
    assert torch.equal(generated(model), expected)


def test_the_vision_tower_on_disk(load, generated, expected, processor, picture, tmp_path):
    device_map = {"model.vision_model": "disk", "model.connector": "cpu", "model.text_model": "cpu", "lm_head": "cpu"}
    model = load(device_map=device_map, offload_folder=tmp_path)
    assert all(parameter.is_meta for parameter in model.model.vision_model.parameters())
    assert torch.equal(generated(model), expected)
    found = model.dense_caption([picture], processor=processor)[0]
    whole = load().dense_caption([picture], processor=processor)[0]
    assert found["captions"] == whole["captions"] and torch.equal(found["boxes"], whole["boxes"])


@pytest.mark.skipif(OLD, reason="4.57 loses tied heads that lie on disk, those of its own models too")
def test_a_memory_limit(load, generated, expected, tmp_path):
    size = sum(parameter.numel() * parameter.element_size() for parameter in load().parameters())
    model = load(device_map="auto", max_memory={"cpu": size // 2}, offload_folder=tmp_path)
    assert {"cpu", "disk"} == {str(device) for device in model.hf_device_map.values()}
    assert torch.equal(generated(model), expected)


def test_everything_on_disk(load, generated, expected, tmp_path):
    model = load()
    accelerate.disk_offload(model, str(tmp_path))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(generated(model), expected)


def test_no_layer_is_split():
    """What `device_map="auto"` keeps whole: residual connections would cross devices otherwise."""
    from modeling_argus import ArgusForConditionalGeneration

    assert {"ArgusVisionLayer", "ArgusTextLayer"} <= set(ArgusForConditionalGeneration._no_split_modules)


def test_streamed_from_an_offloaded_model(load, inputs, processor, expected, tmp_path):
    model = load(device_map=split(load(), "disk", True), offload_folder=tmp_path)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=120)
    thread = threading.Thread(target=model.generate, kwargs={**inputs, "streamer": streamer, "max_new_tokens": 24})
    thread.start()
    pieces = "".join(streamer)
    thread.join()
    assert pieces == processor.decode(expected[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
