"""A tiny nano checkpoint, its processor, and the reader of squares, for all training tests."""

import pytest
import torch
from tiny_runs import NANO, Squares

from argus_tools.train import readers
from argus_tools.train.nano import make_nano
from argus_tools.train.training_model import ArgusForTraining
from processing_argus import ArgusProcessor


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
