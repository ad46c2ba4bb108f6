"""Parquet files and folders of `datasets` as tables of images: which column holds them, and the rows one by one.

A cell is the encoded bytes, a struct of bytes and path (the `datasets` Image feature), or a path, relative to the
table's own folder. The other columns, without binary ones, are kept as metadata.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ..cli_support import CommandError, one_line
from .items import has_image_suffix, looks_like_image

KEY_COLUMNS = ("id", "key", "__key__", "image_id")
ROWS_AT_ONCE = 16  # of encoded images, in memory


class NoImageColumn(CommandError):
    """A table without a column of images, or with several."""


@dataclass
class Cell:
    """One row: `image` is bytes or a path, None with an `error`; `key` and `metadata` (JSON) are its other columns."""

    image: bytes | str | None
    key: str | None = None
    metadata: str | None = None
    error: str | None = None


def import_pyarrow():
    """pyarrow with its Parquet module. Raises CommandError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise CommandError("Parquet and `datasets` folders need pyarrow: pip install pyarrow") from error
    return pyarrow


def is_dataset_folder(path: str) -> bool:
    """Whether `save_to_disk` of the library `datasets` made this folder."""
    there = [name for name in os.listdir(path) if name in ("dataset_dict.json", "state.json", "dataset_info.json")]
    return "dataset_dict.json" in there or len(there) == 2


class Parquet:
    """A Parquet file. `splits` has one, without a name."""

    def __init__(self, path: str):
        self.path, self.folder = path, os.path.dirname(path)
        self.file = import_pyarrow().parquet.ParquetFile(path)
        self.splits = {"": self.file.metadata.num_rows}

    def schema(self, split: str):
        return self.file.schema_arrow

    def tables(self, split: str, start: int, columns: list[str]) -> Iterator:
        """pyarrow Tables of a few rows each, from row `start` on."""
        import pyarrow

        groups, first = range(self.file.metadata.num_row_groups), 0
        while groups and first + self.file.metadata.row_group(groups[0]).num_rows <= start:
            first += self.file.metadata.row_group(groups[0]).num_rows
            groups = groups[1:]
        if not groups:
            return
        for batch in self.file.iter_batches(ROWS_AT_ONCE, row_groups=list(groups), columns=columns):
            table, skip = pyarrow.Table.from_batches([batch]), max(start - first, 0)
            first += len(table)
            if skip < len(table):
                yield table.slice(skip)


class SavedDataset:
    """A folder of `save_to_disk`, with one split without a name or several with names."""

    def __init__(self, path: str):
        try:
            import datasets
        except ImportError as error:
            raise CommandError(f"{path} needs the library datasets: pip install datasets") from error
        loaded = datasets.load_from_disk(path)
        self.path, self.folder = path, path
        self._parts = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
        self.splits = {name: len(part) for name, part in self._parts.items()}

    def schema(self, split: str):
        return self._parts[split].features.arrow_schema

    def tables(self, split: str, start: int, columns: list[str]) -> Iterator:
        part = self._parts[split].select_columns(columns).with_format("arrow")
        for first in range(start, len(part), ROWS_AT_ONCE):
            yield part[first : first + ROWS_AT_ONCE]


def open_table(path: str) -> Parquet | SavedDataset:
    """Raises CommandError where a library is missing, ValueError or OSError where the table is damaged."""
    import_pyarrow()
    try:
        return SavedDataset(path) if os.path.isdir(path) else Parquet(path)
    except CommandError:
        raise
    except Exception as error:  # pyarrow's, datasets' and JSON's errors are many kinds
        raise ValueError(f"the table cannot be read: {one_line(error)}") from error


def image_column(table, split: str, wanted: str | None) -> str:
    """The name of the column that holds images.

    Raises:
        NoImageColumn: none or several do, or the one that is wanted is not there.
    """
    schema = table.schema(split)
    known = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if wanted is not None:
        if wanted not in schema.names:
            raise NoImageColumn(f"{table.path} has no column {wanted!r}; it has {known}")
        return wanted
    declared = _declared(schema)
    if len(declared) == 1:
        return declared[0]
    candidates = [field.name for field in schema if _may_hold_images(field.type)]
    first = next((t.slice(0, 1).to_pylist()[0] for t in table.tables(split, 0, candidates)), {}) if candidates else {}
    found = declared or [name for name in candidates if _is_image(first.get(name))]
    if len(found) != 1:
        reason = f"several columns hold images ({', '.join(found)})" if found else f"no column of {known} holds images"
        raise NoImageColumn(f"{table.path}: {reason}; name one with --image-column")
    return found[0]


def cells(table, split: str, column: str, rows: list[int]) -> Iterator[tuple[int, Cell]]:
    """(row, Cell) of rows in ascending order, read forward once."""
    schema = table.schema(split)
    columns = [column] + [f.name for f in schema if f.name != column and not _has_binary(f.type)]
    wanted = iter(rows)
    row, first = next(wanted, None), rows[0] if rows else 0
    for part in table.tables(split, first, columns) if rows else ():
        while row is not None and row < first + len(part):
            yield row, _cell(part.slice(row - first, 1).to_pylist()[0], column, table.folder)
            row = next(wanted, None)
        if row is None:
            return
        first += len(part)


def _cell(values: dict, column: str, folder: str) -> Cell:
    image = values.pop(column)
    key = next((str(values[name]) for name in KEY_COLUMNS if isinstance(values.get(name), (str, int))), None)
    metadata = json.dumps(values, ensure_ascii=False, default=str) if values else None
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if not image:
        return Cell(None, key, metadata, "the row holds no image")
    if isinstance(image, str):
        if image.startswith(("http://", "https://", "data:")):
            return Cell(None, key, metadata, "the row holds a URL, and what tables name is not fetched")
        return Cell(os.path.join(folder, image), key, metadata)
    if not isinstance(image, bytes):
        return Cell(None, key, metadata, f"the row holds a {type(image).__name__}, not an image")
    return Cell(image, key, metadata)


def _declared(schema) -> list[str]:
    """The columns that `datasets` declared as images, in the schema's own metadata."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info.get("info", {}).get("features", {}).items()
        return [name for name, value in features if isinstance(value, dict) and value.get("_type") == "Image"]
    except (ValueError, AttributeError):
        return []


def _may_hold_images(kind) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        names = {kind.field(i).name for i in range(kind.num_fields)}
        return "bytes" in names and names <= {"bytes", "path"}
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_string(kind) or types.is_large_string(kind)


def _is_image(value) -> bool:
    """Whether the first row's value is one: bytes that look like it, or a path that is called like it."""
    if isinstance(value, dict):
        return _is_image(value.get("bytes")) or _is_image(value.get("path"))
    return looks_like_image(value) if isinstance(value, bytes) else isinstance(value, str) and has_image_suffix(value)


def _has_binary(kind) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(_has_binary(kind.field(i).type) for i in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _has_binary(kind.value_type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
