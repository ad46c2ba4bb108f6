"""What all readers share: a source in its original format becomes one Arrow file, once, memory mapped from there.

The Arrow file lies in the cache of `datasets` under a name made of the source files' paths, sizes and times, the
reader's version and its options; a changed file is read anew. Everything that can be wrong with a record is found
while that file is written, so that a run does not die of it hours later; images alone are looked at when they are used.
"""

import hashlib
import json
import math
import operator
import os
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Optional

from ..samples import Region, Sample, Turn

PathLike = str | os.PathLike


@dataclass(eq=False)
class Reader:
    """A map-style data set: `len(reader)`, `reader[i]` -> Sample.

    Args:
        path: the annotation file (or folder, where a reader says so).
        images: the folder that the annotations' image names are relative to.
        cache_dir: where the Arrow file goes; default: where `datasets` keeps its own.
        missing: "error" when an image that is not there is asked for, or "skip": all are looked up when the reader is
            opened (one `stat` each), and records that lack one are left out.
        may_flip: whether pictures may be mirrored; default: the reader's own, False where questions are about writing.

    Raises:
        ValueError: a broken file or record, with file and number; an option that does not fit.
        OSError: a file or folder that is not there.
    """

    path: PathLike
    images: Optional[PathLike] = None
    cache_dir: Optional[PathLike] = None
    missing: str = "error"
    may_flip: Optional[bool] = None

    NAME: ClassVar[str] = "reader"
    VERSION: ClassVar[int] = 1
    MAY_FLIP: ClassVar[bool] = False
    TAKES_FOLDER: ClassVar[bool] = False
    PATHS: ClassVar[tuple[str, ...]] = ("path", "images", "cache_dir")
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"missing": ("error", "skip")}
    # Options that change what is shown of a record and not what is kept of it.
    SHOWN: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        self._check_options()
        self.may_flip = self.MAY_FLIP if self.may_flip is None else self.may_flip
        for name in self.PATHS:
            if getattr(self, name) is not None:
                setattr(self, name, Path(getattr(self, name)))
        if not self.path.exists():
            raise FileNotFoundError(f"{self._who()}: there is no {self.path}.")
        if self.path.is_dir() and not self.TAKES_FOLDER:
            raise IsADirectoryError(f"{self._who()}: {self.path} is a folder, where its annotation file was expected.")
        if self.images is not None and not self.images.is_dir():
            raise FileNotFoundError(f"{self._who()}: there is no folder of images {self.images}.")
        self.table, self.notes = _open_table(self)
        self.kept = self._with_images() if self.missing == "skip" else None

    # What a reader says of its format.

    def features(self) -> dict[str, Any]:
        """Columns and their types, for `datasets.Features`. "images" list[string] and "record" int64 are everyone's."""
        raise NotImplementedError

    def sources(self) -> list[Path]:
        """The files that are read."""
        return [self.path]

    def records(self, notes: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """The rows, read from the sources. `notes` takes what holds for all of them and can be written as JSON."""
        raise NotImplementedError

    def talk(self, row: dict[str, Any], images: tuple[Path, ...], where: str) -> tuple[tuple, tuple[Region, ...]]:
        """(conversations, objects) of a row; see Sample."""
        raise NotImplementedError

    def image_names(self, name: str) -> tuple[str, ...]:
        """Where an image may lie under `images`, in the order in which it is looked for."""
        return (name,)

    # What is the same for all.

    def __len__(self) -> int:
        return len(self.table) if self.kept is None else len(self.kept)

    def __getitem__(self, index: int) -> Sample:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self._who()}: sample {index} of {len(self)}.")
        row = self.table[index % len(self) if self.kept is None else int(self.kept[index])]
        where = self.where_of(row)
        images = tuple(self._found(name, where) for name in row["images"])
        conversations, objects = self.talk(row, images, where)
        return Sample(tuple(map(str, images)), conversations, objects, where)

    def where(self, record: int) -> str:
        """How errors and samples name a record, counted from 0."""
        return f"{self.path}, record {record}"

    def where_of(self, row: dict[str, Any]) -> str:
        """The same of a row."""
        return self.where(row["record"])

    def _found(self, name: str, where: str) -> Path:
        for path in self._places(name):
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"{where}: there is no image {self._places(name)[0]}. Is `images` the folder that the file's names are "
            'relative to? (missing="skip" leaves records without their image out.)'
        )

    def _places(self, name: str) -> list[Path]:
        folder = self.path.parent if self.images is None else self.images
        return [folder / each for each in self.image_names(name)]

    def _with_images(self):
        import numpy as np
        from tqdm import tqdm

        names = self.table.select_columns(["images"])
        rows = tqdm(names, desc=f"look for images of {self.NAME}", unit=" records", disable=None)
        there = (all(any(p.is_file() for p in self._places(name)) for name in row["images"]) for row in rows)
        kept = np.flatnonzero(np.fromiter(there, bool, len(names)))
        if not len(kept):
            raise FileNotFoundError(f"{self._who()}: none of the images of {self.path} is there: is `images` right?")
        return kept

    def _who(self) -> str:
        return f"reader {self.NAME}"

    def _check_options(self) -> None:
        hints = typing.get_type_hints(type(self))
        for each in fields(self):
            value, hint = getattr(self, each.name), hints[each.name]
            kinds = typing.get_args(hint) or (hint,)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
                raise ValueError(f"{self._who()}: {each.name} must be {names}, got {value!r}.")
            if each.name in self.CHOICES and value not in self.CHOICES[each.name]:
                raise ValueError(
                    f"{self._who()}: {each.name} is {value!r}; it can be {', '.join(self.CHOICES[each.name])}."
                )
            if isinstance(value, int) and value < 0:
                raise ValueError(f"{self._who()}: {each.name} must not be negative, got {value}.")

    def _key(self) -> str:
        """Names the Arrow file: what it is made of, and how."""
        unrelated = {"path", "images", "cache_dir", "missing", "may_flip", *self.SHOWN}
        options = {each.name: str(getattr(self, each.name)) for each in fields(self) if each.name not in unrelated}
        stats = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in self.sources()]
        text = json.dumps([self.NAME, self.VERSION, stats, options])
        return f"{self.NAME}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def _open_table(reader: Reader):
    """(the memory-mapped table, notes), written first where it is not in the cache. One process writes, others wait."""
    datasets = import_datasets()
    from filelock import FileLock

    folder = Path(reader.cache_dir or datasets.config.HF_DATASETS_CACHE) / "argus_readers"
    folder.mkdir(parents=True, exist_ok=True)
    table, notes = folder / f"{reader._key()}.arrow", folder / f"{reader._key()}.json"
    if not table.exists():
        with FileLock(f"{table}.lock"):
            if not table.exists():
                _write_table(reader, datasets, table, notes)
    return datasets.Dataset.from_file(str(table)), json.loads(notes.read_text(encoding="utf-8"))


def _write_table(reader: Reader, datasets, table: Path, notes: Path) -> None:
    from datasets.arrow_writer import ArrowWriter
    from tqdm import tqdm

    value = datasets.Value
    features = datasets.Features({"record": value("int64"), "images": [value("string")], **reader.features()})
    collected: dict[str, Any] = {}
    unfinished = [table.with_suffix(f".{os.getpid()}.tmp"), notes.with_suffix(f".{os.getpid()}.tmp2")]
    count = 0
    try:
        with ArrowWriter(features=features, path=str(unfinished[0])) as writer:
            rows = reader.records(collected)
            for row in tqdm(rows, desc=f"read {reader.path.name}", unit=" records", disable=None):
                writer.write(row)
                count += 1
            if not count:
                raise ValueError(f"{reader._who()}: {reader.path} holds no record that could be used.")
            writer.finalize()
        unfinished[1].write_text(json.dumps(collected), encoding="utf-8")
        os.replace(unfinished[1], notes)
        os.replace(unfinished[0], table)
    except UnicodeEncodeError:  # of many rows at once: which one it is, is looked up now
        for row in reader.records({}):
            _check_text(row, reader.where_of(row))
        raise
    finally:
        for path in unfinished:
            path.unlink(missing_ok=True)


def _check_text(row: dict[str, Any], where: str) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: its text holds half of a character, {error.object[error.start]!r}, which UTF-8 cannot keep: "
            "write both halves of the pair, or leave it out."
        ) from error


def import_datasets():
    """The library `datasets`. Raises ImportError, which says how to get it."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError("readers of training data need datasets: pip install datasets") from error
    return datasets


def get(record: Any, key: str, kinds: type | tuple[type, ...], where: str) -> Any:
    """`record[key]`. Raises ValueError where the record is no object, lacks the key or holds another type in it."""
    if not isinstance(record, dict):
        raise ValueError(f"{where} is a {type(record).__name__}, where an object with {key!r} was expected.")
    if key not in record:
        raise ValueError(f"{where} lacks {key!r}; it has {', '.join(map(repr, record)) or 'nothing'}.")
    value = record[key]
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{where}: {key!r} must be {wanted}, got {shorten(value)}.")
    return value


def shorten(value: Any) -> str:
    """A value as errors show it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def get_box(values: Any, where: str, size: bool) -> tuple[float, float, float, float]:
    """Four numbers -> x1, y1, x2, y2; with `size` they are x, y, width, height. ValueError for anything else."""
    numbers = isinstance(values, (list, tuple)) and len(values) == 4
    if not numbers or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{where}: a box must be four numbers, got {shorten(values)}.")
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"{where}: the box {shorten(values)} holds a value that is not finite.")
    x, y, a, b = values
    return (x, y, x + a, y + b) if size else (x, y, a, b)


def clamp_box(box, width: float, height: float) -> tuple[float, float, float, float] | None:
    """The part of a box that lies in the image; None where there is none."""
    x1, x2 = (min(max(v, 0.0), width) for v in box[::2])
    y1, y2 = (min(max(v, 0.0), height) for v in box[1::2])
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def check_size(path: Path, width: int, height: int, where: str) -> None:
    """Raises ValueError where an image is not as large as its boxes say, or cannot be read."""
    found = upright_size(path, where)
    if found != (width, height):
        raise ValueError(
            f"{where}: its boxes are of an image of {width}x{height} pixels, {path} has {found[0]}x{found[1]}: "
            "boxes are in pixels of the original image, which must not be resized."
        )


def upright_size(path: Path, where: str) -> tuple[int, int]:
    """(width, height) from an image's header, its EXIF orientation applied. ValueError for what is no image."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: the image {path} cannot be read: {error}") from error
    return (height, width) if turned else (width, height)


def box_features() -> dict[str, Any]:
    """Columns of an image's size, its boxes, flat, and a caption for each; see `regions_of`."""
    value = import_datasets().Value
    return {
        "width": value("int32"),
        "height": value("int32"),
        "boxes": [value("float32")],
        "captions": [value("string")],
    }


def regions_of(boxes: list[float], captions: list[str]) -> tuple[Region, ...]:
    """Flat x1, y1, x2, y2, x1, ... and as many captions as boxes -> regions."""
    return tuple(Region(tuple(boxes[4 * i : 4 * i + 4]), caption) for i, caption in enumerate(captions))


def one_turn(prompt: str, answer: str | tuple[Region, ...]) -> tuple[Turn, ...]:
    """A conversation of one turn."""
    return (Turn(prompt, answer),)


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, value) of each line of a JSON Lines file that is not blank. ValueError for one that is no JSON."""
    with open(path, encoding="utf-8-sig") as file:
        number = -1
        try:
            for number, line in enumerate(file):
                if line.strip():
                    yield number, json.loads(line)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 behind line {number + 1}: {error.reason}") from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number + 1}, is no JSON: {error}") from error
