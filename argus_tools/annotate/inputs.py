"""From what was typed to the list of all images: folders, globs, {000..099}, tars, Parquet, `datasets` folders, lists.

The order is that of the names, the ids are unique, and nothing is decoded yet. What is typed and is not there, or holds
no image at all, ends the command; what is found damaged within becomes an item of kind "error", and a row later.
"""

import contextlib
import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from ..cli_support import CommandError, one_line
from .command import NAMES_NOTHING
from .items import Item, has_image_suffix, kind_of_file, shown_name
from .shards import is_part
from .tables import NoImageColumn, image_column, is_dataset_folder, open_table
from .tars import tar_items

UNDERSTOOD = (
    "image files, folders, WebDataset tars, Parquet files with a column of images, folders of `datasets` "
    "(save_to_disk), text files with one of these or a URL a line, http(s) URLs, and globs and {000..099} of names"
)
SHARDS = (".tar", ".tgz", ".tar.gz", ".parquet")
DRAWINGS = (".svg", ".eps")  # text by their content, and pictures to whoever has them
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


def list_items(
    inputs: list[str], column: str | None = None, leave_out: str | None = None, passed_by: Counter | None = None
) -> list[Item]:
    """All images of these inputs, each once.

    Args:
        column: the column of tables that holds images; None finds it.
        leave_out: a folder that is not looked into, wherever it is: the one that is written.
        passed_by: gets the number of files, by suffix, in which no image was found though nobody said that there is
            none: not of text, empty and hidden files, nor of what `argus annotate` wrote.

    Raises:
        CommandError: an input that is not there, is of no kind that is understood, or holds no image.
    """
    listing = _Listing(column, None if leave_out is None else os.path.realpath(leave_out))
    found: dict[str, Item] = {}
    for typed in inputs:
        if not typed.strip() and not os.path.lexists(typed):
            raise CommandError(f"INPUT {typed!r} {NAMES_NOTHING}")
        listing.others.clear()
        items = [item for name in expand(typed) for item in listing.named(name, typed)]
        if not items:
            if os.path.realpath(typed) == listing.leave_out:
                raise CommandError(f"{typed}: it is the folder that is being written (--out)")
            others = ", ".join(
                f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(listing.others.items())
            )
            raise CommandError(f"{typed}: no image in it ({others or 'it is empty'}). Understood are {UNDERSTOOD}")
        for item in items:
            item = _unique(item, found)
            found.setdefault(item.id, item)
    if passed_by is not None:
        passed_by.update(listing.passed_by.values())
    return list(found.values())


def _unique(item: Item, found: dict[str, Item]) -> Item:
    """The item, as NAME#2 where another image has its id: names that are not UTF-8 can be written like others."""
    unique, number = item, 1
    while (other := found.get(unique.id)) and not _same_image(other, item):
        number += 1
        unique = replace(item, id=f"{item.id}#{number}")
    return unique


def _same_image(one: Item, other: Item) -> bool:
    return one.place == other.place and os.path.abspath(one.path) == os.path.abspath(other.path)


def expand(typed: str) -> list[str]:
    """The names that a typed one stands for: {000..099} and {a,b} first, then globs; itself where it exists.

    Raises:
        CommandError: a pattern that fits nothing.
    """
    if typed.startswith(("http://", "https://")) or os.path.lexists(typed):
        return [typed]
    names = _braces(typed)
    result = []
    for name in names:
        matches = (
            sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) and not os.path.lexists(name) else [name]
        )
        if not matches:
            raise CommandError(f"{name}: nothing has such a name")
        result += matches
    return result


def _braces(name: str) -> list[str]:
    if not (match := _BRACES.search(name)):
        return [name]
    first, last, choices = match.groups()
    if choices is not None:
        values = choices.split(",")
    else:
        if int(last) - int(first) >= 1_000_000:
            raise CommandError(f"{name}: more than a million names")
        width = len(first) if first.startswith("0") else 0
        values = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    return [each for value in values for each in _braces(name[: match.start()] + value + name[match.end() :])]


class _Listing:
    """The walk. `others` counts, by suffix, the files without an image of what was typed last; `passed_by` are those of
    all that may surprise, {path: suffix}."""

    def __init__(self, column: str | None, leave_out: str | None):
        self.column, self.leave_out = column, leave_out
        self.others: Counter = Counter()
        self.passed_by: dict[str, str] = {}

    def named(self, path: str, typed: str) -> Iterator[Item]:
        """What a name that was typed, or expanded from one, stands for. What a glob fits is taken as in a folder."""
        if path != typed and glob.has_magic(typed) and not os.path.isdir(path):
            yield from self.met(path, lists=True)
        elif path.startswith(("http://", "https://")):
            yield Item(path, path, "url", path)
        elif os.path.isdir(path):
            yield from self.folder(path)
        elif not os.path.exists(path):
            raise CommandError(
                f"{typed}: {path if path != typed else 'it'} does not exist. Understood are {UNDERSTOOD}"
            )
        elif not os.path.isfile(path):
            raise CommandError(f"{typed}: {path} is neither a file nor a folder")
        else:
            kind = kind_of_file(path)
            if kind == "text":
                yield from self.lines(path, _listed(path))
            elif kind == "other":
                raise CommandError(f"{typed}: {path} is none of {UNDERSTOOD}")
            else:
                items = self.file(path, kind)
                yield from items if path == typed else self.counted(items, path)

    def folder(self, top: str) -> Iterator[Item]:
        """Everything in a folder and below, in the order of names; hidden files and folders are passed by."""
        visited = {self.leave_out}
        failed = []

        def walk(folder):
            if (real := os.path.realpath(folder)) in visited:
                return
            visited.add(real)
            try:
                is_dataset = is_dataset_folder(folder)
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                failed.append(Item(shown_name(folder), shown_name(folder), "error", folder, error=_reason(error)))
                return
            if is_dataset:
                rows = self.table(folder, typed=folder == top)
                yield from rows if folder == top else self.counted(rows, folder)
                return
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from walk(entry.path)
                else:
                    yield from self.met(entry.path)

        yield from walk(top)
        yield from failed

    def met(self, path: str, lists: bool = False) -> Iterator[Item]:
        """What is no folder and was met, not typed: text and the like is passed by, but for `lists` of names."""
        # Its row will say if it is no image, or not there; so will that of a link to a shard that is gone.
        if has_image_suffix(path) or (path.lower().endswith(SHARDS) and not os.path.exists(path)):
            yield Item(shown_name(path), shown_name(path), "file", path)
            return
        if not os.path.isfile(path):
            return
        if is_part(os.path.basename(path)):  # what an earlier `argus annotate` wrote below its own input
            self.others["annotations"] += 1
            return
        try:
            kind = kind_of_file(path)
            empty = os.path.getsize(path) == 0
        except OSError:
            kind, empty = "other", False
        names = []
        if kind == "text" and lists:
            with contextlib.suppress(CommandError, OSError):
                names = _listed(path)
        if names:
            yield from self.lines(path, names)
        elif kind in ("text", "other"):
            told = path.lower().endswith(DRAWINGS) if kind == "text" else not empty
            self.pass_by(path, told)
        else:
            yield from self.counted(self.file(path, kind, typed=False), path)

    def counted(self, items: Iterator[Item], path: str) -> Iterator[Item]:
        """These items of what lies at `path`, which is counted where there are none."""
        some = False
        for item in items:
            some = True
            yield item
        if not some:
            self.pass_by(path)

    def pass_by(self, path: str, told: bool = True) -> None:
        suffix = os.path.splitext(path)[1].lower()
        self.others[suffix] += 1
        if told:
            self.passed_by[os.path.abspath(path)] = suffix

    def file(self, path: str, kind: str, typed: bool = True) -> Iterator[Item]:
        name = shown_name(path)
        if kind == "image":
            yield Item(name, name, "file", path)
        elif kind == "tar":
            yield from tar_items(path, name)
        else:
            yield from self.table(path, typed)

    def table(self, path: str, typed: bool) -> Iterator[Item]:
        """One item a row. A table that was not typed but met is passed by where no column could hold images."""
        name = shown_name(path)
        try:
            table = open_table(path)
            columns = {split: image_column(table, split, self.column) for split, rows in table.splits.items() if rows}
        except NoImageColumn as error:
            if typed:
                raise
            if error.possible:
                yield Item(name, name, "error", path, error=one_line(error))
            return
        except (ValueError, OSError, KeyError) as error:  # damaged pages are either, as pyarrow tells of them
            yield Item(name, name, "error", path, error=one_line(error))
            return
        for split in columns:
            prefix = f"{name}/{split}" if split else name
            for row in range(table.splits[split]):
                yield Item(f"{prefix}/{row}", prefix, "row", path, place=(split, row, columns[split]))

    def lines(self, path: str, names: list[str]) -> Iterator[Item]:
        """What a text file lists. A line that stands for nothing is a row with an error."""
        for name in names:
            try:
                yield from self.line(name, path)
            except (OSError, NoImageColumn) as error:
                reason = _reason(error) if isinstance(error, OSError) else one_line(error)
                yield Item(shown_name(name), shown_name(name), "error", name, error=reason)

    def line(self, name: str, path: str) -> Iterator[Item]:
        """What a line of the text file `path` stands for. Raises OSError or NoImageColumn before the first item."""
        shown = shown_name(name)
        if name.startswith(("http://", "https://")) or os.path.isdir(name):
            yield from self.named(name, name)
        elif not os.path.exists(name):
            yield Item(shown, shown, "error", name, error=f"{path} names it, but it is not there")
        elif not os.path.isfile(name):
            yield Item(shown, shown, "error", name, error="it is neither a file nor a folder")
        elif has_image_suffix(name) or (kind := kind_of_file(name)) in ("text", "other"):
            yield Item(shown, shown, "file", name)  # its row will say what it is
        else:
            yield from self.counted(self.file(name, kind), name)


def _listed(path: str) -> list[str]:
    """The names in a text file, one a line, relative to its own folder. CommandError where none of them is there."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            names = [line.strip() for line in file if line.strip()]
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is none of {UNDERSTOOD}") from error
    remote, folder = ("http://", "https://"), os.path.dirname(path)
    names = [line if line.startswith(remote) else os.path.join(folder, line) for line in names]
    if names and not any(name.startswith(remote) or os.path.lexists(name) for name in names):
        raise CommandError(f"{path}: none of its {len(names)} lines names anything that is there, as {names[0]}")
    return names


def _reason(error: OSError) -> str:
    return f"it cannot be read: {error.strerror or error}"
