"""Processor and tokenizer files, both ways: image settings and prompt layout as data, tokenizer and template copied.

Argus normalises inside the model, so the mean and standard deviation of the source's image processor come back from
here for the vision config; where pixels are not normalised with them (no rescaling by 1/255, say), that is refused.
"""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Optional

from .checkpoint import read_json, read_json_if_there, write_json
from .checks import MALFORMED, is_number, reading, section
from .errors import ConvertError
from .source_configs import refuse_unless

BICUBIC, LANCZOS = 3, 1  # PIL's numbers
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model",
)  # fmt: skip
# A vocabulary in one of these; the others only add to it.
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
IMAGE_TOKENS = {"smolvlm": "<image>", "internvl": "<IMG_CONTEXT>"}
LAYOUT_TOKENS = {"smolvlm": ("<fake_token_around_image>", "<image>"), "internvl": ("<img>", "</img>", "<IMG_CONTEXT>")}
INTERNVL_TOKEN_NAMES = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
PIXELS_ONLY = {"do_resize": (True, None), "do_rescale": (True, None), "do_normalize": (True, None)}

# What the original InternVL code writes for conversation template "internvl2_5": its `chat` puts this system message
# first where the user gives none. The images' markers are the -hf template's, so both layouts' prompts agree.
INTERNVL_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
INTERNVL_TEMPLATE = """\
{%- if system and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for content in message['content'] %}
{%- if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}
{%- elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}
{%- endfor %}
{%- endif %}{{ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in VOCABULARY_FILES)


def token_ids(folder: Path) -> dict[str, int]:
    """Ids of the added tokens (and of the vocabulary, where tokenizer.json or vocab.json has it)."""
    ids: dict[str, int] = read_json_if_there(folder / "vocab.json")
    with reading(folder / "tokenizer.json"):
        tokenizer = read_json_if_there(folder / "tokenizer.json")
        vocabulary = section(tokenizer, "model", "tokenizer.json").get("vocab")
        ids.update(vocabulary if isinstance(vocabulary, dict) else {})
        ids.update({token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []})
    ids.update(read_json_if_there(folder / "added_tokens.json"))
    with reading(folder / "tokenizer_config.json"):
        decoder = section(
            read_json_if_there(folder / "tokenizer_config.json"), "added_tokens_decoder", "tokenizer_config.json"
        )
        ids.update({token["content"]: int(number) for number, token in decoder.items()})
    return ids


def read_chat_template(folder: Path) -> Optional[str]:
    """The chat template, from whichever of the four places transformers has kept it in."""
    if (folder / "chat_template.jinja").is_file():
        with reading(folder / "chat_template.jinja"):
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = read_json_if_there(folder / name).get("chat_template")
        if isinstance(template, list):  # named templates
            with reading(folder / name):
                template = next((one["template"] for one in template if one.get("name") == "default"), None)
        if template and not isinstance(template, str):
            raise ConvertError(f"{folder / name} has a chat_template that is no text but {template!r}.")
        if template:
            return template
    return None


def image_settings(folder: Path) -> dict[str, Any]:
    """The source's image processor settings: preprocessor_config.json, or nested in processor_config.json (5.x)."""
    nested = section(read_json_if_there(folder / "processor_config.json"), "image_processor", "processor_config.json")
    return {**nested, **read_json_if_there(folder / "preprocessor_config.json")}


def check_images(images: dict[str, Any], file: Path, names: Optional[dict[str, str]] = None) -> dict[str, Any]:
    """The settings themselves, once an ArgusImageProcessor was made of them.

    Args:
        file: where they were read, for the message.
        names: what they are called there, where that differs.

    Raises:
        ConvertError: a setting of another type or out of range.
    """
    from processing_argus import ArgusImageProcessor

    try:
        ArgusImageProcessor(**images)
    except MALFORMED as error:
        sentence = re.sub(r"\b(\w+)=", lambda match: (names or {}).get(match[1], match[1]) + "=", str(error))
        raise ConvertError(f"{file} has settings that cannot be: {sentence}") from error
    return images


def _statistics(raw: dict[str, Any], mean: list[float], std: list[float]) -> dict[str, Any]:
    refuse_unless(raw, PIXELS_ONLY, "preprocessor_config")
    factor = raw.get("rescale_factor") or 1 / 255
    if not is_number(factor) or abs(factor * 255 - 1) > 1e-6:
        raise ConvertError(
            f"preprocessor_config.rescale_factor is {factor!r}; Argus' pixels are rescaled by 1/255 only."
        )
    return {"image_mean": raw.get("image_mean") or mean, "image_std": raw.get("image_std") or std}


def _side(size: Any, image_size: int, name: str) -> int:
    sides = set(size.values()) if isinstance(size, dict) else {size}
    sides.discard(None)
    if sides != {image_size}:
        raise ConvertError(f"preprocessor_config.{name} is {size!r}, but vision_config.image_size is {image_size}.")
    return image_size


def read_smolvlm_images(folder: Path, raw_vision: dict[str, Any], image_size: int) -> dict[str, Any]:
    """ArgusImageProcessor's settings from a SmolVLM or Idefics3 image processor: its resizes, no tile limit."""
    raw = image_settings(folder)
    tile = _side(raw.get("max_image_size") or {"longest_edge": image_size}, image_size, "max_image_size")
    size = raw.get("size") or raw_vision.get("size") or {"longest_edge": 4 * image_size}
    if not isinstance(size, dict) or not size.get("longest_edge"):
        raise ConvertError(f"preprocessor_config.size is {size!r}; it must give the longest_edge.")
    return {
        "tiling": "longest_edge",
        "tile_size": tile,
        "longest_edge": size["longest_edge"],
        "max_tiles": None,
        "use_thumbnail": True,
        "do_image_splitting": raw.get("do_image_splitting", True),
        "resample": raw.get("resample", LANCZOS),
        **_statistics(raw, [0.5] * 3, [0.5] * 3),
    }


def read_internvl_images(folder: Path, image_size: int) -> dict[str, Any]:
    """ArgusImageProcessor's settings from an -hf layout's image processor.

    `crop_to_patches` is not read: InternVLProcessor turns it on whatever the file says.
    """
    raw = image_settings(folder)
    return {
        "tiling": "aspect_ratio",
        "tile_size": _side(raw.get("size") or image_size, image_size, "size"),
        "min_tiles": raw.get("min_patches", 1),
        "max_tiles": raw.get("max_patches", 12),
        "use_thumbnail": True,
        "max_upscale": None,
        "resample": raw.get("resample", BICUBIC),
        **_statistics(raw, IMAGENET_MEAN, IMAGENET_STD),
    }


def read_internvl_chat_images(folder: Path, config: dict[str, Any], image_size: int) -> dict[str, Any]:
    """ArgusImageProcessor's settings from the original layout, which keeps the tiling in config.json."""
    refuse_unless(config, {"dynamic_image_size": (True, False, None)}, "config")
    dynamic = config.get("dynamic_image_size", False)
    settings = read_internvl_images(folder, image_size) if (folder / "preprocessor_config.json").is_file() else {}
    return {
        "tiling": "aspect_ratio",
        "tile_size": image_size,
        "min_tiles": config.get("min_dynamic_patch", 1) if dynamic else 1,
        "max_tiles": config.get("max_dynamic_patch", 6) if dynamic else 1,
        "use_thumbnail": config.get("use_thumbnail") or False,
        "max_upscale": None,
        "resample": BICUBIC,
        "image_mean": settings.get("image_mean", IMAGENET_MEAN),
        "image_std": settings.get("image_std", IMAGENET_STD),
    }


def read_internvl_chat_template(folder: Path, config: dict[str, Any]) -> str:
    """A chat template that writes what the original repository's `chat` method does; only "internvl2_5" is known."""
    name = config.get("template")
    if name != "internvl2_5":
        raise ConvertError(f"config.template is {name!r}; the conversation template that is known is 'internvl2_5'.")
    system = config.get("system_message") or INTERNVL_SYSTEM
    return "{%- set system = " + json.dumps(system, ensure_ascii=False) + " %}" + INTERNVL_TEMPLATE


def copy_tokenizer(source: Path, out: Path, layout: str, processor_class: str = "ArgusProcessor") -> None:
    """Copies the tokenizer's files. Only tokenizer_config.json changes: the processor's class, and spellings of 5.x.

    A tokenizer saved by transformers 5 names `TokenizersBackend` and lists extra_special_tokens, which 4.57 refuses.
    """
    for name in TOKENIZER_FILES:
        if (source / name).is_file() and name != "tokenizer_config.json":
            shutil.copyfile(source / name, out / name)
    write_json(out / "tokenizer_config.json", portable_tokenizer_config(source, processor_class))
    if not (
        out / "tokenizer.json"
    ).is_file():  # the original InternVL repositories have vocab.json and merges.txt alone
        fast_tokenizer(source).save(str(out / "tokenizer.json"))
    ids = token_ids(source)
    absent = [token for token in LAYOUT_TOKENS.get(layout, ()) if token not in ids]
    if absent:
        raise ConvertError(f"{source}'s tokenizer lacks {', '.join(absent)}, which {layout} prompts are made of.")


def fast_tokenizer(folder: Path):
    """A `tokenizers.Tokenizer`: from tokenizer.json, or built by transformers from the older files.

    By transformers' own classes only, from a copy without config.json: with that one's auto_map in reach, transformers
    asks whether to run the source's code, or runs it.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    try:
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        with tempfile.TemporaryDirectory() as alone:
            for name in TOKENIZER_FILES:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, Path(alone, name))
            write_json(Path(alone, "tokenizer_config.json"), portable_tokenizer_config(folder, "ArgusProcessor"))
            return AutoTokenizer.from_pretrained(alone, use_fast=True, trust_remote_code=False).backend_tokenizer
    except ConvertError:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise ConvertError(f"{folder}'s tokenizer cannot be read: {error}") from error


def portable_tokenizer_config(source: Path, processor_class: str) -> dict[str, Any]:
    """tokenizer_config.json as both majors read it, without chat template and remote code."""
    config = read_json_if_there(source / "tokenizer_config.json")
    if config.get("tokenizer_class") in (None, "TokenizersBackend"):
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    named = config.pop("model_specific_special_tokens", None)
    if named:  # 5.x's name for what 4.57 reads as a dict of extra_special_tokens
        config["extra_special_tokens"] = named
    for name in ("chat_template", "auto_map", "backend", "is_local", "local_files_only"):
        config.pop(name, None)
    return {**config, "processor_class": processor_class}


def write_argus_processor(
    out: Path,
    images: dict[str, Any],
    layout: Any,
    image_token: str,
    image_seq_length: int,
    template: Optional[str],
    num_location_bins: Optional[int] = None,
) -> None:
    """preprocessor_config.json, processor_config.json and chat_template.jinja of an ArgusProcessor.

    A converted model has no location tokens, so `num_location_bins` is None: asked for boxes, the processor says so.
    """
    from argus_tools.export import AUTO_MAP

    auto_map = {name: AUTO_MAP[name] for name in ("AutoProcessor", "AutoImageProcessor")}
    write_json(
        out / "preprocessor_config.json",
        {
            "image_processor_type": "ArgusImageProcessor",
            "processor_class": "ArgusProcessor",
            "auto_map": auto_map,
            **images,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": False,
            "do_convert_rgb": True,
        },
    )
    write_json(
        out / "processor_config.json",
        {
            "processor_class": "ArgusProcessor",
            "auto_map": auto_map,
            "image_token": image_token,
            "image_seq_length": image_seq_length,
            "prompt_layout": layout,
            "box_format": "location_tokens",
            "num_location_bins": num_location_bins,
        },
    )
    if template:
        (out / "chat_template.jinja").write_text(template, encoding="utf-8")


def check_processor(folder: Path, source: Path) -> None:
    """Makes the processor of the files that were written for `source`: what it refuses becomes a ConvertError."""
    from processing_argus import ArgusProcessor

    try:
        ArgusProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizers raises plain Exception
        raise ConvertError(f"{source}'s tokenizer and processor files make no processor that works: {error}") from error


def write_foreign_processor(source: Path, out: Path, target: str, config) -> None:
    """The processor and tokenizer files of SmolVLM, Idefics3 or InternVL, from those of an Argus folder.

    Raises:
        ConvertError: tiling or prompt layout that the target's processor does not have, with the value.
    """
    family = "internvl" if target == "internvl" else "smolvlm"
    images = image_settings(source)
    ours = read_json_if_there(source / "processor_config.json")
    wanted = {"tiling": "aspect_ratio" if family == "internvl" else "longest_edge", "use_thumbnail": True}
    wanted |= {"max_upscale": None} if family == "internvl" else {"max_tiles": None}
    for name, value in wanted.items():
        if images.get(name, value) != value:
            raise ConvertError(f"the processor's {name} is {images[name]!r}; {target}'s can be {value!r} only.")
    if ours.get("prompt_layout", family) != family:
        raise ConvertError(
            f"prompt_layout is {ours['prompt_layout']!r}; a {target} processor writes {family!r} prompts only."
        )
    check_images(images, source / "preprocessor_config.json")
    vision = config.vision_config
    shared = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": vision.image_mean,
        "image_std": vision.image_std,
        "resample": images.get("resample", BICUBIC if family == "internvl" else LANCZOS),
    }
    side = vision.image_size
    if family == "internvl":
        name, length = "InternVL", "image_seq_length"
        more = {
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "size": {"height": side, "width": side},
            "crop_to_patches": True,
            "min_patches": images.get("min_tiles", 1),
            "max_patches": images.get("max_tiles", 12),
        }
    else:
        name, length = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[target], "image_seq_len"
        more = {
            "image_processor_type": f"{name}ImageProcessor",
            "size": {"longest_edge": images.get("longest_edge", 4 * side)},
            "max_image_size": {"longest_edge": side},
            "do_image_splitting": images.get("do_image_splitting", True),
            "do_pad": True,
        }
        if target == "smolvlm":  # its processor is not built without a video processor
            more["video_sampling"] = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": side}}
    write_json(out / "preprocessor_config.json", {**shared, **more, "processor_class": f"{name}Processor"})
    write_json(out / "processor_config.json", {length: config.image_seq_length, "processor_class": f"{name}Processor"})
    copy_tokenizer(source, out, family, f"{name}Processor")
    if family == "internvl":
        settings = read_json(out / "tokenizer_config.json")
        named = settings.get("extra_special_tokens")
        settings["extra_special_tokens"] = {**(named if isinstance(named, dict) else {}), **INTERNVL_TOKEN_NAMES}
        write_json(out / "tokenizer_config.json", settings)
    template = read_chat_template(source)
    if template:
        (out / "chat_template.jinja").write_text(template, encoding="utf-8")
