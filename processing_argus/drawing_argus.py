"""Draws boxes and their captions on an image: behind `processor.draw_regions`, `--draw`, notebooks and the Space.

Nine colours that stay apart for colour-blind eyes, each with black or white letters on it. Labels stay inside the image
and out of each other's way where there is room, whole where they are short, in smaller letters or apart from their box
if need be; small images are enlarged first. Accents are dropped; other scripts are written if this machine has a font
for them, else a label says `#` and the number of its region, counted from 1.
"""

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .lettering_argus import folded, font_of, written

LONGEST_SIDE = 768  # images below it are enlarged to it
SHORTEST_SIDE = 64  # room for a label on a strip
MAX_SIDE = 4096  # but nothing is enlarged beyond this
FONT_STEP = 0.85  # from one size of letters to the next, until the labels fit
SMALLEST_FONT = 11
LONG = 100  # characters; letters do not shrink for longer captions
EDGES = 16  # of labels, at which there may be room for another

# Found by search: any two are 30 apart in CIELAB for normal, red-, green- and blue-blind eyes (Okabe and Ito's: 16).
PALETTE = ((225, 0, 0), (0, 0, 255), (230, 230, 0), (255, 40, 255), (40, 160, 160), (230, 160, 120), (120, 0, 120),
           (120, 255, 255), (160, 0, 40))  # fmt: skip

Box = tuple[float, float, float, float]


class Label(NamedTuple):
    """A caption with its place, x1, y1, x2, y2 on the canvas; `number` is its box's, `face` its font's file."""

    number: int
    lines: list[str]
    place: Box
    face: str | None = None


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
        captions: one for each box; an empty one is labelled with its score alone, one in a script for which neither
            Pillow nor this machine has a font with `#1` for the first box, `#2` for the second.
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
    line_width = max(3, round(min(max(W, H) / 300, min(W, H) / 60)))
    colors = region_colors(captions)

    # Large boxes first, so that small ones inside them stay on top; labels last, over all boxes.
    placed = {number: on_canvas for number, box in enumerate(boxes) if (on_canvas := _on_canvas(box, scale, W, H))}
    for number, box in sorted(placed.items(), key=lambda item: -_area(item[1])):
        _draw_box(draw, box, colors[number], line_width, (W, H))
    texts, faces = {}, {}
    for number in placed:
        texts[number], faces[number] = written(captions[number], number + 1)
    tails = None if scores is None else {number: f"{scores[number]:.2f}" for number in placed}
    font, labels = lay_out(placed, texts, (W, H), tails, faces)
    for label in labels:
        _draw_tie(draw, label, placed[label.number], colors[label.number], line_width)
    for label in labels:
        _draw_label(draw, label, colors[label.number], font)
    return canvas


def lay_out(
    boxes: dict[int, Box],
    texts: dict[int, str],
    canvas_size: tuple[int, int],
    tails: dict[int, str] | None = None,
    faces: dict[int, str | None] | None = None,
) -> tuple:
    """(font, labels) for the boxes with a text or a tail, in the largest letters with no label covered and none cut.

    Where there are no such letters: those in which the least is covered, then the fewest labels are cut. A text gives
    way to its tail; its face is the file of its font, None for Pillow's own.
    """
    W, H = canvas_size
    # A strip gets a smaller font: some words have to stand beside each other.
    largest = max(9, min(max(15, round(min(max(W, H) / 52, min(W, H) / 12))), H // 3))
    smallest = min(largest, SMALLEST_FONT)
    steps = range(1 + math.ceil(math.log(smallest / largest, FONT_STEP)))
    tails = tails or dict.fromkeys(boxes, "")
    best = None
    for size in dict.fromkeys(max(smallest, round(largest * FONT_STEP**step)) for step in steps):
        fonts = {number: font_of((faces or {}).get(number), size) for number in boxes}
        least = math.inf if best is None else best[0][0]
        labels, covered, cut = _lay_out_in(fonts, boxes, texts, tails, canvas_size, least)
        if best is None or (covered, cut) < best[0]:
            best = (covered, cut), font_of(None, size), labels
        if not covered and not cut:
            break
    if faces:
        return best[1], [label._replace(face=faces[label.number]) for label in best[2]]
    return best[1:]


def _lay_out_in(fonts, boxes, texts, tails, canvas_size, least: float) -> tuple[list[Label], float, int]:
    """Labels in these fonts, the area in which they cover each other and how many are cut; less if it exceeds least."""
    W, H = canvas_size
    measure = ImageDraw.Draw(Image.new("L", (1, 1)))
    areas = np.array(list(boxes.values()), dtype=np.float64).reshape(-1, 4)
    labels, covered, cut = [], 0.0, 0
    places = np.zeros((len(boxes), 4))
    # The smaller a box, the fewer the places that are near it.
    for number, box in sorted(boxes.items(), key=lambda item: _area(item[1])):
        if not texts[number] and not tails[number]:
            continue
        font, padding = fonts[number], _padding(fonts[number])
        for width in (max(0.45 * W, box[2] - box[0]), max(0.45 * W, 24 * font.size)):  # a narrow picture is used whole
            lines, short = folded(texts[number], font, max(1.0, min(W - 1 - 2 * padding, width)), tails[number])
            if not short:
                break
        left, top, right, bottom = measure.multiline_textbbox((0, 0), "\n".join(lines), font=font, spacing=padding)
        width, height = math.ceil(right - left + 2 * padding), math.ceil(bottom - top + 2 * padding)
        size = max(1, min(width, W - 1)), max(1, min(height, H - 1))
        place, overlap = _best_place(box, size, canvas_size, places[: len(labels)], areas)
        places[len(labels)] = place
        labels.append(Label(number, lines, place))
        covered += overlap
        cut += (short and len(texts[number]) <= LONG) or width >= W or height >= H
        if covered > least:
            break
    return labels, covered, cut


def _best_place(box: Box, size, canvas_size, labels: np.ndarray, boxes: np.ndarray) -> tuple[Box, float]:
    """The best place for a label, in whole pixels, and how much of other labels it covers there.

    It had better cover no label, then no box to a large part, then stand close: above its box, in it, below it, beside
    it, and only then apart from it.
    """
    W, H = canvas_size
    width, height = size
    x1, y1, x2, y2 = box
    room = np.maximum(0, (W - 1 - width, H - 1 - height))
    weights = 0.5 / np.maximum(_areas(boxes), width * height)
    near = [(x, y) for x in (x1, x2 - width, (x1 + x2 - width) / 2) for y in (y1 - height, y1, y2, y2 - height)]
    near += [(x, y) for y in (y1, y2 - height, (y1 + y2 - height) / 2) for x in (x2, x1 - width)]
    corners = np.clip(np.floor(near), 0, room)

    def costs(x, y):  # of places with these corners, [X] and [Y] to [Y, X]
        shares = [np.maximum(0, np.minimum(at[:, None] + side, taken[:, i + 2]) - np.maximum(at[:, None], taken[:, i]))
                  for taken in (labels, boxes) for i, at, side in ((0, x, width), (1, y, height))]  # fmt: skip
        covered, hidden = shares[1] @ shares[0].T, (shares[3] * weights) @ shares[2].T
        gaps = np.maximum(0, np.maximum(x - x2, x1 - x - width)), np.maximum(0, np.maximum(y - y2, y1 - y - height))
        away = np.hypot(gaps[0], gaps[1][:, None]) / math.sqrt(2 * W * H)
        return 100 * covered / (width * height) + hidden + 10 * away, covered

    x, y = (np.unique(corners[:, i]) for i in (0, 1))
    cost, covered = costs(x, y)
    cell = np.searchsorted(y, corners[:, 1]), np.searchsorted(x, corners[:, 0])
    cost = cost[cell] + 0.03 * np.arange(len(near))
    best, apart = int(np.argmin(cost)), 0.03 * len(near)
    if cost[best] > apart:  # else no place apart from the box is better
        grid = np.ceil(np.clip((2.5 * W / width, 2.5 * H / height), 4, 160))
        grid = np.maximum(4, grid * min(1, math.sqrt(2500 / grid.prod()))).astype(int)  # this many are looked at
        for i, wanted in enumerate((x1, y1)):
            edges = np.concatenate([labels[:, i] - size[i], labels[:, i + 2]])
            edges = edges[np.argsort(np.abs(edges - wanted), kind="stable")[:EDGES]]
            at = np.concatenate([(x, y)[i], np.floor(np.linspace(0, room[i], grid[i])), edges])
            x, y = (np.unique(np.clip(at, 0, room[i])), y) if i == 0 else (x, np.unique(np.clip(at, 0, room[i])))
        all_costs, all_covered = costs(x, y)
        row, column = np.unravel_index(np.argmin(all_costs), all_costs.shape)
        if all_costs[row, column] + apart < cost[best]:
            left, top = x[column], y[row]
            return (float(left), float(top), float(left + width), float(top + height)), float(all_covered[row, column])
    left, top = corners[best].tolist()
    return (left, top, left + width, top + height), float(covered[cell][best])


# --- ink --------------------------------------------------------------------------------------------------------------


def _draw_box(draw, box: Box, color, line_width: int, canvas_size) -> None:
    W, H = canvas_size
    line_width = max(2, min(line_width, round(min(box[2] - box[0], box[3] - box[1]) / 6)))  # leaves what it frames
    rim = max(1, line_width // 3)  # seen on a ground of the box's own colour too
    outer = (max(0, box[0] - rim), max(0, box[1] - rim), min(W - 1, box[2] + rim), min(H - 1, box[3] + rim))
    draw.rectangle(outer, outline=ink(color), width=line_width + 2 * rim)
    draw.rectangle(box, outline=color, width=line_width)


def _draw_tie(draw, label: Label, box: Box, color, line_width: int) -> None:
    """A line from a label that stands apart from its box."""
    x1, y1, x2, y2 = label.place
    start = min(max((x1 + x2) / 2, box[0]), box[2]), min(max((y1 + y2) / 2, box[1]), box[3])
    end = min(max(start[0], x1), x2), min(max(start[1], y1), y2)
    if math.dist(start, end) > 2 * line_width:
        draw.line([start, end], fill=ink(color), width=line_width + 2 * max(1, line_width // 3))
        draw.line([start, end], fill=color, width=line_width)


def _draw_label(draw, label: Label, color, font) -> None:
    letters = font if label.face is None else font_of(label.face, font.size)
    padding, block = _padding(font), "\n".join(label.lines)
    draw.rectangle(label.place, fill=color, outline=ink(color), width=max(1, padding // 4))
    left, top, *_ = draw.multiline_textbbox((0, 0), block, font=letters, spacing=padding)
    at = label.place[0] + padding - left, label.place[1] + padding - top
    draw.multiline_text(at, block, fill=ink(color), font=letters, spacing=padding)


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
