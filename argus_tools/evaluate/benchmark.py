"""What every evaluation has: items with ids, predictions for them, and scores; and the loop over the items."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from ..cli_support import CommandError, progress_bar


class Benchmark(ABC):
    """One task on one set of data.

    `name` is the command's; `data` says which data it is, in plain values that a predictions file keeps and compares;
    `needs` are the calls of a model that it makes ("caption", "answer", "detect", "dense_caption").
    """

    name: str
    data: dict
    needs: tuple[str, ...]

    @abstractmethod
    def ids(self) -> list:
        """An id (int or str) for each item, in order: one item is one line of a predictions file."""

    @abstractmethod
    def predict(self, model, ids: list) -> list[dict]:
        """What the model says of these items: one dict of plain values for each."""

    @abstractmethod
    def score(self, predictions: dict) -> dict:
        """Scores of {id: prediction} of all items: a dict of numbers, and the names of what computed them."""


def predict_all(benchmark: Benchmark, model, predictions, batch_size: int) -> None:
    """Fills `predictions` (predictions.Predictions) with what it lacks, `batch_size` items at a time.

    Batches are cut from all items, whether they are done or not: an evaluation that goes on after an interruption
    computes its other batches exactly as it would have.
    """
    lacking = [name for name in benchmark.needs if not hasattr(model, name)]
    if lacking:
        raise CommandError(f"{model.name} cannot {lacking[0].replace('_', '-')}, which {benchmark.name} needs")
    ids = benchmark.ids()
    with progress_bar(len(ids), benchmark.name, "item") as bar:
        for start in range(0, len(ids), batch_size):
            batch = ids[start : start + batch_size]
            new = [i for i in batch if i not in predictions]
            if new:
                predictions.add(zip(new, benchmark.predict(model, new)))
            bar.update(len(batch))


def mean(values: Iterable[float]) -> float:
    """The mean, 0.0 of nothing."""
    values = list(values)
    return float(sum(values) / len(values)) if values else 0.0
