"""`bootstrap`: the starting points of Section 5, to be fine-tuned.

256M and 500M are a SmolVLM that keeps its weights and connector; 2B is assembled from InternViT-300M and Qwen2.5-1.5B
with a fresh single-layer connector. All of them get the native prompt (Section 4.1), aspect-ratio tiling and K location
tokens (Section 4.2), whose embeddings start at the mean of the others, each a little aside.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import torch
from tokenizers import AddedToken

from argus_tools.paths import card_path

from . import processors
from .checkpoint import MAX_SHARD_BYTES, Checkpoint, Progress, read_json, read_json_if_there, staged_folder, write_json
from .checks import reading, section
from .converting import (
    ConvertResult,
    build_config,
    find_source,
    head_is_tied,
    portable_config,
    read_dtype,
    read_source,
    write_argus_config,
    write_plan,
)
from .errors import ConvertError
from .key_tables import CAUSAL_LM, INTERNVIT, INTERNVIT_HF, INTERNVL, INTERNVL_CHAT, SIGLIP, KeyTable
from .mapping import TensorPlan, argus_shapes, plan_to_argus
from .source_configs import read_internvit, read_internvit_chat, read_siglip, read_text

IMAGE, IMAGE_START, IMAGE_END = "<image>", "<image_start>", "<image_end>"
TURN_START, TURN_ENDS = "<|im_start|>", ("<end_of_utterance>", "<|im_end|>")
NOISE = 0.1  # of the existing embeddings' standard deviation, per channel
# Where each size comes from if no folder is named (Section 5).
PUBLISHED = {
    "256m": {"smolvlm": "HuggingFaceTB/SmolVLM-256M-Instruct"},
    "500m": {"smolvlm": "HuggingFaceTB/SmolVLM-500M-Instruct"},
    "2b": {"vision": "OpenGVLab/InternViT-300M-448px-V2_5", "text": "Qwen/Qwen2.5-1.5B-Instruct"},
}
# How to read each kind of vision checkpoint: table, config reader, where its settings are, prefixes of its keys.
VISION_SOURCES: dict[str, tuple[KeyTable, Callable, Optional[str], tuple[str, ...]]] = {
    "intern_vit_6b": (INTERNVIT, read_internvit_chat, None, ("",)),
    "internvl_vision": (INTERNVIT_HF, read_internvit, None, ("",)),
    "internvl_chat": (INTERNVL_CHAT, read_internvit_chat, "vision_config", ("vision_model.",)),
    "internvl": (INTERNVL, read_internvit, "vision_config", ("vision_tower.",)),
    "siglip_vision_model": (SIGLIP, read_siglip, None, ("",)),
    "siglip": (SIGLIP, read_siglip, "vision_config", ("embeddings.", "encoder.", "post_layernorm.")),
}


def bootstrap(
    size: Optional[str],
    out,
    smolvlm=None,
    vision=None,
    text=None,
    num_location_bins: int = 1000,
    pixel_unshuffle_factor: Optional[int] = None,
    seed: int = 0,
    dtype=None,
    progress: Optional[Progress] = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> ConvertResult:
    """Makes an untrained Argus from pretrained parts.

    Args:
        size: "256m", "500m" or "2b": the shape must be that of the family's card, and the published parts are
            downloaded where none are named. None: any shape, from the parts given.
        out: the folder to make; it may exist if it is empty. It appears whole or not at all.
        smolvlm: a SmolVLM, SmolVLM2 or Idefics3 checkpoint, or an Argus one converted from it; folder or hub name.
        vision, text: instead of `smolvlm`: an InternViT (alone or in an InternVL; either layout) or SigLIP, and a Llama
            or Qwen2 language model.
        num_location_bins: K, the location tokens to add.
        pixel_unshuffle_factor: r of an assembled model alone; 2 for InternViT and 4 for SigLIP by default.
        seed: of the new embeddings and of the fresh connector.
        dtype: "float32", "bfloat16" or "float16"; None keeps the language model's.
        progress: called with (tensors done, tensors in all, name) as tensors are written.

    Raises:
        ConvertError: as for `convert`, and a size whose card the parts do not fit.
    """
    if size is not None and size not in PUBLISHED:
        raise ConvertError(f"size={size!r} is unknown; it can be {', '.join(map(repr, PUBLISHED))}.")
    if isinstance(num_location_bins, bool) or not isinstance(num_location_bins, int) or num_location_bins < 2:
        raise ConvertError(f"num_location_bins={num_location_bins!r} must be a whole number of at least 2.")
    if smolvlm is None and vision is None and text is None and size is not None:
        parts = PUBLISHED[size]
        smolvlm, vision, text = parts.get("smolvlm"), parts.get("vision"), parts.get("text")
    if (smolvlm is None) == (vision is None) or (vision is None) != (text is None):
        raise ConvertError("name either smolvlm=, or both vision= and text=, to make a model from.")
    if smolvlm is not None and pixel_unshuffle_factor is not None:
        raise ConvertError(
            f"pixel_unshuffle_factor={pixel_unshuffle_factor!r} is for a model assembled from vision= and text=; a "
            "SmolVLM keeps its own, which its connector was trained with."
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise ConvertError(f"seed={seed!r} must be a whole number of 64 bits.")
    cast = read_dtype(dtype)
    with contextlib.ExitStack() as stack:
        if smolvlm is not None:
            source = stack.enter_context(Checkpoint(find_source(smolvlm)))
            fields, plan = _keep_smolvlm(source)
        else:
            source = stack.enter_context(Checkpoint(find_source(text)))
            tower = stack.enter_context(Checkpoint(find_source(vision)))
            fields, plan = _assemble(tower, source, pixel_unshuffle_factor, seed)
        staged = stack.enter_context(staged_folder(out))
        card = _card(size)
        names, old_length, new_length = _write_tokenizer(source.folder, staged, num_location_bins)
        ids = processors.token_ids(staged)
        old_rows = fields["text_config"]["vocab_size"]
        rows = max(old_rows, new_length, card.get("text_config", {}).get("vocab_size", 0))
        fields["text_config"]["vocab_size"] = rows
        fields["image_token_id"] = ids[IMAGE]
        special = {f"{name}_token_id": ids[token] for name, token in names.items()}
        config = build_config({**fields, **special})
        _check_card(size, card, config)
        like = ids.get("<fake_token_around_image>")  # SmolVLM's own mark of an image's edges
        copies = {ids[IMAGE_START]: like, ids[IMAGE_END]: like} if like is not None else {}
        for name in ("model.text_model.embed_tokens.weight", "lm_head.weight"):
            if name in plan.shapes:
                _extend(plan, name, rows, old_length, copies, seed)
        _check_shapes(plan, config)
        write_argus_config(staged, config, {"_from_model_config": True, **special})
        _write_processor(size, staged, config, num_location_bins)
        processors.check_processor(staged, source.folder)
        if cast is None:
            cast = plan.load("model.text_model.norm.weight").dtype
        written = write_plan(staged, plan, cast, max_shard_bytes, progress)
    notes = [
        "The location tokens"
        + (" and the connector" if smolvlm is None else "")
        + " are untrained: fine-tune it first."
    ]
    return ConvertResult(Path(out), len(plan.shapes), plan.num_parameters, written, notes)


def _keep_smolvlm(source: Checkpoint) -> tuple[dict[str, Any], TensorPlan]:
    if source.model_type == "argus":
        raw = {name: value for name, value in source.config.items() if name not in ("model_type", "auto_map")}
        config = build_config(raw)
        plan = TensorPlan()
        for name, shape in argus_shapes(config).items():
            if name not in source.where or source.shape(name) != shape:
                raise ConvertError(
                    f"{source.folder} does not fit its config.json: {name} of shape {list(shape)} is missing."
                )
            plan.add(name, shape, lambda name=name: source.tensor(name))
    elif source.model_type in ("smolvlm", "idefics3"):
        config, table, _ = read_source(source)
        plan = plan_to_argus(source, table, config)
    else:
        raise ConvertError(
            f"{source.folder} has model_type {source.model_type!r}; smolvlm= takes 'smolvlm', 'idefics3' or 'argus'."
        )
    if config.connector_type != "linear":
        raise ConvertError(
            f"{source.folder} has a connector of type {config.connector_type!r}; Argus' own is 'linear'."
        )
    fields = portable_config(config, architectures=False)
    return {name: value for name, value in fields.items() if name != "model_type"}, plan


def _assemble(
    tower: Checkpoint, language: Checkpoint, factor: Optional[int], seed: int
) -> tuple[dict[str, Any], TensorPlan]:
    if tower.model_type not in VISION_SOURCES:
        known = ", ".join(map(repr, VISION_SOURCES))
        raise ConvertError(f"{tower.folder} has model_type {tower.model_type!r}; vision= takes {known}.")
    table, read, scoped, scope = VISION_SOURCES[tower.model_type]
    with reading(tower.folder / "config.json"):
        vision = read(tower.config if scoped is None else section(tower.config, scoped))
    images = processors.image_settings(tower.folder)
    own = ([0.5] * 3, [0.5] * 3) if table is SIGLIP else (processors.IMAGENET_MEAN, processors.IMAGENET_STD)
    vision |= {"image_mean": images.get("image_mean") or own[0], "image_std": images.get("image_std") or own[1]}
    if table is SIGLIP:
        vision["use_post_layernorm"] = True
    with reading(language.folder / "config.json"):
        text = read_text(language.config, "config")
    tied = head_is_tied(language, CAUSAL_LM, bool(language.config.get("tie_word_embeddings", False)))
    fields = {
        "vision_config": vision,
        "text_config": {**text, "tie_word_embeddings": tied},
        "image_token_id": 0,
        "pixel_unshuffle_factor": (4 if table is SIGLIP else 2) if factor is None else factor,
        "connector_type": "linear",
        "connector_bias": False,
        "tie_word_embeddings": tied,
    }
    config = build_config(fields)
    plan = plan_to_argus(tower, table, config, ("model.vision_model.",), scope)
    rest = plan_to_argus(language, CAUSAL_LM, config, ("model.text_model.", "lm_head."))
    plan.shapes |= rest.shapes
    plan.loaders |= rest.loaders
    shapes = argus_shapes(config)
    for name in (name for name in shapes if name.startswith("model.connector.")):
        plan.add(name, shapes[name], lambda shape=shapes[name]: _fresh(shape, config.initializer_range, seed))
    return fields, plan


def _fresh(shape: tuple[int, ...], scale: float, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def _write_tokenizer(source: Path, out: Path, num_location_bins: int) -> tuple[dict[str, str], int, int]:
    """Writes the extended tokenizer: (names of bos, eos and pad, tokens before, tokens after)."""
    from processing_argus import location_tokens

    if not processors.has_tokenizer(source):
        raise ConvertError(f"{source} has no tokenizer, which location tokens are added to.")
    tokenizer = processors.fast_tokenizer(source)
    before = tokenizer.get_vocab_size(with_added_tokens=True)
    config = processors.portable_tokenizer_config(source, "ArgusProcessor")
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)

    def named(key: str) -> Optional[str]:
        value = config.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if value is not None and not isinstance(value, str):
            raise ConvertError(f"{source / 'tokenizer_config.json'} has a {key} that is no text but {value!r}.")
        return value

    names = {
        "bos": named("bos_token") or TURN_START,
        "eos": next((token for token in TURN_ENDS if token in vocabulary), None) or named("eos_token"),
    }
    if names["eos"] is None:
        raise ConvertError(
            f"{source}'s tokenizer has no eos_token, none of {', '.join(TURN_ENDS)}: nothing ends an answer."
        )
    names["pad"] = named("pad_token") or names["eos"]
    special = [*names.values(), IMAGE, IMAGE_START, IMAGE_END]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    # Not special: a decoded answer keeps its boxes.
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in location_tokens(num_location_bins)])
    tokenizer.save(str(out / "tokenizer.json"))
    for key in ("added_tokens_decoder", "extra_special_tokens", "add_bos_token", "add_eos_token", "add_prefix_space"):
        config.pop(key, None)
    config |= {f"{key}_token": token for key, token in names.items()}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"}
    write_json(out / "tokenizer_config.json", config)
    return names, before, tokenizer.get_vocab_size(with_added_tokens=True)


def _extend(plan: TensorPlan, name: str, rows: int, tokens: int, copies: dict[int, int], seed: int) -> None:
    """Rows for the new tokens, `tokens` being those that the tokenizer had: the mean of theirs and a little noise.

    Rows past `tokens` that the checkpoint has (Qwen2 pads its vocabulary) were never trained and are filled too.
    """
    load = plan.loaders[name]

    def extended() -> torch.Tensor:
        old = load()
        known = old[:tokens].float()
        noise = torch.randn(rows - known.shape[0], old.shape[1], generator=torch.Generator().manual_seed(seed))
        fresh = (known.mean(0) + NOISE * known.std(0) * noise).to(old.dtype)
        new = torch.cat((old[:tokens], fresh))
        for row, like in copies.items():
            if row >= tokens:
                new[row] = new[like]
        return new

    plan.add(name, (rows, plan.shapes[name][1]), extended)


def _check_shapes(plan: TensorPlan, config) -> None:
    """The plan against the model that will load it: a mistake here must not reach a disk."""
    if plan.shapes != (wanted := argus_shapes(config)):
        differ = sorted(name for name in wanted | plan.shapes if wanted.get(name) != plan.shapes.get(name))
        raise ConvertError(f"the parts do not make an Argus model: {', '.join(differ[:6])} differ.")


def _card(size: Optional[str]) -> dict[str, Any]:
    try:
        return read_json(card_path(f"argus-{size}") / "config.json") if size is not None else {}
    except FileNotFoundError as error:
        raise ConvertError(f"size={size!r} has no card: {error}") from error


def _check_card(size: Optional[str], card: dict[str, Any], config) -> None:
    for part in ("vision_config", "text_config"):
        own = getattr(config, part)
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size"):
            meant = card.get(part, {}).get(name)
            if meant is not None and getattr(own, name) != meant:
                raise ConvertError(
                    f"size={size!r} has {part}.{name} {meant}, but the parts have {getattr(own, name)}; leave size out "
                    "for another shape."
                )


def _write_processor(size: Optional[str], out: Path, config, num_location_bins: int) -> None:
    from processing_argus import CHAT_TEMPLATE

    vision = config.vision_config
    settings = read_json_if_there(card_path(f"argus-{size}") / "preprocessor_config.json") if size is not None else {}
    names = ("tiling", "min_tiles", "max_tiles", "use_thumbnail", "max_upscale", "resample")
    images = {
        "tiling": "aspect_ratio",
        "min_tiles": 1,
        "max_tiles": 12,
        "use_thumbnail": True,
        "max_upscale": None,
        "resample": processors.BICUBIC,
        **{name: settings[name] for name in names if name in settings},
        "tile_size": vision.image_size,
        "image_mean": vision.image_mean,
        "image_std": vision.image_std,
    }
    processors.write_argus_processor(
        out, images, "native", IMAGE, config.image_seq_length, CHAT_TEMPLATE, num_location_bins
    )
