"""The images that are measured: 50 generated JPEGs of COCO val2017's sizes, or a folder of real ones.

Generated ones are smooth gradients, soft blobs and edges with sensor-like texture, so that a decoder meets the work of
a photograph: about 100 to 250 KB at COCO's sizes, as there.
"""

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

# (width, height) and how many of 50 have it: approximate frequencies of COCO val2017.
COCO_SIZES = {
    (640, 480): 20,
    (640, 427): 10,
    (480, 640): 9,
    (640, 426): 3,
    (427, 640): 3,
    (640, 425): 1,
    (500, 375): 1,
    (640, 360): 1,
    (612, 612): 1,
    (375, 500): 1,
}
JPEG_QUALITY = 92


def photo(width: int, height: int, seed: int = 0) -> np.ndarray:
    """uint8[height, width, 3]: something with the spectrum of a photograph, the same for the same seed."""
    rng = np.random.default_rng([seed, width, height])
    canvas = np.zeros((height, width, 3), np.float32)
    # Layers of noise, each half as large and a little weaker: the 1/f spectrum of natural images.
    side, strength = 4, 60.0
    while side < 2 * max(width, height):
        rows, cols = max(2, side * height // max(width, height)), max(2, side * width // max(width, height))
        layer = rng.normal(0, strength, (min(rows, height), min(cols, width), 3)).astype(np.float32)
        layer = 0.7 * layer.mean(-1, keepdims=True) + 0.3 * layer
        for channel in range(3):
            image = Image.fromarray(layer[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            canvas[..., channel] += np.asarray(image)
        side, strength = side * 2, strength * 0.76
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    for _ in range(6):  # objects: discs with hard edges
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.05, 0.25) * min(width, height)
        canvas[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] += rng.uniform(-70, 70, 3).astype(np.float32)
    return np.clip(canvas + 127, 0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, kind: str = "JPEG") -> bytes:
    """Encoded bytes of uint8[H, W, 3]: "JPEG", "PNG" or "WEBP"."""
    buffer = io.BytesIO()
    options = {"JPEG": {"quality": JPEG_QUALITY}, "PNG": {"compress_level": 3}, "WEBP": {"quality": 85, "method": 2}}
    Image.fromarray(pixels).save(buffer, kind, **options[kind])
    return buffer.getvalue()


@cache
def generated(count: int = 50, seed: int = 0) -> list[bytes]:
    """`count` JPEGs, 640x480 first and the rest in the proportions of COCO_SIZES."""
    sizes = [size for size, times in COCO_SIZES.items() for _ in range(times)]
    order = [0, *(1 + np.random.default_rng(seed).permutation(len(sizes) - 1))]
    chosen = [sizes[order[i % len(sizes)]] for i in range(count)]
    return [encode(photo(*size, seed=seed + i)) for i, size in enumerate(chosen)]


def load(folder: Path | None, count: int) -> tuple[list[bytes], str]:
    """(images as encoded bytes, what they are in words). Raises ValueError for a folder without JPEGs."""
    if folder is None:
        images = generated(count)
        mean = sum(map(len, images)) / len(images) / 1000
        return images, f"{count} generated JPEGs of COCO val2017's sizes ({mean:.0f} KB on average)"
    files = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))[:count]
    if not files:
        raise ValueError(f"{folder} holds no .jpg files; give COCO's val2017 folder, or leave --images out.")
    return [path.read_bytes() for path in files], f"{len(files)} JPEGs of a folder ({Path(folder).name})"


def same_size(images: list[bytes], size: tuple[int, int] = (640, 480)) -> list[bytes]:
    """The images of this (width, height), which the bars speak of; all of them where there are none."""
    return [data for data in images if size_of(data) == size] or images


def has_size(images: list[bytes], size: tuple[int, int] = (640, 480)) -> bool:
    """Whether `same_size` found what it looked for."""
    return any(size_of(data) == size for data in images)


def size_of(data: bytes) -> tuple[int, int]:
    """(width, height) of an encoded image."""
    with Image.open(io.BytesIO(data)) as image:
        return image.size
