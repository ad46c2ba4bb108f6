"""Checks of values that never make the host wait for the GPU.

Reading a value from a GPU waits for all that was launched before it. Where reading is free, or nothing runs yet, a
check raises at once. Inside `generate()` on CUDA its outcome is computed on the device, copied to pinned memory without
waiting, and looked at when the loop has synchronised anyway, for the first token: before anything is returned.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch

_DEFERRED: ContextVar["DeferredChecks | None"] = ContextVar("argus_deferred_checks", default=None)


def reading_waits(tensor: torch.Tensor) -> bool:
    """Whether reading a value of this tensor makes the host wait for a queue of work."""
    return tensor.device.type == "cuda"


class DeferredChecks:
    """The checks of one `generate()` whose outcomes are still on their way to the host."""

    def __init__(self):
        self._waiting = []

    def add(self, fits: torch.Tensor, problem: str, details: Callable[[], str]) -> None:
        outcome = fits.detach().to("cpu", non_blocking=True)  # pinned: torch allocates it so
        arrived = None
        if fits.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(fits.device))
        self._waiting.append((outcome, arrived, problem, details))

    def settle(self, wait: bool = False) -> None:
        """Raises ValueError for an outcome that has arrived and is bad; with `wait`, for any."""
        waiting, self._waiting = self._waiting, []
        for check in waiting:
            outcome, arrived, problem, details = check
            if arrived is not None and wait:
                arrived.synchronize()
            if arrived is None or arrived.query():
                if not outcome:
                    raise ValueError(f"{problem}: {details()}")
            else:
                self._waiting.append(check)


@contextlib.contextmanager
def deferred_checks() -> Iterator[DeferredChecks]:
    """Within the block `require` does not wait; the caller settles."""
    checks = DeferredChecks()
    token = _DEFERRED.set(checks)
    try:
        yield checks
    finally:
        _DEFERRED.reset(token)


def settle_deferred_checks() -> None:
    """Raises ValueError for what has arrived and is bad; does nothing outside of `deferred_checks`. Never waits."""
    checks = _DEFERRED.get()
    if checks is not None:
        checks.settle()


def require(fits: torch.Tensor, problem: str, details: Callable[[], str]) -> None:
    """Refuses a call whose values do not fit.

    Args:
        fits: bool[].
        problem: what is wrong where it is False.
        details: makes the rest of the sentence, with the values and what to do.

    Raises:
        ValueError: at once or, on CUDA within `generate()`, with the first token. RuntimeError: in a compiled graph.
    """
    if torch.compiler.is_compiling():  # no values to show inside a graph
        torch._assert_async(fits, problem)
        return
    if fits.device.type == "meta":
        return
    checks = _DEFERRED.get()
    if checks is not None and reading_waits(fits):
        checks.add(fits, problem, details)
    elif not fits:
        raise ValueError(f"{problem}: {details()}")
