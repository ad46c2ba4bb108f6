"""Readers of the official annotation files; each gives plain lists and says in one sentence what is wrong with a file.

COCO instances and captions, NoCaps (COCO's form), VQAv2 questions and annotations, GQA questions, POPE (one JSON object
a line), Visual Genome region_descriptions and DenseCap's splits of it.
"""

import json
from pathlib import Path

from ..cli_support import CommandError
from .detection import category_key
from .records import check


def read_text(path: str | Path) -> str:
    """A whole UTF-8 file. Raises CommandError where there is none or it is no text."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def read_json(path: str | Path):
    """A whole JSON file. Raises CommandError where there is none or it is broken."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{path} is not JSON: {error}") from error


def read_coco(path: str | Path, key: str) -> dict:
    """A COCO file whose annotations hold `key` ("bbox" or "caption"), checked: {"images", "annotations", ..}."""
    data = read_json(path)
    kind = {"bbox": "COCO instances", "caption": "COCO captions"}[key]
    images = _records(path, data, "images", kind)
    rows = _records(path, data, "annotations", kind)
    check(path, images, [{"id": "id", "file_name": "text"}], "images")
    categories: set = set()
    if key == "caption":
        check(path, rows, [{"image_id": "id", "caption": "text"}], "annotations")
    else:
        form = {"image_id": "id", "category_id": "id", "bbox": "sides", "area?": "number", "iscrowd?": "flag"}
        check(path, rows, [form], "annotations")
        named = _records(path, data, "categories", kind)
        check(path, named, [{"id": "id", "name": "text"}], "categories")
        categories = {category["id"] for category in named}
        data["categories"] = _of_one_name_each(path, named, {row["category_id"] for row in rows})
    known = {image["id"] for image in images}
    for number, row in enumerate(rows):
        if row["image_id"] not in known:
            raise CommandError(
                f"{path}: annotations[{number}] is of image {row['image_id']}, which is not among the images"
            )
        if key == "bbox" and row["category_id"] not in categories:
            raise CommandError(
                f"{path}: annotations[{number}] is of category {row['category_id']}, which is not among the categories"
            )
    return data


def _of_one_name_each(path, categories: list[dict], used: set) -> list[dict]:
    """The categories without headings: some tools write them among the others, with a category's name and no boxes."""
    kept: dict = {}
    for category in categories:
        other = kept.setdefault(category_key(category["name"]), category)
        if category["id"] not in used or other["id"] == category["id"]:
            continue
        if other["id"] in used:
            raise CommandError(
                f"{path}: the categories {other['name']!r} (id {other['id']}) and {category['name']!r} (id "
                f"{category['id']}) have one name, and a model's labels are names: rename one"
            )
        kept[category_key(category["name"])] = category
    return list(kept.values())


def read_captions(path: str | Path) -> list[dict]:
    """{"id", "file_name", "captions"} of each image that has captions (COCO captions, NoCaps)."""
    data = read_coco(path, "caption")
    captions: dict = {}
    for row in data["annotations"]:
        captions.setdefault(row["image_id"], []).append(row["caption"])
    if not any(text.strip() for texts in captions.values() for text in texts):
        raise CommandError(f"{path} holds no captions")
    return [
        {"id": image["id"], "file_name": image["file_name"], "captions": captions[image["id"]]}
        for image in data["images"]
        if image["id"] in captions
    ]


def read_vqa(questions: str | Path, annotations: str | Path) -> list[dict]:
    """{"id", "question", "answers", "type", "file_names"} of each question (VQAv2); the ten answers in order."""
    asked, answered = read_json(questions), read_json(annotations)
    rows, truths = _records(questions, asked, "questions", "VQAv2 questions"), {}
    check(questions, rows, [{"question_id": "id", "image_id": "image number", "question": "text"}], "questions")
    annotated = _records(annotations, answered, "annotations", "VQAv2 annotations")
    form = {"question_id": "id", "answers": [{"answer": "text"}], "answer_type?": "text"}
    check(annotations, annotated, [form], "annotations")
    truths = {row["question_id"]: row for row in annotated}
    subset = asked.get("data_subtype", "val2014")
    result = []
    for row in rows:
        truth = truths.get(row["question_id"])
        if truth is None:
            raise CommandError(f"{annotations} has no answers to question {row['question_id']} of {questions}")
        if not truth["answers"]:
            raise CommandError(f"{annotations} has an empty list of answers to question {row['question_id']}")
        image = int(row["image_id"])
        result.append(
            {
                "id": row["question_id"],
                "question": row["question"],
                "answers": [each["answer"] for each in truth["answers"]],
                "type": truth.get("answer_type"),
                "file_names": [f"COCO_{subset}_{image:012d}.jpg", f"{image:012d}.jpg"],
            }
        )
    return result


def read_gqa(path: str | Path) -> list[dict]:
    """{"id", "question", "answer", "type", "file_names"} of each question (GQA); type is the structural one."""
    data = read_json(path)
    if not isinstance(data, dict) or not data:
        raise CommandError(f"{path} is not GQA's form: an object of questions by their ids")
    form = {"imageId": "id", "question": "text", "answer": "text", "types?": {"structural?": "text"}}
    check(path, data, {"*": form})
    return [
        {
            "id": key,
            "question": row["question"],
            "answer": row["answer"],
            "type": row.get("types", {}).get("structural"),
            "file_names": [f"{row['imageId']}.jpg"],
        }
        for key, row in data.items()
    ]


def read_pope(path: str | Path) -> list[dict]:
    """{"id", "question", "label", "file_names"} of each question (POPE, one JSON object a line)."""
    result = []
    form = {"question_id": "id", "image": "text", "text": "text", "label": "text"}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CommandError(f"{path}, line {number} is not JSON: {error}") from error
        check(f"{path}, line {number} is not POPE's form", row, form)
        label = row["label"].strip().lower()
        if label not in ("yes", "no"):
            raise CommandError(f"{path}, line {number}: the label is {row['label']!r}, not yes or no")
        result.append({"id": row["question_id"], "question": row["text"], "file_names": [row["image"]], "label": label})
    if not result:
        raise CommandError(f"{path} holds no questions")
    return result


def read_regions(path: str | Path, splits: str | Path | None = None, split: str = "test") -> list[dict]:
    """{"id", "boxes" xyxy pixels, "captions", "file_names"} of each image (Visual Genome region_descriptions).

    splits: DenseCap's densecap_splits.json; only the images of `split` are given, in its order.
    """
    data = read_json(path)
    kind = "Visual Genome region descriptions"
    if not isinstance(data, list) or not data:
        raise CommandError(f"{path} is not the form of {kind}: a list of images with regions")
    region = {"x": "number", "y": "number", "width": "number", "height": "number", "phrase": "text", "image_id?": "id"}
    check(path, data, [{"regions": [region], "id?": "id", "image_id?": "id"}])
    images: dict = {}
    for number, row in enumerate(data):
        regions = row["regions"]
        key = row.get("id", row.get("image_id", regions[0].get("image_id") if regions else None))
        if key is None:
            raise CommandError(f"{path}: [{number}] names no image (id or image_id)")
        if key in images:
            raise CommandError(f"{path}: [{number}] is of image {key}, which stands there already")
        for place, region in enumerate(regions):
            if min(region["width"], region["height"]) < 0:
                raise CommandError(f"{path}: [{number}].regions[{place}] has a negative width or height")
        images[key] = {
            "id": key,
            "boxes": [[r["x"], r["y"], r["x"] + r["width"], r["y"] + r["height"]] for r in regions],
            "captions": [r["phrase"] for r in regions],
            "file_names": [f"{key}.jpg", f"VG_100K/{key}.jpg", f"VG_100K_2/{key}.jpg"],
        }
    if splits is None:
        return list(images.values())
    chosen = read_json(splits)
    if not isinstance(chosen, dict) or split not in chosen:
        raise CommandError(f"{splits} has no split {split!r}: it must be an object of image ids by split")
    check(splits, chosen[split], ["id"], split)
    missing = [key for key in chosen[split] if key not in images]
    if missing:
        raise CommandError(f"{path} lacks {len(missing)} images of the split {split!r} (first: {missing[0]})")
    return [images[key] for key in chosen[split]]


def find_image(folder: str | Path, row: dict) -> Path:
    """The first of a record's possible files that is there. Raises CommandError that names the record."""
    names = row.get("file_names") or [row["file_name"]]
    for name in names:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise CommandError(f"record {row['id']}: there is no {' or '.join(names)} in {folder}")


def _records(path, data, key: str, kind: str) -> list[dict]:
    rows = data.get(key) if isinstance(data, dict) else None
    if not isinstance(rows, list) or (not rows and key != "annotations"):
        raise CommandError(f"{path} is not the form of {kind}: it has no list {key!r}")
    return rows
