"""The output folder: finished files of rows, and a journal of those that no file holds yet.

Every batch is on the disk, in the journal, before the next begins; what a killed process left half-written is the
journal's last line, which is cut off. When a file is full it is written whole under a temporary name and moved, and the
journal goes after that: rows that are in both were being moved, and count once.
"""

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..cli_support import CommandError, one_line
from .schema import arrow_schema, check_row
from .tables import import_pyarrow

FORMATS = ("jsonl", "parquet")
_PART = re.compile(r"annotations-\d{5,}-of-\d{5,}-(\d{6,})\.(jsonl|parquet)")
_OTHERS = re.compile(r"(journal|summary)-\d{5,}-of-\d{5,}\.jsonl?|manifest\.json")
_TEMPORARY = re.compile(r"\.(annotations-.+|journal-.+|summary-.+|manifest)\.\d+\.(jsonl?|parquet)")  # write_whole's


class ShardWriter:
    """The files of one shard. One process at a time: whoever opens it holds the shard's lock.

    Args:
        folder: the output folder.
        task, file_format: say what rows are, and "jsonl" or "parquet".
        shard, num_shards: number and count.
        rows_per_file: rows of a finished file.
        about: what Parquet files say of themselves, {name: text}.

    Attributes:
        done: the ids of all rows of the shard.
        failed: those of them whose row has an error.

    Raises:
        CommandError: a file in the folder is damaged, or cannot be written.
    """

    def __init__(
        self, folder: Path, task: str, file_format: str, shard: int, num_shards: int, rows_per_file: int, about
    ):
        self.folder, self.task, self.file_format, self.about = folder, task, file_format, about
        self.rows_per_file, self.name = rows_per_file, f"{shard:05d}-of-{num_shards:05d}"
        self.journal = folder / f"journal-{self.name}.jsonl"
        self.done: set[str] = set()
        self.failed: set[str] = set()
        self._next = 0
        for path in self.parts():
            self._count(ids_and_errors(path, self.task))
            self._next = max(self._next, int(_PART.fullmatch(path.name).group(1)) + 1)
        self._rows = self._read_journal()
        self._count(self._rows)
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name) and f"-{self.name}-" in path.name.replace(".", "-"):
                path.unlink(missing_ok=True)  # it was being written when the process was killed

    def parts(self) -> list[Path]:
        """The finished files of the shard."""
        return [path for path in part_files(self.folder) if path.name.startswith(f"annotations-{self.name}-")]

    def forget_failed(self) -> None:
        """Removes the rows with an error; each file is replaced whole. Their images have no row then."""
        self._keep([row for row in self._rows if row["error"] is None])
        for path in self.parts():
            rows = list(rows_of(path, self.task))
            kept = [row for row in rows if row["error"] is None]
            with self._writing(path):
                if not kept:
                    path.unlink()
                elif len(kept) < len(rows):
                    write_whole(path, functools.partial(self._write, rows=kept))
        self.done -= self.failed
        self.failed = set()

    def add(self, rows: list[dict]) -> None:
        """Keeps rows; they are on the disk when this returns. Rows that are there already are left out."""
        rows = [row for row in rows if row["id"] not in self.done]
        with self._writing(self.journal), open(self.journal, "ab") as file:
            file.write(_lines(rows))
            file.flush()
            os.fsync(file.fileno())
        self._rows += rows
        self._count(rows)
        while len(self._rows) >= self.rows_per_file:
            self._move()

    def finish(self) -> None:
        """Moves all that the journal holds to finished files."""
        while self._rows:
            self._move()
        self.journal.unlink(missing_ok=True)

    def _move(self) -> None:
        """The first rows of the journal become a finished file; then the journal is what is left."""
        rows, rest = self._rows[: self.rows_per_file], self._rows[self.rows_per_file :]
        path = self.folder / f"annotations-{self.name}-{self._next:06d}.{self.file_format}"
        with self._writing(path):
            write_whole(path, lambda temporary: self._write(temporary, rows))
        # At once: what is interrupted in between (Ctrl-C) would write these rows into the next file too.
        self._rows, self._next = rest, self._next + 1
        self._keep(rest)

    def _keep(self, rows: list[dict]) -> None:
        """The journal is these rows."""
        self._rows = rows
        with self._writing(self.journal):
            write_whole(self.journal, lambda temporary: temporary.write_bytes(_lines(rows)))

    def _count(self, rows: list[dict]) -> None:
        self.done.update(row["id"] for row in rows)
        self.failed.update(row["id"] for row in rows if row["error"] is not None)

    def _write(self, path: Path, rows: list[dict]) -> None:
        if self.file_format == "parquet":
            pyarrow = import_pyarrow()
            table = pyarrow.Table.from_pylist(rows, schema=arrow_schema(self.task, self.about))
            pyarrow.parquet.write_table(table, path, compression="zstd")
        else:
            path.write_bytes(_lines(rows))

    def _read_journal(self) -> list[dict]:
        """Rows that are in no finished file; cuts off a half-written line."""
        if not self.journal.exists():
            return []
        raw = self.journal.read_bytes()
        whole = raw.rfind(b"\n") + 1
        with _reading(self.journal):
            rows = [json.loads(line) for line in raw[:whole].splitlines()]
            for row in rows:
                check_row(row, self.task)
        rows = [row for row in rows if row["id"] not in self.done]
        if whole < len(raw):
            os.truncate(self.journal, whole)
        return list({row["id"]: row for row in rows}.values())

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CommandError(f"{path} cannot be written: {error.strerror or error}") from error


def _lines(rows: list[dict]) -> bytes:
    """JSONL."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode("utf-8")


def is_part(name: str) -> bool:
    """Whether a finished file is called so."""
    return _PART.fullmatch(name) is not None


def part_files(folder: Path) -> list[Path]:
    """The finished files of all shards, by name."""
    return sorted(path for path in folder.iterdir() if is_part(path.name))


def own_files(folder: Path) -> list[Path]:
    """All that `argus annotate` writes into a folder, but for locks."""
    kinds = (_PART, _OTHERS, _TEMPORARY)
    return sorted(path for path in folder.iterdir() if any(kind.fullmatch(path.name) for kind in kinds))


def ids_and_errors(path: Path, task: str) -> list[dict]:
    """{"id", "error"} of all rows of a finished file. Raises CommandError where it is damaged."""
    names = ["id", "error"]
    if path.suffix == ".jsonl":
        return [{name: row[name] for name in names} for row in rows_of(path, task)]
    with _reading(path):
        file, expected = import_pyarrow().parquet.ParquetFile(path), arrow_schema(task, {})
        # Of the other columns it is enough to know, without reading them, that they can be what they should be.
        file.schema_arrow.empty_table().select(expected.names).cast(expected)
        rows = file.read(columns=names).to_pylist()
        for row in rows:
            check_row(row, task, names)
        return rows


def rows_of(path: Path, task: str | None = None) -> Iterator[dict]:
    """The rows of a finished file. Raises CommandError where it is damaged, or where rows are not of the task."""
    with _reading(path):
        for row in _unchecked(path):
            if task is not None:
                check_row(row, task)
            yield row


def _unchecked(path: Path) -> Iterator:
    if path.suffix == ".parquet":
        for batch in import_pyarrow().parquet.ParquetFile(path).iter_batches(1024):
            yield from batch.to_pylist()
    else:
        with open(path, encoding="utf-8") as file:
            yield from map(json.loads, file)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except CommandError:
        raise
    except Exception as error:  # pyarrow's errors and JSON's are many kinds
        raise _damaged(path, error) from error


def write_whole(path: Path, write) -> None:
    """Calls `write(temporary)`, then moves the file to `path`, on the disk before and after. Raises OSError."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not every system lets a folder be opened
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _damaged(path: Path, error: Exception) -> CommandError:
    return CommandError(f"{path} is damaged ({one_line(error)}): remove it, and its images are annotated anew")
