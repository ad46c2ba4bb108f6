"""A tiny nano checkpoint, its processor, and the reader of squares, for all training tests."""

import os

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_runs import NANO, Squares

from argus_tools.train import readers
from argus_tools.train.nano import make_nano
from argus_tools.train.training_model import ArgusForTraining
from processing_argus import ArgusProcessor


@pytest.fixture(autouse=True)
def no_precision_of_an_earlier_run():
    """accelerate keeps the first trainer's mixed precision for all later ones of the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)


@pytest.fixture(scope="session")
def tiny_nano(tmp_path_factory):
    """The folder of an untrained tiny nano; read-only."""
    return make_nano(tmp_path_factory.mktemp("nano") / "start", seed=3, **NANO)


@pytest.fixture(scope="session")
def processor(tiny_nano):
    """Its processor; read-only."""
    return ArgusProcessor.from_pretrained(tiny_nano)


@pytest.fixture
def training_model(tiny_nano):
    """A fresh copy of it to train, in fp32."""
    return ArgusForTraining.from_pretrained(tiny_nano, dtype=torch.float32).train()


@pytest.fixture
def squares(monkeypatch):
    """Makes the reader "squares" known while the test runs."""
    monkeypatch.setitem(readers.READERS, "squares", Squares)
