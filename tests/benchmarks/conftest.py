"""Benchmarks on tiny shapes: every script runs once a session, into a folder that all tests read."""

import contextlib
import io
import json

import pytest

from benchmarks.efficiency import all as everything
from benchmarks.efficiency import decode, profile, recipes, ttft, upscale

RUNS = {
    "ttft": (ttft, ["--shapes", "256m", "2b", "qwen3-vl-2b"]),
    "recipes": (recipes, ["--shapes", "256m", "2b", "--dtype", "float32"]),
    "images": (
        everything,
        ["--only", "images", "fidelity", "--budget-minutes", "5", "--device", "cpu"],
    ),  # three scripts in one go
    "profile": (profile, ["--seconds", "0.2", "--sampler", "thread"]),
    "upscale": (upscale, []),
    "decode": (decode, ["--shapes", "256m", "2b", "qwen3-vl-2b", "--dtype", "float32"]),
}


class Run:
    """What a script left behind: exit status, folder, cells and what it printed."""

    def __init__(self, name, folder):
        module, options = RUNS[name]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            self.status = module.main(["--tiny", "--repeats", "1", "--num-images", "2", "--out", str(folder), *options])
        self.folder, self.printed = folder, printed.getvalue()

    def cells(self, name):
        lines = (self.folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def run_script(tmp_path_factory):
    """run_script("ttft") runs that script once and returns the `Run` of it ever after."""
    done = {}

    def run(name):
        if name not in done:
            done[name] = Run(name, tmp_path_factory.mktemp(name))
        return done[name]

    return run
