"""Finished files of boxes as one COCO file, which pycocotools and every viewer of COCO load.

Images are numbered in the order of their ids and categories in that of their names, so that the file does not depend on
the order in which rows were written. Files are read twice, and one row at a time.
"""

import json
from pathlib import Path

from ..cli_support import CommandError, whole_file
from .schema import TEXT_COLUMNS
from .shards import part_files, rows_of

_ABOUT = (
    "score: exp of the mean log-probability of a region's tokens, not calibrated; bbox: x, y, width, height in pixels "
    "of the original image, upright"
)


def check_task(task: str) -> None:
    """Raises CommandError for a task without boxes."""
    if task not in TEXT_COLUMNS:
        raise CommandError(f"--coco needs boxes, which {task} does not give: detect and dense-caption do")


def write_coco(folder: Path, task: str, out: Path) -> dict:
    """Writes `out` from all finished files of `folder`.

    A label, or a caption, is a category: in lower case, with single spaces. Annotations have bbox, area, iscrowd 0 and
    score, and with dense captions the caption as it was written. Images that could not be read are left out.

    Returns:
        {"images", "annotations", "categories", "left_out"}: counts.

    Raises:
        CommandError: the task gives no boxes, a file is damaged, or `out` cannot be written.
    """
    check_task(task)
    column, parts = TEXT_COLUMNS[task], part_files(folder)
    sizes, names, left_out = {}, set(), 0
    for row in (row for part in parts for row in rows_of(part, task)):
        if row["error"] is not None:
            left_out += 1
            continue
        sizes[row["id"]] = (row["width"], row["height"])
        names.update(map(category_name, row[column]))
    images = {identity: number for number, identity in enumerate(sorted(sizes), start=1)}
    categories = {name: number for number, name in enumerate(sorted(names), start=1)}
    count = 0
    with whole_file(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write('{"info": ' + json.dumps({"description": f"argus annotate --task {task}; {_ABOUT}"}))
        file.write(',\n"licenses": [],\n"images": [')
        for identity, number in images.items():
            width, height = sizes[identity]
            image = {"id": number, "file_name": identity, "width": width, "height": height}
            file.write((",\n" if number > 1 else "\n") + json.dumps(image, ensure_ascii=False))
        file.write('],\n"categories": [')
        for name, number in categories.items():
            file.write((",\n" if number > 1 else "\n") + json.dumps({"id": number, "name": name}, ensure_ascii=False))
        file.write('],\n"annotations": [')
        for row in (row for part in parts for row in rows_of(part, task)):
            for box, text, score in zip(row["boxes"] or (), row[column] or (), row["scores"] or ()):
                count += 1
                annotation = {
                    "id": count,  # from 1: pycocotools takes a match with 0 for none
                    "image_id": images[row["id"]],
                    "category_id": categories[category_name(text)],
                    **_geometry(box),
                    "score": score,
                }
                if task == "dense-caption":
                    annotation["caption"] = text
                file.write((",\n" if count > 1 else "\n") + json.dumps(annotation, ensure_ascii=False))
        file.write("]}\n")
    return {"images": len(images), "annotations": count, "categories": len(categories), "left_out": left_out}


def category_name(text: str) -> str:
    """The category of a label or caption."""
    return " ".join(text.lower().split()) or "(no words)"


def _geometry(box: list[float]) -> dict:
    x1, y1, x2, y2 = box
    width, height = round(x2 - x1, 2), round(y2 - y1, 2)
    return {"bbox": [round(x1, 2), round(y1, 2), width, height], "area": round(width * height, 2), "iscrowd": 0}
