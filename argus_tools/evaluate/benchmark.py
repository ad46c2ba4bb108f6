"""What every evaluation has: items with ids, predictions for them, and scores; and the loop over the items."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from ..cli_support import CommandError, progress_bar
from .records import check


class Benchmark(ABC):
    """One task on one set of data.

    `name` is the command's; `data` says which data it is, in plain values that a predictions file keeps and compares;
    `needs` are the calls of a model that it makes ("caption", "answer", "detect", "dense_caption"); `form` is what a
    prediction must be, as in records.py.
    """

    name: str
    data: dict
    needs: tuple[str, ...]
    form: dict = {}

    @abstractmethod
    def ids(self) -> list:
        """An id (int or str) for each item, in order: one item is one line of a predictions file."""

    @abstractmethod
    def predict(self, model, ids: list) -> list[dict]:
        """What the model says of these items: one dict of plain values for each."""

    def check(self, path, rows: dict) -> None:
        """Raises CommandError that names the file and the item where a prediction read from it is none of this task."""
        for item in self.ids():
            if item in rows:
                self.check_one(path, item, rows[item], f"the prediction of {item!r}")

    def check_one(self, path, item, row: dict, where: str) -> None:
        """`check` of one prediction."""
        check(path, row, self.form, where)

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
