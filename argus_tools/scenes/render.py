"""Draws scenes: pictograms, shapes, digits and words on varied backgrounds, with exact boxes.

A scene is a pure function of (SCENES_VERSION, split, index, options): the same arguments give the same pixels and
boxes on every machine with the same Pillow and numpy. Splits draw from disjoint random streams, so a held-out scene
is never a training scene. Hundreds of classes, digits and words; objects that cover each other by up to 30% of the
smaller box (the later one on top; a box is of the whole object), but none of one colour; up to ten objects.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from .atlas import COLOURS, DIGITS, SHAPES, WORDS, atlas_info, pictograms, styles_of, text_mask, visible_box
from .backgrounds import draw_background, jittered, visible_colours

SCENES_VERSION = 3
SPLITS = {"train": 0, "val": 1, "test": 2}
MOST_OBJECTS = 10
# Objects' longest side as a share of the canvas's short side, by number of objects: few are large, many still fit.
SIZE_RANGE = {
    1: (0.30, 0.75),
    2: (0.27, 0.55),
    3: (0.25, 0.46),
    4: (0.23, 0.40),
    5: (0.21, 0.36),
    6: (0.20, 0.33),
    7: (0.19, 0.31),
    8: (0.18, 0.29),
    9: (0.17, 0.27),
    10: (0.16, 0.26),
}
# Scenes of more than ONE_TILE objects are for canvases of several tiles: any number of objects, of any size from
# SMALLEST pixels on.
ONE_TILE, SMALLEST = 5, 30
GAP = 2
# The shares of pictograms, shapes, digits and words among the objects.
KIND_SHARES = (0.70, 0.16, 0.07, 0.07)


@dataclass(frozen=True)
class SceneObject:
    """One object: `name` ("cat", "circle", "digit 7", "word stop"), `colour` (of a pictogram None), `box` x1, y1, x2,
    y2 in pixels: of the whole object, also where another covers a part of it."""

    name: str
    colour: str | None
    box: tuple[float, float, float, float]

    @property
    def label(self) -> str:
        """What the object is called: "cat", "red circle", "digit 7", "word stop"."""
        return f"{self.colour} {self.name}" if self.colour and self.name in SHAPES else self.name

    @property
    def is_text(self) -> bool:
        """Whether it is a digit or a word."""
        return self.name.startswith(("digit ", "word "))


@dataclass(frozen=True)
class Scene:
    """`image` uint8[H, W, 3] RGB; `objects` in reading order (by top edge, then left edge); the background's kind."""

    image: np.ndarray
    objects: list[SceneObject]
    background: str
    background_colour: str | None = None
    key: tuple = field(default=())

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[0], self.image.shape[1]


def render_scene(
    index: int,
    split: str = "train",
    *,
    height: int = 128,
    width: int = 128,
    max_objects: int = 5,
    styles: tuple[str, ...] | None = None,
    classes: tuple[str, ...] | None = None,
) -> Scene:
    """Draw scene `index` of `split`.

    height, width: the canvas in pixels (the same index on another canvas is another scene).
    max_objects: 1-10; with more than 5, objects may be as small as 30 pixels, as fits canvases of several tiles.
    styles: drawing styles to draw from (default: all training styles).
    classes: of `class_names()`, what to draw (default: everything); the shares of the kinds among them stay.
    Raises ValueError for an unknown split, style or class, a canvas under 16 pixels, or a count outside 1-10.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {sorted(SPLITS)}, got {split!r}")
    if not 1 <= max_objects <= MOST_OBJECTS:
        raise ValueError(f"max_objects must be 1 to {MOST_OBJECTS}, got {max_objects}")
    if min(height, width) < 16:
        raise ValueError(f"a scene's canvas must be at least 16 x 16 pixels, got {height} x {width}")
    styles = tuple(styles or atlas_info()["styles"])
    classes = None if classes is None else tuple(classes)
    rng = np.random.default_rng([SCENES_VERSION, SPLITS[split], index, height, width, max_objects])
    background, background_colour, canvas = draw_background(rng, height, width)
    image = Image.fromarray(canvas)
    draw = _Drawer(rng, styles, classes, visible_colours(canvas), height, width)
    count = int(rng.integers(1, max_objects + 1))
    sizes = _sizes(rng, count, min(height, width), max_objects)
    # Half of the scenes keep their objects apart, in the others they may cover each other.
    overlap = 0.05 if rng.random() < 0.5 else 0.3
    objects: list[SceneObject] = []
    for size in sizes:
        picked = draw.object(objects, size)
        if picked is None:
            continue
        name, colour, sprite = picked
        spot = _free_spot(rng, name, colour, sprite.size, objects, overlap, height, width)
        if spot is None:
            continue
        image.paste(sprite, spot, sprite)
        x, y = spot
        left, top, right, bottom = visible_box(sprite)
        objects.append(SceneObject(name, colour, (x + left, y + top, x + right, y + bottom)))
    objects.sort(key=lambda o: (o.box[1], o.box[0]))
    key = (SCENES_VERSION, split, index, height, width, max_objects)
    return Scene(np.asarray(image), objects, background, background_colour, key)


def _sizes(rng, count, short_side, max_objects):
    """float[count]: the longest sides of the objects to draw, in pixels."""
    low, high = (short_side * share for share in SIZE_RANGE[count])
    if max_objects > ONE_TILE:
        low = min(SMALLEST, high)
        return low * (high / low) ** rng.random(count)
    return rng.uniform(low, high, count)


@lru_cache(maxsize=16)
def _drawable(styles, classes):
    """(names of pictograms, shapes, digits and words, running sums of the shares of those kinds)."""
    kinds = (tuple(styles_of(styles)), SHAPES, DIGITS, WORDS)
    if classes is None:
        return kinds, np.cumsum(KIND_SHARES)
    unknown = sorted(set(classes) - {name for names in kinds for name in names})
    if unknown or not classes:
        raise ValueError(
            f"classes holds {unknown[0]!r}, which is no class of these scenes" if unknown else "no classes"
        )
    kinds = tuple(tuple(name for name in names if name in classes) for names in kinds)
    shares = np.cumsum([share if names else 0.0 for share, names in zip(KIND_SHARES, kinds)])
    return kinds, shares / shares[-1]


class _Drawer:
    """Picks and draws the objects of one scene."""

    def __init__(self, rng, styles, classes, colours, height, width):
        self.rng, self.styles, self.colours, self.height, self.width = rng, styles, colours, height, width
        self.names, self.shares = _drawable(styles, classes)
        # One style for most scenes, as a person would draw; mixed in the rest.
        self.one_style = styles[int(rng.integers(len(styles)))] if rng.random() < 0.7 else None

    def object(self, objects, size):
        """(name, colour or None, RGBA sprite) of the next object, of about `size` pixels; None if nothing is left."""
        rng = self.rng
        kind = int(np.searchsorted(self.shares, rng.random()))
        repeatable = [o for o in objects if not o.is_text]
        if repeatable and rng.random() < 0.3:
            model = repeatable[int(rng.integers(len(repeatable)))]
            if model.colour:
                return model.name, model.colour, self.shape(model.name, model.colour, size)
            return model.name, None, self.pictogram(model.name, size)
        names = self.names[kind]
        if kind > 1:  # no digit or word stands twice in a scene: "two words stop" is nothing that anyone says
            taken = {o.name for o in objects}
            names = [name for name in names if name not in taken]
            if not names:
                return None
        colour = self.colours[int(rng.integers(len(self.colours)))] if kind else None
        name = names[int(rng.integers(len(names)))]
        if kind == 0:
            return name, None, self.pictogram(name, size)
        return name, colour, self.shape(name, colour, size) if kind == 1 else self.text(name, colour, size)

    def pictogram(self, name, size):
        rng, able = self.rng, styles_of(self.styles)[name]
        style = self.one_style if self.one_style in able else able[int(rng.integers(len(able)))]
        sprite = pictograms(style)[name]
        stretch, factor = math.exp(rng.uniform(-0.15, 0.15)), size / max(sprite.size)
        w, h = round(sprite.width * factor * stretch), round(sprite.height * factor / stretch)
        if rng.random() < 0.5:
            sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return sprite.resize((min(max(6, w), self.width), min(max(6, h), self.height)), Image.Resampling.BICUBIC)

    def shape(self, name, colour, size):
        """A filled shape in a jittered colour, drawn at three times the size for smooth edges."""
        stretch = math.exp(self.rng.uniform(-0.15, 0.15))
        w, h = max(8, round(size * 0.9 * stretch)), max(8, round(size * 0.9 / stretch))
        w, h = min(w, self.width), min(h, self.height)
        mask = Image.new("L", (w * 3, h * 3), 0)
        draw = ImageDraw.Draw(mask)
        right, bottom = w * 3 - 1, h * 3 - 1
        if name == "circle":
            draw.ellipse((0, 0, right, bottom), fill=255)
        elif name == "square":
            draw.rectangle((0, 0, right, bottom), fill=255)
        elif name == "triangle":
            draw.polygon([(right / 2, 0), (right, bottom), (0, bottom)], fill=255)
        else:
            draw.polygon([(x * right, y * bottom) for x, y in _STAR], fill=255)
        return self.inked(mask.resize((w, h), Image.Resampling.BOX), colour)

    def text(self, name, colour, size):
        """A digit of `size` pixels' height; a word as high as can still be read, in small or capital letters."""
        kind, _, text = name.partition(" ")
        if kind == "word":
            text = text.upper() if self.rng.random() < 0.5 else text
            size = max(size * 0.45, 0.13 * min(self.height, self.width, 160))
        mask = text_mask(text)
        factor = min(size / mask.height, 0.95 * self.width / mask.width, 0.95 * self.height / mask.height)
        w, h = max(3, round(mask.width * factor)), max(6, round(mask.height * factor))
        return self.inked(mask.resize((w, h), Image.Resampling.BICUBIC), colour)

    def inked(self, mask, colour):
        sprite = Image.new("RGBA", mask.size, (*jittered(self.rng, COLOURS[colour], 12), 0))
        sprite.putalpha(mask)
        return sprite


def _star():
    """The ten corners of a five-pointed star that fills the unit square."""
    radii = [0.5 if i % 2 == 0 else 0.21 for i in range(10)]
    angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
    xs = [r * math.cos(a) for r, a in zip(radii, angles)]
    ys = [r * math.sin(a) for r, a in zip(radii, angles)]
    return [
        ((x - min(xs)) / (max(xs) - min(xs)), (y - min(ys)) / (max(ys) - min(ys))) for x, y in zip(xs, ys, strict=True)
    ]


_STAR = _star()


def _free_spot(rng, name, colour, size, objects, overlap, height, width) -> tuple[int, int] | None:
    """A top-left corner where a sprite of `size` (w, h) shares at most `overlap` of the smaller box with any object.

    What is to be read keeps clear; what has the same colour keeps `GAP` pixels away, or the two would be one blob.
    """
    w, h = size
    xs, ys = (rng.random((2, 40)) * [[width - w + 1], [height - h + 1]]).astype(int)
    if not objects:
        return int(xs[0]), int(ys[0])
    x1, y1, x2, y2 = np.array([o.box for o in objects]).T
    same = np.array([colour is not None and o.colour == colour for o in objects])
    gap = GAP * same
    shared_x = np.minimum(xs[:, None] + w + gap, x2) - np.maximum(xs[:, None] - gap, x1)
    shared_y = np.minimum(ys[:, None] + h + gap, y2) - np.maximum(ys[:, None] - gap, y1)
    shared = shared_x.clip(0) * shared_y.clip(0)
    text = name.startswith(("digit ", "word "))
    limits = np.array([0.05 if text or o.is_text else overlap for o in objects]) * ~same
    free = (shared <= limits * np.minimum(w * h, (x2 - x1) * (y2 - y1))).all(1)
    best = int(free.argmax())
    return (int(xs[best]), int(ys[best])) if free[best] else None
