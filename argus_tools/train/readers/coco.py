"""COCO 2017's captions and instances, and Objects365 v2, which has the same form.

{"images": [{"id", "file_name", "width", "height"}], "annotations": [{"image_id", ...}], "categories": [...]}, in any
order. Files are read one element at a time; meanwhile 33 bytes a box and about 300 an image are kept, and as much
again to sort them. Measured: 5 million boxes on 340,000 images (0.77 GB) take 0.4 GB and 72 s of one core, once;
Objects365's 25 million accordingly 2 GB and some minutes.
"""

import random
from array import array
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modeling_argus.tasks_argus import TASK_PROMPTS

from .json_stream import iterate_json
from .reading import (
    Reader,
    box_features,
    check_size,
    clamp_box,
    get,
    get_box,
    import_datasets,
    one_turn,
    regions_of,
    shorten,
)


@dataclass(eq=False)
class COCOCaptions(Reader):
    """COCO 2017 captions: annotations/captions_train2017.json, images in train2017/. 591,753 samples, one a caption.

    Captions are stripped; blank ones are left out.

    Args:
        per_image: one sample an image, with a conversation for each of its captions (118,287 samples).
        prompt: what the user says; default: the caption task's prompt.
    """

    per_image: bool = False
    prompt: str = TASK_PROMPTS["caption"]

    NAME: ClassVar[str] = "coco_captions"
    MAY_FLIP: ClassVar[bool] = True
    SHOWN: ClassVar = ("prompt",)

    def features(self):
        return {"captions": [import_datasets().Value("string")]}

    def records(self, notes):
        names, captions, counts = {}, [], {"images": 0, "annotations": 0}
        for key, value in iterate_json(self.path):
            if key not in counts:
                continue
            where = f"{self.path}, {key}[{counts[key]}]"
            counts[key] += 1
            if key == "images":
                names[get(value, "id", int, where)] = get(value, "file_name", str, where)
            else:
                caption = " ".join(get(value, "caption", str, where).split())
                captions.append((get(value, "image_id", int, where), caption))
        _need_both(self, counts)
        groups: dict[int, list[str]] = {}
        for number, (image, caption) in enumerate(captions):
            if image not in names:
                raise ValueError(f"{self.path}, annotations[{number}]: there is no image with the id {image}.")
            if not caption:
                continue
            if self.per_image:
                groups.setdefault(image, []).append(caption)
            else:
                yield {"record": number, "images": [names[image]], "captions": [caption]}
        for number, (image, texts) in enumerate(groups.items()):
            yield {"record": number, "images": [names[image]], "captions": texts}

    def where(self, record):
        return f"{self.path}, {'image' if self.per_image else 'annotation'} {record}"

    def talk(self, row, images, where):
        return tuple(one_turn(self.prompt, caption) for caption in row["captions"]), ()


@dataclass(eq=False)
class COCOInstances(Reader):
    """COCO 2017 instances: annotations/instances_train2017.json, images in train2017/. One sample an image with boxes.

    Conversations: every object's box and category; each category by phrase; two or three phrases at once, one of them
    absent more often than not; and phrases that are absent, whose answer is empty. Boxes are clamped to the image,
    those outside of it are dropped. Crowds (iscrowd 1: one box about many) are no objects; their category is asked for
    neither as present nor as absent.

    Args:
        dense, detection: whether there are conversations of either kind.
        absent: how many absent categories are asked for alone.
    """

    dense: bool = True
    detection: bool = True
    absent: int = 1

    NAME: ClassVar[str] = "coco_instances"
    MAY_FLIP: ClassVar[bool] = True
    SHOWN: ClassVar = ("dense", "detection", "absent")

    def __post_init__(self):
        super().__post_init__()
        if not (self.dense or self.detection):
            raise ValueError(f"{self._who()}: dense and detection are both off, so nothing is left.")

    def features(self):
        return {**box_features(), "crowds": [import_datasets().Value("string")]}

    def phrase(self, category: str) -> str:
        """A category's name as a caption."""
        return " ".join(category.split())

    def records(self, notes):
        images, categories, found = {}, {}, _Boxes()
        counts = {"images": 0, "annotations": 0, "categories": 0}
        for key, value in iterate_json(self.path):
            if key not in counts:
                continue
            where = f"{self.path}, {key}[{counts[key]}]"
            counts[key] += 1
            identity = get(value, "image_id" if key == "annotations" else "id", int, where)
            if key == "annotations":
                box = get_box(get(value, "bbox", list, where), where, size=True)
                found.add(identity, get(value, "category_id", int, where), box, bool(value.get("iscrowd", 0)))
            elif key == "images":
                size = [get(value, name, int, where) for name in ("width", "height")]
                images[identity] = (get(value, "file_name", str, where), *size)
            else:
                categories[identity] = self.phrase(get(value, "name", str, where))
        _need_both(self, counts)
        notes["categories"] = sorted(set(categories.values()))
        for number, (image, rows) in enumerate(found.by_image(images, categories, self.path)):
            name, width, height = images[image]
            boxes = [(clamp_box(box, width, height), category) for box, category, crowd in rows if not crowd]
            boxes = [(box, categories[category]) for box, category in boxes if box is not None]
            if boxes:
                yield {
                    "record": number,
                    "images": [name],
                    "width": width,
                    "height": height,
                    "boxes": [v for box, _ in boxes for v in box],
                    "captions": [caption for _, caption in boxes],
                    "crowds": sorted({categories[category] for _, category, crowd in rows if crowd}),
                }

    def where(self, record):
        return f"{self.path}, image {record}"

    def talk(self, row, images, where):
        check_size(images[0], row["width"], row["height"], where)
        objects = regions_of(row["boxes"], row["captions"])
        conversations = []
        if self.dense:
            conversations.append(one_turn(TASK_PROMPTS["dense_caption"], objects))
        if self.detection:
            conversations += self._detections(objects, row)
        return tuple(conversations), objects

    def _detections(self, objects, row):
        present = sorted({region.caption for region in objects} - set(row["crowds"]))
        absent = sorted(set(self.notes["categories"]) - set(present) - set(row["crowds"]))
        draw = random.Random(f"{row['images'][0]} {row['record']}")  # the same in every process and epoch
        asked = [[name] for name in present]
        strangers = draw.sample(absent, min(self.absent + 1, len(absent)))
        asked += [[name] for name in strangers[: self.absent]]
        several = draw.sample(present, min(2, len(present))) + (strangers[-1:] if draw.random() < 0.6 else [])
        if len(several) > 1:
            draw.shuffle(several)
            asked.append(several)
        asked = asked or [strangers or row["captions"][:1]]
        return [self._asked(objects, phrases) for phrases in asked]

    def _asked(self, objects, phrases):
        prompt = TASK_PROMPTS["detect"].format(phrases=", ".join(phrases))
        return one_turn(prompt, tuple(region for region in objects if region.caption in phrases))


@dataclass(eq=False)
class Objects365(COCOInstances):
    """Objects365 v2: zhiyuan_objv2_train.json, boxes of 365 categories on 1.7M images.

    file_name is "images/v1/patch8/objects365_v1_00420917.jpg"; the image is looked up under `images` by that, by
    "patch8/...", and by its own name. Categories are lower-cased, "Cabinet/shelf" is "cabinet or shelf". A few images
    of the training list were never published (patch6 and patch16): missing="skip".
    """

    NAME: ClassVar[str] = "objects365"

    def phrase(self, category):
        return " or ".join(" ".join(part.split()) for part in category.lower().split("/") if part.strip())

    def image_names(self, name):
        parts = name.split("/")
        return (name, "/".join(parts[-2:]), parts[-1])


class _Boxes:
    """Boxes in the order of the file, and then by image."""

    def __init__(self):
        self.images, self.categories = array("q"), array("q")
        self.boxes, self.crowds = array("f"), array("b")

    def add(self, image: int, category: int, box, crowd: bool) -> None:
        self.images.append(image)
        self.categories.append(category)
        self.boxes.extend(box)
        self.crowds.append(crowd)

    def by_image(self, images: dict, categories: dict, path):
        """Yields (image id, [(box, category id, crowd), ...]) in the order of `images`, where there are boxes."""
        of = np.frombuffer(self.images, np.int64)
        kinds = np.frombuffer(self.categories, np.int64)
        for name, column, known in (("image", of, images), ("category", kinds, categories)):
            values, first = np.unique(column, return_index=True)
            for value, place in zip(values.tolist(), first.tolist()):
                if value not in known:
                    raise ValueError(f"{path}, annotations[{place}]: there is no {name} with the id {shorten(value)}.")
        order = np.argsort(of, kind="stable")
        ranked = of[order]
        boxes = np.frombuffer(self.boxes, np.float32).reshape(-1, 4)
        for image in images:
            start, end = np.searchsorted(ranked, (image, image + 1)).tolist()
            if end > start:
                mine = order[start:end]
                crowds = [bool(self.crowds[place]) for place in mine.tolist()]
                yield image, list(zip(boxes[mine].tolist(), kinds[mine].tolist(), crowds))


def _need_both(reader: Reader, counts: dict[str, int]) -> None:
    missing = [key for key, count in counts.items() if not count]
    if missing:
        raise ValueError(f"{reader.path} has no {' and no '.join(missing)}: {reader._who()} reads {', '.join(counts)}.")
