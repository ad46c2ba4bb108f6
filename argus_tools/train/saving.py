"""A trained model as a folder that `from_pretrained` loads on transformers 4.57 and 5.x, and `argus export` takes."""

import inspect
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from argus_tools.cli_support import whole_file
from argus_tools.export import AUTO_MAP, check_finite
from modeling_argus import ArgusTextConfig, ArgusVisionConfig


def save_checkpoint(
    model, processor, out: str | Path, *, dtype: torch.dtype | None = None, weights: dict | None = None
):
    """Write weights, configs, tokenizer, chat template and processor files to `out`, whole or not at all.

    It is on the disk, not in the system's memory alone, when this returns: what it stands for may then be deleted.

    dtype: cast the weights (None: as they are). weights: a whole state dict, where the model's own are sharded.
    What was in `out` before is replaced; it stays, with a ValueError, where a weight is NaN or infinite.
    """
    out = Path(os.path.abspath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        model.save_pretrained(work, **({} if weights is None else {"state_dict": weights}))
        for file in work.glob("*.safetensors"):
            tensors = load_file(file)
            if dtype is not None:
                tensors = {name: value.to(dtype) for name, value in tensors.items()}
            for name, value in tensors.items():
                check_finite(name, value, f"the model for {out}")
            save_file(tensors, file, metadata={"format": "pt"})
            file.chmod(0o644)
        kept = dtype or next(iter(tensors.values())).dtype
        raw = json.loads((work / "config.json").read_text(encoding="utf-8"))
        tidy_config(raw, kept)
        write_json(work / "config.json", raw)
        generation = json.loads(model.generation_config.to_json_string(use_diff=True))
        generation.pop("transformers_version", None)
        write_json(work / "generation_config.json", generation)
        processor.save_pretrained(work)
        work.chmod(0o755)
        for path in (*work.rglob("*"), work):
            _flush(path)
        if out.is_dir():
            old = work.with_name(work.name + "-old")
            out.rename(old)
            work.rename(out)
            shutil.rmtree(old)
        else:
            work.rename(out)
        _flush(out.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    if path.is_dir() and os.name == "nt":  # has no such thing for folders
        return
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """The state dict of a model that FSDP2 has sharded, gathered on the CPU; None where nothing is sharded.

    Every process must call it, and every one gets all of it.
    """
    state = model.state_dict()
    if not any(hasattr(value, "full_tensor") for value in state.values()):
        return None
    tied = set(model._tied_weights_keys or ()) if model.config.tie_word_embeddings else set()
    whole = {}
    for name, value in state.items():
        if name not in tied:
            whole[name] = (value.full_tensor() if hasattr(value, "full_tensor") else value).cpu()
    return whole


def tidy_config(raw: dict, dtype: torch.dtype) -> None:
    """Make a saved config.json say what every supported transformers version reads, and nothing of this machine."""
    name = str(dtype).removeprefix("torch.")
    raw["architectures"] = ["ArgusForConditionalGeneration"]
    raw["auto_map"] = AUTO_MAP
    raw["dtype"] = name
    for part in (raw, raw["vision_config"], raw["text_config"]):
        for key in ("transformers_version", "_name_or_path", "torch_dtype", "_attn_implementation"):
            part.pop(key, None)
    for part, config_class in (("vision_config", ArgusVisionConfig), ("text_config", ArgusTextConfig)):
        own = set(inspect.signature(config_class.__init__).parameters) | {"model_type", "rope_parameters"}
        raw[part] = {key: value for key, value in raw[part].items() if key in own} | {"dtype": name}


def write_json(path: Path, value: dict) -> None:
    """Indented JSON with a final newline; what was in the file before stays until all of it is written."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
