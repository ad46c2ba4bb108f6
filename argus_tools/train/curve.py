"""Draws a run's losses over the scenes seen, with Pillow alone: `training/curve.png` of a card."""

import json
from pathlib import Path

from PIL import Image, ImageDraw

SIZE, MARGIN = (720, 400), (56, 16, 16, 40)  # left, top, right, bottom
SERIES = {"loss": ("answers (Equation 1)", (30, 90, 200)), "cell_loss": ("names at visual tokens", (220, 120, 30))}


def draw_curve(log: str | Path, out: str | Path) -> None:
    """Write a picture of `log.jsonl` to `out` (.png). Raises ValueError where the log has fewer than two lines."""
    lines = [json.loads(line) for line in Path(log).read_text(encoding="utf-8").splitlines()]
    if len(lines) < 2:
        raise ValueError(f"{log} has {len(lines)} lines; a curve needs two")
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = MARGIN[0], MARGIN[1], SIZE[0] - MARGIN[2], SIZE[1] - MARGIN[3]
    most, highest = lines[-1]["scenes"], 3.0

    def place(scenes, value):
        return left + (right - left) * scenes / most, bottom - (bottom - top) * min(value, highest) / highest

    for tick in range(7):
        value = highest * tick / 6
        y = place(0, value)[1]
        draw.line([(left, y), (right, y)], fill=(225, 225, 225))
        draw.text((left - 8, y), f"{value:g}", fill="black", anchor="rm")
    for tick in range(5):
        scenes = most * tick / 4
        draw.text((place(scenes, 0)[0], bottom + 8), f"{scenes / 1000:.0f}k", fill="black", anchor="ma")
    draw.text(((left + right) / 2, SIZE[1] - 16), "scenes seen", fill="black", anchor="ma")
    for row, (name, (label, colour)) in enumerate(SERIES.items()):
        points = [place(line["scenes"], line[name]) for line in _smoothed(lines, name)]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2)
        draw.text((right - 8, top + 8 + 16 * row), label, fill=colour, anchor="ra")
    image.save(out, optimize=True)


def _smoothed(lines: list[dict], name: str, window: int = 5) -> list[dict]:
    """Means over `window` lines of those that have the value."""
    having = [line for line in lines if name in line]
    groups = [having[i : i + window] for i in range(0, len(having), window)]
    return [{"scenes": g[-1]["scenes"], name: sum(line[name] for line in g) / len(g)} for g in groups]
