"""An exported folder is used by a process that cannot import this project: from a path, and from the hub's cache."""

import json
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hub_folders import fabricate_hub_cache
from isolation import run_isolated

from argus_tools.export import export
from argus_tools.paths import default_model_path

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
    "dense_captioning_pipeline",
    "task_calls",
]
OPTIONAL_PACKAGES = ("torchvision", "triton", "liger_kernel", "flash_attn")


def use(repository, home, **options) -> dict[str, str | None]:
    """{step: None or its error} of a stranger's run."""
    report = home / "report.json"
    run_isolated("use_hub_folder.py", repository, home / "saved-again", report, home=home, **options)
    return json.loads(report.read_text(encoding="utf-8"))


def from_local_path(tiny_hub_folder, home):
    return use(tiny_hub_folder, home)


def from_hub_cache(tiny_hub_folder, home):
    fabricate_hub_cache(home, "someone/argus-tiny", tiny_hub_folder)
    return use("someone/argus-tiny", home)


def without_optional_packages(tiny_hub_folder, home):
    return use(tiny_hub_folder, home, without=OPTIONAL_PACKAGES)


def embedded_model(_, home):
    return use(export(default_model_path(), home / "argus-nano-hub"), home)


ORIGINS = [from_local_path, from_hub_cache, without_optional_packages, embedded_model]


@pytest.fixture(scope="session")
def runs(tiny_hub_folder, tmp_path_factory):
    """A run of each origin, two at a time: most of their time goes into imports on a single core."""
    with ThreadPoolExecutor(2) as pool:
        yield {f.__name__: pool.submit(f, tiny_hub_folder, tmp_path_factory.mktemp(f.__name__)) for f in ORIGINS}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("origin", [function.__name__ for function in ORIGINS])
def test_hub_folder(runs: dict[str, Future], origin, step):
    results = runs[origin].result()
    assert set(results) == set(STEPS)
    assert results[step] is None, results[step]
