"""Parquet files and folders of `datasets` as tables of images: which column holds them, and the rows one by one.

A cell is the encoded bytes, a struct of bytes and path (the `datasets` Image feature), a path, relative to the table's
own folder, or a list of one of these. The other columns, without binary ones, are kept as metadata.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ..cli_support import CommandError, one_line
from .items import as_json, has_image_suffix, looks_like_image

KEY_COLUMNS = ("id", "key", "__key__", "image_id")
ROWS_AT_ONCE = 16  # of encoded images, in memory
BATCHES_LOOKED_AT = 8  # of ROWS_AT_ONCE, for a value that tells whether a column holds images


class NoImageColumn(CommandError):
    """A table without a column of images, or with several. `possible`: whether there are columns that could be it."""

    def __init__(self, message: str, possible: bool):
        super().__init__(message)
        self.possible = possible


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
    candidates = [field.name for field in schema if _may_hold_images(field.type)]
    known = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if wanted is not None:
        if wanted not in schema.names:
            raise NoImageColumn(f"{table.path} has no column {wanted!r}; it has {known}", bool(candidates))
        return wanted
    kinds = _declared(schema)
    found = [name for name, kind in kinds.items() if kind == "Image"]
    if not found:
        first = _first_values(table, split, candidates)
        images = [name for name in candidates if _is_image(first.get(name))]
        found = [name for name in images if not _is_wrapped(schema.field(name).type)]
        found = found or [
            name for name in candidates if _is_bytes_and_path(schema.field(name).type) and name not in kinds
        ]
        if not any(_is_binary(schema.field(name).type) for name in candidates):
            found = found or images  # lists and dictionaries, where no column can hold images as such
    if len(found) != 1:
        reason = f"several columns hold images ({', '.join(found)})" if found else f"no column of {known} holds images"
        possible = bool(found) or any(
            _has_binary(field.type) or (_is_text(field.type) and field.name not in first) for field in schema
        )
        raise NoImageColumn(f"{table.path}: {reason}; name one with --image-column", possible)
    return found[0]


def _first_values(table, split: str, columns: list[str]) -> dict:
    """{column: its first value that is not empty}, as far as the first batches have one."""
    first = {}
    for part in itertools.islice(table.tables(split, 0, columns), BATCHES_LOOKED_AT) if columns else ():
        for name in set(columns) - set(first):
            if value := _first_value(part.column(name)):
                first[name] = value
        if len(first) == len(columns):
            break
    return first


def _first_value(column):
    for value in column:
        with contextlib.suppress(Exception):  # text that is no UTF-8
            if (value := _not_empty(value.as_py())) is not None:
                return value
    return None


def _not_empty(value):
    """The value, of lists the first within; None where there is none."""
    if isinstance(value, list):
        return next((inner for inner in map(_not_empty, value) if inner is not None), None)
    return value if (any(value.values()) if isinstance(value, dict) else value) else None


def cells(table, split: str, column: str, rows: list[int]) -> Iterator[tuple[int, Cell]]:
    """(row, Cell) of rows in ascending order, read forward once."""
    schema = table.schema(split)
    columns = [column] + [f.name for f in schema if f.name != column and not _has_binary(f.type)]
    wanted = iter(rows)
    row, first = next(wanted, None), rows[0] if rows else 0
    for part in table.tables(split, first, columns) if rows else ():
        while row is not None and row < first + len(part):
            yield row, _cell(part.slice(row - first, 1), column, table.folder)
            row = next(wanted, None)
        if row is None:
            return
        first += len(part)


def _cell(one, column: str, folder: str) -> Cell:
    """The cell of a table of one row. Metadata that Python cannot hold (text that is no UTF-8, a date beyond the
    calendar) is None; what is wrong with the image's own value is the cell's error."""
    try:
        values = {name: one.column(name)[0].as_py() for name in one.column_names if name != column}
        key = next((str(values[name]) for name in KEY_COLUMNS if isinstance(values.get(name), (str, int))), None)
        metadata = as_json(values) if values else None
    except Exception:  # pyarrow's errors are many kinds
        key = metadata = None
    try:
        image = one.column(column)[0].as_py()
    except Exception as error:
        return Cell(None, key, metadata, f"the row cannot be read: {one_line(error)}")
    while isinstance(image, list) and len(image) == 1:
        image = image[0]
    if isinstance(image, list) and image:
        return Cell(None, key, metadata, f"the row holds a list of {len(image)}: give each image a row of its own")
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


def _declared(schema) -> dict[str, str]:
    """{column: "Image", "Audio", ...} as `datasets` declared them, in the schema's own metadata."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info.get("info", {}).get("features", {}).items()
        return {name: str(value.get("_type")) for name, value in features if isinstance(value, dict)}
    except (ValueError, AttributeError):
        return {}


def _is_bytes_and_path(kind) -> bool:
    """The form of the `datasets` Image feature (and of few others, which are declared)."""
    from pyarrow import types

    return types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}


def _may_hold_images(kind) -> bool:
    from pyarrow import types

    while _is_wrapped(kind):
        kind = kind.value_type
    if types.is_struct(kind):
        names = {kind.field(i).name for i in range(kind.num_fields)}
        return "bytes" in names and names <= {"bytes", "path"}
    return _is_text(kind) or _is_binary(kind)


def _is_wrapped(kind) -> bool:
    """Whether values are in lists or in a dictionary."""
    from pyarrow import types

    return (
        types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or types.is_dictionary(kind)
    )


def _is_text(kind) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def _is_binary(kind) -> bool:
    return str(kind) in ("binary", "large_binary", "binary_view") or str(kind).startswith("fixed_size_binary")


def _is_image(value) -> bool:
    """Whether a column's first value is one: bytes that look like it, or a path that is called like it."""
    if isinstance(value, dict):
        return _is_image(value.get("bytes")) or _is_image(value.get("path"))
    return looks_like_image(value) if isinstance(value, bytes) else isinstance(value, str) and has_image_suffix(value)


def _has_binary(kind) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(_has_binary(kind.field(i).type) for i in range(kind.num_fields))
    if types.is_map(kind):
        return _has_binary(kind.key_type) or _has_binary(kind.item_type)
    return _has_binary(kind.value_type) if _is_wrapped(kind) else _is_binary(kind)
