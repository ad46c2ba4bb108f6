"""Region-caption mAP (Section 5.2): DenseCap's metric, by the protocol of its own evaluation code, and a clean variant.

The mean of 30 average precisions, over IoU {.3 .4 .5 .6 .7} (overlap >= threshold) x METEOR {0 .05 .1 .15 .2 .25}
(strictly above). Predictions of all images are ranked together by score. A language model has no objectness; the score
is the caller's (the product's is exp of the mean log-probability of a region's location and caption tokens).

Both modes:

- Ground truth is merged within an image: greedily, the largest group of boxes that overlap one box by IoU >= 0.7 first;
  the merged box is the group's mean and every caption of the group is a reference.
- A prediction belongs to the merged box of highest IoU; METEOR is against that box's references.
- Average precision is maximum-interpolated at the 101 recalls 0, 0.01, .., 1.
- Images without predictions count with all of their ground truth. (A common port drops them, which flatters.)
- Captions are lower-cased and stripped of punctuation.

`reference` is what DenseCap's Lua does beyond that, quirks included:

- Coordinates are scaled to a long side of 720 pixels. IoU counts pixels, (x2 - x1 + 1) x (y2 - y1 + 1), between the
  first and the last pixel of a box: a box of w pixels ends at x1 + w - 1, as Lua's own conversion from widths has it.
- The first prediction, by score within the image, that belongs to a merged box uses it up, whatever their IoU and
  its caption; every later one is a false positive.
- A prediction that overlaps nothing uses up the image's last merged box (Torch7 reads index -1 as the last one).

`clean` differs in exactly two things: a merged box is used up, in each of the 30 cells, only by a prediction that is
right in that cell, and a prediction that overlaps nothing uses up nothing.

Not done here, since they belong to DenseCap's data file and not to its evaluation: ground truth rounded to whole pixels
and counted from 1, captions of many words dropped, rare words replaced. Lua's loop over recalls adds 0.01 in floating
point and so ends before 1; the protocol's 101 recalls are taken at their word. Ties in score keep the order given, and
an IoU within 1e-9 of a threshold has reached it.
"""

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

IOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
METEOR_THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
MERGE_IOU = 0.7
LONG_SIDE = 720
MODES = ("reference", "clean")

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# DenseCap's own replacements in Visual Genome's phrases.
_REPLACED = str.maketrans(
    {"½": "half", "—": "-", "™": "", "¢": "cent", "ç": "c", "û": "u", "é": "e", "è": "e", "°": " degree", "…": ""}
)


@dataclass(frozen=True)
class RegionImage:
    """Predictions and ground truth of one image.

    `image_size` (height, width) in pixels; `boxes` float[N, 4] and `true_boxes` float[M, 4] x1, y1, x2, y2 in pixels of
    the image, edges and not pixel numbers; `captions`, `scores` of the N predictions; `true_captions` of the M regions.
    """

    image_size: tuple[float, float]
    boxes: Sequence
    captions: Sequence[str]
    scores: Sequence[float]
    true_boxes: Sequence
    true_captions: Sequence[str]
    name: str = ""


def normalise(caption: str) -> str:
    """Lower case, without punctuation, single spaces: DenseCap's `words_preprocess`."""
    return " ".join(caption.translate(_REPLACED).lower().translate(_NO_PUNCTUATION).split())


def pixel_corners(boxes, image_size, long_side: float = LONG_SIDE) -> np.ndarray:
    """float[N, 4] edges in pixels of the image -> first and last pixel at a long side of 720: x2 = x1 + width - 1."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * (long_side / max(image_size))
    return boxes - np.array([0.0, 0.0, 1.0, 1.0])


def overlaps(first, second) -> np.ndarray:
    """float[N, M]: IoU of boxes given by first and last pixel, with the +1 convention, to nine digits: what the scaling
    of coordinates adds to the last ones must not decide whether 1/2 reaches 0.5."""
    a, b = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in (first, second))
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.clip(high - low + 1, 0, None)
    shared = sides[..., 0] * sides[..., 1]
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0).round(9)


def merge_groups(boxes, threshold: float = MERGE_IOU) -> list[np.ndarray]:
    """Indices of the boxes of each group: again and again the box with most others at IoU >= threshold, and those."""
    iou = overlaps(boxes, boxes)
    np.fill_diagonal(iou, 1.0)
    groups = []
    while True:
        near = iou >= threshold
        counts = near.sum(axis=0)
        if not len(counts) or counts.max() == 0:
            return groups
        group = np.flatnonzero(near[counts.argmax()])
        groups.append(group)
        iou[group, :] = 0
        iou[:, group] = 0


def average_precision(hits, total: int) -> float:
    """Maximum-interpolated precision at the 101 recalls 0, 0.01, .., 1.

    hits: bool[N], whether each prediction is right, best score first; total: how much ground truth there is.
    """
    hits = np.asarray(hits, dtype=bool)
    if not len(hits) or total < 1:
        return 0.0
    right = np.cumsum(hits)
    precision = np.maximum.accumulate((right / np.arange(1, len(hits) + 1))[::-1])[::-1]
    # recall >= t, in whole numbers: 7 / 20 must reach 0.35.
    first = np.searchsorted(right * 100, np.arange(101) * total, side="left")
    return float(np.where(first < len(hits), precision[np.minimum(first, len(hits) - 1)], 0.0).mean())


def dense_caption_map(images: Iterable[RegionImage], meteor, modes: Sequence[str] = MODES) -> dict:
    """Both mAPs over all images.

    Args:
        images: each once; those without predictions too.
        meteor: what `meteor.open_meteor` gives: a `name`, and `score(pairs)` for (caption, references) pairs.
        modes: of "reference" and "clean".

    Returns:
        {"meteor": which METEOR, "images", "regions" (merged ground truth), "predictions", and for each mode
        {"map", "localisation_map" (IoU alone, the mean over its thresholds), "ap": {"0.3": {"0.0": .., ..}, ..}}},
        everything in 0..1.

    Raises:
        ValueError: lengths that do not agree, values that are not finite, no ground truth at all, an unknown mode.
    """
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        raise ValueError(f"unknown mode {unknown[0]!r}: take {' or '.join(MODES)}")
    rows = _Rows()
    for image in images:
        rows.add(image)
    if not rows.total:
        raise ValueError(f"no ground truth regions in {rows.images} images: there is nothing to measure against")
    order = np.argsort(-np.array(rows.scores), kind="stable")
    iou, truth = np.array(rows.iou)[order], np.array(rows.truth, dtype=np.int64)[order]
    first = np.array(rows.first, dtype=bool)[order]
    similarity = _similarities(rows, meteor)[order]
    result = {"meteor": meteor.name, "images": rows.images, "regions": rows.total, "predictions": len(order)}
    for mode in modes:

        def precision(iou_threshold: float, meteor_threshold: float, mode=mode) -> float:
            hits = (iou >= iou_threshold) & (similarity > meteor_threshold)
            hits = hits & first if mode == "reference" else _first_of_each(hits, truth)
            return average_precision(hits, rows.total)

        cells = {str(i): {str(m): precision(i, m) for m in METEOR_THRESHOLDS} for i in IOU_THRESHOLDS}
        result[mode] = {
            "map": float(np.mean([ap for row in cells.values() for ap in row.values()])),
            "localisation_map": float(np.mean([precision(i, -1.0) for i in IOU_THRESHOLDS])),
            "ap": cells,
        }
    return result


class _Rows:
    """One row a prediction, of all images: its score, its merged box, their IoU, and whether Lua counts it."""

    def __init__(self):
        self.images = self.total = 0
        self.scores: list[float] = []
        self.iou: list[float] = []
        self.truth: list[int] = []  # the number of the merged box among those of all images
        self.first: list[bool] = []
        self.captions: list[str] = []
        self.references: list[list[str]] = []

    def add(self, image: RegionImage) -> None:
        boxes, true_boxes, scores = _checked(image)
        groups = merge_groups(true_boxes)
        merged = np.array([true_boxes[group].mean(axis=0) for group in groups]).reshape(-1, 4)
        references = [[normalise(image.true_captions[i]) for i in group] for group in groups]
        iou = overlaps(boxes, merged)
        used = [False] * len(merged)
        for i in np.argsort(-scores, kind="stable"):
            best = int(iou[i].argmax()) if len(merged) and iou[i].max() > 0 else -1
            self.scores.append(float(scores[i]))
            self.iou.append(float(iou[i, best]) if best >= 0 else 0.0)
            self.truth.append(self.total + best if best >= 0 else -1)
            self.first.append(best >= 0 and not used[best])
            if merged.size:
                used[best] = True  # -1 is the last one, in Python as in Torch7
            self.captions.append(normalise(image.captions[i]))
            self.references.append(references[best] if best >= 0 else [])
        self.images += 1
        self.total += len(merged)


def _similarities(rows: _Rows, meteor) -> np.ndarray:
    """float[N]: METEOR of each prediction that some threshold of IoU lets through, 0 for the others."""
    asked = [i for i, iou in enumerate(rows.iou) if iou >= min(IOU_THRESHOLDS)]
    found = np.zeros(len(rows.iou))
    found[asked] = meteor.score([(rows.captions[i], rows.references[i]) for i in asked])
    return found


def _first_of_each(hits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """bool[N]: of the hits on one merged box, only the first."""
    places = np.flatnonzero(hits)
    kept = np.zeros_like(hits)
    kept[places[np.unique(truth[places], return_index=True)[1]]] = True
    return kept


def _checked(image: RegionImage) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(corners of the predictions, corners of the ground truth, scores) as float64."""
    name = f"image {image.name}: " if image.name else ""
    for what, boxes, texts in (
        ("predictions", image.boxes, image.captions),
        ("regions", image.true_boxes, image.true_captions),
    ):
        if len(boxes) != len(texts):
            raise ValueError(f"{name}{len(boxes)} boxes and {len(texts)} captions of {what}: one for each is needed")
    if len(image.scores) != len(image.boxes):
        raise ValueError(f"{name}{len(image.boxes)} boxes and {len(image.scores)} scores: one for each is needed")
    if min(image.image_size) <= 0:
        raise ValueError(f"{name}image_size must be (height, width) above 0, got {tuple(image.image_size)}")
    corners = [pixel_corners(boxes, image.image_size) for boxes in (image.boxes, image.true_boxes)]
    scores = np.asarray(image.scores, dtype=np.float64).reshape(-1)
    if not all(np.isfinite(values).all() for values in (*corners, scores)):
        raise ValueError(f"{name}a box or a score is not a finite number")
    return *corners, scores
