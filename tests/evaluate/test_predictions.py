"""Predictions on disk: what a killed run left is kept, nothing is done twice, and other people's files are refused."""

import json
import os
import signal
import subprocess
import sys

import pytest

from argus_tools.cli_support import CommandError
from argus_tools.evaluate.benchmark import Benchmark, predict_all
from argus_tools.evaluate.predictions import Predictions, complete, fingerprint, read

HEADER = {
    "task": "squares",
    "model": {"name": "m", "fingerprint": "1"},
    "options": {"dtype": "float32"},
    "data": {"n": 10},
}


class Squares(Benchmark):
    name, data, needs = "squares", {"n": 10}, ("square",)

    def ids(self):
        return list(range(10))

    def predict(self, model, ids):
        return [{"square": model.square(i)} for i in ids]

    def score(self, predictions):
        return {"sum": sum(row["square"] for row in predictions.values())}


class Model:
    name = "m"

    def __init__(self, fails_at=None):
        self.asked, self.fails_at = [], fails_at

    def square(self, i):
        if i == self.fails_at:
            raise RuntimeError("the power went")
        self.asked.append(i)
        return i * i


def test_a_run_that_failed_half_way_goes_on(tmp_path):
    path, first, second = tmp_path / "p.jsonl", Model(fails_at=7), Model()
    with pytest.raises(RuntimeError, match="power"):
        predict_all(Squares(), first, Predictions(path, HEADER), batch_size=3)
    kept = Predictions(path, HEADER)
    assert sorted(kept.rows) == [0, 1, 2, 3, 4, 5]  # whole batches
    predict_all(Squares(), second, kept, batch_size=3)
    assert second.asked == [6, 7, 8, 9]
    _, rows, _ = read(path)
    assert {i: row["square"] for i, row in rows.items()} == {i: i * i for i in range(10)}
    assert len(path.read_text().splitlines()) == 11  # nothing twice
    assert Squares().score(rows) == {"sum": 285}


def test_batches_are_the_same_after_an_interruption(tmp_path):
    """What was cut off in the middle of a batch is asked with that batch alone, not with the next."""
    path = tmp_path / "p.jsonl"
    predictions = Predictions(path, HEADER)
    predictions.add([(i, {"square": i * i}) for i in (0, 1, 2, 3)])
    sizes = []

    class Counting(Squares):
        def predict(self, model, ids):
            sizes.append(ids)
            return super().predict(model, ids)

    predict_all(Counting(), Model(), Predictions(path, HEADER), batch_size=3)
    assert sizes == [[4, 5], [6, 7, 8], [9]]


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {root!r}]
from test_predictions import HEADER, Model, Predictions, Squares, predict_all

class Killed(Model):
    def square(self, i):
        if i == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().square(i)

predict_all(Squares(), Killed(), Predictions({path!r}, HEADER), batch_size=2)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_process_loses_nothing_that_was_done(tmp_path):
    path, tests = str(tmp_path / "p.jsonl"), os.path.dirname(__file__)
    root = os.path.dirname(os.path.dirname(tests))
    done = subprocess.run([sys.executable, "-c", KILLED.format(path=path, tests=tests, root=root)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    predictions, model = Predictions(path, HEADER), Model()
    assert sorted(predictions.rows) == [0, 1, 2, 3]
    predict_all(Squares(), model, predictions, batch_size=2)
    assert model.asked == [4, 5, 6, 7, 8, 9]
    assert complete(path, "squares", {"n": 10}, list(range(10)))[1] == {i: {"square": i * i} for i in range(10)}


def test_half_a_line_is_cut_off(tmp_path):
    path = tmp_path / "p.jsonl"
    Predictions(path, HEADER).add([(0, {"square": 0}), (1, {"square": 1})])
    with open(path, "ab") as file:
        file.write(b'{"id": 2, "squ')
    again = Predictions(path, HEADER)
    assert sorted(again.rows) == [0, 1]
    again.add([(2, {"square": 4})])
    assert sorted(read(path)[1]) == [0, 1, 2]


def test_a_refused_command_leaves_no_file(tmp_path):
    path = tmp_path / "p.jsonl"
    lacking = Squares()
    lacking.needs = ("dense_caption",)
    with pytest.raises(CommandError, match="m cannot dense-caption"):
        predict_all(lacking, Model(), Predictions(path, HEADER), 2)
    assert not path.exists()
    Predictions(path, HEADER | {"options": {"dtype": "bfloat16"}}).add([(0, {"square": 0})])
    assert read(path)[0]["options"] == {"dtype": "bfloat16"} and read(path)[1] == {0: {"square": 0}}
    with pytest.raises(CommandError, match="cannot be written: No such file"):
        Predictions(tmp_path / "nowhere" / "p.jsonl", HEADER)


@pytest.mark.parametrize("kept", [0, 1, 9, 23, 60, None])
def test_a_header_that_was_cut_off_is_written_anew(tmp_path, kept):
    path = tmp_path / "p.jsonl"
    Predictions(path, HEADER).add([(0, {"square": 0})])
    whole = path.read_bytes()
    path.write_bytes(whole.splitlines()[0][:kept])
    Predictions(path, HEADER).add([(0, {"square": 0})])
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "change, message",
    [
        ({"task": "cubes"}, "another task: 'squares' there and 'cubes' here"),
        ({"model": {"name": "m", "fingerprint": "2"}}, "another model: fingerprint is '1' there and '2' here"),
        ({"options": {"dtype": "bfloat16"}}, "other options: dtype is 'float32' there"),
        ({"options": {"dtype": "float32", "max_tiles": 4}}, "other options: max_tiles is None there and 4 here"),
        ({"data": {"n": 11}}, "other data: n is 10 there and 11 here"),
    ],
)
def test_other_peoples_predictions_are_refused(tmp_path, change, message):
    path = tmp_path / "p.jsonl"
    Predictions(path, HEADER).add([(0, {"square": 0})])
    before = path.read_bytes()
    with pytest.raises(CommandError, match=message):
        Predictions(path, HEADER | change)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text, message",
    [
        ("hello\n", "not a predictions file"),
        ("[1]\n", "not a predictions file"),
        ('{"id": 1}\n', "not a predictions file"),
        ("no newline", "not a predictions file"),
        (json.dumps({"argus_predictions": 1, **HEADER, "model": None}) + "\n", "line 1.model is null, not an object"),
        ('{"argus_predictions": 9}\n', "of format 9, not 1"),
        (json.dumps({"argus_predictions": 1, **HEADER}) + "\n{}\n", "line 2 is not a prediction"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(CommandError, match=message):
        Predictions(path, HEADER)
    assert path.read_text() == text


def test_scoring_without_a_model_needs_every_item(tmp_path):
    path = tmp_path / "p.jsonl"
    Predictions(path, HEADER).add([(0, {"square": 0})])
    with pytest.raises(CommandError, match=r"lacks 9 of 10 predictions \(first: 1\): finish it with --save"):
        complete(path, "squares", {"n": 10}, list(range(10)))
    with pytest.raises(CommandError, match="other data: n is 10 there and 3 here"):
        complete(path, "squares", {"n": 3}, [0, 1, 2])
    with pytest.raises(CommandError, match="cannot be read: No such file"):
        complete(tmp_path / "none.jsonl", "squares", {"n": 3}, [0])


def test_a_model_that_cannot_do_the_task_is_refused():
    with pytest.raises(CommandError, match="m cannot dense-caption, which squares needs"):
        lacking = Squares()
        lacking.needs = ("dense_caption",)
        predict_all(lacking, Model(), Predictions(None, HEADER), 2)


def test_a_fingerprint_sees_every_change(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(10_000_000))
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before and len(before) == 12
    for place in (9_999_999, 5_000_000):  # a tensor in the middle counts as the last one does
        with open(tmp_path / "model.safetensors", "r+b") as file:
            file.seek(place)
            file.write(b"\x01")
        assert fingerprint(tmp_path) != before
        before = fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("words are no part of it")
    after = fingerprint(tmp_path)
    (tmp_path / "README.md").unlink()
    assert fingerprint(tmp_path) == after
