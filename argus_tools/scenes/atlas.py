"""What a scene can hold: pictograms in several drawing styles, coloured shapes, digits and words.

The pictograms stand in `assets/`, one sheet a style (licences in `assets/LICENSES.md`). Two of the older styles lack
the younger classes; every other style, the unseen one with them, has them all. Digits and words are drawn with the
font that Pillow brings.
"""

import json
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

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
DIGITS = tuple(f"digit {i}" for i in range(10))
# None of them is the name of anything else in a scene, and none is a colour or an answer.
WORDS = tuple(
    f"word {text}"
    for text in (
        "stop open exit sale free new hello push pull cafe menu zoo "
        "park shop hot cold love happy slow fast north south jump quiet"
    ).split()
)
VISIBLE_ALPHA = 64
FONT_SIZE = 56


@lru_cache(maxsize=1)
def atlas_info() -> dict:
    """assets/pictograms.json: the class names in sheet order (by theme), the styles and what they lack, the cells."""
    return json.loads((ASSETS / "pictograms.json").read_text(encoding="utf-8"))


@lru_cache(maxsize=8)
def pictograms(style: str) -> dict[str, Image.Image]:
    """All pictograms that one drawing style has, RGBA, each cropped to its visible part.

    Raises ValueError for a style that the atlas does not hold.
    """
    info = atlas_info()
    known = info["styles"] + info["unseen_styles"]
    if style not in known:
        raise ValueError(f"style must be one of {', '.join(known)}, got {style!r}")
    sheet = Image.open(ASSETS / f"{style}.webp").convert("RGBA")
    cell, columns, missing = info["cell"], info["columns"], set(info["missing"].get(style, ()))
    sprites = {}
    for i, name in enumerate(info["classes"]):
        x, y = i % columns * cell, i // columns * cell
        if name not in missing:
            sprite = sheet.crop((x, y, x + cell, y + cell))
            sprites[name] = sprite.crop(visible_box(sprite))
    return sprites


@lru_cache(maxsize=16)
def styles_of(styles: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """For every class that at least one of `styles` can draw: which of them can."""
    held = {name: tuple(s for s in styles if name in pictograms(s)) for name in atlas_info()["classes"]}
    return {name: able for name, able in held.items() if able}


@lru_cache(maxsize=128)
def text_mask(text: str) -> Image.Image:
    """The text in bold strokes, an L image cropped to what is inked."""
    font = ImageFont.load_default(FONT_SIZE)
    left, top, right, bottom = font.getbbox(text, stroke_width=2)
    mask = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4), 0)
    ImageDraw.Draw(mask).text((2 - left, 2 - top), text, fill=255, font=font, stroke_width=2)
    return mask.crop(mask.getbbox())


def visible_box(sprite: Image.Image) -> tuple[int, int, int, int]:
    """The tight box of what is visible (alpha of at least 64 of 255) in an RGBA image."""
    box = sprite.getchannel("A").point(_VISIBLE).getbbox()
    return box or (0, 0, *sprite.size)


_VISIBLE = [0] * VISIBLE_ALPHA + [255] * (256 - VISIBLE_ALPHA)


def class_names() -> list[str]:
    """Names of everything that a scene can hold: pictograms, shapes without their colours, digits, words."""
    return atlas_info()["classes"] + list(SHAPES) + list(DIGITS) + list(WORDS)


def all_labels() -> list[str]:
    """Every label an object can have: the pictograms, each shape in each colour, the digits, the words."""
    shapes = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
    return atlas_info()["classes"] + shapes + list(DIGITS) + list(WORDS)
