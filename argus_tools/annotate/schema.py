"""The rows that `argus annotate` writes: one for each image, the same columns in JSONL and in Parquet.

    id           str         names the image, once in all files: its path as typed; in a tar the member, in a table the
                             row behind it
    source       str         the file that holds it; the image itself where it is a file
    key          str?        WebDataset's key of the sample; a table's id, key, __key__ or image_id
    width        int?        pixels of the original, upright
    height       int?
    num_tiles    int?        tiles that the model saw, thumbnail included
    ...                      what the task says, below
    metadata     str?        JSON: a tar's sidecars by suffix, a table's other columns
    error        str?        why there is no answer; null in all other rows

    caption        caption    str
    ask            questions  list[str]; answers list[str], one for each
    detect         boxes      list[list[float]], x1 y1 x2 y2 in pixels of the original; labels list[str]; scores
                              list[float], 0 to 1; unparsed list[str], what the model wrote that is no region
    dense-caption  as detect, with captions in place of labels

A question mark is "or null". Rows with an error have null in every column of the task.
"""

import itertools
import math
from collections.abc import Iterable

TASKS = ("caption", "ask", "detect", "dense-caption")
TEXT_COLUMNS = {"detect": "labels", "dense-caption": "captions"}
_TASK_COLUMNS = {
    "caption": {"caption": "str"},
    "ask": {"questions": "texts", "answers": "texts"},
    "detect": {"boxes": "boxes", "labels": "texts", "scores": "numbers", "unparsed": "texts"},
    "dense-caption": {"boxes": "boxes", "captions": "texts", "scores": "numbers", "unparsed": "texts"},
}


def columns(task: str) -> dict[str, str]:
    """{name: kind} of a task's rows, in order."""
    before = {"id": "str", "source": "str", "key": "str", "width": "int", "height": "int", "num_tiles": "int"}
    return {**before, **_TASK_COLUMNS[task], "metadata": "str", "error": "str"}


def arrow_schema(task: str, about: dict[str, str]):
    """The pyarrow schema of a task's rows; `about` becomes its metadata."""
    import pyarrow as pa

    kinds = {
        "str": pa.string(),
        "int": pa.int32(),
        "texts": pa.list_(pa.string()),
        "numbers": pa.list_(pa.float32()),
        "boxes": pa.list_(pa.list_(pa.float32())),
    }
    fields = [
        pa.field(name, kinds[kind], nullable=name not in ("id", "source")) for name, kind in columns(task).items()
    ]
    return pa.schema(fields, metadata=about)


def check_row(row, task: str, names: Iterable[str] | None = None) -> None:
    """That these columns of a row (all by default) are there and of their kinds; a row may have others. Raises
    ValueError."""
    if not isinstance(row, dict):
        raise ValueError(f"a row is a {type(row).__name__}")
    kinds = columns(task)
    for name in kinds if names is None else names:
        if name not in row:
            raise ValueError(f"a row has no {name}")
        value = row[name]
        needed = name in ("id", "source") or (name in _TASK_COLUMNS[task] and row.get("error") is None)
        if not (_is_of_kind(value, kinds[name]) or (value is None and not needed)):
            raise ValueError(f"a row's {name} is {value!r:.60}")


def _is_of_kind(value, kind: str) -> bool:
    """Quick: it is asked of every row when a run goes on."""
    try:
        if kind == "str":
            return isinstance(value, str)
        if kind == "int":
            return type(value) in (int, float) and value == int(value)
        if not isinstance(value, list):
            return False
        if kind == "texts":
            return all(isinstance(each, str) for each in value)
        if kind == "boxes" and any(len(box) != 4 for box in value):
            return False
        return all(map(math.isfinite, itertools.chain.from_iterable(value) if kind == "boxes" else value))
    except (TypeError, ValueError, OverflowError):  # no number, or one that no float can hold
        return False


def row(prepared, task: str, answer: dict | None) -> dict:
    """One row: an image (preparing.Prepared) and what the model said of it, None where there is an error."""
    height, width = prepared.size or (None, None)
    values = {
        "id": prepared.id,
        "source": prepared.source,
        "key": prepared.key,
        "width": width,
        "height": height,
        "num_tiles": prepared.num_tiles or None,
        "metadata": prepared.metadata,
        "error": prepared.error,
        **(answer or {}),
    }
    return {name: _clean(values.get(name)) for name in columns(task)}


def _clean(value):
    """Text that UTF-8 can hold: names of files and JSON may have halves of surrogate pairs."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def plain_regions(regions: dict, text_column: str) -> dict:
    """What the task calls give, as plain values; hundredths of a pixel are far below what a bin resolves."""
    return {
        "boxes": [[round(value, 2) for value in box] for box in regions["boxes"].tolist()],
        text_column: list(regions[text_column]),
        "scores": [round(score, 4) if math.isfinite(score) else 0.0 for score in regions["scores"].tolist()],
        "unparsed": list(regions["unparsed"]),
    }
