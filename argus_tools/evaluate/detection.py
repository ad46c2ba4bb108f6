"""Detection mAP by pycocotools: COCOeval's boxes, all images, at most 100 detections an image.

A model's labels are category names; a label that is none is dropped, as evaluators of generative detectors do (GRiT).
Scores are the model's; pycocotools ranks by them.
"""

import contextlib
import io

from ..cli_support import CommandError

NAMES = ("ap", "ap_50", "ap_75", "ap_small", "ap_medium", "ap_large", "ar_1", "ar_10", "ar_100")


def score(dataset: dict, predictions: dict) -> dict:
    """COCO's numbers in 0..1; None where there is no such ground truth (pycocotools says -1).

    Args:
        dataset: a COCO instances file, as read; its categories have different names.
        predictions: {image id: {"boxes" xyxy pixels, "labels", "scores"}}.

    Raises:
        CommandError: pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise CommandError("detection is scored by pycocotools: pip install pycocotools") from error
    images = [image["id"] for image in dataset["images"]]
    categories = {category_key(category["name"]): category["id"] for category in dataset["categories"]}
    detected, dropped = [], 0
    for image in images:
        found = predictions[image]
        for (x1, y1, x2, y2), label, confidence in zip(found["boxes"], found["labels"], found["scores"]):
            category = categories.get(category_key(label))
            if category is None:
                dropped += 1
                continue
            box = [x1, y1, x2 - x1, y2 - y1]
            row = {"id": len(detected) + 1, "image_id": image, "category_id": category, "bbox": box}
            detected.append(row | {"area": box[2] * box[3], "iscrowd": 0, "score": confidence})
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells its progress
        truth, guesses = COCO(), COCO()
        # A file without areas is one that another tool wrote: pycocotools needs them for its sizes. The ids are counted
        # anew: pycocotools takes a match with id 0 for none, and of annotations with one id keeps the last.
        rows = [
            {"iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3], **row, "id": number}
            for number, row in enumerate(dataset["annotations"], start=1)
        ]
        truth.dataset = {**dataset, "annotations": rows}
        guesses.dataset = {**dataset, "annotations": detected}
        truth.createIndex()
        guesses.createIndex()
        evaluation = COCOeval(truth, guesses, "bbox")
        evaluation.params.imgIds = images
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = {name: None if value < 0 else float(value) for name, value in zip(NAMES, evaluation.stats)}
    return {**numbers, "images": len(images), "detections": len(detected), "labels_that_are_no_category": dropped}


def category_key(name: str) -> str:
    """What is compared of a category's name and a label: neither case nor spacing."""
    return " ".join(name.lower().split())
