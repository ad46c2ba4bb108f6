"""Tasks to tiles: what worker processes do with an image. They load this module once, before the first of them is made.

Whatever is wrong with an image is an `error` of its result and never an exception.
"""

import functools
import json
import os
from dataclasses import dataclass

import numpy as np
import torch

from processing_argus import ArgusImageProcessor

from ..cli_support import one_line
from .feeding import Task
from .items import MAX_IMAGE_BYTES, too_large
from .tars import as_metadata


@dataclass(slots=True)
class Prepared:
    """An image ready for the model: `tiles` uint8[n, 3, S, S] (float32 where the processor normalises) and `size`
    (height, width) of the original, upright; or neither, and an `error`. `num_tiles` is 0 then."""

    id: str
    source: str
    key: str | None = None
    metadata: str | None = None
    size: tuple[int, int] | None = None
    tiles: np.ndarray | None = None
    error: str | None = None

    @property
    def num_tiles(self) -> int:
        return 0 if self.tiles is None else len(self.tiles)


@functools.lru_cache(maxsize=1)
def build_image_processor(recipe: str):
    """The image processor that `image_processor_recipe` wrote down, in this process."""
    recipe = json.loads(recipe)
    if "trusted" in recipe:
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(recipe["trusted"], trust_remote_code=True).image_processor
    return ArgusImageProcessor(**recipe["settings"])


def image_processor_recipe(image_processor, trusted: str | None = None) -> str:
    """How another process makes the same image processor: its settings, or the folder whose own code is trusted."""
    if trusted is not None:
        return json.dumps({"trusted": trusted})
    return json.dumps({"settings": {name: getattr(image_processor, name) for name in image_processor.saved_settings}})


def prepare(task: Task, image_processor, options: dict) -> Prepared:
    """Read, decode, resize and tile one image. `options`: the image processor's (`max_tiles`, `max_upscale`)."""
    item = task.item
    result = Prepared(item.id, item.source, task.key, task.metadata, error=task.error)
    if task.error is not None:
        return result
    try:
        if item.kind == "tar":
            result.metadata = _sidecars(item)
        inputs = image_processor.preprocess(_source(task), return_tensors="pt", **options)
        result.size = tuple(inputs["image_sizes"][0].tolist())
        result.tiles = inputs["pixel_values"].numpy()
    except MemoryError:
        result.error = "decoding it takes more memory than there is"
    except Exception as error:  # ImageInputError, OSError, and whatever a damaged file makes of a decoder
        result.error = one_line(error)
    return result


def _source(task: Task) -> bytes | str:
    item = task.item
    if task.image is not None:
        return task.image
    return _read(item.path, *item.place) if item.kind == "tar" else item.path


def _sidecars(item) -> str | None:
    try:
        return as_metadata([(suffix, _read(item.path, *place)) for suffix, *place in item.sidecars])
    except OSError:  # a tar that is cut off: its image may be whole
        return None


def _read(path: str, offset: int, length: int) -> bytes:
    if length > MAX_IMAGE_BYTES:
        raise OSError(too_large(length))
    with open(path, "rb") as file:
        file.seek(offset)
        content = file.read(length)
    if len(content) < length:
        raise OSError(f"it has {length} bytes by the tar's list, of which {len(content)} are there")
    return content


def serve(connection, recipe: str, options: dict) -> None:
    """A worker process: a Task comes in, a line of JSON goes out and behind it the tiles' bytes; until the other end
    goes. What comes back is plain data: a decoder that an image has taken over has nothing here to unpickle."""
    import signal
    import warnings

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the main one decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        image_processor = build_image_processor(recipe)
        connection.send_bytes(b"{}")
        while True:
            result = prepare(connection.recv(), image_processor, options)
            told = {"size": result.size, "key": result.key, "metadata": result.metadata, "error": result.error}
            if result.tiles is not None:
                told |= {"shape": result.tiles.shape, "dtype": str(result.tiles.dtype)}
            connection.send_bytes(json.dumps(told).encode())
            if result.tiles is not None:
                connection.send_bytes(memoryview(np.ascontiguousarray(result.tiles)).cast("B"))
            del result
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the main process is gone, or done
