"""The Ray engine on a local cluster with two actors: the same rows as the local engine's."""

import os
import shutil

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")

import ray

from argus_tools.cli_support import one_line


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this machine, with room for two actors and the tasks that decode."""
    try:
        ray.init(
            address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000
        )
    except Exception as error:  # its own limits of 15 and 30 seconds, on a machine that has much else to do
        ray.shutdown()
        pytest.skip(f"Ray could not start a cluster here: {one_line(error)[:200]}")
    yield
    ray.shutdown()


def test_two_actors_give_the_rows_of_the_local_engine(cluster, pictures, annotate, rows_in):
    command = ["pictures", "--task", "dense-caption"]
    local = annotate(*command, "--out", "local")
    on_ray = annotate(*command, "--out", "ray", "--engine", "ray", "--actors", "2", "--batch-size", "2")
    assert (on_ray["images"], on_ray["failed"]) == (local["images"], local["failed"]) == (7, 1)
    expected, got = rows_in(pictures.parent / "local"), rows_in(pictures.parent / "ray")
    assert set(got) == set(expected)
    for identity, row in expected.items():
        if got[identity]["error"]:  # machines are told whole paths
            got[identity]["error"] = got[identity]["error"].replace(f"{pictures.parent}{os.sep}", "")
        for name in row:
            close = pytest.approx(row[name], abs=1e-3) if name == "scores" and row[name] else row[name]
            assert got[identity][name] == close
    assert annotate(*command, "--out", "ray", "--engine", "ray")["new"] == 0


def test_a_model_that_fails_in_an_actor_ends_the_run_with_its_words(cluster, pictures, annotate, tiny_folder):
    shutil.copytree(tiny_folder, "broken")
    os.truncate("broken/model.safetensors", 100)
    words = ["pictures", "--task", "caption", "--out", "out", "--engine", "ray", "--model", "broken"]
    error = annotate(*words, status=2, model=False)
    assert "the model in " in error and "broken could not be loaded" in error
