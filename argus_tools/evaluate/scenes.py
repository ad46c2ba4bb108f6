"""Held-out rendered scenes: captions, questions, detection by phrase and dense captions, scored by their ground truth.

Held-out scenes come from a split of their own (other random streams), so no training scene is among them. What is asked
of a scene follows from its index and the seed alone, so that the first n scenes of a longer evaluation are asked the
same. `score_scenes` is all of it as one function; `Scenes` is it as a benchmark of `argus evaluate`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from .benchmark import Benchmark, mean
from .dense_caption import RegionImage, average_precision, dense_caption_map
from .meteor import open_meteor
from .records import check, check_regions


def iou(a, b) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def match(boxes, labels, true_boxes, true_labels, threshold: float = 0.5) -> list[int | None]:
    """For each prediction, in order, the ground truth of its label that it takes (each at most once), or None.

    A label None agrees with any.
    """
    taken: set[int] = set()
    matches: list[int | None] = []
    for box, label in zip(boxes, labels):
        best, best_iou = None, threshold
        for i, (true_box, true_label) in enumerate(zip(true_boxes, true_labels)):
            if i in taken or (label is not None and label != true_label):
                continue
            overlap = iou(box, true_box)
            if overlap >= best_iou:
                best, best_iou = i, overlap
        matches.append(best)
        if best is not None:
            taken.add(best)
    return matches


def exchanges_of(scene, index: int, seed: int) -> dict:
    """What is asked of a scene: {"caption", "detect", "dense_caption": Exchange, "answer": {kind: Exchange}}."""
    from ..scenes import QUESTION_KINDS, ask

    rng = np.random.default_rng([seed, 4, index])
    asked: dict = {task: ask(scene, rng, task) for task in ("caption", "detect", "dense_caption")}
    questions = {kind: ask(scene, rng, "answer", kind) for kind in QUESTION_KINDS}
    # A scene that has nothing of a kind to ask gives a question of another.
    asked["answer"] = {kind: each for kind, each in questions.items() if each.task == f"answer:{kind}"}
    return asked


def predict(model, images: Sequence, asked: Sequence[dict]) -> list[dict]:
    """What a model says: {"caption", "answers": {kind: text}, "detect", "dense_caption"} for each image."""
    questions = [(i, kind, each) for i, one in enumerate(asked) for kind, each in one["answer"].items()]
    captions = model.caption(images)
    answers = model.answer([images[i] for i, *_ in questions], [each.prompt for *_, each in questions])
    detected = model.detect(images, [list(one["detect"].phrases) for one in asked])
    dense = model.dense_caption(images)
    rows = [
        {"caption": c, "answers": {}, "detect": d, "dense_caption": r} for c, d, r in zip(captions, detected, dense)
    ]
    for (i, kind, _), answer in zip(questions, answers):
        rows[i]["answers"][kind] = answer
    return rows


def score(truths: Sequence[tuple], rows: Sequence[dict], meteors: Sequence[str] = ("lite",)) -> dict:
    """All scores, in 0..1, and counts.

    Args:
        truths: (objects, (height, width), what `exchanges_of` gave) for each scene.
        rows: what `predict` gave for each.
        meteors: which METEORs (see `open_meteor`) dense-captioning mAP is computed with; each under its own name.
    """
    from ..scenes import caption_labels

    objects, sizes, asked = zip(*truths)
    result: dict = {"scenes": len(truths), "objects": sum(len(each) for each in objects)}
    said = [caption_labels(row["caption"]) for row in rows]
    true = [Counter(o.label for o in each) for each in objects]
    right = sum((a & b).total() for a, b in zip(said, true))
    result["caption"] = {
        "object_recall": right / max(1, sum(t.total() for t in true)),
        "object_precision": right / max(1, sum(s.total() for s in said)),
        "all_objects": mean(a == b for a, b in zip(said, true)),
        "exact": mean(row["caption"].strip() == each["caption"].answer for row, each in zip(rows, asked)),
    }
    hits = defaultdict(list)
    for row, each in zip(rows, asked):
        for kind, exchange in each["answer"].items():
            hits[kind].append(row["answers"][kind].strip() == exchange.answer)
    result["answer"] = {kind: {"accuracy": mean(h), "questions": len(h)} for kind, h in sorted(hits.items())}
    for task, key in (("detect", "labels"), ("dense_caption", "captions")):
        result[task] = region_scores([row[task] for row in rows], key, [each[task].answer for each in asked])
    images = [
        _region_image(size, row["dense_caption"], each["dense_caption"].answer)
        for size, row, each in zip(sizes, rows, asked)
    ]
    maps = result["dense_caption"]["map"] = {}
    for kind in meteors:
        with open_meteor(kind) as meteor:
            found = dense_caption_map(images, meteor)
        maps[meteor.name] = {mode: found[mode]["map"] for mode in ("reference", "clean")}
        result["dense_caption"]["localisation_map"] = found["clean"]["localisation_map"]
    return result


def score_scenes(model, scenes: Iterable, seed: int = 0, meteors: Sequence[str] = ("lite",)) -> dict:
    """All scores of a model (see models.py) on scenes, as one dictionary of numbers."""
    scenes = list(scenes)
    asked = [exchanges_of(scene, i, seed) for i, scene in enumerate(scenes)]
    rows = predict(model, [scene.image for scene in scenes], asked)
    return score([(s.objects, s.size, a) for s, a in zip(scenes, asked)], rows, meteors)


class Scenes(Benchmark):
    """Scenes 0..count-1 of a split.

    options: `render_scene`'s: height, width, max_objects, styles. meteors: as for `score`. pictograms_only: no shapes,
    digits and words, which look the same in every style; `data` holds it where it is set.
    Raises ValueError for options that `render_scene` refuses.
    """

    name = "scenes"
    needs = ("caption", "answer", "detect", "dense_caption")

    def __init__(
        self,
        split: str,
        count: int,
        seed: int = 0,
        meteors: Sequence[str] = ("lite",),
        pictograms_only: bool = False,
        **options,
    ):
        from ..scenes import SCENES_VERSION, atlas_info

        self._split, self._options, self._count, self._seed, self._meteors = split, options, count, seed, meteors
        self._truths: dict = {}
        self.data = {"scenes_version": SCENES_VERSION, "split": split, "count": count, "seed": seed, **options}
        if pictograms_only:
            self.data["pictograms_only"] = True
            self._options = {**options, "classes": tuple(atlas_info()["classes"])}
        self._render(0)

    def ids(self) -> list[int]:
        return list(range(self._count))

    def predict(self, model, ids: list) -> list[dict]:
        images = [self._render(i) for i in ids]
        return predict(model, images, [self._truths[i][2] for i in ids])

    def check_one(self, path, item, row: dict, where: str) -> None:
        if item not in self._truths:
            self._render(item)
        answers = dict.fromkeys(self._truths[item][2]["answer"], "text")
        check(path, row, {"caption": "text", "answers": answers, "detect": {}, "dense_caption": {}}, where)
        check_regions(path, row["detect"], "labels", f"{where}.detect")
        check_regions(path, row["dense_caption"], "captions", f"{where}.dense_caption")

    def score(self, predictions: dict) -> dict:
        for i in self.ids():
            if i not in self._truths:
                self._render(i)
        return score([self._truths[i] for i in self.ids()], [predictions[i] for i in self.ids()], self._meteors)

    def _render(self, index: int) -> np.ndarray:
        """uint8[H, W, 3]; the ground truth is kept."""
        from ..scenes import render_scene

        scene = render_scene(index, self._split, **self._options)
        self._truths[index] = (scene.objects, scene.size, exchanges_of(scene, index, self._seed))
        return scene.image


def _region_image(size, found: dict, truth: Sequence[tuple]) -> RegionImage:
    boxes, texts = [box for box, _ in truth], [text for _, text in truth]
    return RegionImage(size, found["boxes"], found["captions"], found["scores"], boxes, texts)


def region_scores(predicted: Sequence[dict], key: str, truth: Sequence[list]) -> dict:
    """Recall, precision and F1 of regions with the right words at IoU 0.5, AP over their scores, and boxes alone.

    predicted: {"boxes", key, "scores"} for each image; truth: (box, words) pairs for each.
    """
    total, made = sum(len(t) for t in truth), sum(len(p["boxes"]) for p in predicted)
    right, boxes_right, overlaps, scored = 0, 0, [], []
    for found, true in zip(predicted, truth):
        boxes, true_boxes, true_labels = found["boxes"], [t[0] for t in true], [t[1] for t in true]
        matches = match(boxes, found[key], true_boxes, true_labels)
        right += sum(m is not None for m in matches)
        overlaps += [iou(b, true_boxes[m]) for b, m in zip(boxes, matches) if m is not None]
        # AP's predictions take their ground truth best score first; those of F1, which has no scores, as written.
        order = sorted(range(len(boxes)), key=lambda i: -found["scores"][i])
        ranked = match([boxes[i] for i in order], [found[key][i] for i in order], true_boxes, true_labels)
        scored += [(found["scores"][i], m is not None) for i, m in zip(order, ranked)]
        boxes_right += sum(m is not None for m in match(boxes, [None] * len(boxes), true_boxes, true_labels))
    hits = [hit for _, hit in sorted(scored, key=lambda each: -each[0])]
    return {
        "recall_50": right / max(1, total),
        "precision_50": right / max(1, made),
        "f1_50": 2 * right / max(1, total + made),
        "ap_50": average_precision(hits, total),
        "f1_50_boxes_alone": 2 * boxes_right / max(1, total + made),
        "mean_iou_of_right": mean(overlaps),
    }
