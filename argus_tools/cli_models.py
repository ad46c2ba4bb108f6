"""Which model, on which device, in which precision: from what was typed to a model and its processor."""

import json
import re
from pathlib import Path

from .cli_support import CommandError, one_line
from .paths import DEFAULT_MODEL, card_path, default_model_path

_FAMILY_NAME = re.compile(r"argus-\w+")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_folder(name: str | None) -> Path:
    """The folder that is meant: a model of the family (None: argus-nano) unless a folder has that name."""
    if name is None:
        return default_model_path()
    folder = Path(name).expanduser()
    if _FAMILY_NAME.fullmatch(name) and not folder.exists():
        try:
            return default_model_path() if name == DEFAULT_MODEL else card_path(name)
        except FileNotFoundError as error:
            raise CommandError(f"--model {name}: {one_line(error)}") from error
    return folder


def check_model(name: str | None, trust_remote_code: bool = False) -> str:
    """The folder or hub repository that is meant, as far as that can be told without loading anything.

    Raises:
        CommandError: no such folder, one without an Argus model's files, or one with a generate() of its own that is
            not trusted: some versions of transformers run it, from a local folder, without asking whether they may.
    """
    folder = model_folder(name)
    if not folder.exists():
        if _HUB_NAME.fullmatch(str(name)):
            return str(name)
        raise CommandError(f"--model {name}: no such folder, and not the name of a hub repository (owner/name)")
    if not folder.is_dir():
        raise CommandError(f"--model {name}: a file; a model is a folder with config.json, weights and a tokenizer")
    if not (folder / "config.json").is_file():
        raise CommandError(f"no model in {folder}: it has no config.json")
    try:
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError, OSError) as error:
        raise CommandError(f"{folder / 'config.json'} cannot be read: {one_line(error)}") from error
    _check_type(model_type, str(folder))
    if not any(folder.glob("*.safetensors")):
        raise CommandError(f"no weights (*.safetensors) in {folder}")
    for file in ("processor_config.json", "tokenizer.json"):
        if not (folder / file).is_file():
            raise CommandError(f"no {file} in {folder}: save the processor there too")
    if not trust_remote_code and (folder / "custom_generate").exists():
        raise CommandError(f"{folder / 'custom_generate'} is code, which runs only with --trust-remote-code")
    return str(folder)


def _check_type(model_type, where: str) -> None:
    if model_type != "argus":
        raise CommandError(
            f"{where} holds a model of type {model_type!r}, not 'argus': `argus convert` reads many kinds"
        )


def read_device(name: str):
    """torch.device of "auto", "cpu", "cuda", "cuda:1", "mps", ... Raises CommandError for one that is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:  # an unknown name, a missing driver, a build without it: each of its own kind
        reason = one_line(error).split(". ")[0]
        raise CommandError(f"--device {name} cannot be used here: {reason}") from error
    if device.type == "meta":
        raise CommandError("--device meta holds no numbers: use cpu or cuda")
    return device


def load(name: str, device, dtype: str, trust_remote_code: bool):
    """The model, in evaluation mode on its device, and its processor.

    The installed classes read the folder, so that no code of the model's own runs; with `trust_remote_code` it does.

    Args:
        name: what `check_model` gave back.
        device: torch.device.
        dtype: "float32", "bfloat16", "float16", or "auto": as it was saved, but float32 on a CPU, where it is faster.

    Raises:
        CommandError: what is there is not a whole Argus model.
    """
    import torch

    if dtype == "auto":
        dtype = "float32" if device.type == "cpu" else "auto"
    torch_dtype = getattr(torch, dtype) if dtype != "auto" else "auto"
    try:
        if trust_remote_code:
            from transformers import AutoModelForImageTextToText, AutoProcessor

            processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
            model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True, dtype=torch_dtype)
        else:
            from modeling_argus import ArgusConfig, ArgusForConditionalGeneration
            from processing_argus import ArgusProcessor

            _check_type(ArgusConfig.get_config_dict(name)[0].get("model_type"), name)
            # Said, not left out: left out, transformers asks on the terminal whether to run code that it finds.
            processor = ArgusProcessor.from_pretrained(name, trust_remote_code=False)
            model = ArgusForConditionalGeneration.from_pretrained(name, dtype=torch_dtype, trust_remote_code=False)
        model = model.to(device).eval()
    except CommandError:
        raise
    except Exception as error:  # damaged files raise many kinds: JSON, safetensors, tokenizers, shapes, memory
        if "trust_remote_code=True" in str(error):  # transformers' refusal, in words of Python
            raise CommandError(
                f"{name} comes with code of its own, which runs only with --trust-remote-code"
            ) from error
        raise CommandError(f"the model in {name} could not be loaded: {one_line(error)}") from error
    if not hasattr(model, "dense_caption") or not hasattr(processor, "post_process_dense_captioning"):
        raise CommandError(f"{name} is a {type(model).__name__}, not an Argus model: `argus convert` reads many kinds")
    return model, processor
