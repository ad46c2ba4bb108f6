"""A converted processor against the source's own: the same prompts, ids, grids and tiles, from the same files."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from reference_checkpoints import forget_long_prompts
from transformers import AutoProcessor

import processing_argus  # noqa: F401 - registers ArgusProcessor with AutoProcessor

SIZES = [(70, 45), (33, 100), (20, 20), (128, 128), (64, 31), (200, 90)]  # width, height


def picture(width, height, seed=0):
    """Smooth shapes and noise: both slow and fast changes, so that filters and their rounding show."""
    generator = np.random.default_rng([seed, width, height])
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 90 * np.sin(x / (3 + 2 * c) + y / (5 + c)) for c in range(3)]
    noise = generator.integers(-30, 31, (height, width, 3))
    return Image.fromarray(np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8))


def image_processor_class(source, backend):
    """transformers' class for a backend, or None where this version has none of that kind."""
    fast = backend == "torchvision"
    if not source.is_smolvlm:
        names = ("GotOcr2ImageProcessorFast",) if fast else ("GotOcr2ImageProcessorPil", "GotOcr2ImageProcessor")
    else:
        kind = "SmolVLM" if source.name == "smolvlm" else "Idefics3"
        names = (f"{kind}ImageProcessorFast",) if fast else (f"{kind}ImageProcessorPil", f"{kind}ImageProcessor")
    return next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)


def reference_settings(source):
    """The published settings; the original InternVL layout keeps them in config.json, so those of its -hf twin."""
    import json

    if source.name == "internvl_chat":
        return {
            "size": {"height": 32, "width": 32},
            "min_patches": 1,
            "max_patches": 6,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "resample": 3,
        }
    raw = json.loads((source.folder / "preprocessor_config.json").read_text())
    return {k: v for k, v in raw.items() if k not in ("image_processor_type", "processor_class", "video_sampling")}


@pytest.fixture(scope="module")
def ours(source, converted):
    return AutoProcessor.from_pretrained(converted)


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_tiles(source, ours, backend, record_difference):
    processor_class = image_processor_class(source, backend)
    if processor_class is None:
        pytest.skip(f"transformers {transformers.__version__} has no {backend} image processor of this family")
    reference = processor_class(**reference_settings(source))
    more = {} if source.is_smolvlm else {"crop_to_patches": True}
    vision = ours.image_processor
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (vision.image_mean, vision.image_std))
    limit = allowed_levels(source, backend, reference)
    for size in SIZES:
        image = picture(*size)
        expected = reference([image], return_tensors="pt", **more)["pixel_values"]
        expected = torch.as_tensor(np.asarray(expected)).reshape(-1, 3, *expected.shape[-2:])
        levels = (expected * std + mean) * 255
        tiles = ours.image_processor([image], return_tensors="pt")["pixel_values"]
        assert tiles.dtype == torch.uint8 and tiles.shape == levels.shape, f"other grid for {size}"
        difference = (tiles.float() - levels).abs().max()
        record_difference(f"tiles, levels of 255, {backend} backend", source.name, difference, f"{limit}")
        assert difference <= limit + 0.01, f"{size}: {difference} levels"


def allowed_levels(source, backend, reference):
    """Argus resizes by the same kernels as the torchvision backend; Pillow's rounding is a level off per resize.

    Older torchvision backends have no Lanczos for SmolVLM and take bicubic, which is another picture: only the grid and
    a rough likeness are held against them.
    """
    if backend == "pil":
        return 3 if source.is_smolvlm else 1
    if source.is_smolvlm:
        as_asked, bicubic = (
            reference([picture(70, 45)], return_tensors="pt", resample=number)["pixel_values"] for number in (1, 3)
        )
        return 40 if torch.equal(as_asked, bicubic) else 0
    return 0


def messages(images, text_before=""):
    content = [{"type": "image", "image": image} for image in images]
    first = [{"type": "text", "text": text_before}] if text_before else []
    return [
        {"role": "user", "content": [*first, *content, {"type": "text", "text": "What is in the second image?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A red car, and a dog."}]},
        {"role": "user", "content": [{"type": "text", "text": "And where?"}, *content[:1]]},
    ]


def with_num2words(processor_name):
    """4.57's SmolVLMProcessor wants num2words, for videos alone."""
    if processor_name == "SmolVLMProcessor":
        from transformers.models.smolvlm import processing_smolvlm

        if hasattr(processing_smolvlm, "num2words"):
            processing_smolvlm.num2words = processing_smolvlm.num2words or str


@pytest.mark.parametrize("count", [0, 1, 3])
def test_input_ids(source, ours, count, record_difference):
    if source.name == "internvl_chat":
        pytest.skip("the original layout has no processor in transformers: test_original_prompt compares its prompts")
    with_num2words({"smolvlm": "SmolVLMProcessor"}.get(source.name))
    reference = AutoProcessor.from_pretrained(source.folder)
    images = [picture(*size, seed=i) for i, size in enumerate(SIZES[:count])]
    conversation = messages(images, "Look:" if count == 3 else "")
    settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    expected = reference.apply_chat_template(conversation, **settings)["input_ids"]
    given = ours.apply_chat_template(conversation, **settings)["input_ids"]
    differ = (given != expected).sum() if given.shape == expected.shape else float("inf")
    record_difference("ids that differ in chat prompts", source.name, differ, "0")
    assert given.tolist() == expected.tolist()
    markers = [" and ".join([reference.image_token] * count)] if count else ["no image at all"]
    nested = {"images": [images]} if count else {}
    expected = reference(text=markers, return_tensors="pt", **nested)["input_ids"]
    assert ours(text=markers, return_tensors="pt", **nested)["input_ids"].tolist() == expected.tolist()


def test_original_prompt(source, ours):
    """What InternVLChatModel.chat builds: its system message, `<img>`, 256 (here 4) context tokens a tile, `</img>`."""
    if source.name != "internvl_chat":
        pytest.skip("the other layouts' prompts are compared with their own processors")
    image = picture(70, 45)
    conversation = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]}
    ]
    settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = ours.apply_chat_template(conversation, **settings)
    tiles = int(inputs["num_patches"][0])
    system = (
        "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
    )
    prompt = (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<img>{'<IMG_CONTEXT>' * 4 * tiles}</img>\n"
        "What is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tiles > 1
    assert inputs["input_ids"][0].tolist() == ours.tokenizer(prompt)["input_ids"]


def test_end_to_end_answer(source, ours, converted, record_difference):
    """Images and a question in, logits out, through both whole stacks where their pixels come from the same filter."""
    if source.name == "internvl_chat":
        pytest.skip("no processor of transformers reads this layout")
    from modeling_argus import ArgusForConditionalGeneration

    with_num2words({"smolvlm": "SmolVLMProcessor"}.get(source.name))
    reference = AutoProcessor.from_pretrained(source.folder)
    if source.is_smolvlm:
        reference.image_processor = image_processor_class(source, "pil")(**reference_settings(source))
    settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    conversation = messages([picture(70, 45), picture(64, 31)])
    model = ArgusForConditionalGeneration.from_pretrained(converted).eval()
    theirs = reference.apply_chat_template(conversation, **settings)
    theirs.pop("rows", None), theirs.pop("cols", None)
    with torch.no_grad():
        forget_long_prompts(source.model)
        expected = source.model(**theirs).logits[0, -1].log_softmax(-1)
        given = model(**ours.apply_chat_template(conversation, **settings)).logits[0, -1].log_softmax(-1)
    difference = (given.exp() - expected.exp()).abs().max()
    record_difference("next token's probability, end to end", source.name, difference, "1e-3")
    assert difference < 1e-3
