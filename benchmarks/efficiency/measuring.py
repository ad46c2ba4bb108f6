"""Clocks, statistics and verdicts: what a number in results/ means.

Sides are timed in turn within one process, each timing between two synchronisations, after a warm-up. A cell is the
median of its repeats with their quartiles. A bar is a limit from the project's own goals; what was not run is said to
be not measured, never passed.
"""

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch


def synchronise(device) -> None:
    """Waits until the device has done what was launched; nothing on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def quantile(values: list[float], q: float) -> float:
    """Linear interpolation between the sorted values."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median(values: list[float]) -> float:
    return quantile(values, 0.5)


def summary(values: list[float]) -> dict:
    """Median, quartiles and number of repeats, of milliseconds."""
    return {
        "ms": round(median(values), 3),
        "q25": round(quantile(values, 0.25), 3),
        "q75": round(quantile(values, 0.75), 3),
        "n": len(values),
    }


def tokens_per_second(new_tokens: int, first_ms: float, last_ms: float) -> float | None:
    """Decoding alone: the tokens after the first one over the time after it; None where noise ate the difference."""
    return (new_tokens - 1) / (last_ms - first_ms) * 1000 if last_ms > first_ms else None


def shown(value: float | None, digits: int = 1) -> str:
    """A number in a table, "-" for one that was not measured."""
    return "-" if value is None else f"{value:.{digits}f}"


class Budget:
    """Wall-clock minutes that a script may take; None is no limit."""

    def __init__(self, minutes: float | None = None, clock: Callable[[], float] = time.monotonic):
        self.clock, self.minutes = clock, minutes
        self.start = clock()

    def left(self) -> float:
        """Seconds left, infinite without a limit."""
        return float("inf") if self.minutes is None else self.minutes * 60 - (self.clock() - self.start)

    def part(self, share: float) -> "Budget":
        """A budget of `share` of the whole that starts now, and never ends after it."""
        left = self.left()
        return self if self.minutes is None else Budget(min(share * self.minutes, max(left, 0) / 60), self.clock)


def milliseconds(function: Callable, device="cpu") -> tuple[float, object]:
    """(milliseconds, result) of one call, the device idle before and after it."""
    synchronise(device)
    start = time.perf_counter()
    result = function()
    synchronise(device)
    return (time.perf_counter() - start) * 1000, result


def in_turn(
    functions: dict[str, Callable[[int], object]],
    repeats: int,
    device="cpu",
    warmup: int = 1,
    budget: Budget | None = None,
    at_least: int = 1,
) -> dict[str, list[float]]:
    """Milliseconds of each function, all of them in turn in every round, in alternating order.

    A function gets the number of the round, so that it can take another image each time. Rounds stop early, after
    `at_least`, when the next one would not fit into the budget.
    """
    for i in range(warmup):
        for function in functions.values():
            function(i)
    times: dict[str, list[float]] = {name: [] for name in functions}
    longest = 0.0
    for i in range(repeats):
        if i >= at_least and budget is not None and budget.left() < longest:
            break
        start = time.perf_counter()
        names = list(functions) if i % 2 == 0 else list(functions)[::-1]
        for name in names:
            gc.disable()  # a collection of somebody else's garbage belongs to no side
            try:
                times[name].append(milliseconds(partial(functions[name], i), device)[0])
            finally:
                gc.enable()
        longest = max(longest, time.perf_counter() - start)
    return times


# --- memory -----------------------------------------------------------------------------------------------------------


def _status(name: str) -> int:
    """Bytes of a field of /proc/self/status; OSError where the kernel does not tell."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def peak_bytes(function: Callable) -> int | None:
    """How much the process grew at the highest point of a call, its result included; None where Linux cannot tell."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or freed memory would be reused unseen
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the high-water mark
        before = _status("VmRSS")
        _status("VmHWM")
    except (OSError, AttributeError):
        return None
    result = function()
    peak = _status("VmHWM") - before
    del result
    return max(peak, 0)


# --- verdicts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One bar: `value` (None: not measured) has to be at most, or at least, `limit`."""

    name: str
    limit: float
    value: float | None
    unit: str = "x"
    at_least: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        return "PASS" if (self.value >= self.limit if self.at_least else self.value <= self.limit) else "MISSED"

    def row(self) -> list[str]:
        value = "-" if self.value is None else f"{self.value:.3g} {self.unit}"
        return [
            self.name,
            f"{'>=' if self.at_least else '<='} {self.limit:g} {self.unit}",
            value,
            self.verdict,
            self.note,
        ]


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """ours / theirs, None where one of them is missing."""
    return None if not ours or not theirs else ours / theirs
