"""Draws a run's losses over the samples seen, with Pillow alone: `training/curve.png` of a card."""

from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw

SIZE, MARGIN = (720, 400), (56, 16, 16, 40)  # left, top, right, bottom
SERIES = {
    "answer_loss": ("answers (Equation 1)", (30, 90, 200)),
    "naming_loss": ("names at visual tokens", (220, 120, 30)),
}


def draw_curve(lines: list[dict], out: str | Path) -> None:
    """Write a picture of losses to `out` (.png); a line between stages.

    lines: "samples", "stage" and either or both losses, in order. Raises ValueError for fewer than two lines.
    """
    if len(lines) < 2:
        raise ValueError(f"there are {len(lines)} lines; a curve needs two")
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = MARGIN[0], MARGIN[1], SIZE[0] - MARGIN[2], SIZE[1] - MARGIN[3]
    most, highest = lines[-1]["samples"], 3.0

    def place(samples, value):
        return left + (right - left) * samples / most, bottom - (bottom - top) * min(value, highest) / highest

    for tick in range(7):
        value = highest * tick / 6
        y = place(0, value)[1]
        draw.line([(left, y), (right, y)], fill=(225, 225, 225))
        draw.text((left - 8, y), f"{value:g}", fill="black", anchor="rm")
    for tick in range(5):
        samples = most * tick / 4
        draw.text((place(samples, 0)[0], bottom + 8), f"{samples / 1000:.0f}k", fill="black", anchor="ma")
    draw.text(((left + right) / 2, SIZE[1] - 16), "samples seen", fill="black", anchor="ma")
    for line, following in pairwise(lines):
        if line["stage"] != following["stage"]:
            x = place(line["samples"], 0)[0]
            draw.line([(x, top), (x, bottom)], fill=(160, 160, 160))
            draw.text((x + 4, bottom - 4), following["stage"], fill=(110, 110, 110), anchor="ls")
    for row, (name, (label, colour)) in enumerate(SERIES.items()):
        points = [place(line["samples"], line[name]) for line in _smoothed(lines, name)]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2)
        draw.text((right - 8, top + 8 + 16 * row), label, fill=colour, anchor="ra")
    image.save(out, optimize=True)


def _smoothed(lines: list[dict], name: str) -> list[dict]:
    """Means over as many lines of those that have the value as make 200 points of them."""
    having = [line for line in lines if name in line]
    window = -(-len(having) // 200) or 1
    groups = [having[i : i + window] for i in range(0, len(having), window)]
    return [{"samples": g[-1]["samples"], name: sum(line[name] for line in g) / len(g)} for g in groups]
