"""Draws boxes and their captions on an image: what `--draw` writes.

A caption has the same colour in every picture. Labels stay inside the image and out of each other's way where there is
room, and small images are enlarged first, so that the text can be read. The font is the one that ships with Pillow,
which knows plain Latin letters: accents are dropped, other scripts are drawn as empty boxes.
"""

import colorsys
import math
import unicodedata
import zlib
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

LONGEST_SIDE = 768  # images below it are enlarged to it
SHORTEST_SIDE = 64  # room for a label on a strip
MAX_SIDE = 4096  # but nothing is enlarged beyond this
MAX_LINES = 3

# Formats that hold colours, one picture a file. Pillow knows names of many more, which it reads only or writes in grey.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")

Box = tuple[float, float, float, float]


def drawable_suffix(suffix: str) -> bool:
    """Whether a drawing can be saved under a name that ends so (".png") by this build of Pillow."""
    return suffix.lower() in SUFFIXES and Image.registered_extensions().get(suffix.lower()) in Image.SAVE


def caption_color(caption: str) -> tuple[int, int, int]:
    """RGB 0..255, a function of the caption alone, whatever its case and spacing."""
    digest = zlib.crc32(" ".join(caption.casefold().split()).encode())
    hue, value = (digest & 0xFFFF) / 0x10000, 0.75 + 0.25 * (digest >> 31)
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.85, value))


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
    # A strip gets a smaller font: a label needs a third of the height at most.
    font_size = max(9, min(max(15, round(max(W, H) / 52)), H // 3))
    font = ImageFont.load_default(size=font_size)
    line_width = max(3, round(max(W, H) / 300))

    # Large boxes first, so that small ones inside them stay on top; labels last, over all boxes.
    placed = [(number, on_canvas) for number, box in enumerate(boxes) if (on_canvas := _on_canvas(box, scale, W, H))]
    placed.sort(key=lambda item: -_area(item[1]))
    for number, box in placed:
        color = caption_color(captions[number])
        rim = (max(0, box[0] - 1), max(0, box[1] - 1), min(W - 1, box[2] + 1), min(H - 1, box[3] + 1))
        draw.rectangle(rim, outline=_ink(color), width=line_width + 2)  # seen on a ground of the box's own colour too
        draw.rectangle(box, outline=color, width=line_width)
    labels: list[Box] = []
    for number, box in sorted(placed, key=lambda item: item[1][1]):
        score = "" if scores is None else f"{scores[number]:.2f}"
        text = " ".join(f"{_drawable(captions[number])} {score}".split())
        if text:
            color = caption_color(captions[number])
            labels.append(_draw_label(draw, text, box, color, font, max(2, font_size // 5), (W, H), labels))
    return canvas


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
    return (max(0.0, x1), max(0.0, y1), min(W - 1.0, x2), min(H - 1.0, y2)) if x1 < W and y1 < H else None


def _draw_label(draw, text, box, color, font, padding, canvas_size, labels) -> Box:
    W, H = canvas_size
    lines = _wrapped(text, font, max(1.0, min(W - 2 * padding, max(0.45 * W, box[2] - box[0]))))
    block = "\n".join(lines)
    left, top, right, bottom = draw.multiline_textbbox((0, 0), block, font=font, spacing=padding)
    width, height = right - left + 2 * padding, bottom - top + 2 * padding
    x, y = _best_place(box, width, height, (W, H), labels)
    place = (x, y, min(W - 1, x + width), min(H - 1, y + height))
    draw.rectangle(place, fill=color)
    draw.multiline_text((x + padding - left, y + padding - top), block, fill=_ink(color), font=font, spacing=padding)
    return place


def _ink(color: tuple[int, int, int]) -> str:
    """Black or white, whichever is read better on the colour."""
    return "black" if 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 127 else "white"


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


def _best_place(box, width, height, canvas_size, labels) -> tuple[float, float]:
    """Above the box, in it, below it, at its left or right end: the first place that covers no label, else the best."""
    W, H = canvas_size
    x1, y1, x2, y2 = box
    candidates = []
    for x in (x1, x2 - width):
        for y in (y1 - height, y1, y2 - height, y2):
            x_inside, y_inside = min(max(x, 0.0), max(0.0, W - 1 - width)), min(max(y, 0.0), max(0.0, H - 1 - height))
            candidates.append((x_inside, y_inside))

    def covered(place):
        own = (*place, place[0] + width, place[1] + height)
        return sum(_overlap(own, label) for label in labels)

    return min(candidates, key=covered)  # the first of equal ones


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
