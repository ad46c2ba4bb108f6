"""Pictures side by side in a notebook, boxes drawn by the project's own function, small enough to be kept in git."""

import io
from collections.abc import Sequence

from PIL import Image

from argus_tools.draw import draw_regions

GAP = 8
QUALITY = 85


def sheet(
    pictures: Sequence[Image.Image],
    found: Sequence[dict | None] | None = None,
    height: int = 300,
    columns: int | None = None,
) -> Image.Image:
    """One RGB picture of them all, each `height` pixels high, `columns` of them in a row (None: all).

    found: for each picture None, or "boxes" [N, 4] in its pixels, "captions" or "labels", and maybe "scores", as the
    task calls give them. Boxes are drawn on the sheet, so that labels are legible whatever the pictures' own sizes;
    where some regions have no scores, none are written.
    """
    columns = columns or len(pictures)
    scales = [height / picture.height for picture in pictures]
    widths = [round(picture.width * scale) for picture, scale in zip(pictures, scales)]
    rows = [widths[i : i + columns] for i in range(0, len(widths), columns)]
    size = max(sum(row) + GAP * (len(row) - 1) for row in rows), len(rows) * (height + GAP) - GAP
    canvas = Image.new("RGB", size, "white")
    boxes, words, scores = [], [], []
    for i, regions in enumerate(found or [None] * len(pictures)):
        row, column = divmod(i, columns)
        left, top = sum(rows[row][:column]) + GAP * column, row * (height + GAP)
        resized = pictures[i].convert("RGB").resize((widths[i], height), Image.Resampling.BICUBIC)
        canvas.paste(resized, (left, top))
        if regions is not None:
            corners = [[float(value) * scales[i] for value in box] for box in regions["boxes"]]
            boxes += [[left + x1, top + y1, left + x2, top + y2] for x1, y1, x2, y2 in corners]
            words += regions["captions"] if "captions" in regions else regions["labels"]
            scores += [float(score) for score in regions.get("scores", ())]
    return draw_regions(canvas, boxes, words, scores if len(scores) == len(boxes) else None) if boxes else canvas


def show(*arguments, **options):
    """`sheet` as a JPEG that a notebook displays: a fifth of a PNG's bytes."""
    from IPython.display import Image as Shown

    file = io.BytesIO()
    sheet(*arguments, **options).save(file, "JPEG", quality=QUALITY)
    return Shown(file.getvalue(), format="jpeg")
