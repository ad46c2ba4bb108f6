"""Benchmarks over annotation files: dense captioning, detection, captions and questions; images lie in a folder."""

from collections.abc import Sequence

from ..cli_support import CommandError
from . import annotations, captions, detection, gqa, pope, vqa
from .benchmark import Benchmark
from .dense_caption import RegionImage, dense_caption_map
from .meteor import open_meteor
from .predictions import fingerprint
from .records import check, check_regions

# What LMMs-Eval, which the paper measures by, puts behind every question of these three.
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
CATEGORIES_A_PROMPT = 20


class _Files(Benchmark):
    """Records with an "id" and files; `folder` None where predictions are there already."""

    def __init__(self, name: str, rows: list[dict], folder, data: dict):
        self.name, self.rows, self.folder, self.data = name, rows, folder, data
        self.by_id = {row["id"]: row for row in rows}
        if len(self.by_id) != len(rows):
            raise CommandError(f"{name}: {len(rows) - len(self.by_id)} ids stand twice among {len(rows)} records")
        if folder is not None:
            for row in rows:
                annotations.find_image(folder, row)  # said now, not after hours

    def ids(self) -> list:
        return [row["id"] for row in self.rows]

    def images(self, ids: list) -> list[str]:
        return [str(annotations.find_image(self.folder, self.by_id[i])) for i in ids]


class Questions(_Files):
    """VQAv2, GQA and POPE: one answer for each question; `metric` is vqa, gqa or pope."""

    needs = ("answer",)
    form = {"answer": "text"}

    def __init__(self, name, rows, folder, data, metric, suffix: str):
        super().__init__(name, rows, folder, {**data, "suffix": suffix})
        self._metric, self._suffix = metric, suffix

    def predict(self, model, ids):
        asked = [self.by_id[i]["question"] + self._suffix for i in ids]
        return [{"answer": text} for text in model.answer(self.images(ids), asked)]

    def score(self, predictions):
        return self._metric.score(self.rows, {item: row["answer"] for item, row in predictions.items()})


class Captions(_Files):
    """COCO captions and NoCaps: BLEU and CIDEr; `kind` of tokenizer as in captions.py."""

    needs = ("caption",)
    form = {"caption": "text"}

    def __init__(self, name, rows, folder, data, kind: str, prompt: str | None):
        super().__init__(name, rows, folder, {**data, "prompt": prompt})
        self._kind, self._prompt = kind, prompt
        captions.tokenizer_name(kind)

    def predict(self, model, ids):
        said = model.caption(self.images(ids), **({"prompt": self._prompt} if self._prompt else {}))
        return [{"caption": text} for text in said]

    def score(self, predictions):
        references = {row["id"]: row["captions"] for row in self.rows}
        return captions.score(references, {item: row["caption"] for item, row in predictions.items()}, self._kind)


class Detection(_Files):
    """COCO detection: the category names are the phrases, some at a time."""

    needs = ("detect",)

    def __init__(self, name, dataset: dict, folder, data):
        super().__init__(name, dataset["images"], folder, {**data, "categories_a_prompt": CATEGORIES_A_PROMPT})
        self._dataset = dataset | {"images": self.rows}
        kept = set(self.by_id)
        self._dataset["annotations"] = [row for row in dataset["annotations"] if row["image_id"] in kept]

    def predict(self, model, ids):
        names = [category["name"] for category in self._dataset["categories"]]
        found = [{"boxes": [], "labels": [], "scores": []} for _ in ids]
        step = len(names) if getattr(model, "detects_everything", False) else CATEGORIES_A_PROMPT
        for start in range(0, len(names), step):
            some = names[start : start + step]
            for whole, part in zip(found, model.detect(self.images(ids), [some] * len(ids))):
                for key in whole:
                    whole[key] += part[key]
        return found

    def check_one(self, path, item, row, where):
        check_regions(path, row, "labels", where)

    def score(self, predictions):
        return detection.score(self._dataset, predictions)


class DenseCaptions(_Files):
    """Visual Genome: region-caption mAP of both modes, by each of `meteors`."""

    needs = ("dense_caption",)

    def __init__(self, name, rows, folder, data, meteors: Sequence[str]):
        super().__init__(name, rows, folder, data)
        self._meteors = meteors

    def predict(self, model, ids):
        from PIL import Image, ImageOps

        files, rows = self.images(ids), []
        for file, found in zip(files, model.dense_caption(files)):
            with Image.open(file) as image:
                width, height = ImageOps.exif_transpose(image).size
            rows.append({**found, "height": height, "width": width})
        return rows

    def check_one(self, path, item, row, where):
        check(path, row, {"height": "number", "width": "number"}, where)
        check_regions(path, row, "captions", where)

    def score(self, predictions):
        images = [
            RegionImage(
                (found["height"], found["width"]),
                found["boxes"],
                found["captions"],
                found["scores"],
                self.by_id[item]["boxes"],
                self.by_id[item]["captions"],
                str(item),
            )
            for item, found in predictions.items()
        ]
        scores: dict = {}
        for kind in self._meteors:
            with open_meteor(kind) as meteor:
                found = dense_caption_map(images, meteor)
            scores |= {name: found[name] for name in ("images", "regions", "predictions")}
            scores[meteor.name] = {mode: found[mode] for mode in ("reference", "clean")}
        return scores


def open_dataset(arguments, meteors: Sequence[str]) -> Benchmark:
    """The benchmark of a command's task over its files. Raises CommandError for files that are missing or broken."""
    task = arguments.task
    questions = arguments.questions
    if questions is not None and len(questions) > 1 and task != "pope":
        raise CommandError(f"argus evaluate {task} takes one file of --questions; {len(questions)} are given")
    files = {"questions": questions[0] if questions else None, "annotations": arguments.annotations}
    needed = {"vqav2": ("questions", "annotations"), "gqa": ("questions",), "pope": ("questions",)}
    for name in needed.get(task, ("annotations",)):
        if files[name] is None:
            raise CommandError(f"argus evaluate {task} needs --{name} FILE")
    folder = arguments.images
    if folder is None and arguments.predictions is None:
        raise CommandError(f"argus evaluate {task} needs --images FOLDER")
    limit = arguments.limit
    data = {"limit": limit}
    kind = "auto" if arguments.meteor == "both" else arguments.meteor
    suffix = SHORT_ANSWER if arguments.suffix is None else arguments.suffix
    if task in ("vqav2", "gqa", "pope"):
        rows, metric = {
            "vqav2": lambda: (annotations.read_vqa(files["questions"], files["annotations"]), vqa),
            "gqa": lambda: (annotations.read_gqa(files["questions"]), gqa),
            "pope": lambda: (_pooled(questions), pope),
        }[task]()
        data |= {name: fingerprint(files[name]) for name in needed[task]}
        if len(questions) > 1:
            data["questions"] = [fingerprint(file) for file in questions]
        return Questions(task, rows[:limit], folder, data, metric, suffix)
    if task in ("coco-captions", "nocaps"):
        rows = annotations.read_captions(files["annotations"])
        data["annotations"] = fingerprint(files["annotations"])
        return Captions(task, rows[:limit], folder, data, kind, arguments.prompt)
    if task == "detection":
        dataset = annotations.read_coco(files["annotations"], "bbox")
        data["annotations"] = fingerprint(files["annotations"])
        return Detection(task, dataset | {"images": dataset["images"][:limit]}, folder, data)
    data |= {"splits": None, "split": None}
    if arguments.splits is not None:
        rows = annotations.read_regions(files["annotations"], arguments.splits, arguments.split)
        data |= {"splits": fingerprint(arguments.splits), "split": arguments.split}
    else:
        rows = annotations.read_regions(files["annotations"])
    data["annotations"] = fingerprint(files["annotations"])
    return DenseCaptions(task, rows[:limit], folder, data, meteors)


def _pooled(files: Sequence[str]) -> list[dict]:
    """POPE's questions of one file; or of several as one test, whose ids ("2:17") are unique by the file's number."""
    if len(files) == 1:
        return annotations.read_pope(files[0])
    if len(set(map(fingerprint, files))) < len(files):
        raise CommandError(f"one file of --questions is given twice: {', '.join(map(str, files))}")
    rows = [(number, row) for number, file in enumerate(files, start=1) for row in annotations.read_pope(file)]
    return [row | {"id": f"{number}:{row['id']}"} for number, row in rows]
