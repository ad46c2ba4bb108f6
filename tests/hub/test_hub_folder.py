"""An exported folder is used by a process that cannot import this project: from a path, and from the hub's cache."""

import json

import pytest
from hub_folders import fabricate_hub_cache
from isolation import run_isolated

STEPS = [
    "project_is_not_importable",
    "auto_config",
    "auto_image_processor",
    "auto_tokenizer",
    "auto_processor",
    "auto_model",
    "auto_model_for_image_text_to_text",
    "auto_model_for_the_name_of_this_major",
    "saved_again_and_reloaded",
    "image_text_to_text_pipeline",
    "task_calls",
]


def use(repository, home, **options) -> dict:
    report = home / "report.json"
    run_isolated("use_hub_folder.py", repository, home / "saved-again", report, home=home, **options)
    return json.loads(report.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def from_local_path(tiny_hub_folder, tmp_path_factory):
    return use(tiny_hub_folder, tmp_path_factory.mktemp("local"))


@pytest.fixture(scope="session")
def from_hub_cache(tiny_hub_folder, tmp_path_factory):
    home = tmp_path_factory.mktemp("cached")
    fabricate_hub_cache(home, "someone/argus-tiny", tiny_hub_folder)
    return use("someone/argus-tiny", home)


@pytest.fixture(scope="session")
def without_optional_packages(tiny_hub_folder, tmp_path_factory):
    optional = ("torchvision", "triton", "liger_kernel", "flash_attn")
    return use(tiny_hub_folder, tmp_path_factory.mktemp("bare"), without=optional)


@pytest.fixture(scope="session")
def embedded_model(nano_hub_folder, tmp_path_factory):
    return use(nano_hub_folder, tmp_path_factory.mktemp("nano"))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("origin", ["from_local_path", "from_hub_cache", "without_optional_packages", "embedded_model"])
def test_hub_folder(origin, step, request):
    results = request.getfixturevalue(origin)
    assert set(results) == set(STEPS)
    assert results[step] is None, results[step]
