"""The checkpoint and the hub folders that the tests of this folder load: a tiny random model, and the embedded one."""

from pathlib import Path

import pytest
from hub_folders import save_tiny

from argus_tools.export import export
from argus_tools.paths import default_model_path


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def tiny_hub_folder(tiny_checkpoint, tmp_path_factory) -> Path:
    return export(tiny_checkpoint, tmp_path_factory.mktemp("exported") / "argus-tiny")


@pytest.fixture(scope="session")
def nano_hub_folder(tmp_path_factory) -> Path:
    return export(default_model_path(), tmp_path_factory.mktemp("exported") / "argus-nano-hub")
