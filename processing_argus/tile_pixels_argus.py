"""Pixels of one image -> its tiles, by a `TilingPlan`: on the CPU in uint8 and over threads, on a device in float32.

Each tile is written once, into its place in the output (recipes 1, 2 and 11 of Table 1). Large intermediate pixels are
given up as soon as the next ones exist, and pixels that are the call's own are written over: at the peak lie the
image, the output and no more than about as much as that again.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from .resizing_argus import TORCH_MODES, join_columns, resize, resize_columns, resize_rows
from .threads_argus import run_all, split_range, thread_count
from .tiling_argus import TilingPlan

_SMALL = 4 << 20  # bytes
_MAX_DEVICE_SHRINK = 32  # the CUDA antialias kernels run out of shared memory when they shrink by much more


def write_tiles_on_cpu(source: list, plan: TilingPlan, resample: int, tiles: Callable[[], torch.Tensor]) -> None:
    """Fill an image's tiles, the thumbnail last.

    Args:
        source: [uint8[3, H, W]], emptied at once: where nobody else holds the image, its memory is free early, and
            where it has the mark `_argus_spare`, it is written over.
        resample: Pillow's number of the filter.
        tiles: gives uint8[n, 3, S, S], this image's part of the output; not called before it is needed.
    """
    pixels = source.pop()
    spare = getattr(pixels, "_argus_spare", False)
    image = pixels.permute(1, 2, 0).numpy()
    if image.nbytes <= _SMALL:  # of a large one strips are copied, as they are needed
        image = np.ascontiguousarray(image)
    del pixels
    grid, S, thumbnail = plan.grid, plan.resizes[-1][0] // plan.grid.rows, None
    if grid.thumbnail and not plan.thumbnail_from_canvas:
        thumbnail = _thumbnail(image, S, resample)
    *before, canvas_size = dict.fromkeys(plan.resizes)  # most often SmolVLM's two are one
    holder = [image]
    del image  # each step's input is free before its second half
    for size in before:
        spare_after = spare or holder[0].shape[:2] != tuple(size)  # else it is the image itself
        holder.append(resize(holder, size, resample, spare))
        spare = spare_after
    bands = resize_rows(holder.pop(), canvas_size[1], resample, spare)
    out = tiles().numpy()
    split = out[: grid.rows * grid.cols].reshape(grid.rows, grid.cols, 3, S, S)
    if grid.thumbnail and plan.thumbnail_from_canvas:
        canvas = split.reshape(grid.rows * S, grid.cols * S, 3)  # as many bytes: it lies where its tiles will
        join_columns(bands, resample, canvas)
        thumbnail = _thumbnail(canvas, S, resample)
        _split_in_place(split)
    else:
        _columns_to_tiles(bands, split, resample)
    if thumbnail is not None:
        out[-1] = thumbnail


def _thumbnail(image: np.ndarray, S: int, resample: int) -> np.ndarray:
    """uint8[H, W, 3] -> uint8[3, S, S]."""
    tile = np.empty((1, 1, 3, S, S), np.uint8)
    _columns_to_tiles(resize_rows(image, S, resample), tile, resample)
    return tile[0, 0]


def _columns_to_tiles(bands: list[np.ndarray], tiles: np.ndarray, resample: int) -> None:
    """The last pass, along the height, straight into uint8[rows, cols, 3, S, S]."""
    rows, _, _, S, _ = tiles.shape

    def write(piece, start, stop):
        for col in range(start // S, -(-stop // S)):
            first, last = max(start, col * S), min(stop, (col + 1) * S)
            for row in range(rows):
                part = piece[row * S : (row + 1) * S, :, first - start : last - start]
                tiles[row, col, :, :, first - col * S : last - col * S] = part.transpose(1, 0, 2)

    resize_columns(bands, rows * S, resample, write, apart=True)


def _split_in_place(tiles: np.ndarray) -> None:
    """Turns the bytes of a canvas uint8[rows * S, cols * S, 3] into those of its tiles uint8[rows, cols, 3, S, S]."""
    cols, S = tiles.shape[1], tiles.shape[-1]
    threads = thread_count(tiles[0].nbytes)

    def task(row, block, start, stop):
        row[:, :, start:stop] = block[start:stop].transpose(1, 3, 0, 2)

    for row in tiles:
        block = row.reshape(S, cols, S, 3).copy()
        run_all([lambda r=r, row=row, block=block: task(row, block, *r) for r in split_range(S, threads)], threads)


# --- on a device ------------------------------------------------------------------------------------------------------


def fits_device(height: int, width: int, plan: TilingPlan) -> bool:
    """Whether no resize of the plan shrinks more than a device's kernels can; if one does, the CPU makes the tiles."""
    S = plan.resizes[-1][0] // plan.grid.rows
    steps = [(height, width), *plan.resizes]
    pairs = [*zip(steps, plan.resizes), (steps[-1] if plan.thumbnail_from_canvas else steps[0], (S, S))]
    return all(max(old[0] / new[0], old[1] / new[1]) <= _MAX_DEVICE_SHRINK for old, new in pairs)


def write_tiles_on_device(image: torch.Tensor, plan: TilingPlan, resample: int, tiles: torch.Tensor) -> None:
    """Fill tiles uint8[n, 3, S, S], the thumbnail last, from uint8[3, H, W] on the same device (recipe 3 of Table 1).

    In float32, clamped and rounded after each resize, with bicubic for Lanczos: both as transformers does. Queues at
    most eleven kernels and waits for none. Raises ValueError for the filters that only the CPU has.
    """
    if resample not in TORCH_MODES:
        raise ValueError(f"resample={resample} (box, Hamming) works on the CPU only, not on {image.device}.")
    mode = "bicubic" if resample == 1 else TORCH_MODES[resample]
    rows, cols, S = plan.grid.rows, plan.grid.cols, tiles.shape[-1]
    canvas = image = image.to(torch.float32, memory_format=torch.contiguous_format)
    for size in plan.resizes:
        canvas = resize_in_float32(canvas, size, mode)
    # The copies cast as well: all values are whole numbers of 0..255 by now.
    tiles[: rows * cols].view(rows, cols, 3, S, S).copy_(canvas.view(3, rows, S, cols, S).permute(1, 3, 0, 2, 4))
    if plan.grid.thumbnail:
        tiles[-1].copy_(resize_in_float32(canvas if plan.thumbnail_from_canvas else image, (S, S), mode))


def resize_in_float32(image: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """float32[3, H, W] of whole numbers in 0..255 -> float32[3, *size] of the same kind, antialiased."""
    if tuple(image.shape[1:]) == tuple(size):
        return image
    if mode == "nearest-exact":
        return F.interpolate(image[None], size=size, mode=mode)[0]
    resized = F.interpolate(image[None], size=size, mode=mode, align_corners=False, antialias=True)[0]
    return (resized.clamp_(0, 255) if mode == "bicubic" else resized).round_()
