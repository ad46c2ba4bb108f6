"""`argus export`: a checkpoint and the code of both hub packages as one flat folder that needs nothing of this project.

The folder is what a hub repository holds: card, configs with `auto_map`, safetensors weights, tokenizer, chat template
and every code file. It is built under a temporary name beside the target and moved there when it is whole.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from .paths import default_model_path, hub_code_files

_MODEL = "modeling_argus.ArgusForConditionalGeneration"
_PROCESSORS = {
    "AutoProcessor": "processing_argus.ArgusProcessor",
    "AutoImageProcessor": "image_processing_argus.ArgusImageProcessor",
}
AUTO_MAP = {
    "AutoConfig": "configuration_argus.ArgusConfig",
    "AutoModel": "modeling_argus.ArgusModel",
    "AutoModelForImageTextToText": _MODEL,
    "AutoModelForVision2Seq": _MODEL,  # 4.57 alone knows this name
    "AutoModelForMultimodalLM": _MODEL,  # 5.x alone knows this one
    **_PROCESSORS,
}
# pipeline("dense-captioning", model=..., trust_remote_code=True)
CUSTOM_PIPELINES = {
    "dense-captioning": {
        "impl": "pipeline_argus.ArgusDenseCaptioningPipeline",
        "pt": ["AutoModelForImageTextToText"],
        "type": "image",
    }
}
# Which Auto classes each file is asked for. AutoProcessor looks into all of them, in an order that versions differ in.
_AUTO_MAPS = {"config.json": AUTO_MAP, "processor_config.json": _PROCESSORS, "preprocessor_config.json": _PROCESSORS}

_CARD_SUFFIXES = {".md", ".png", ".jpg", ".jpeg", ".yaml"}
_CARD_FOLDERS = ("images", "training", ".eval_results")  # what a card shows and names; nothing else of subfolders
_FOLDER_SUFFIXES = {".json", ".jsonl", *_CARD_SUFFIXES}
_DATA_SUFFIXES = {".safetensors", ".json", ".jinja", ".txt", ".model", *_CARD_SUFFIXES}
_LEFT_OUT = {"trainer_state.json"}
_PICKLED_WEIGHTS = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


def export(
    model: str | os.PathLike | None, out: str | os.PathLike, *, force: bool = False, progress: bool = False
) -> Path:
    """Write the flat hub folder of the folder `model` (None: the embedded argus-nano) to `out`, and return its path.

    `force` replaces an earlier export in `out`, of which only entries whose names begin with a dot (.git) are kept.
    Raises FileNotFoundError where the checkpoint is incomplete, ValueError where it is not an Argus checkpoint or a
    file of it is damaged, and FileExistsError where `out` holds something that may not be replaced. In each case `out`
    is left as it was.
    """
    source = Path(model) if model is not None else default_model_path()
    target = Path(os.path.abspath(out))
    files = _checked_files(source)
    _check_target(target, source, force)

    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for path in tqdm(files, desc=f"export to {target.name}", unit="file", disable=not progress):
            destination = work / path.relative_to(source)
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, destination)
        for path in hub_code_files():
            shutil.copyfile(path, work / path.name)
        _write_auto_maps(work)
        if not (work / "README.md").exists():
            (work / "README.md").write_text(_card(target.name, _writes_boxes(work)), encoding="utf-8")
        os.chmod(work, 0o777 & ~_umask())  # mkdtemp's folders are private
        _move(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _checked_files(source: Path) -> list[Path]:
    """The data files of a checkpoint folder that belong into a hub folder, once it is known to be whole."""
    if not source.is_dir():
        raise FileNotFoundError(f"no checkpoint folder at {source}")
    if not (source / "config.json").is_file():
        raise FileNotFoundError(
            f"no config.json in {source}: export wants a folder with a converted or trained Argus model"
        )
    model_type = _read_object(source / "config.json").get("model_type")
    if model_type != "argus":
        raise ValueError(f"{source} holds a model of type {model_type!r}, not 'argus': run `argus convert` on it first")

    files = [p for p in sorted(source.iterdir()) if p.suffix in _DATA_SUFFIXES and p.name not in _LEFT_OUT]
    folders = [source / name for name in _CARD_FOLDERS if (source / name).is_dir()]
    files += [p for folder in folders for p in sorted(folder.iterdir()) if p.suffix in _FOLDER_SUFFIXES]
    files = [p for p in files if p.is_file()]
    names = {p.name for p in files if p.parent == source}
    if not any(name.endswith(".safetensors") for name in names):
        pickled = sorted(p.name for p in source.iterdir() if p.suffix in _PICKLED_WEIGHTS)
        found = f" ({', '.join(pickled)} is pickled, which is never read)" if pickled else ""
        raise FileNotFoundError(
            f"no weights (*.safetensors) in {source}{found}: `argus convert` and `argus bootstrap` write them"
        )
    for index in source.glob("*.safetensors.index.json"):
        weight_map = _read_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise ValueError(f"{index} has no weight_map from tensors to files")
        shards = set(weight_map.values())
        if missing := sorted(shards - names):
            raise FileNotFoundError(f"{index} names shards that are not there: {', '.join(missing)}")
    if not names & {"processor_config.json", "preprocessor_config.json"}:
        raise FileNotFoundError(f"no processor_config.json in {source}: save the processor there too")
    if not names & {"tokenizer.json"}:
        raise FileNotFoundError(f"no tokenizer.json in {source}: save the processor there too")
    for name in names & set(_AUTO_MAPS):
        if not isinstance(_read_object(source / name).get("auto_map") or {}, dict):
            raise ValueError(f"auto_map in {source / name} is not an object of Auto classes and their classes")
    for path in files:
        if path.suffix == ".safetensors":
            _check_weights(path)
    return files


def _read_object(path: Path) -> dict:
    """The JSON object in a file. Raises ValueError, which names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def _check_weights(path: Path) -> None:
    """Raises ValueError for a file that is no whole safetensors file, or holds a value that is not finite."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                check_finite(name, file.get_tensor(name), path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def check_finite(name: str, tensor, where: str | os.PathLike, error: type[ValueError] = ValueError) -> None:
    """Raises `error` for a weight, a torch tensor, that is not finite: of a damaged file or a diverged training."""
    if not tensor.isfinite().all():
        raise error(f"{name} in {where} holds values that are NaN or infinite.")


def _check_target(target: Path, source: Path, force: bool) -> None:
    resolved, origin = target.resolve(), source.resolve()
    if resolved == origin or origin in resolved.parents or resolved in origin.parents:
        raise FileExistsError(f"{target} overlaps the checkpoint {source}: export to a folder of its own")
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} is a file: export writes a folder")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not force:
        raise FileExistsError(
            f"{target} is not empty: name another folder, or pass --force to replace an earlier export"
        )
    visible = [path.name for path in target.iterdir() if not path.name.startswith(".")]
    if visible and not {"config.json", "modeling_argus.py"} <= set(visible):
        raise FileExistsError(
            f"{target} is not an earlier export (it has no modeling_argus.py): --force does not replace it"
        )


def _write_auto_maps(folder: Path) -> None:
    for name, auto_map in _AUTO_MAPS.items():
        path = folder / name
        if not path.exists():
            continue
        config = json.loads(path.read_text(encoding="utf-8"))
        config["auto_map"] = {**(config.get("auto_map") or {}), **auto_map}
        if name == "config.json":
            config["custom_pipelines"] = CUSTOM_PIPELINES
        if isinstance(config.get("image_processor"), dict):  # 5.x nests it in processor_config.json
            config["image_processor"]["auto_map"] = {"AutoImageProcessor": AUTO_MAP["AutoImageProcessor"]}
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _move(work: Path, target: Path) -> None:
    """Put `work` in the place of `target`; an earlier export goes only when the new one is there."""
    if not target.exists():
        os.replace(work, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    os.replace(target, old)
    try:
        os.replace(work, target)
    except BaseException:  # a full disk, Ctrl-C
        os.replace(old, target)
        raise
    for path in old.iterdir():
        if path.name.startswith(".") and not (target / path.name).exists():
            os.replace(path, target / path.name)
    shutil.rmtree(old)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _writes_boxes(folder: Path) -> bool:
    """Whether the model has location tokens: a converted SmolVLM or InternVL3 has none."""
    path = folder / "processor_config.json"
    return path.exists() and bool(_read_object(path).get("num_location_bins"))


def _card(name: str, boxes: bool) -> str:
    tags = "\n".join(f"- {tag}" for tag in ("custom_code", *(("dense-captioning", "grounding") if boxes else ())))
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
tags:
{tags}
---

# {name}

An ArgusVLM checkpoint, written by `argus export`. It loads with `trust_remote_code=True`:

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

path = {json.dumps(name)}
processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=True, dtype="auto")
```

Say here where its weights come from, under which licence, and what they were measured to do.
"""
