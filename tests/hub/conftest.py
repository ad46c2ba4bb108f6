"""The tiny random checkpoint that the tests of this folder export, and the hub folder made of it."""

from pathlib import Path

import pytest
from hub_folders import save_tiny

from argus_tools.export import export


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def tiny_hub_folder(tiny_checkpoint, tmp_path_factory) -> Path:
    return export(tiny_checkpoint, tmp_path_factory.mktemp("exported") / "argus-tiny")
