"""Prepared images wait here for others of like tile counts. Bounded: whoever fills it asks `has_room` first.

A batch has at most `batch_size` images and, with each counted as the largest, `batch_tiles` tiles: what padding can
cost is within the budget. An image that has more tiles alone is a batch of one.
"""

import threading
from collections import deque

from .preparing import Prepared


class BatchBuffer:
    """Filled by one thread, emptied by another.

    Args:
        batch_size, batch_tiles: see above.
        waiting_tiles: from so many on, `has_room` says no, and a batch is made of what there is.
    """

    def __init__(self, batch_size: int, batch_tiles: int, waiting_tiles: int | None = None):
        self.batch_size, self.batch_tiles = batch_size, batch_tiles
        self.waiting_tiles = waiting_tiles or 4 * max(batch_tiles, batch_size)
        self._waiting: dict[int, deque[Prepared]] = {}  # by tile count; 0 are those with an error
        self._tiles, self._ended, self._error = 0, False, None
        self._changed = threading.Condition()

    def has_room(self) -> bool:
        """Whether another image may be begun."""
        with self._changed:
            return self._tiles < self.waiting_tiles

    def put(self, prepared: Prepared) -> None:
        with self._changed:
            self._waiting.setdefault(prepared.num_tiles, deque()).append(prepared)
            self._tiles += max(prepared.num_tiles, 1)
            self._changed.notify()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing comes any more; `error` is raised where batches are taken, behind those that are whole."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def take(self) -> list[Prepared] | None:
        """The next batch, all of one kind: images, or errors. Waits for it; None when all are taken."""
        with self._changed:
            while (batch := self._next()) is None and not self._ended:
                self._changed.wait(1.0)  # woken by now and then, a signal finds the thread on every system
            if batch is None and self._error is not None:
                raise self._error
            self._tiles -= sum(max(each.num_tiles, 1) for each in batch or ())
            return batch

    def _next(self) -> list[Prepared] | None:
        if self._waiting.get(0):
            return list(self._waiting.pop(0))
        full = [n for n, waiting in self._waiting.items() if n and len(waiting) >= self._capacity(n)]
        if full:
            return self._collect(max(full))
        if self._tiles and (self._ended or self._tiles >= self.waiting_tiles):
            return self._collect(max(self._waiting, key=lambda n: n * len(self._waiting[n])))
        return None

    def _capacity(self, num_tiles: int) -> int:
        return max(1, min(self.batch_size, self.batch_tiles // num_tiles))

    def _collect(self, first: int) -> list[Prepared]:
        """A batch of images with `first` tiles, filled up with those of the nearest counts."""
        batch, largest = [], first
        for n in sorted(self._waiting, key=lambda n: (abs(n - first), n)):
            largest = max(largest, n) if self._capacity(max(largest, n)) > len(batch) else largest
            while n <= largest and self._waiting[n] and len(batch) < self._capacity(largest):
                batch.append(self._waiting[n].popleft())
        self._waiting = {n: waiting for n, waiting in self._waiting.items() if waiting}
        return batch


def cut_batches(images: list[Prepared], batch_size: int, batch_tiles: int) -> list[list[Prepared]]:
    """All of these images in batches, as a buffer that holds them all gives them."""
    buffer = BatchBuffer(batch_size, batch_tiles)
    for image in images:
        buffer.put(image)
    buffer.end()
    return list(iter(buffer.take, None))
