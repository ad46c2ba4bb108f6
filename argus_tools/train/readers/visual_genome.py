"""Visual Genome's region descriptions (Krishna et al., 2017): boxes with a phrase each, 50 an image on average.

region_descriptions.json is an array of {"id": image, "regions": [{"region_id", "image_id", "phrase", "x", "y", "width",
"height"}]} (release 1.0 to 1.4), image_data.json beside it has every image's size and url. Read one image at a time:
memory is what image_data.json takes, 108,077 rows, about 50 MB.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Optional

from modeling_argus.tasks_argus import TASK_PROMPTS

from .json_stream import iterate_json
from .reading import (
    PathLike,
    Reader,
    box_features,
    check_size,
    clamp_box,
    get,
    get_box,
    one_turn,
    regions_of,
)


@dataclass(eq=False)
class VisualGenome(Reader):
    """One sample an image: its dense caption. `path` is region_descriptions.json or the folder that it is in.

    Images are looked up under `images` by the last two parts of their url (VG_100K_2/1.jpg) and by their own name.
    Phrases are stripped; regions without one, and boxes that lie outside of the image altogether, are left out; other
    boxes are clamped to it.

    Args:
        image_data: the file with the sizes; default: image_data.json beside `path`.
        splits: densecap's densecap_splits.json, {"train": [image ids], "val": ..., "test": ...}, so that what dense
            captioning is evaluated on is not trained on. None: all images.
        split: which of them.
    """

    image_data: Optional[PathLike] = None
    splits: Optional[PathLike] = None
    split: str = "train"

    NAME: ClassVar[str] = "visual_genome"
    MAY_FLIP: ClassVar[bool] = True
    PATHS: ClassVar = (*Reader.PATHS, "image_data", "splits")

    def __post_init__(self):
        self._check_options()
        self.path = Path(self.path)
        if self.path.is_dir():
            self.path = self.path / "region_descriptions.json"
        self.image_data = Path(self.image_data or self.path.parent / "image_data.json")
        for path in (self.path, self.image_data, self.splits):
            if path is not None and not Path(path).is_file():
                raise FileNotFoundError(f"{self._who()}: there is no {path}.")
        super().__post_init__()

    def features(self):
        return box_features()

    def sources(self):
        return [self.path, self.image_data, *([self.splits] if self.splits else [])]

    def records(self, notes):
        images, wanted = self._image_data(), self._wanted()
        for number, (_, record) in enumerate(iterate_json(self.path)):
            where = self.where(number)
            image = get(record, "id" if "id" in record or "image_id" not in record else "image_id", int, where)
            if wanted is not None and image not in wanted:
                continue
            if image not in images:
                raise ValueError(f"{where}: {self.image_data} has no image with the id {image}.")
            name, width, height = images[image]
            boxes, captions = [], []
            for place, region in enumerate(get(record, "regions", list, where)):
                here = f"{where}, region {place}"
                phrase = " ".join(get(region, "phrase", str, here).split())
                sides = [get(region, key, (int, float), here) for key in ("x", "y", "width", "height")]
                box = clamp_box(get_box(sides, here, size=True), width, height)
                if phrase and box is not None:
                    boxes += box
                    captions.append(phrase)
            if captions:
                row = {"width": width, "height": height, "boxes": boxes, "captions": captions}
                yield {"record": number, "images": [name], **row}

    def _image_data(self) -> dict[int, tuple[str, int, int]]:
        images = {}
        for number, (_, record) in enumerate(iterate_json(self.image_data)):
            where = f"{self.image_data}, record {number}"
            identity = get(record, "id" if "image_id" not in record else "image_id", int, where)
            name = "/".join(get(record, "url", str, where).split("/")[-2:])
            images[identity] = (name, get(record, "width", int, where), get(record, "height", int, where))
        return images

    def _wanted(self) -> set[int] | None:
        if self.splits is None:
            return None
        wanted, known = set(), set()
        for key, image in iterate_json(self.splits):
            known.add(key)
            if key == self.split:
                wanted.add(image)
        if not wanted:
            raise ValueError(f"{self.splits} has no split {self.split!r}; it has {', '.join(map(str, sorted(known)))}.")
        return wanted

    def image_names(self, name):
        return (name, name.rsplit("/", 1)[-1])

    def talk(self, row, images, where):
        check_size(images[0], row["width"], row["height"], where)
        regions = regions_of(row["boxes"], row["captions"])
        return (one_turn(TASK_PROMPTS["dense_caption"], regions),), regions
