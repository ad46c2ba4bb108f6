"""A stranger's script: everything that a hub folder is for, each step on its own. Knows transformers and nothing else.

use_hub_folder.py REPOSITORY SAVED REPORT: REPOSITORY is a folder or a repository id, SAVED a folder to save it to,
REPORT a JSON file of {step: null or the error}.
"""

import json
import sys
import traceback
from pathlib import Path

import torch
import transformers
from PIL import Image

repository, saved, report = sys.argv[1:]
OLD = transformers.__version__.startswith("4.")
steps = {}


def step(function):
    try:
        function()
        steps[function.__name__] = None
    except Exception:
        steps[function.__name__] = traceback.format_exc()


def picture():
    image = Image.linear_gradient("L").resize((70, 40)).convert("RGB")
    image.paste((200, 30, 40), (10, 5, 30, 25))
    return image


def conversation():
    return [
        {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "Describe it."}]}
    ]


def answer(path, auto_class=transformers.AutoModelForImageTextToText):
    """Greedy token ids and their text, by the snippet that README shows."""
    processor = transformers.AutoProcessor.from_pretrained(path, trust_remote_code=True)
    model = auto_class.from_pretrained(path, trust_remote_code=True, dtype="auto")
    inputs = processor.apply_chat_template(
        conversation(), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    new_ids = ids[:, inputs["input_ids"].shape[1] :]
    return new_ids.tolist(), processor.batch_decode(new_ids, skip_special_tokens=True), model, processor


@step
def project_is_not_importable():
    for name in ("modeling_argus", "processing_argus", "argus_tools"):
        try:
            __import__(name)
        except ModuleNotFoundError:
            continue
        raise AssertionError(f"{name} is importable: this run proves nothing")


@step
def auto_config():
    config = transformers.AutoConfig.from_pretrained(repository, trust_remote_code=True)
    assert config.model_type == "argus" and type(config).__module__.startswith("transformers_modules."), type(config)
    assert config.text_config.model_type == "argus_text" and config.vision_config.model_type == "argus_vision"


@step
def auto_image_processor():
    if getattr(transformers.AutoImageProcessor, "is_dummy", False):  # 5.6 has it with torchvision only
        assert not transformers.utils.is_torchvision_available()
        return
    choices = [{}, {"use_fast": False}] if OLD else [{}]
    if OLD and transformers.utils.is_torchvision_available():  # 4.57 itself refuses use_fast=True without torchvision
        choices.append({"use_fast": True})
    for choice in choices:
        image_processor = transformers.AutoImageProcessor.from_pretrained(repository, trust_remote_code=True, **choice)
        assert type(image_processor).__name__ == "ArgusImageProcessor", (choice, type(image_processor))
        pixel_values = image_processor(picture(), return_tensors="pt")["pixel_values"]
        assert pixel_values.dtype == torch.uint8 and pixel_values.ndim == 4, (
            choice,
            pixel_values.dtype,
            pixel_values.shape,
        )


@step
def auto_tokenizer():
    tokenizer = transformers.AutoTokenizer.from_pretrained(repository, trust_remote_code=True)
    assert tokenizer.decode(tokenizer("a box").input_ids, skip_special_tokens=True) == "a box"


@step
def auto_processor():
    processor = transformers.AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    assert type(processor).__name__ == "ArgusProcessor" and isinstance(processor, transformers.ProcessorMixin)
    assert processor.tokenizer.padding_side == "left"
    text = processor.apply_chat_template(conversation(), add_generation_prompt=True, tokenize=False)
    assert "Describe it." in text and text.rstrip().endswith("Assistant:"), text


@step
def auto_model():
    model = transformers.AutoModel.from_pretrained(repository, trust_remote_code=True)
    assert type(model).__name__ == "ArgusModel" and not any(p.is_meta for p in model.parameters())


@step
def auto_model_for_image_text_to_text():
    ids, text, model, _ = answer(repository)
    assert type(model).__name__ == "ArgusForConditionalGeneration" and model.can_generate()
    assert len(ids[0]) == 8 and isinstance(text[0], str)


@step
def auto_model_for_the_name_of_this_major():
    if OLD:
        # Literally what scripts of the time say.
        from transformers import AutoModelForVision2Seq

        model = AutoModelForVision2Seq.from_pretrained(repository, trust_remote_code=True)
        assert type(model).__name__ == "ArgusForConditionalGeneration"
        other = AutoModelForVision2Seq
    else:
        other = transformers.AutoModelForMultimodalLM
    assert answer(repository, other)[0] == answer(repository)[0]


@step
def saved_again_and_reloaded():
    ids, text, model, processor = answer(repository)
    model.save_pretrained(saved)
    processor.save_pretrained(saved)
    files = {path.name for path in Path(saved).iterdir()}
    assert {"modeling_argus.py", "processing_argus.py", "model.safetensors", "config.json"} <= files, files
    assert answer(saved)[:2] == (ids, text)


@step
def image_text_to_text_pipeline():
    pipe = transformers.pipeline("image-text-to-text", model=repository, trust_remote_code=True)
    out = pipe(text=conversation(), max_new_tokens=4, return_full_text=False, generate_kwargs={"do_sample": False})
    assert isinstance(out[0]["generated_text"], str), out


@step
def dense_captioning_pipeline():
    pipe = transformers.pipeline("dense-captioning", model=repository, trust_remote_code=True)
    found = pipe([picture(), picture()], batch_size=2, max_new_tokens=12)
    regions = pipe.model.dense_caption([picture()] * 2, processor=pipe.processor, max_new_tokens=12)
    assert [[each["label"] for each in row] for row in found] == [row["captions"] for row in regions], found
    # pipeline() leaves classes in the configuration; saved, they are names again, and the code comes along.
    folder = f"{saved}-by-pipeline"
    pipe.model.save_pretrained(folder)
    pipe.processor.save_pretrained(folder)
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    assert config["custom_pipelines"]["dense-captioning"]["pt"] == ["AutoModelForImageTextToText"], config
    again = transformers.pipeline("dense-captioning", model=folder, trust_remote_code=True)
    assert again([picture(), picture()], batch_size=2, max_new_tokens=12) == found


@step
def task_calls():
    _, _, model, processor = answer(repository)
    images = [picture(), picture()]
    captions = model.caption(images, processor=processor, max_new_tokens=4)
    assert len(captions) == 2 and captions[0] == captions[1] and isinstance(captions[0], str), captions
    regions = model.dense_caption(images, processor=processor, max_new_tokens=12)
    assert len(regions) == 2 and regions[0]["boxes"].shape == (len(regions[0]["captions"]), 4), regions
    encoded = model.encode_images(images, processor=processor)
    for _ in range(2):
        assert model.caption(encoded, processor=processor, max_new_tokens=4) == captions, encoded


Path(report).write_text(json.dumps(steps), encoding="utf-8")
