"""Checkpoints on disk: reading safetensors lazily, sharded or not, and writing a folder that is whole or not there.

Only safetensors are read and written, never pickle. Tensors are read one by one as they are written out, so memory
holds one shard of the output at most.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..export import check_finite
from .errors import ConvertError, listed

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_SHARD_BYTES = 5 * 1000**3

Progress = Callable[[int, int, str], None]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ConvertError where the file is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConvertError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ConvertError(f"{path} holds a {type(value).__name__} where a JSON object belongs.")
    return value


def read_json_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class Checkpoint:
    """A folder with config.json and safetensors. Use as a context manager; shards are opened on first use.

    Raises:
        ConvertError: no such folder, no config.json, no safetensors (with what is there instead), an index that names
            files or tensors which do not exist, a file that is not safetensors.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        if not self.folder.exists():
            raise ConvertError(f"{self.folder} does not exist.")
        if not self.folder.is_dir():
            raise ConvertError(f"{self.folder} is a file; a checkpoint is a folder with config.json and safetensors.")
        if not (self.folder / "config.json").is_file():
            raise ConvertError(f"{self.folder} is not a checkpoint: it has no config.json.")
        self.config = read_json(self.folder / "config.json")
        self._files = contextlib.ExitStack()
        self._open: dict[str, Any] = {}
        self.where = self._locate()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._files.close()

    @property
    def model_type(self) -> Optional[str]:
        kind = self.config.get("model_type")
        return kind if isinstance(kind, str) else repr(kind) if kind is not None else None

    def _locate(self) -> dict[str, str]:
        """Which file holds each tensor."""
        if (self.folder / INDEX).is_file():
            where = read_json(self.folder / INDEX).get("weight_map")
            if not isinstance(where, dict) or not where:
                raise ConvertError(f"{self.folder / INDEX} has no weight_map.")
            for name, file in where.items():
                if not isinstance(file, str):
                    raise ConvertError(
                        f"{self.folder / INDEX} gives {file!r} for {name}, where the name of a file belongs."
                    )
            absent = {file for file in where.values() if not (self.folder / file).is_file()}
            if absent:
                raise ConvertError(f"{self.folder / INDEX} names files that are not there: {listed(absent)}.")
            for file in sorted(set(where.values())):
                lacking = {name for name, at in where.items() if at == file} - set(self._file(file).keys())
                if lacking:
                    raise ConvertError(
                        f"{self.folder / file} lacks tensors that the index promises: {listed(lacking)}."
                    )
            return where
        if (self.folder / SINGLE).is_file():
            return dict.fromkeys(self._file(SINGLE).keys(), SINGLE)
        other = [
            path.name for path in self.folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".gguf")
        ]
        if other:
            raise ConvertError(
                f"{self.folder} has weights as {listed(other)} only. Pickled weights can run code when they are read, "
                "so only safetensors are; save the model with save_pretrained(..., safe_serialization=True) first."
            )
        raise ConvertError(f"{self.folder} is not a checkpoint: it has neither {SINGLE} nor {INDEX}.")

    def _file(self, file: str):
        if file not in self._open:
            try:
                self._open[file] = self._files.enter_context(safe_open(self.folder / file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ConvertError(f"{self.folder / file} is not a whole safetensors file: {error}.") from error
        return self._open[file]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file(self.where[name]).get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor. Raises ConvertError where it holds something else than finite floating-point numbers."""
        tensor, file = self._file(self.where[name]).get_tensor(name), self.folder / self.where[name]
        if tensor.dtype not in FLOATS:
            raise ConvertError(f"{name} in {file} is {tensor.dtype}; weights are {listed(map(str, FLOATS))}.")
        check_finite(name, tensor, file, ConvertError)
        return tensor


@contextlib.contextmanager
def staged_folder(out) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends well, and vanishes when it does not.

    Raises:
        ConvertError: `out` exists and is not an empty folder, or cannot be written, a full disk included.
    """
    out = Path(os.path.abspath(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConvertError(f"{out} already exists and is not empty; choose another output folder or remove it.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise ConvertError(f"{out} cannot be written: {error}.") from error
    try:
        yield staged
        umask = os.umask(0)
        os.umask(umask)
        staged.chmod(0o777 & ~umask)  # mkdtemp's folders are private
        if out.exists():
            out.rmdir()
        os.replace(staged, out)
    except BaseException as error:
        shutil.rmtree(staged, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise ConvertError(f"{out} could not be written: {error}.") from error
        raise


def write_tensors(
    folder: Path,
    sizes: dict[str, int],
    load: Callable[[str], torch.Tensor],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Optional[Progress] = None,
) -> None:
    """Writes tensors as one safetensors file, or as shards with an index.

    Args:
        sizes: bytes of each tensor, in the order to write them.
        load: gives a tensor by name; called once for each.
        progress: told (tensors done, tensors in all, name) after each.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    files = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    done = 0
    for file, names in zip(files, shards):
        tensors = {}
        for name in names:
            tensors[name] = load(name).contiguous()
            done += 1
            if progress is not None:
                progress(done, len(sizes), name)
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(files) > 1:
        weight_map = {name: file for file, names in zip(files, shards) for name in names}
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})
