"""Rendered training scenes: pictograms and simple shapes on varied backgrounds, with exact boxes.

A scene is a pure function of (SCENES_VERSION, split, index, options): the same arguments give the same pixels and
boxes on every machine with the same Pillow and numpy. Splits draw from disjoint random streams, so a held-out scene
is never a training scene. The pictograms stand in `assets/` (licences in `assets/LICENSES.md`). What is said about a
scene (captions, questions, answers) is in `scene_text.py`.
"""

import json
import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SCENES_VERSION = 1
SPLITS = {"train": 0, "val": 1, "test": 2}
ASSETS = Path(__file__).parent / "assets"

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (248, 214, 40),
    "green": (46, 160, 67),
    "blue": (40, 90, 220),
    "purple": (135, 60, 180),
    "pink": (245, 130, 185),
    "black": (25, 25, 28),
    "white": (248, 248, 248),
}
BACKGROUNDS = ("plain", "gradient", "noise", "stripes")
# Objects' longest side as a share of the canvas's short side, by number of objects: few are large, many still fit.
SIZE_RANGE = {1: (0.30, 0.75), 2: (0.27, 0.55), 3: (0.25, 0.46), 4: (0.23, 0.40), 5: (0.21, 0.36)}


@dataclass(frozen=True)
class SceneObject:
    """One object: `name` ("cat", "circle"), `colour` (of a shape, else None), `box` x1, y1, x2, y2 in pixels."""

    name: str
    colour: str | None
    box: tuple[float, float, float, float]

    @property
    def label(self) -> str:
        """What the object is called: "cat", "red circle"."""
        return f"{self.colour} {self.name}" if self.colour else self.name


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


@lru_cache(maxsize=1)
def atlas_info() -> dict:
    """assets/pictograms.json: the class names in sheet order, the cell size, the styles."""
    return json.loads((ASSETS / "pictograms.json").read_text(encoding="utf-8"))


@lru_cache(maxsize=8)
def pictograms(style: str) -> dict[str, Image.Image]:
    """All pictograms of one drawing style, RGBA, each cropped to its visible part."""
    info = atlas_info()
    sheet = Image.open(ASSETS / f"{style}.png").convert("RGBA")
    cell, columns = info["cell"], info["columns"]
    sprites = {}
    for i, name in enumerate(info["classes"]):
        x, y = i % columns * cell, i // columns * cell
        sprite = sheet.crop((x, y, x + cell, y + cell))
        sprites[name] = sprite.crop(_visible_box(sprite))
    return sprites


def class_names() -> list[str]:
    """Names of everything that a scene can hold: the pictograms, then the shapes without their colours."""
    return atlas_info()["classes"] + list(SHAPES)


def render_scene(
    index: int,
    split: str = "train",
    *,
    height: int = 128,
    width: int = 128,
    max_objects: int = 5,
    styles: tuple[str, ...] | None = None,
) -> Scene:
    """Draw scene `index` of `split`.

    height, width: the canvas in pixels (the same index on another canvas is another scene).
    max_objects: 1-5; styles: drawing styles to draw from (default: all training styles).
    Raises ValueError for an unknown split or a count outside 1-5.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {sorted(SPLITS)}, got {split!r}")
    if not 1 <= max_objects <= 5:
        raise ValueError(f"max_objects must be 1 to 5, got {max_objects}")
    styles = tuple(styles or atlas_info()["styles"])
    rng = np.random.default_rng([SCENES_VERSION, SPLITS[split], index, height, width, max_objects])
    background, background_colour, canvas = _draw_background(rng, height, width)
    image = Image.fromarray(canvas)
    colours = _visible_colours(canvas)
    # One style for most scenes, as a person would draw; mixed in the rest.
    one_style = str(rng.choice(styles)) if rng.random() < 0.7 else None
    count = int(rng.integers(1, max_objects + 1))
    objects: list[SceneObject] = []
    for _ in range(count):
        name, colour, sprite = _draw_object(rng, objects, one_style, styles, colours, count, min(height, width))
        spot = _free_spot(rng, sprite.size, objects, height, width)
        if spot is None:
            continue
        image.paste(sprite, spot, sprite)
        x, y = spot
        left, top, right, bottom = _visible_box(sprite)
        objects.append(SceneObject(name, colour, (x + left, y + top, x + right, y + bottom)))
    objects.sort(key=lambda o: (o.box[1], o.box[0]))
    key = (SCENES_VERSION, split, index, height, width, max_objects)
    return Scene(np.asarray(image), objects, background, background_colour, key)


def _visible_box(sprite: Image.Image) -> tuple[int, int, int, int]:
    """The tight box of what is visible (alpha of at least 64 of 255) in an RGBA image."""
    box = sprite.getchannel("A").point(lambda a: 255 if a >= 64 else 0).getbbox()
    return box or (0, 0, *sprite.size)


def _draw_object(rng, objects, one_style, styles, colours, count, short_side):
    """Pick what the next object is and draw it: (name, colour or None, RGBA sprite)."""
    low, high = SIZE_RANGE[count]
    size = short_side * rng.uniform(low, high)
    repeat = bool(objects) and rng.random() < 0.3
    if repeat:
        model = objects[int(rng.integers(len(objects)))]
        name, colour = model.name, model.colour
    elif rng.random() < 0.25:
        name = SHAPES[int(rng.integers(len(SHAPES)))]
        colour = colours[int(rng.integers(len(colours)))]
    else:
        classes = atlas_info()["classes"]
        name, colour = classes[int(rng.integers(len(classes)))], None
    stretch = math.exp(rng.uniform(-0.15, 0.15))
    if colour is not None:
        return name, colour, _shape_sprite(rng, name, colour, size, stretch)
    style = one_style or str(rng.choice(styles))
    sprite = pictograms(style)[name]
    factor = size / max(sprite.size)
    w, h = (max(6, round(sprite.width * factor * stretch)), max(6, round(sprite.height * factor / stretch)))
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return name, None, sprite.resize((min(w, short_side), min(h, short_side)), Image.Resampling.BICUBIC)


def _shape_sprite(rng, name, colour, size, stretch) -> Image.Image:
    """A filled shape of about `size` pixels in a jittered colour, drawn at three times the size for smooth edges."""
    w, h = max(8, round(size * 0.9 * stretch)), max(8, round(size * 0.9 / stretch))
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
        points = []
        for i in range(10):
            radius = 0.5 if i % 2 == 0 else 0.21
            angle = math.pi * (i / 5 - 0.5)
            points.append((0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)))
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        points = [
            ((x - min(xs)) / (max(xs) - min(xs)) * right, (y - min(ys)) / (max(ys) - min(ys)) * bottom)
            for x, y in points
        ]
        draw.polygon(points, fill=255)
    sprite = Image.new("RGBA", (w, h), (*_jitter(rng, COLOURS[colour], 12), 0))
    sprite.putalpha(mask.resize((w, h), Image.Resampling.BOX))
    return sprite


def _visible_colours(canvas: np.ndarray) -> list[str]:
    """Names of the colours that stand out from the whole background, sampled on a coarse grid."""
    samples = canvas[::16, ::16].reshape(-1, 3).astype(np.float32)
    nearest = {name: np.linalg.norm(samples - np.array(rgb), axis=1).min() for name, rgb in COLOURS.items()}
    return [name for name, distance in nearest.items() if distance > 80] or [max(nearest, key=nearest.get)]


def _free_spot(rng, size, objects, height, width) -> tuple[int, int] | None:
    """A top-left corner where a sprite of `size` (w, h) covers at most 8% of any object (or of itself)."""
    w, h = size
    for _ in range(60):
        x, y = int(rng.integers(0, max(1, width - w + 1))), int(rng.integers(0, max(1, height - h + 1)))
        for o in objects:
            x1, y1, x2, y2 = o.box
            shared = max(0, min(x + w, x2) - max(x, x1)) * max(0, min(y + h, y2) - max(y, y1))
            if shared > 0.08 * min(w * h, (x2 - x1) * (y2 - y1)):
                break
        else:
            return x, y
    return None


def _jitter(rng, colour, amount) -> tuple[int, int, int]:
    return tuple(int(v) for v in np.clip(np.array(colour) + rng.integers(-amount, amount + 1, 3), 0, 255))


def _draw_background(rng, height, width) -> tuple[str, str | None, np.ndarray]:
    """(kind, colour name for a plain one, uint8[H, W, 3])."""
    kind = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    first = rng.integers(0, 256, 3).astype(np.float32)
    if kind == "plain":
        name = list(COLOURS)[int(rng.integers(len(COLOURS)))]
        canvas = np.empty((height, width, 3), np.uint8)
        canvas[:] = _jitter(rng, COLOURS[name], 12)
        return kind, name, canvas
    if kind == "noise":
        # Coarse enough to be seen, weak enough that objects stay visible.
        cell = int(rng.integers(1, 4))
        noise = rng.normal(0, rng.uniform(10, 32), (-(-height // cell), -(-width // cell), 3)).astype(np.float32)
        noise = noise.repeat(cell, 0).repeat(cell, 1)[:height, :width]
        return kind, None, np.clip(first + noise, 0, 255).astype(np.uint8)
    second = np.clip(first + rng.uniform(35, 110, 3) * rng.choice([-1, 1], 3), 0, 255).astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    ramp = x * math.cos(angle) + y * math.sin(angle)
    if kind == "gradient":
        ramp = (ramp - ramp.min()) / (ramp.max() - ramp.min())
    else:
        period = min(height, width) * rng.uniform(0.08, 0.3)
        ramp = (np.floor(ramp / period) % 2).astype(np.float32)
    canvas = first + (second - first) * ramp[..., None]
    return kind, None, canvas.astype(np.uint8)
