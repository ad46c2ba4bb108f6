"""`convert`: a published checkpoint to Argus, and an Argus checkpoint back to the formats it came from.

SmolVLM, SmolVLM2, Idefics3            -> Argus -> smolvlm, idefics3
InternVL3 (-hf and the original layout) -> Argus -> internvl (-hf)
"""

import inspect
import math
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch

from . import processors
from .checkpoint import (
    MAX_SHARD_BYTES,
    Checkpoint,
    Progress,
    read_json_if_there,
    staged_folder,
    write_json,
    write_tensors,
)
from .checks import MALFORMED, check_fields, reading, section
from .errors import ConvertError
from .key_tables import INTERNVL, INTERNVL_CHAT, SMOLVLM, KeyTable
from .mapping import TensorPlan, plan_from_argus, plan_to_argus
from .source_configs import in_vocabulary, read_internvl, read_internvl_chat, read_smolvlm, read_token_ids
from .target_configs import write_internvl, write_smolvlm

SOURCES = ("smolvlm", "idefics3", "internvl", "internvl_chat")
TARGETS = {"smolvlm": SMOLVLM, "idefics3": SMOLVLM, "internvl": INTERNVL}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model"]


@dataclass
class ConvertResult:
    """What was written.

    Attributes:
        path: the new folder.
        num_tensors, num_parameters: what its safetensors hold (a tied head counts once).
        dtype: of the token embeddings, as config.json says.
        notes: what a person should know, one sentence each.
    """

    path: Path
    num_tensors: int
    num_parameters: int
    dtype: str
    notes: list[str] = field(default_factory=list)


def convert(
    source,
    out,
    to: Optional[str] = None,
    dtype=None,
    progress: Optional[Progress] = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> ConvertResult:
    """Converts a checkpoint folder. The answers stay the source model's: weights are moved bit for bit.

    Args:
        source: a folder, or the name of a hub repository ("owner/name"), which is downloaded first.
        out: the folder to make; it may exist if it is empty. It appears whole or not at all.
        to: None for an Argus checkpoint; "smolvlm", "idefics3" or "internvl" for one of those from an Argus checkpoint.
        dtype: "float32", "bfloat16" or "float16" to cast to; None keeps every tensor's own.
        progress: called with (tensors done, tensors in all, name) as tensors are written.

    Raises:
        ConvertError: the source is missing, no checkpoint, of an unknown kind, or holds what Argus cannot represent;
            tensors are missing, unexpected or of another shape; the output folder is not empty.
    """
    if to is not None and to not in TARGETS:
        raise ConvertError(f"to={to!r} is unknown; it can be {', '.join(map(repr, TARGETS))}, or None for Argus.")
    cast = read_dtype(dtype)
    folder = find_source(source)
    with Checkpoint(folder) as checkpoint, staged_folder(out) as staged:
        if to is None:
            plan, notes = _to_argus(checkpoint, staged)
        else:
            plan, notes = _from_argus(checkpoint, staged, to)
        name = write_plan(staged, plan, cast, max_shard_bytes, progress)
    return ConvertResult(Path(out), len(plan.shapes), plan.num_parameters, name, notes)


def read_dtype(dtype) -> Optional[torch.dtype]:
    """A torch dtype from its name; None stays None."""
    if dtype is None or dtype in DTYPES.values():
        return dtype
    if dtype in DTYPES:
        return DTYPES[dtype]
    raise ConvertError(
        f"dtype={dtype!r} is unknown; it can be {', '.join(map(repr, DTYPES))}, or None to keep each tensor's."
    )


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def find_source(source) -> Path:
    """The folder itself, or the snapshot of a hub repository."""
    path = Path(source)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        return path  # Checkpoint says what is wrong with it
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=DOWNLOADED))
    except Exception as error:  # offline, no such repository, no access: many kinds, one sentence
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConvertError(f"{source} is no folder here and could not be downloaded: {reason[0]}") from error


def build_config(fields: dict[str, Any], **more):
    """An ArgusConfig; what it refuses, and what is of another type or out of range, becomes a ConvertError."""
    from modeling_argus import ArgusConfig

    check_fields({**fields, **more}, ArgusConfig)
    try:
        return ArgusConfig(**fields, **more)
    except MALFORMED as error:
        raise ConvertError(f"config.json describes no Argus model: {error}") from error


def write_plan(folder: Path, plan: TensorPlan, cast, max_shard_bytes: int, progress: Optional[Progress]) -> str:
    """Writes the tensors, and their dtype into the config.json that is there already. Returns that dtype's name."""

    def load(name: str) -> torch.Tensor:
        tensor = plan.load(name)
        if cast is None or tensor.dtype == cast:
            return tensor
        smaller = tensor.to(cast)
        if not torch.isfinite(smaller).all():
            raise ConvertError(f"{name} has values that {dtype_name(cast)} cannot hold; take dtype='bfloat16'.")
        return smaller

    embeddings = next(name for name in plan.shapes if name.endswith("embed_tokens.weight"))
    sample = load(embeddings)
    sizes = {name: math.prod(shape) * sample.element_size() for name, shape in plan.shapes.items()}
    name = dtype_name(sample.dtype)
    del sample
    config = read_json_if_there(folder / "config.json")
    for part in (config, *(config.get(key) for key in ("vision_config", "text_config"))):
        if part:
            part["dtype"] = name
    write_json(folder / "config.json", config)
    write_tensors(folder, sizes, load, max_shard_bytes, progress)
    return name


def write_argus_config(folder: Path, config, generation: dict[str, Any]) -> None:
    """config.json with auto_map, the code it names, and generation_config.json."""
    from argus_tools.export import AUTO_MAP
    from argus_tools.paths import hub_code_files

    config.architectures = ["ArgusForConditionalGeneration"]
    write_json(folder / "config.json", {**portable_config(config), "auto_map": AUTO_MAP})
    for file in hub_code_files():
        shutil.copyfile(file, folder / file.name)
    write_json(folder / "generation_config.json", generation)


def read_generation(checkpoint: Checkpoint, config) -> dict[str, Any]:
    """generation_config.json as it is, without ids that the vocabulary lacks; from the config where there is none."""
    found = read_json_if_there(checkpoint.folder / "generation_config.json")
    generation = dict(found) or {"_from_model_config": True}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        own = getattr(config, name)
        if not in_vocabulary(generation.get(name), config.text_config.vocab_size):
            generation.pop(name, None)
            if own is not None and (name in found or not found):
                generation[name] = own
    if checkpoint.model_type == "internvl_chat":  # whose chat method stops at the template's separator
        end = processors.token_ids(checkpoint.folder).get("<|im_end|>")
        stops = generation.get("eos_token_id")
        stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
        if end is not None and end not in stops:
            generation["eos_token_id"] = [end, *stops]
    return generation


def portable_config(config, architectures: bool = True) -> dict[str, Any]:
    """An ArgusConfig's own fields, the same under both majors of transformers (which save different extras)."""
    top = ("image_token_id", "pixel_unshuffle_factor", "connector_type", "connector_bias", "connector_hidden_act",
           "connector_layer_norm_eps", "tie_word_embeddings", "initializer_range", "pad_token_id", "bos_token_id",
           "eos_token_id")  # fmt: skip
    parts = {"vision_config": config.vision_config, "text_config": config.text_config}
    return {
        **({"architectures": list(config.architectures)} if architectures else {}),
        "model_type": config.model_type,
        **{name: getattr(config, name) for name in top},
        **{name: {"model_type": part.model_type, **_own_fields(part)} for name, part in parts.items()},
    }


def _own_fields(config) -> dict[str, Any]:
    """The arguments of the config's own class, with their values; the rotary settings in transformers 5's spelling."""
    names = [name for name in inspect.signature(type(config).__init__).parameters if name not in ("self", "kwargs")]
    if "rope_scaling" in names:
        names[names.index("rope_scaling")] = "rope_parameters"
    return {name: getattr(config, name) for name in names}


def _to_argus(checkpoint: Checkpoint, out: Path) -> tuple[TensorPlan, list[str]]:
    folder, raw, notes = checkpoint.folder, checkpoint.config, []
    kind = checkpoint.model_type
    if kind == "argus":
        raise ConvertError(
            f"{folder} is an Argus checkpoint already; say to='smolvlm' or 'internvl' to convert it back."
        )
    if kind not in SOURCES:
        raise ConvertError(f"{folder} has model_type {kind!r}; {', '.join(map(repr, SOURCES))} can be converted.")
    config, table, images = read_source(checkpoint)
    generation = read_generation(checkpoint, config)
    plan = plan_to_argus(checkpoint, table, config)
    write_argus_config(out, config, generation)
    if not processors.has_tokenizer(folder):
        notes.append(f"{folder} has no tokenizer, so the model was written without a processor.")
        return plan, notes
    layout = "smolvlm" if table is SMOLVLM else "internvl"
    template = processors.read_chat_template(folder)
    if kind == "internvl_chat":
        template = processors.read_internvl_chat_template(folder, raw)
    if template is None:
        notes.append(
            f"{folder} has no chat template, so apply_chat_template writes Argus' native prompts, which the model was "
            "not trained on, unless it is given chat_template=."
        )
    processors.copy_tokenizer(folder, out, layout)
    found = processors.token_ids(folder).get(processors.IMAGE_TOKENS[layout])
    if found != config.image_token_id:
        raise ConvertError(
            f"config.image_token_id is {config.image_token_id}, but the tokenizer gives "
            f"{processors.IMAGE_TOKENS[layout]} the id {found}."
        )
    if not processors.image_settings(folder):
        notes.append(f"{folder} has no preprocessor_config.json; the source family's defaults were taken.")
    token, length = processors.IMAGE_TOKENS[layout], config.image_seq_length
    processors.write_argus_processor(out, images, layout, token, length, template)
    processors.check_processor(out, folder)
    return plan, notes


def read_source(checkpoint: Checkpoint) -> tuple[Any, KeyTable, dict[str, Any]]:
    """(ArgusConfig, key table, ArgusImageProcessor's settings) of a SmolVLM, Idefics3 or InternVL checkpoint."""
    folder, raw, kind = checkpoint.folder, checkpoint.config, checkpoint.model_type
    generation = read_json_if_there(folder / "generation_config.json")
    pixels = folder / "preprocessor_config.json"
    if kind == "internvl":
        with reading(folder / "config.json"):
            (fields, tied), table = read_internvl(raw), INTERNVL
        with reading(pixels):
            images = processors.read_internvl_images(folder, fields["vision_config"]["image_size"])
        processors.check_images(images, pixels, {"min_tiles": "min_patches", "max_tiles": "max_patches"})
    elif kind == "internvl_chat":
        token = processors.IMAGE_TOKENS["internvl"]
        image_token_id = processors.token_ids(folder).get(token)
        if image_token_id is None:
            raise ConvertError(
                f"{folder}'s tokenizer has no {token}, and an internvl_chat config does not give its id."
            )
        with reading(folder / "config.json"):
            (fields, tied), table = read_internvl_chat(raw, image_token_id), INTERNVL_CHAT
        with reading(pixels):
            images = processors.read_internvl_chat_images(folder, raw, fields["vision_config"]["image_size"])
        names = {"min_tiles": "min_dynamic_patch", "max_tiles": "max_dynamic_patch"}
        processors.check_images(images, folder / "config.json", names)
    else:
        with reading(folder / "config.json"):
            (fields, tied), table = read_smolvlm(raw), SMOLVLM
        vision = section(raw, "vision_config")
        with reading(pixels):
            images = processors.read_smolvlm_images(folder, vision, fields["vision_config"]["image_size"])
        processors.check_images(images, pixels, {"longest_edge": "size.longest_edge"})
    fields["vision_config"] |= {name: images[name] for name in ("image_mean", "image_std")}
    text = section(raw, "llm_config" if kind == "internvl_chat" else "text_config")
    ids = read_token_ids(text, generation, fields["text_config"]["vocab_size"])
    tied = head_is_tied(checkpoint, table, tied)
    fields["text_config"] |= {**ids, "tie_word_embeddings": tied}
    return build_config(fields, tie_word_embeddings=tied, **ids), table, images


def head_is_tied(checkpoint: Checkpoint, table: KeyTable, says: Optional[bool]) -> bool:
    """Whether the output head is the embedding: what config.json says, held against the tensors that are there.

    Where its two flags disagree (4.57 follows the text config's, 5.x the top one's), the tensors decide.
    """
    sources = {rule.argus: rule.source[0] for rule in table.rules}
    keys = {table.canonical(key): key for key in checkpoint.where}
    head, embeddings = (keys.get(sources[name]) for name in ("lm_head.weight", "model.text_model.embed_tokens.weight"))
    if head is None or embeddings is None:
        return says is not False  # a head that is neither tied nor there is reported as missing
    if says is False:
        return False
    same = torch.equal(checkpoint.tensor(head), checkpoint.tensor(embeddings))
    if says and not same:
        raise ConvertError(f"config.json ties the output head to the embeddings, but {head} and {embeddings} differ.")
    return same


def _from_argus(checkpoint: Checkpoint, out: Path, to: str) -> tuple[TensorPlan, list[str]]:
    folder, raw, notes = checkpoint.folder, dict(checkpoint.config), []
    if checkpoint.model_type != "argus":
        raise ConvertError(f"to={to!r} converts Argus checkpoints; {folder} has model_type {checkpoint.model_type!r}.")
    raw.pop("model_type")
    config = build_config({name: value for name, value in raw.items() if name not in ("auto_map", "architectures")})
    write = write_internvl(config, "") if to == "internvl" else write_smolvlm(config, "", to)
    plan = plan_from_argus(checkpoint, TARGETS[to], config)
    write_json(out / "config.json", write)
    if (folder / "generation_config.json").is_file():
        shutil.copyfile(folder / "generation_config.json", out / "generation_config.json")
    if processors.has_tokenizer(folder):
        processors.write_foreign_processor(folder, out, to, config)
    else:
        notes.append(f"{folder} has no tokenizer, so the model was written without a processor.")
    return plan, notes
