"""Predictions on disk: one JSON line for each item behind a line that says whose they are; interrupted runs go on.

Lines are appended by a single write of the whole batch, the first line with the first batch, and flushed to the disk
before the next batch begins. What a killed process left half-written is the file's last line without its end: it is cut
off, and its item asked anew. A command that is refused before its first batch leaves no file.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from ..cli_support import CommandError
from .records import check

FORMAT = 1


class Predictions:
    """{id: prediction}, in memory (`path` None) or in a file that grows with it.

    Args:
        path: the file; it is made where there is none, and gone on with where there is one.
        header: {"task", "model", "options", "data"}: whose predictions these are.

    Raises:
        CommandError: the file is of another task, model, options or data, is no predictions file, or cannot be written.
    """

    def __init__(self, path: str | Path | None, header: dict):
        self.path = None if path is None else Path(path)
        self.header = json.loads(json.dumps({"argus_predictions": FORMAT, **header}))
        self.rows: dict = {}
        self._written = False  # whether the header stands in the file
        if self.path is None:
            return
        there = self.path.exists()
        if there and not _only_begun(self.path):
            found, self.rows, whole = read(self.path)
            _check_same(found, self.header, self.path)
            self._written = True
            if whole < self.path.stat().st_size:
                os.truncate(self.path, whole)
        try:
            open(self.path, "ab").close()  # said now, not after the first batch
            if not there:
                self.path.unlink()
            elif not self._written:
                os.truncate(self.path, 0)
        except OSError as error:
            raise CommandError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def __contains__(self, item) -> bool:
        return item in self.rows

    def add(self, rows: Iterable[tuple]) -> None:
        """Keeps (id, prediction) pairs; they are on the disk when this returns."""
        rows = [(item, json.loads(json.dumps(row))) for item, row in rows]  # the same, read or just made
        if self.path is not None:
            header = [] if self._written else [self.header]
            self._append([*header, *({"id": item, **row} for item, row in rows)])
            self._written = True
        self.rows.update(rows)

    def _append(self, objects: list[dict]) -> None:
        text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in objects)
        try:
            with open(self.path, "ab") as file:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CommandError(f"{self.path} cannot be written: {error.strerror or error}") from error


def _only_begun(path: Path) -> bool:
    """Whether a file is empty, or the beginning of a header's line: nothing in it is worth keeping."""
    try:
        with open(path, "rb") as file:
            line = file.readline()
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror or error}") from error
    begin = b'{"argus_predictions": '
    return not line.endswith(b"\n") and (begin.startswith(line) or line.startswith(begin))


def read(path: str | Path) -> tuple[dict, dict, int]:
    """(header, {id: prediction}, bytes up to the end of the last whole line) of a predictions file.

    Raises:
        CommandError: no such file, not a predictions file, or a damaged line that is not the last one.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror or error}") from error
    whole = raw.rfind(b"\n") + 1
    rows: dict = {}
    header = None
    for number, line in enumerate(raw[:whole].splitlines(), start=1):
        try:
            value = json.loads(line)
            if header is None:
                if value["argus_predictions"] != FORMAT:
                    raise CommandError(
                        f"{path} is a predictions file of format {value['argus_predictions']}, not {FORMAT}"
                    )
                check(path, value, {"task": "text", "model": {}, "options": {}, "data": {}}, "line 1")
                header = value
            else:
                rows[value.pop("id")] = value
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = "not a predictions file" if header is None else f"line {number} is not a prediction"
            raise CommandError(f"{path}: {what}; give another file, or remove this one") from error
    if header is None:
        raise CommandError(f"{path}: not a predictions file; give another file, or remove this one")
    return header, rows, whole


def complete(path: str | Path, task: str, data: dict, ids: list) -> tuple[dict, dict]:
    """(header, {id: prediction}) of a file that holds every item of `task` on `data`; no model is needed.

    Raises:
        CommandError: the file is of another task or of other data, or lacks items.
    """
    header, rows, _ = read(path)
    _check_same(header, json.loads(json.dumps({"task": task, "data": data})), Path(path), ("task", "data"))
    missing = [item for item in ids if item not in rows]
    if missing:
        lacking = f"{len(missing)} of {len(ids)} predictions (first: {missing[0]!r})"
        raise CommandError(f"{path} lacks {lacking}: finish it with --save {path}")
    return header, rows


def fingerprint(path: str | Path) -> str:
    """Twelve hex digits of every byte of a file, or of a model folder's configuration, processor and weights."""
    path, digest = Path(path), hashlib.sha256()
    names = ("*.json", "*.safetensors", "*.jinja", "*.txt")
    for file in sorted({f for name in names for f in path.glob(name)}) if path.is_dir() else [path]:
        size = file.stat().st_size
        digest.update(f"{file.name if path.is_dir() else ''}:{size}:".encode())
        with open(file, "rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]


_OTHER = {"task": "another task", "model": "another model", "options": "other options", "data": "other data"}


def _check_same(found: dict, wanted: dict, path: Path, keys=tuple(_OTHER)) -> None:
    for key in keys:
        there, here = found.get(key), wanted.get(key)
        if there == here:
            continue
        what = ""
        if isinstance(there, dict) and isinstance(here, dict):
            name = next(name for name in (*here, *there) if there.get(name) != here.get(name))
            what, there, here = f"{name} is ", there.get(name), here.get(name)
        raise CommandError(
            f"{path} holds predictions of {_OTHER[key]}: {what}{there!r} there and {here!r} here; give another file"
        )
