"""Worker processes that decode and tile, and the thread that hands out work and fills the buffer.

Each worker has one image at a time, so that when it dies (out of memory, a crashing decoder) it is known of which: that
one is tried once more in another process, and then is an error like any other. Processes come from a fork server, which
has loaded the libraries and started no threads.
"""

import json
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import wait

import numpy as np

from .batching import BatchBuffer
from .feeding import Task
from .preparing import Prepared, serve

IMAGE_SECONDS = 600  # far beyond any image: a decoder that does not come back is ended
START_SECONDS = 600  # as far beyond loading the libraries
MAX_FALSE_STARTS = 3


class WorkersFailed(RuntimeError):
    """No worker process lives long enough to begin."""


class _Worker:
    def __init__(self, context, arguments: tuple):
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, *arguments), daemon=True, name="argus-decode")
        self.process.start()
        other.close()
        self.ready, self.task, self.since = False, None, time.monotonic()

    def give(self, task: Task) -> None:
        self.task, self.since = task, time.monotonic()
        self.connection.send(task)

    def result(self) -> Prepared:
        """What it says of its task. Raises EOFError or OSError where it died meanwhile, and much else where what it
        says makes no sense; the task is still its own then."""
        told = json.loads(self.connection.recv_bytes())
        tiles = None
        if "shape" in told:
            tiles = np.empty(told["shape"], told["dtype"])
            self.connection.recv_bytes_into(memoryview(tiles).cast("B"))
            if tiles.ndim != 4:
                raise ValueError(f"tiles of shape {tiles.shape}")
        item, size = self.task.item, told["size"]
        result = Prepared(
            item.id, item.source, told["key"], told["metadata"], size and tuple(size), tiles, told["error"]
        )
        self.task = None
        return result

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class WorkerPool:
    """Fills a BatchBuffer with one Prepared for each task; a context manager that ends its processes.

    Args:
        tasks: taken as they are needed, by the pool's thread.
        buffer: where results go; ended when all have come, or with the error that stopped it.
        count: processes.
        recipe, options: see `preparing`.
    """

    def __init__(self, tasks: Iterator[Task], buffer: BatchBuffer, count: int, recipe: str, options: dict):
        methods = multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self._context.set_forkserver_preload(["argus_tools.annotate.preparing"])
        self._tasks, self._buffer, self._count = tasks, buffer, count
        self._arguments = (recipe, options)
        self._again: deque[Task] = deque()
        self._deaths: dict[str, int] = {}
        self._workers: list[_Worker] = []
        self._false_starts, self._exhausted, self._stopping = 0, False, False
        self._woken, self._wake = self._context.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._run, name="argus-workers", daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._stopping = True
        self.wake()
        self._thread.join()

    def wake(self) -> None:
        """The buffer has room again."""
        self._wake.send_bytes(b".")

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        error = None
        try:
            self._workers = [_Worker(self._context, self._arguments) for _ in range(self._count)]
            while not self._stopping and self._assign():
                self._receive()
        except BaseException as raised:
            error = raised
        finally:
            for worker in self._workers:
                worker.end()
            self._buffer.end(error)

    def _assign(self) -> bool:
        """Gives work to those who have none; whether anything is still to come."""
        for worker in list(self._workers):
            if worker.ready and worker.task is None and self._buffer.has_room():
                task = self._next_task()
                if task is None:
                    break
                try:
                    worker.give(task)
                except OSError:
                    self._lost(worker)
        return bool(not self._exhausted or self._again or any(worker.task is not None for worker in self._workers))

    def _next_task(self) -> Task | None:
        """The next that needs a worker; those that have an error already need none."""
        if self._again:
            return self._again.popleft()
        while not self._exhausted:
            task = next(self._tasks, None)
            if task is None:
                self._exhausted = True
            elif task.error is None:
                return task
            else:
                self._fail(task, task.error)
        return None

    def _receive(self) -> None:
        """Waits until a worker has something to say, or has died, or there is room."""
        by_handle = {worker.connection: worker for worker in self._workers}
        by_handle |= {worker.process.sentinel: worker for worker in self._workers}
        handles = wait([self._woken, *by_handle], timeout=5.0)
        if self._woken in handles:
            while self._woken.poll():
                self._woken.recv_bytes()
        for worker in {id(w): w for w in (by_handle.get(h) for h in handles) if w is not None}.values():
            try:
                if not worker.connection.poll():  # it has died without a word
                    raise EOFError
                if worker.ready:
                    self._buffer.put(worker.result())
                else:
                    worker.connection.recv_bytes()
                    worker.ready, self._false_starts = True, 0
            except (EOFError, OSError):
                self._lost(worker)
            except Exception:  # an image has taken its decoder over, or there is no memory for what it says
                worker.process.kill()
                self._lost(worker)
        for worker in list(self._workers):
            if worker.task is not None and time.monotonic() - worker.since > IMAGE_SECONDS:
                self._fail(worker.task, f"decoding it took more than {IMAGE_SECONDS} seconds")
                worker.task = None
                self._replace(worker)
            elif not worker.ready and time.monotonic() - worker.since > START_SECONDS:
                worker.process.kill()
                self._lost(worker)

    def _lost(self, worker: _Worker) -> None:
        """It died: its image is tried once more, and another process takes its place."""
        worker.process.join(timeout=15.0)
        code, task = worker.process.exitcode, worker.task
        if not worker.ready:
            self._false_starts += 1
            if self._false_starts >= MAX_FALSE_STARTS:
                raise WorkersFailed(
                    f"worker processes end as soon as they begin, or never do (status {code}); --debug shows why"
                )
        if task is not None:
            identity = task.item.id
            self._deaths[identity] = self._deaths.get(identity, 0) + 1
            if self._deaths[identity] == 1:
                self._again.append(task)
            else:
                how = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
                self._fail(
                    task, f"the process that decodes it ended twice ({how}): too little memory, or a damaged file"
                )
        self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        worker.end()
        self._workers[self._workers.index(worker)] = _Worker(self._context, self._arguments)

    def _fail(self, task: Task, reason: str) -> None:
        item = task.item
        self._buffer.put(Prepared(item.id, item.source, task.key or item.key, task.metadata, error=reason))


def default_workers() -> int:
    """One process for each processor that this one may use but one, 1 to 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(usable - 1, 1), 8)
