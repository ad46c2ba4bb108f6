"""Folders travel between transformers versions: what one version saved, every other loads and continues alike.

Needs more than one interpreter: ARGUS_OTHER_PYTHONS lists them (`nox -s hub` sets it), separated as PATH is.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
from isolation import run_isolated, run_with_project

OTHERS = [path for path in os.environ.get("ARGUS_OTHER_PYTHONS", "").split(os.pathsep) if path]
pytestmark = pytest.mark.skipif(not OTHERS, reason="ARGUS_OTHER_PYTHONS names no other interpreter; `nox -s hub` does")

PYTHONS = [sys.executable, *OTHERS]


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[tuple[int, str], dict]:
    """(number of the loading interpreter, folder) -> what it answered, and under which version of transformers."""
    base = tmp_path_factory.mktemp("versions")
    numbers = range(len(PYTHONS))
    with ThreadPoolExecutor(2) as pool:

        def export_and_save_again(number):
            exported = base / f"exported-{number}"
            run_with_project("hub_folders.py", exported, python=PYTHONS[number])
            home = base / f"saving-{number}"
            run_isolated(
                "answer_from.py", "--save", base / f"saved-{number}", exported, home=home, python=PYTHONS[number]
            )

        list(pool.map(export_and_save_again, numbers))
        folders = [base / f"{kind}-{number}" for kind in ("exported", "saved") for number in numbers]

        def load_all(number):
            home = base / f"loading-{number}"
            report = base / f"report-{number}.json"
            run_isolated("answer_from.py", "--report", report, *folders, home=home, python=PYTHONS[number])
            return json.loads(report.read_text(encoding="utf-8"))

        reports = list(pool.map(load_all, numbers))
    return {(number, name): answer for number, report in enumerate(reports) for name, answer in report.items()}


def test_the_interpreters_have_different_versions(answers):
    versions = {number: answer["version"] for (number, _), answer in answers.items()}
    assert len(set(versions.values())) == len(PYTHONS), versions
    assert {version.split(".")[0] for version in versions.values()} >= {"4", "5"}, versions


@pytest.mark.parametrize("saver, loader", list(product(range(len(PYTHONS)), repeat=2)))
@pytest.mark.parametrize("kind", ["exported", "saved"])
def test_every_version_loads_what_another_saved(answers, kind, saver, loader):
    answer, own = answers[loader, f"{kind}-{saver}"], answers[saver, f"exported-{saver}"]
    assert answer["error"] is None, answer["error"]
    assert answer["input_ids"] == own["input_ids"]
    assert answer["new_ids"] == own["new_ids"]
