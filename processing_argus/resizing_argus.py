"""Resizing uint8 pixels on the CPU: torch's antialiased kernels (Pillow-SIMD's, ported), split exactly over threads.

A resize is two passes, each rounded to uint8: along the width, in which rows do not know of each other, then along the
height, in which columns do not. So rows and columns are shared out, and the pixels are bit for bit those of one call
(recipe 9 of Table 1). Images are uint8[H, W, 3] throughout; in the pass along the height every byte is a column of its
own, so it may as well receive the colours apart, and then gives rows that are copied into tiles as they are.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .threads_argus import run_all, split_range, thread_count

TORCH_MODES = {0: "nearest-exact", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by Pillow's numbers
_LARGE = 4 << 20  # bytes: from here on the pass along the height goes in twice as many pieces, to hold half as much
_PIECE = 1 << 18  # bytes that are worked on at a time where the pixels of a large image stay in memory beside


def resize_rows(image: np.ndarray, width: int, resample: int, spare: bool = False) -> list[np.ndarray]:
    """The pass along the width: uint8[H, W, 3], of any strides -> bands uint8[h, width, 3], one below the other.

    `spare`: the image is not needed afterwards. A large one that shrinks is then written over with the result.
    """
    if image.shape[1] == width:
        return [image]
    threads = thread_count(max(image.nbytes, image.shape[0] * width * 3))
    large = image.nbytes > _LARGE
    in_place = spare and large and width < image.shape[1]
    parts = max(threads, image.nbytes // _PIECE) if in_place or (large and not image.flags.c_contiguous) else threads
    ranges = split_range(image.shape[0], parts)
    bands = [None] * len(ranges)

    def task(i, start, stop):
        band = _one_pass(image[start:stop], (stop - start, width), resample)
        if in_place:
            image[start:stop, :width] = band
        else:
            bands[i] = band

    run_all([lambda i=i, r=r: task(i, *r) for i, r in enumerate(ranges)], threads)
    return [image[:, :width]] if in_place else bands


def resize_columns(bands: list[np.ndarray], height: int, resample: int, write, apart: bool = False) -> None:
    """The pass along the height over bands that lie one below the other.

    Calls `write(piece, start, stop)` for the columns [start, stop) of the result, on several threads: a piece is
    uint8[height, stop - start, 3], or with `apart` uint8[height, 3, stop - start].
    """
    rows, width = sum(len(band) for band in bands), bands[0].shape[1]
    nbytes = max(rows, height) * width * 3
    threads = thread_count(nbytes)
    pieces = threads * 2 if nbytes > _LARGE and threads > 1 else threads
    if nbytes > _LARGE and rows > height:
        pieces = max(pieces, nbytes // _PIECE)
    planar = apart and height > rows  # colours are sorted on the smaller side of the pass

    def task(start, stop):
        if len(bands) == 1 and not planar and stop - start == width:
            piece = bands[0]
        else:
            piece = np.empty((rows, 3, stop - start) if planar else (rows, stop - start, 3), np.uint8)
            top = 0
            for band in bands:
                columns = band[:, start:stop]
                piece[top : top + len(band)] = columns.transpose(0, 2, 1) if planar else columns
                top += len(band)
        if rows != height:
            shape = (height, *piece.shape[1:])
            piece = _one_pass(piece.reshape(rows, stop - start, 3), (height, stop - start), resample).reshape(shape)
        write(piece.transpose(0, 2, 1) if apart and not planar else piece, start, stop)

    run_all([lambda r=r: task(*r) for r in split_range(width, pieces)], threads)


def resize(holder: list[np.ndarray], size: tuple[int, int], resample: int, spare: bool = False) -> np.ndarray:
    """[uint8[H, W, 3]] -> uint8[*size, 3], antialiased; `resample` is Pillow's number. Empties the list. `spare`: as
    for `resize_rows`."""
    if holder[0].shape[:2] == tuple(size):
        return holder.pop()
    bands = resize_rows(holder.pop(), size[1], resample, spare)
    result = np.empty((*size, 3), np.uint8)
    join_columns(bands, resample, result)
    return result


def join_columns(bands: list[np.ndarray], resample: int, result: np.ndarray) -> None:
    """`resize_columns` into uint8[height, W, 3]; empties `bands`, which are not needed after it."""

    def write(piece, start, stop):
        result[:, start:stop] = piece

    resize_columns(bands, len(result), resample, write)
    bands.clear()


def _one_pass(image: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """One call of a kernel, which changes one side only."""
    image = np.ascontiguousarray(image)
    if resample not in TORCH_MODES or (resample == 1 and not torch_has_lanczos()):
        pil = Image.fromarray(image).resize((size[1], size[0]), resample)
        return np.asarray(pil)
    mode = TORCH_MODES[resample]
    H, W, _ = image.shape
    # With the strides that a batch would have, torch sees channels_last and skips repacking the pixels.
    batch = torch.from_numpy(image).as_strided((1, 3, H, W), (H * W * 3, 1, W * 3, 3))
    options = {} if mode == "nearest-exact" else {"align_corners": False, "antialias": True}
    resized = F.interpolate(batch, size=size, mode=mode, **options)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


@lru_cache(maxsize=1)
def torch_has_lanczos() -> bool:
    try:  # torch >= 2.14
        F.interpolate(
            torch.zeros(1, 3, 4, 4, dtype=torch.uint8, device="cpu"), size=(2, 2), mode="lanczos", antialias=True
        )
    except (NotImplementedError, ValueError, RuntimeError):
        return False
    return True
