"""What is evaluated, behind one small interface: an Argus model here, other models in `other_models.py`.

A model has a `name`, an `identity` (plain values that a predictions file keeps), and those of these calls that it can:

    caption(images) -> list[str]
    answer(images, questions) -> list[str]
    detect(images, phrases: a list for each image) -> list of {"boxes", "labels", "scores"}
    dense_caption(images) -> list of {"boxes", "captions", "scores"}

Boxes are lists x1, y1, x2, y2 in pixels of the image, scores floats, all plain Python. Images are what Pillow or the
processors take; `answer` may name one image several times. Everything is greedy.
"""

import json
import math
from pathlib import Path

from .. import cli_models
from ..cli_support import CommandError, one_line
from .predictions import fingerprint

OTHER_TYPES = ("florence2", "smolvlm", "idefics3")


class ArgusAnswerer:
    """An Argus model and its processor. Scores are the product's: exp of the mean log-probability of a region's tokens,
    those of its caption and of its box. Measured on argus-nano's scenes, no other definition ranks dense captions
    better beyond noise (benchmarks/accuracy/results/scores.md).

    options: the processor's (`max_tiles`, `max_upscale`) and `generate()`'s, the same for every call.
    """

    def __init__(
        self, model, processor, name: str = "argus", identity: dict | None = None, batch_size: int = 32, **options
    ):
        self.model, self.processor = model, processor
        self.name, self.identity = name, identity or {"name": name}
        self._options = {"processor": processor, "batch_size": batch_size, "do_sample": False, **options}

    def caption(self, images, prompt: str | None = None) -> list[str]:
        return self.model.caption(list(images), prompt=prompt, **self._options)

    def answer(self, images, questions) -> list[str]:
        return self.model.answer(list(images), list(questions), **self._options)

    def detect(self, images, phrases) -> list[dict]:
        return [_plain(found, "labels") for found in self.model.detect(list(images), phrases, **self._options)]

    def dense_caption(self, images) -> list[dict]:
        return [_plain(found, "captions") for found in self.model.dense_caption(list(images), **self._options)]


def _plain(regions: dict, key: str) -> dict:
    return {"boxes": regions["boxes"].tolist(), key: list(regions[key]), "scores": regions["scores"].tolist()}


def check_model(name: str | None, trust_remote_code: bool = False) -> tuple[str, str, dict]:
    """(model type, folder or repository, identity) of what `--model` names; nothing is loaded.

    Raises:
        CommandError: no such model, or one of a kind that is not evaluated.
    """
    folder = cli_models.model_folder(name)
    kind = _read(folder / "config.json").get("model_type")
    if kind in OTHER_TYPES:
        identity = {"name": _name(folder), "type": kind, "fingerprint": fingerprint(folder)}
        return kind, str(folder), identity | ({"box_format": "location_tokens"} if kind == "florence2" else {})
    found = cli_models.check_model(name, trust_remote_code)
    if folder.is_dir():
        identity = {"name": _name(folder), "type": "argus", "fingerprint": fingerprint(folder)}
        return "argus", found, identity | {"box_format": _read(folder / "processor_config.json").get("box_format")}
    kind, revision = _repository(found, trust_remote_code)
    return kind, found, {"name": found, "type": kind, "revision": revision}


def num_parameters(name: str | None) -> int | None:
    """Numbers that the weights of `--model` hold, by their files' headers; None where they are not here to be read."""
    from safetensors import SafetensorError, safe_open

    total = 0
    for file in cli_models.model_folder(name).glob("*.safetensors"):
        try:
            with safe_open(file, framework="np") as weights:
                total += sum(math.prod(weights.get_slice(each).get_shape()) for each in weights.keys())
        except (SafetensorError, OSError):
            return None  # the model's own loading says what is wrong
    return total or None


def open_model(kind: str, name: str, identity: dict, arguments):
    """The model that `check_model` found, loaded on its device. Raises CommandError where it cannot be."""
    device = cli_models.read_device(arguments.device)
    options = {key: getattr(arguments, key) for key in ("max_tiles", "max_new_tokens")}
    options = {key: value for key, value in options.items() if value is not None}
    if kind == "argus":
        model, processor = cli_models.load(name, device, arguments.dtype, arguments.trust_remote_code)
        return ArgusAnswerer(model, processor, identity["name"], identity, arguments.batch_size, **options)
    from .other_models import load

    return load(kind, name, identity, device, arguments.dtype, arguments.batch_size, **options)


def _name(folder: Path) -> str:
    """The folder's own name; "OUT/model" of what `argus train` leaves in OUT, or all of them would be "model"."""
    folder = folder.resolve()
    return f"{folder.parent.name}/model" if folder.name == "model" else folder.name


def _read(file: Path) -> dict:
    """A JSON object, empty where there is none to read."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _repository(name: str, trust_remote_code: bool) -> tuple[str, str | None]:
    """(model type, commit) of a hub repository."""
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(name)
    except Exception as error:  # no network, no such repository, no permission: each of its own kind
        raise CommandError(f"the configuration of {name} cannot be had: {one_line(error)}") from error
    kind = config.get("model_type")
    if kind not in ("argus", *OTHER_TYPES):
        known = ", ".join(("argus", *OTHER_TYPES))
        raise CommandError(f"{name} is a model of type {kind!r}; evaluated are {known}")
    return kind, config.get("_commit_hash")
