"""Items to tasks: reads what lies in order, rows of tables and members of compressed tars, one pass for all of them.

Files, URLs and members of plain tars are left to whoever decodes them.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..cli_support import one_line
from .items import Item
from .tables import cells, open_table
from .tars import packed_images


@dataclass(slots=True)
class Task:
    """An item and, where it had to be read here, its encoded bytes or its path, key, metadata, or why there is none."""

    item: Item
    image: bytes | str | None = None
    key: str | None = None
    metadata: str | None = None
    error: str | None = None


def tasks(items: Iterable[Item]) -> Iterator[Task]:
    """One task for each item, in order. Whatever cannot be read is a task with an error."""
    for (kind, _, _), group in itertools.groupby(items, key=lambda i: (i.kind, i.path, i.source)):
        if kind not in ("row", "packed"):
            yield from (Task(item, key=item.key, metadata=item.metadata, error=item.error) for item in group)
            continue
        waiting = {item.id: item for item in group}
        reason = "it was there when the images were listed, and is not any more"
        try:
            for task in _rows(list(waiting.values())) if kind == "row" else _packed(list(waiting.values())):
                del waiting[task.item.id]
                yield task
        except Exception as error:  # a damaged page, a broken stream: each library has its own kinds
            reason = f"what it is in cannot be read any further: {one_line(error)}"
        yield from (Task(item, key=item.key, error=reason) for item in waiting.values())


def _rows(items: list[Item]) -> Iterator[Task]:
    split, _, column = items[0].place
    by_row = {item.place[1]: item for item in items}
    for row, cell in cells(open_table(items[0].path), split, column, sorted(by_row)):
        yield Task(by_row[row], cell.image, cell.key, cell.metadata, cell.error)


def _packed(items: list[Item]) -> Iterator[Task]:
    by_number = {item.place[0]: item for item in items}
    for number, content, error in packed_images(items[0].path, set(by_number)):
        item = by_number[number]
        yield Task(item, content, item.key, item.metadata, error)
