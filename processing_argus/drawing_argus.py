"""Draws boxes and their captions on an image: behind `processor.draw_regions`, `--draw`, notebooks and the Space.

Nine colours that stay apart for colour-blind eyes, each with black or white letters on it. Labels stay inside the image
and out of each other's way where there is room, in smaller letters or apart from their box if need be; small images are
enlarged first. The font is the one that ships with Pillow, which knows plain Latin letters: accents are dropped, other
scripts are drawn as empty boxes.
"""

import math
import unicodedata
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LONGEST_SIDE = 768  # images below it are enlarged to it
SHORTEST_SIDE = 64  # room for a label on a strip
MAX_SIDE = 4096  # but nothing is enlarged beyond this
MAX_LINES = 3
FONT_SCALES = (1.0, 0.85, 0.7, 0.6)  # tried in turn until the labels fit
SMALLEST_FONT = 11

# Found by search: any two are 30 apart in CIELAB for normal, red-, green- and blue-blind eyes (Okabe and Ito's: 16).
PALETTE = ((225, 0, 0), (0, 0, 255), (230, 230, 0), (255, 40, 255), (40, 160, 160), (230, 160, 120), (120, 0, 120),
           (120, 255, 255), (160, 0, 40))  # fmt: skip

Box = tuple[float, float, float, float]


class Label(NamedTuple):
    """A caption with its place, x1, y1, x2, y2 on the canvas; `number` is its box's."""

    number: int
    lines: list[str]
    place: Box


def caption_color(caption: str) -> tuple[int, int, int]:
    """RGB 0..255, a function of the caption alone, whatever its case and spacing."""
    return PALETTE[zlib.crc32(_key(caption).encode()) % len(PALETTE)]


def region_colors(captions: Sequence[str]) -> list[tuple[int, int, int]]:
    """A colour for each caption of one picture: its own where that is free, else one that the fewest others have."""
    chosen = {}
    for key in dict.fromkeys(map(_key, captions)):
        if caption_color(key) not in chosen.values():
            chosen[key] = caption_color(key)
    for key in map(_key, captions):
        if key not in chosen:
            taken = list(chosen.values())
            chosen[key] = min(PALETTE, key=taken.count)
    return [chosen[_key(caption)] for caption in captions]


def draw_regions(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    captions: Sequence[str],
    scores: Sequence[float] | None = None,
) -> Image.Image:
    """A copy of the image with boxes and labels.

    Args:
        image: any mode; comes back as RGB, enlarged where it is smaller than 768 pixels.
        boxes: [N, 4], x1, y1, x2, y2 in pixels of `image`; parts outside of it are cut off.
        captions: one for each box; an empty one is labelled with its score alone.
        scores: one for each box, written behind the caption; None leaves them out.

    Raises:
        ValueError: boxes, captions and scores of different numbers.
    """
    if len(boxes) != len(captions) or (scores is not None and len(scores) != len(boxes)):
        counts = f"{len(boxes)} boxes, {len(captions)} captions"
        raise ValueError(
            f"every box needs a caption: got {counts}{'' if scores is None else f', {len(scores)} scores'}."
        )
    scale = _enlargement(*image.size)
    canvas = image.convert("RGB")
    if scale != 1:
        canvas = canvas.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    W, H = canvas.size
    draw = ImageDraw.Draw(canvas)
    line_width = max(3, round(max(W, H) / 300))
    colors = region_colors(captions)

    # Large boxes first, so that small ones inside them stay on top; labels last, over all boxes.
    placed = {number: on_canvas for number, box in enumerate(boxes) if (on_canvas := _on_canvas(box, scale, W, H))}
    for number, box in sorted(placed.items(), key=lambda item: -_area(item[1])):
        _draw_box(draw, box, colors[number], line_width, (W, H))
    scores = [""] * len(boxes) if scores is None else [f"{score:.2f}" for score in scores]
    texts = {number: " ".join(f"{_drawable(captions[number])} {scores[number]}".split()) for number in placed}
    font, labels = lay_out(placed, texts, (W, H))
    for label in labels:
        _draw_label(draw, label, placed[label.number], colors[label.number], font, line_width)
    return canvas


def lay_out(boxes: dict[int, Box], texts: dict[int, str], canvas_size: tuple[int, int]) -> tuple:
    """(font, labels) for the boxes with a text, in the largest of the letters in which no label covers another."""
    W, H = canvas_size
    # A strip gets a smaller font: a label needs a third of the height at most.
    largest = max(9, min(max(15, round(max(W, H) / 52)), H // 3))
    best = None
    for size in dict.fromkeys(max(min(largest, SMALLEST_FONT), round(largest * scale)) for scale in FONT_SCALES):
        font = ImageFont.load_default(size=size)
        labels, covered = _lay_out_in(font, boxes, texts, (W, H))
        if best is None or covered < 0.8 * best[0]:
            best = covered, font, labels
        if not covered:
            break
    return best[1:]


def _lay_out_in(font, boxes, texts, canvas_size) -> tuple[list[Label], float]:
    """Labels in one font, and the area in which they cover each other."""
    W, H = canvas_size
    padding = _padding(font)
    measure = ImageDraw.Draw(Image.new("L", (1, 1)))
    areas = np.array(list(boxes.values()), dtype=np.float64).reshape(-1, 4)
    labels, covered = [], 0.0
    places = np.zeros((len(boxes), 4))
    # The smaller a box, the fewer the places that are near it.
    for number, box in sorted(boxes.items(), key=lambda item: _area(item[1])):
        if not texts[number]:
            continue
        lines = _wrapped(texts[number], font, max(1.0, min(W - 2 * padding, max(0.45 * W, box[2] - box[0]))))
        left, top, right, bottom = measure.multiline_textbbox((0, 0), "\n".join(lines), font=font, spacing=padding)
        size = min(right - left + 2 * padding, W - 1.0), min(bottom - top + 2 * padding, H - 1.0)
        place, overlap = _best_place(box, size, canvas_size, places[: len(labels)], areas)
        places[len(labels)] = place
        labels.append(Label(number, lines, place))
        covered += overlap
    return labels, covered


def _best_place(box: Box, size, canvas_size, labels: np.ndarray, boxes: np.ndarray) -> tuple[Box, float]:
    """The best place for a label, and how much of other labels it covers there.

    It had better cover no label, then no box to a large part, then stand close: above its box, in it, below it, beside
    it, and only then apart from it.
    """
    W, H = canvas_size
    width, height = size
    x1, y1, x2, y2 = box
    near = [(x, y) for x in (x1, x2 - width, (x1 + x2 - width) / 2) for y in (y1 - height, y1, y2, y2 - height)]
    near += [(x, y) for y in (y1, y2 - height, (y1 + y2 - height) / 2) for x in (x2, x1 - width)]
    columns, rows = np.linspace(0, W - 1 - width, 17), np.linspace(0, H - 1 - height, max(4, min(33, int(H / height))))
    apart = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
    corners = np.concatenate([np.array(near), apart])
    corners = np.clip(corners, 0, [max(0.0, W - 1 - width), max(0.0, H - 1 - height)])
    places = np.concatenate([corners, corners + size], axis=1)
    covered = _overlaps(places, labels).sum(1)
    hidden = (_overlaps(places, boxes) / np.maximum(_areas(boxes), _areas(np.array([[0, 0, *size]])))).sum(1)
    gaps = np.maximum(0, np.maximum(places[:, :2] - (x2, y2), (x1, y1) - places[:, 2:]))
    order = np.minimum(np.arange(len(places)), len(near))
    cost = 100 * covered / (width * height) + 0.5 * hidden + 0.03 * order + 10 * np.hypot(*gaps.T) / math.hypot(W, H)
    best = int(np.argmin(cost))
    return tuple(places[best].tolist()), float(covered[best])


# --- ink --------------------------------------------------------------------------------------------------------------


def _draw_box(draw, box: Box, color, line_width: int, canvas_size) -> None:
    W, H = canvas_size
    line_width = max(2, min(line_width, round(min(box[2] - box[0], box[3] - box[1]) / 6)))  # leaves what it frames
    rim = max(1, line_width // 3)  # seen on a ground of the box's own colour too
    outer = (max(0, box[0] - rim), max(0, box[1] - rim), min(W - 1, box[2] + rim), min(H - 1, box[3] + rim))
    draw.rectangle(outer, outline=ink(color), width=line_width + 2 * rim)
    draw.rectangle(box, outline=color, width=line_width)


def _draw_label(draw, label: Label, box: Box, color, font, line_width: int) -> None:
    padding, block = _padding(font), "\n".join(label.lines)
    x1, y1, x2, y2 = label.place
    start = min(max((x1 + x2) / 2, box[0]), box[2]), min(max((y1 + y2) / 2, box[1]), box[3])
    end = min(max(start[0], x1), x2), min(max(start[1], y1), y2)
    if math.dist(start, end) > 2 * line_width:  # it stands apart from its box
        draw.line([start, end], fill=ink(color), width=line_width + 2 * max(1, line_width // 3))
        draw.line([start, end], fill=color, width=line_width)
    draw.rectangle(label.place, fill=color, outline=ink(color), width=max(1, padding // 4))
    left, top, *_ = draw.multiline_textbbox((0, 0), block, font=font, spacing=padding)
    draw.multiline_text((x1 + padding - left, y1 + padding - top), block, fill=ink(color), font=font, spacing=padding)


def ink(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever has the higher contrast with the colour (WCAG): at least 4.5."""
    red, green, blue = ((c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in color)
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else (255, 255, 255)


# --- geometry ---------------------------------------------------------------------------------------------------------


def _enlargement(width: int, height: int) -> float:
    wanted = max(1.0, LONGEST_SIDE / max(width, height), SHORTEST_SIDE / min(width, height))
    return max(1.0, min(wanted, MAX_SIDE / max(width, height)))


def _on_canvas(box: Sequence[float], scale: float, W: int, H: int) -> Box | None:
    """The box in pixels of the canvas, its corners in order and inside; None if it has no place."""
    values = [float(value) * scale for value in box]
    if not all(map(math.isfinite, values)):
        return None
    (x1, x2), (y1, y2) = sorted(values[0::2]), sorted(values[1::2])
    if x2 < 0 or y2 < 0 or x1 > W or y1 > H:
        return None
    return tuple(min(max(0.0, value), side - 1.0) for value, side in zip((x1, y1, x2, y2), (W, H, W, H)))


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float[A, 4], float[B, 4] -> the areas of their intersections, float[A, B]."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    return np.maximum(sides, 0).prod(-1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(-1)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


# --- text -------------------------------------------------------------------------------------------------------------


def _key(caption: str) -> str:
    return " ".join(caption.casefold().split())


def _padding(font) -> int:
    return max(2, round(font.size / 5))


def _drawable(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text)
    return "".join(c if c.isprintable() else " " for c in letters if not unicodedata.combining(c))


def _wrapped(text: str, font, width: float) -> list[str]:
    """At most MAX_LINES lines that fit; words longer than a line are cut, what is left over becomes an ellipsis."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], lines[MAX_LINES - 1] + "..."]
    return [_cut(line, font, width) for line in lines]


def _cut(line: str, font, width: float) -> str:
    if font.getlength(line) <= width:
        return line
    line = line.removesuffix("...")
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line.rstrip() + "..."
