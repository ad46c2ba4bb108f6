"""A few plain threads for pixels: torch's uint8 kernels are single-threaded, but let go of the interpreter's lock.

The pool is made at first use and once per process, so that forked workers (DataLoader) have their own. Tasks work on
numpy memory: torch's own parallel loops would start a team of threads within each of these.
"""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch

MAX_THREADS = 8  # the largest image keeps no more than this busy
_POOLS: dict[int, ThreadPoolExecutor] = {}


def thread_count(nbytes: int) -> int:
    """Threads for a pass that reads or writes `nbytes`: torch's number, and 1 where handing over would cost more."""
    return min(torch.get_num_threads(), MAX_THREADS, max(nbytes >> 18, 1))


def run_all(tasks: list, threads: int) -> None:
    """Calls all tasks on up to `threads` threads, this one among them, and returns when all are done.

    Raises what a task raised (the first that is met); tasks that were not begun by then are left out.
    """
    waiting = deque(tasks)
    if threads <= 1 or len(tasks) <= 1:
        while waiting:
            waiting.popleft()()
        return

    def work():
        try:
            while waiting:
                try:
                    task = waiting.popleft()
                except IndexError:
                    return
                task()
        except BaseException:
            waiting.clear()
            raise

    futures = []
    try:
        for _ in range(min(threads, len(tasks)) - 1):
            futures.append(_pool().submit(work))
    except RuntimeError:  # the interpreter is shutting down: no new threads
        pass
    try:
        work()
    finally:
        begun = [future for future in futures if not future.cancel()]
        for future in begun:
            future.exception()  # waits: the tasks write into memory of the caller's
    for future in begun:
        future.result()


def split_range(length: int, parts: int) -> list[tuple[int, int]]:
    """[0, length) in at most `parts` ranges of nearly equal, never zero, length."""
    parts = max(min(parts, length), 1)
    return [(length * i // parts, length * (i + 1) // parts) for i in range(parts)]


def _pool() -> ThreadPoolExecutor:
    pool = _POOLS.get(os.getpid())
    if pool is None:
        pool = _POOLS.setdefault(os.getpid(), ThreadPoolExecutor(MAX_THREADS - 1, "argus-pixels"))
    return pool
