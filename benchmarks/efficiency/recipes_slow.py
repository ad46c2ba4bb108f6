"""The slow ways to make model inputs that the recipes of Section 3.3 remove, written plainly, one switch each.

All of them give the model the same tiles: the geometry is the processor's own, resizing is torch's antialiased kernel.
With every recipe in, what is left is ArgusProcessor's own: the resize over threads in the decoder's order of bytes,
straight into the tiles, and packing.
"""

import io
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from processing_argus import resizing_argus, tile_pixels_argus
from processing_argus.prompt_layout_argus import PromptLayout
from processing_argus.tiling_argus import TilingOptions, plan_tiling

from .offline_tokenizer import CHAT_TEMPLATES, IMAGE_TOKEN, PROMPT
from .shapes import MEAN_STD, Shape


@dataclass(frozen=True)
class Recipes:
    """Which of the paper's recipes are in; the number is Tables 1 and 2's.

    no_mask (10): no pixel mask is made and sent. uint8 (8): tiles travel as bytes and become floats on the device.
    folded (6): no normalisation at all, the patch embedding takes the bytes. spliced (7): one marker is tokenized and
    cached ids are put in its place. flat (11): tiles travel and arrive as one tensor, not as one a tile. pinned (4):
    page-locked memory and copies that do not block. on_device (3): the raw image travels, resizing happens there.
    fast_decode (5, 9): the decoder that Argus takes, Pillow's pixels, in place of Pillow.
    single_resize (1): straight to the canvas, which is another picture where the chain has two steps.
    """

    no_mask: bool = False
    uint8: bool = False
    folded: bool = False
    spliced: bool = False
    flat: bool = False
    pinned: bool = False
    on_device: bool = False
    fast_decode: bool = False
    single_resize: bool = False


class SlowInputs:
    """Makes model inputs from JPEG bytes as `recipes` says.

    Args:
        shape: the model; processor: the ArgusProcessor whose tiling and prompt layout are followed.
        device, dtype: the model's.
    """

    def __init__(self, recipes: Recipes, shape: Shape, processor, device="cpu", dtype=torch.bfloat16):
        self.recipes, self.shape, self.processor = recipes, shape, processor
        self.device, self.dtype = torch.device(device), dtype
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in MEAN_STD[shape.kind])

    def __call__(self, data: bytes) -> dict:
        """JPEG bytes -> input_ids, attention_mask, pixel_values (and pixel_attention_mask) on the device."""
        recipes = self.recipes
        if recipes.fast_decode:
            image = self.processor.image_processor.fetch_images(data)
        else:
            image = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
        size = tuple(image.shape[1:])
        if recipes.on_device:
            image = self.send(image)
        tiles = self.tile(image)
        if not recipes.uint8 and not recipes.folded:
            tiles = self.normalise(tiles)
        inputs = dict(zip(("input_ids", "attention_mask"), self.tokenize(self.processor.image_processor, size)))
        inputs = {name: self.send(tensor) for name, tensor in inputs.items()}
        if not recipes.no_mask:
            inputs["pixel_attention_mask"] = self.send(torch.ones(len(tiles), *tiles.shape[2:], dtype=torch.int64))
        if recipes.flat:
            tiles = self.send(tiles)
        else:
            tiles = torch.cat([self.send(tile) for tile in tiles.split(1)])
        if recipes.uint8 and not recipes.folded:
            tiles = self.normalise(tiles)
        inputs["pixel_values"] = tiles if recipes.folded else tiles.to(self.dtype)
        return inputs

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """To the device, from pageable memory unless pinned (4)."""
        if self.recipes.pinned and self.device.type == "cuda" and tensor.device.type == "cpu":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def normalise(self, tiles: torch.Tensor) -> torch.Tensor:
        """float32: (tiles / 255 - mean) / std."""
        mean, std = self.mean.to(tiles.device), self.std.to(tiles.device)
        return tiles.float().sub_(mean * 255).div_(std * 255)  # rescaling folded in, as transformers' backends do

    def tile(self, image: torch.Tensor) -> torch.Tensor:
        """uint8[tiles, 3, S, S]: the processor's chain of resizes, then one reshape, the thumbnail last."""
        images, S = self.processor.image_processor, self.shape.tile_size
        names = TilingOptions.__dataclass_fields__
        plan = plan_tiling(*image.shape[1:], TilingOptions(**{name: getattr(images, name) for name in names}))
        canvas = image
        for size in plan.resizes[-1:] if self.recipes.single_resize else plan.resizes:
            canvas = resize(canvas, size, images.resample)
        rows, cols = plan.grid.rows, plan.grid.cols
        tiles = canvas.reshape(3, rows, S, cols, S).permute(1, 3, 0, 2, 4).reshape(-1, 3, S, S)
        if not plan.grid.thumbnail:
            return tiles
        thumbnail = resize(canvas if plan.thumbnail_from_canvas else image, (S, S), images.resample)
        return torch.cat((tiles, thumbnail[None]))

    def tokenize(self, images, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """int64[1, T] each: ids and mask, from the whole expanded prompt or by splicing (7)."""
        grid = images.get_tile_grid(*size)
        marker, tokenizer = IMAGE_TOKEN[self.shape.kind], self.processor.tokenizer
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
        template = CHAT_TEMPLATES[self.shape.kind]
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        layout = self.processor.prompt_layout
        length = self.shape.tokens_per_tile
        if self.recipes.spliced:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            at = ids.index(tokenizer.convert_tokens_to_ids(marker))
            run = _image_ids(tokenizer, layout, grid.rows, grid.cols, grid.thumbnail, marker, length)
            ids = [*ids[:at], *run, *ids[at + 1 :]]
        else:
            expanded = PromptLayout(layout).expand(grid.rows, grid.cols, grid.thumbnail, marker * length)
            ids = tokenizer(text.replace(marker, expanded), add_special_tokens=False)["input_ids"]
        ids = torch.tensor([ids])
        return ids, torch.ones_like(ids)


@contextmanager
def one_thread():
    """Argus' resizes and copies in one piece each, on the calling thread."""
    modules = (resizing_argus, tile_pixels_argus)
    kept = [module.thread_count for module in modules]
    try:
        for module in modules:
            module.thread_count = lambda nbytes: 1
        yield
    finally:
        for module, function in zip(modules, kept):
            module.thread_count = function


@lru_cache(maxsize=256)
def _image_ids(tokenizer, layout, rows, cols, thumbnail, marker, length) -> tuple[int, ...]:
    text = PromptLayout(layout).expand(rows, cols, thumbnail, marker * length)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def resize(image: torch.Tensor, size: tuple[int, int], resample: int) -> torch.Tensor:
    """uint8[3, H, W] -> uint8[3, *size], antialiased: bicubic, or Lanczos (1) where torch has it, else by Pillow.

    On a GPU in float32 and bicubic, as torch has neither uint8 nor Lanczos there.
    """
    if tuple(image.shape[1:]) == tuple(size):
        return image
    if image.device.type != "cpu":
        resized = F.interpolate(image[None].float(), size=size, mode="bicubic", antialias=True, align_corners=False)
        return resized.clamp(0, 255).round().to(torch.uint8)[0]
    mode = {1: "lanczos", 2: "bilinear", 3: "bicubic"}[resample]
    try:
        return F.interpolate(image[None], size=size, mode=mode, antialias=True, align_corners=False)[0]
    except (NotImplementedError, ValueError, RuntimeError):  # Lanczos before torch 2.14
        pil = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        pil = pil.resize((size[1], pil.height), resample).resize((size[1], size[0]), resample)
        return torch.from_numpy(np.array(pil)).permute(2, 0, 1)
