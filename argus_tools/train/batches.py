"""Numbers of samples to batches, past samples that cannot be used: broken or missing images, answers beyond max_length.

Sample i stays a pure function of the seed and i: where its item cannot be used, another of the same source stands in,
the same one in every worker, process and resumed run. What was met travels with the batch, and so do errors: raised in
a worker they would come out as its traceback, and in one process they would leave the others waiting. The trainer
hands them to `BadSamples`, which counts them, writes them down, and says when they are too many.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from argus_tools.cli_support import whole_file

from .collate import Collator
from .mixture import Mixture

TRIES = 20  # items for one sample
SHARE, AT_LEAST = 0.05, 20  # a stage ends where more than both are bad: that share of what was seen, and so many


class Batches:
    """Numbers of the mixture's samples -> the collator's batch. Picklable, so that worker processes can have it.

    Args:
        names: of the mixture's sources, for the record.
        bad_samples: "skip" or "stop", see `DataConfig`.

    A batch may have two more keys. "bad_samples": a list of {"sample": its number, "source": name, "item": of the
    source, "reason"}, one for each item that could not be used. "failed": the reason why there is no batch.
    """

    def __init__(self, mixture: Mixture, collator: Collator, names: Sequence[str], bad_samples: str = "skip"):
        self.mixture, self.collator, self.names, self.bad_samples = mixture, collator, list(names), bad_samples

    def __call__(self, numbers: Sequence[int]) -> dict[str, Any]:
        try:
            return self.collator([self.mixture[number] for number in numbers])
        except (ValueError, OSError):
            pass  # said by the sample alone, if it is one's fault
        met: list[dict[str, Any]] = []
        try:
            samples = [self._usable(number, met) for number in numbers]
            return {**self.collator(samples), "bad_samples": met}
        except (ValueError, OSError) as error:  # no sample's fault, or that of too many
            return {"failed": str(error), "bad_samples": met}

    def _usable(self, number: int, met: list[dict[str, Any]]):
        for tried in range(TRIES):
            source, item = self.mixture.locate(number, tried)
            try:
                sample = self.mixture.sample(number, source, item)
                self.collator([sample])
                return sample
            except (ValueError, OSError) as error:
                reason = str(error)
                met.append({"sample": number, "source": self.names[source], "item": item, "reason": reason})
                if self.bad_samples == "stop":
                    raise ValueError(f"{reason} (data.bad_samples: skip goes past such samples.)") from error
        raise ValueError(f"of source {self.names[source]!r}, {TRIES} items in a row cannot be used; the last: {reason}")


class BadSamples:
    """What a stage has met so far, in a file of one JSON object a line: "step" and what `Batches` says.

    Args:
        file: written where there is something to write.
        step: that the stage goes on from. Lines of later steps, which come again, are left out.
        batch_size: samples of a step, over all processes.
        writes: whether this process writes; all must count.

    `count` is the number of lines.
    """

    def __init__(self, file: str | Path, step: int, batch_size: int, writes: bool = True):
        self.file, self.batch_size, self.writes = Path(file), batch_size, writes
        lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True) if self.file.is_file() else []
        kept = [line for line in lines if _step(line) <= step]
        self.count = len(kept)
        if writes and len(kept) < len(lines):
            with whole_file(self.file) as file:
                file.write_text("".join(kept), encoding="utf-8")

    def add(self, met: Sequence[dict[str, Any]], step: int) -> None:
        """Note what was met in a step, of all processes. Raises ValueError where the stage's are too many by now."""
        met = sorted(met, key=lambda each: each["sample"])  # however many processes there are
        self.count += len(met)
        if self.writes and met:
            with open(self.file, "a", encoding="utf-8") as file:
                file.writelines(json.dumps({"step": step, **each}) + "\n" for each in met)
                file.flush()
                os.fsync(file.fileno())
        seen = step * self.batch_size
        if self.count > max(AT_LEAST, SHARE * seen):
            raise ValueError(
                f"{self.count} items could not be used for the first {seen} samples, more than {AT_LEAST} and than "
                f"{100 * SHARE:g} in 100; the last: {met[-1]['reason']} ({self.file} lists them.)"
            )


def _step(line: str) -> float:
    """The step of a line; of one that was not written to its end, none."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
