"""A mixture of readers as one map-style data set, in which sample i is a pure function of the seed and i.

So a sampler just counts, a resumed run skips, and any number of processes or workers gives the same samples. Samples
come in blocks: in each, the sources have their shares, exactly but for rounding that evens out, in shuffled order. Each
source is gone through in a fresh order every time, by a permutation that is computed and never stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .augment import Augmentation
from .samples import Region, Sample, Turn

ORDERS = ("reading", "random", "area", "source")
BLOCK = 256
_FINE = 1 << 20  # steps between two slots of a block
_ROUNDS = 6
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class RegionOptions:
    """What of a sample is shown, and in which order.

    region_order: "reading" (by top edge, then left edge), "random", "area" (large first) or "source" (as it came).
    max_regions: of an answer at most; others are left out at random. max_conversations: of a sample, likewise.

    Raises ValueError for values that do not fit.
    """

    region_order: str = "source"
    max_regions: int | None = None
    max_conversations: int | None = None

    def __post_init__(self):
        if self.region_order not in ORDERS:
            raise ValueError(f"region_order is {self.region_order!r}; it can be {', '.join(ORDERS)}.")
        for name in ("max_regions", "max_conversations"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a positive integer or None, got {value!r}.")

    def choose(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample with no more conversations and regions than allowed, those that stay in their old order."""
        kept = _some(sample.conversations, self.max_conversations, rng)
        return _with_answers(replace(sample, conversations=kept), lambda a: _some(a, self.max_regions, rng))

    def order(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample with each answer's regions in order."""
        if self.region_order == "source":
            return sample
        return _with_answers(sample, lambda answer: self._ordered(answer, rng))

    def _ordered(self, regions: tuple[Region, ...], rng) -> tuple[Region, ...]:
        if self.region_order == "random":
            return tuple(regions[i] for i in rng.permutation(len(regions)))
        if self.region_order == "area":
            return tuple(sorted(regions, key=lambda r: (r.box[0] - r.box[2]) * (r.box[3] - r.box[1])))
        return tuple(sorted(regions, key=lambda r: (r.box[1], r.box[0])))


class Mixture:
    """Map-style: `len(mixture)` is `length`, `mixture[i]` a Sample.

    Args:
        readers: map-style data sets of Samples; those of one whose attribute `may_flip` is true may be mirrored.
        weights: the share of each, above 0, in any unit.
        length: how many samples there are; sources are gone through again as often as that takes.
        seed: from 0 on.
        options, augmentation: applied to each sample: choose, augment, then order.
        group: so many samples after one another are of one source, for batches whose rows are alike in length.

    Raises ValueError for arguments that do not fit together, and whatever a reader raises for a record.
    """

    def __init__(
        self,
        readers: Sequence[Any],
        weights: Sequence[float],
        length: int,
        seed: int = 0,
        options: RegionOptions | None = None,
        augmentation: Augmentation | None = None,
        group: int = 1,
    ):
        self.readers, self.length, self.seed, self.group = list(readers), length, seed, group
        self.options = RegionOptions() if options is None else options
        self.augmentation = Augmentation() if augmentation is None else augmentation
        weights = np.asarray(weights, np.float64)
        if not self.readers or weights.shape != (len(self.readers),):
            raise ValueError(f"a mixture needs readers and a weight for each, got {len(self.readers)} and {weights}.")
        if not np.isfinite(weights).all() or (weights <= 0).any():
            raise ValueError(f"weights must be above 0, got {weights.tolist()}.")
        if seed < 0 or length < 1 or group < 1:
            raise ValueError(f"seed must be at least 0, length and group 1: got {seed}, {length} and {group}.")
        self.sizes = [len(reader) for reader in self.readers]
        if 0 in self.sizes:
            raise ValueError(f"reader {self.sizes.index(0)} of the mixture is empty.")
        # Slot v of a block, 0 <= v < BLOCK * _FINE, belongs to the first source whose limit is above v: whole numbers,
        # so that what is counted here is what is drawn later.
        limits = np.rint(weights.cumsum() / weights.sum() * BLOCK * _FINE).astype(np.int64)
        limits[-1] = BLOCK * _FINE
        blocks = -(-length // (BLOCK * group))
        self._limits, self._shifts = limits, np.random.default_rng([seed, 0]).integers(_FINE, size=blocks)
        below = -(-(limits[None] - self._shifts[:, None]) // _FINE)  # slots of a block under each limit
        counts = np.diff(np.clip(below, 0, BLOCK), prepend=0, axis=1)
        self._before = counts.cumsum(0) - counts  # [blocks, sources]: groups of each before a block

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index, *self.locate(index))

    def sample(self, index: int, source: int, item: int) -> Sample:
        """That item of that source as sample `index`: with what is drawn for this number."""
        rng = np.random.default_rng([self.seed, 2, index])
        sample = self.options.choose(self.readers[source][item], rng)
        sample = self.augmentation(sample, rng, bool(getattr(self.readers[source], "may_flip", False)))
        return self.options.order(sample, rng)

    def locate(self, index: int, tried: int = 0) -> tuple[int, int]:
        """(source, item of it) that sample `index` is made of. IndexError outside of the mixture.

        tried: how many items were found not to be of use for it; others of the same source stand in.
        """
        if not 0 <= index < self.length:
            raise IndexError(f"sample {index} of a mixture of {self.length}.")
        number, within = divmod(int(index), self.group)
        block, place = divmod(number, BLOCK)
        slots = np.random.default_rng([self.seed, 1, block]).permutation(BLOCK)[: place + 1]
        sources = np.searchsorted(self._limits, slots * _FINE + self._shifts[block], side="right")
        source = int(sources[-1])
        drawn = int(self._before[block, source]) + int((sources[:-1] == source).sum())
        turn, place = divmod(drawn * self.group + within, self.sizes[source])
        key = (self.seed, source, turn) + ((tried,) if tried else ())
        return source, permuted(place, self.sizes[source], key)


def permuted(place: int, size: int, key: tuple[int, ...]) -> int:
    """Where `place` goes in the permutation of 0..size-1 that `key` names.

    A Feistel network over the next even number of bits, applied again while it leads out of the range (at most four
    times on average): a permutation in a few microseconds, whatever the size.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask, keys = (1 << half) - 1, [_mix(number, key) for number in range(_ROUNDS)]
    while True:
        left, right = place >> half, place & mask
        for one in keys:
            left, right = right, left ^ (_scramble(right ^ one) & mask)
        place = left << half | right
        if place < size:
            return place


def _mix(number: int, key: tuple[int, ...]) -> int:
    value = number
    for part in key:
        value = _scramble((value + part + 0x9E3779B97F4A7C15) & _MASK)
    return value


def _scramble(value: int) -> int:
    """splitmix64's finaliser: every bit of the answer depends on every bit of the value."""
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 31


def _some(items: tuple, most: int | None, rng: np.random.Generator) -> tuple:
    if most is None or len(items) <= most:
        return items
    return tuple(items[i] for i in sorted(rng.choice(len(items), most, replace=False)))


def _with_answers(sample: Sample, change) -> Sample:
    """The sample with `change` applied to each answer that is regions."""

    def turned(turn: Turn) -> Turn:
        return turn if isinstance(turn.answer, str) else Turn(turn.prompt, change(turn.answer))

    return replace(sample, conversations=tuple(tuple(map(turned, turns)) for turns in sample.conversations))
