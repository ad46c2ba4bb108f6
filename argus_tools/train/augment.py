"""Augmentations that move the boxes with the pixels: mirroring, cropping, colour jitter.

Each is applied only where what the sample says stays true. A picture is mirrored if its reader allows that (no
questions about writing) and no text of the sample speaks of left and right; cropped if every answer is regions; samples
with several images, or none, are jittered in colour at most. Hue is left alone: answers name colours.
"""

import re
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from .samples import Box, Region, Sample, Turn

# Sides in words, and coordinates in plain text. English alone: readers of other languages must not allow mirroring.
SIDED = re.compile(
    r"\b(?:left|right|east|west|north-?east|north-?west|south-?east|south-?west)\w*\b"
    r"|\b(?:anti-?|counter-?)?clockwise\b|<loc_|[\[(]\s*-?[0-9]*\.?[0-9]+\s*,",
    re.IGNORECASE,
)
SMALLEST = 16  # pixels: no smaller picture is augmented, no smaller crop taken
_TRIES = 4
_STRETCH = 4 / 3  # a crop's aspect ratio is at most so much wider or narrower than the picture's
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each sample.

    flip: the chance that a picture is mirrored.
    scale: (least, most) share of a picture's area that a crop keeps; (1, 1) does not crop.
    colour: brightness, contrast and saturation are each scaled by up to 1 ± this; 0 leaves them.
    min_visible: regions of which a crop shows a smaller share than this are dropped from answers and objects. A crop
        that would leave an answer without any region is not taken.

    Raises ValueError for values out of range.
    """

    flip: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    colour: float = 0.0
    min_visible: float = 0.5

    def __post_init__(self):
        for name in ("flip", "colour", "min_visible"):
            _in_unit(name, getattr(self, name))
        if not isinstance(self.scale, (list, tuple)) or len(self.scale) != 2:
            raise ValueError(f"augmentation: scale must be two numbers, (least, most), got {self.scale!r}.")
        object.__setattr__(self, "scale", tuple(self.scale))
        for value in self.scale:
            _in_unit("scale", value)
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"augmentation: scale must be 0 < least <= most <= 1, got {self.scale}.")

    @classmethod
    def parse(cls, options: dict[str, Any]) -> "Augmentation":
        """The same from a config's names and values. Raises ValueError for unknown names, with the known ones."""
        known = [each.name for each in fields(cls)]
        if unknown := [name for name in options if name not in known]:
            raise ValueError(f"augmentation has no {unknown[0]!r}; it has {', '.join(known)}.")
        return cls(**options)

    def __call__(self, sample: Sample, rng: np.random.Generator, may_flip: bool = False) -> Sample:
        """The sample, augmented by what `rng` draws; images become uint8[3, H, W] tensors where they changed.

        Raises ValueError (ImageInputError), naming the sample's source, for an image that cannot be read.
        """
        flips = rng.random() < self.flip and may_flip and len(sample.images) == 1 and not speaks_of_sides(sample)
        crops = self.scale[0] < 1 and len(sample.images) == 1 and all_regions(sample)
        if not sample.images or not (flips or crops or self.colour):
            return sample
        images = [_load(image, sample.source) for image in sample.images]
        if min(min(image.shape[1:]) for image in images) < SMALLEST:
            return sample
        if crops:
            images, sample = self._crop(images[0], sample, rng)
        if flips:
            images, sample = [images[0].flip(2)], _moved(sample, _mirror(images[0].shape[2]))
        if self.colour:
            images = [jitter(image, rng.uniform(1 - self.colour, 1 + self.colour, 3)) for image in images]
        return replace(sample, images=tuple(images))

    def _crop(self, image, sample: Sample, rng) -> tuple[list, Sample]:
        height, width = image.shape[1:]
        for _ in range(_TRIES):
            area = rng.uniform(*self.scale)
            stretch = np.clip(_STRETCH ** rng.uniform(-1, 1), area, 1 / area)  # so that both sides are in the picture
            w, h = (round(side * (area * s) ** 0.5) for side, s in ((width, stretch), (height, 1 / stretch)))
            x, y = (int(rng.integers(side - part + 1)) for side, part in ((width, w), (height, h)))
            if min(w, h) >= SMALLEST:
                cropped = _moved(sample, _window(x, y, w, h, self.min_visible))
                if not _lost_an_answer(sample, cropped):
                    return [image[:, y : y + h, x : x + w]], cropped
        return [image], sample


def speaks_of_sides(sample: Sample) -> bool:
    """Whether any text of the sample is about left and right, or writes coordinates."""
    return any(SIDED.search(text) for text in _texts(sample))


def all_regions(sample: Sample) -> bool:
    """Whether all answers are regions: words could be about what a crop cuts away."""
    return all(not isinstance(turn.answer, str) for turns in sample.conversations for turn in turns)


def jitter(image, factors):
    """uint8[3, H, W] with (brightness, contrast, saturation) scaled: around black, the mean grey, each pixel's grey."""
    import torch

    brightness, contrast, saturation = (float(factor) for factor in factors)
    pixels = image.float() * brightness
    luma = torch.tensor(_LUMA, device=image.device).view(3, 1, 1)
    grey = (pixels * luma).sum(0, keepdim=True)
    pixels = grey + (pixels - grey) * saturation
    mean = grey.mean()
    return (mean + (pixels - mean) * contrast).round_().clamp_(0, 255).to(torch.uint8)


def _load(image, source: str):
    from processing_argus.image_loading_argus import load_image

    return load_image(image, f"{source or 'a sample'}: the image")


def _texts(sample: Sample):
    for turns in sample.conversations:
        for turn in turns:
            yield from [turn.prompt] if isinstance(turn.prompt, str) else (p for p in turn.prompt if isinstance(p, str))
            yield from [turn.answer] if isinstance(turn.answer, str) else (region.caption for region in turn.answer)
    yield from (region.caption for region in sample.objects)


def _mirror(width: int):
    return lambda box: (width - box[2], box[1], width - box[0], box[3])


def _window(x: int, y: int, width: int, height: int, min_visible: float):
    """Boxes in pixels of the window, or None for those of which too little is in it."""

    def move(box: Box) -> Box | None:
        x1, x2 = (min(max(v - x, 0), width) for v in box[::2])
        y1, y2 = (min(max(v - y, 0), height) for v in box[1::2])
        area = (box[2] - box[0]) * (box[3] - box[1])
        visible = (x2 - x1) * (y2 - y1)
        return (x1, y1, x2, y2) if visible > 0 and visible >= min_visible * area else None

    return move


def _moved(sample: Sample, move) -> Sample:
    """The sample with each box through `move`; regions that it gives None for are left out."""

    def regions(old: tuple[Region, ...]) -> tuple[Region, ...]:
        boxes = [(move(region.box), region.caption) for region in old]
        return tuple(Region(box, caption) for box, caption in boxes if box is not None)

    def turned(turn: Turn) -> Turn:
        return turn if isinstance(turn.answer, str) else Turn(turn.prompt, regions(turn.answer))

    conversations = tuple(tuple(turned(turn) for turn in turns) for turns in sample.conversations)
    return replace(sample, conversations=conversations, objects=regions(sample.objects))


def _lost_an_answer(before: Sample, after: Sample) -> bool:
    pairs = zip(before.conversations, after.conversations)
    return any(old.answer and not new.answer for a, b in pairs for old, new in zip(a, b))


def _in_unit(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"augmentation: {name} must be between 0 and 1, got {value!r}.")
