"""The Ray engine: its parts without Ray; on a local cluster with two actors, the same rows as the local engine's."""

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
from dataclasses import asdict, astuple
from pathlib import Path
from types import SimpleNamespace

import pytest

from argus_tools.annotate import ray_engine
from argus_tools.annotate.annotator import Request
from argus_tools.annotate.inputs import list_items
from argus_tools.annotate.items import Item
from argus_tools.annotate.ray_engine import RayAnnotator, _groups, _recipe, decode
from argus_tools.annotate.run import Job
from argus_tools.cli_support import CommandError, one_line

ROOT = str(Path(__file__).resolve().parents[2])

# For a machine of little memory that has much else to do. Ray's own limits are of 5 to 60 seconds, and it ends workers
# where others' processes take 95 % of the memory.
PATIENCE = {
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_health_check_failure_threshold": "200",
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_gcs_rpc_server_connect_timeout_s": "120",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def test_what_rays_tasks_and_actors_do_gives_the_same_rows(pictures, annotate, rows_in, tiny_folder):
    pa = pytest.importorskip("pyarrow")
    annotate("pictures", "--task", "caption", "--out", "out")
    request = Request("caption", tiny_folder, device="cpu", max_new_tokens=4, batch_size=2)
    items = [json.dumps([astuple(item)]) for item in list_items(["pictures"])]
    images = pa.concat_tables(decode(pa.table({"items": items}), _recipe(request), request.image_options))
    assert images.num_rows == 7
    rows = [json.loads(text) for text in RayAnnotator(asdict(request), False)(images)["row"].to_pylist()]
    assert {row["id"]: row for row in rows} == rows_in(pictures.parent / "out")
    broken = pa.concat_tables(decode(pa.table({"items": items}), '{"settings": {"tile_size": "none"}}', {}))
    (fatal,) = RayAnnotator(asdict(request), False)(broken)["row"].to_pylist()
    assert "a machine of the cluster cannot decode: " in json.loads(fatal)["fatal"]
    shutil.copytree(tiny_folder, "broken")
    os.truncate("broken/model.safetensors", 100)
    for folder, words in (
        (str(pictures), "holds a model of type None, not 'argus'"),
        ("broken", "could not be loaded"),
    ):
        (fatal,) = RayAnnotator(asdict(Request("caption", folder, device="cpu")), False)(images)["row"].to_pylist()
        assert folder in json.loads(fatal)["fatal"] and words in json.loads(fatal)["fatal"]


def test_what_fails_as_a_whole_ends_the_run_with_its_words(tiny_folder):
    pa = pytest.importorskip("pyarrow")

    def rows_of(batches):
        data = SimpleNamespace(map_batches=lambda *arguments, **options: data, iter_batches=batches)
        data.from_items = lambda *arguments, **options: data
        data.ActorPoolStrategy = lambda size: size
        ray = SimpleNamespace(data=data, cluster_resources=dict, exceptions=SimpleNamespace(RayError=KeyError))
        items, job = [Item("a", "a", "file", "a")], Job(("x",), None, {}, engine="ray")
        return ray_engine._pass(ray, items, Request("caption", tiny_folder), job, 1)

    def fatal(**options):
        yield pa.table({"row": ['{"id": "a"}']})
        yield pa.table({"row": ['{"fatal": "the model could not be loaded"}']})

    def lost(**options):
        yield pa.table({"row": ['{"id": "a"}']})
        raise KeyError("the actor died")

    for batches, words in (
        (fatal, "the model could not be loaded"),
        (lost, "Ray cannot go on: KeyError: 'the actor d"),
    ):
        rows = rows_of(batches)
        assert next(rows) == [{"id": "a"}]
        with pytest.raises(CommandError, match=words):
            next(rows)


def test_what_ray_loses(monkeypatch):
    items, request = [Item(name, name, "file", name) for name in "ab"], Request("caption", "model")
    job = Job(("x",), None, {}, engine="ray")
    monkeypatch.setattr(ray_engine, "_cluster", lambda *arguments: contextlib.nullcontext())
    monkeypatch.setattr(ray_engine, "_pass", lambda *arguments: iter(()))
    with pytest.raises(CommandError, match="Ray lost all of 2 images, each twice: all machines need this package"):
        list(ray_engine.annotate_on_ray(items, request, job))

    def tells_its_log(*arguments):
        traceback = (
            "\x1b[36mray::Map()\x1b[39m (pid=7)\n  File x, line 1\nModuleNotFoundError: No module named 'argus'\n"
        )
        logging.getLogger("ray.data.executor").error("It goes on.", exc_info=RuntimeError(traceback))
        return iter(())

    monkeypatch.setattr(ray_engine, "_pass", tells_its_log)
    why = r"each twice \(the last loss: RuntimeError: ModuleNotFoundError: No module named 'argus'\): all machines"
    with pytest.raises(CommandError, match=why):
        list(ray_engine.annotate_on_ray(items, request, job))
    assert not [each for each in logging.getLogger("ray.data").handlers if isinstance(each, ray_engine._Losses)]
    monkeypatch.setattr(ray_engine, "_pass", lambda *arguments: iter([[{"id": "a"}]]))
    rows = [row for rows in ray_engine.annotate_on_ray(items, request, job) for row in rows]
    assert [row["id"] for row in rows] == ["a", "b"] and "was lost twice" in rows[1]["error"]


def test_one_task_of_ray_reads_a_compressed_tar():
    kinds = [("file", "a"), ("file", "b"), ("file", "c"), *[("packed", "x.tgz")] * 5, ("packed", "y.tgz")]
    items = [Item(str(number), path, kind, path) for number, (kind, path) in enumerate(kinds)]
    assert [len(group) for group in _groups(items, 2)] == [2, 1, 5, 1]
    assert [len(group) for group in _groups(items, 1)] == [1] * 9


# --- with Ray ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this machine, with room for two actors and a task that decodes. Skips where Ray's own processes
    cannot start; what goes wrong with the project's in them is for the tests."""
    folders = {"prefix": "ray", "ignore_cleanup_errors": True}
    if os.path.isdir("/tmp"):
        folders["dir"] = "/tmp"  # TMPDIR may be longer than the names of sockets can be
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(**folders) as folder:
        for name, value in {**PATIENCE, "RAY_TMPDIR": folder}.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", ROOT, prepend=os.pathsep)  # its processes find the project wherever pytest began
        patch.delenv("RAY_ADDRESS", raising=False)
        ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")
        options = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 100_000_000}
        for last in (False, True):  # it waits no longer than 30 seconds for its raylet, which is quicker another time
            try:
                ray.init(address="local", num_cpus=3, **options)
                assert ray.get(ray.remote(lambda: 7).remote(), timeout=300) == 7
                break
            except Exception as error:
                ray.shutdown()
                if last:
                    pytest.skip(f"Ray could not start a cluster here: {type(error).__name__}: {one_line(error)[:300]}")
        yield
        ray.shutdown()


def test_two_actors_give_the_rows_of_the_local_engine(cluster, pictures, annotate, rows_in, monkeypatch):
    monkeypatch.setattr(ray_engine, "ITEMS_AT_ONCE", 2)  # several blocks, for both actors
    started = pictures.parent / "started"
    started.mkdir()

    class Counted(RayAnnotator):
        def __init__(self, *arguments):
            (started / str(os.getpid())).touch()
            super().__init__(*arguments)

    monkeypatch.setattr(ray_engine, "RayAnnotator", Counted)
    import ray.data

    # Both begin before either is given work: else one may have done all of it while the other still loads its model.
    monkeypatch.setattr(ray.data.DataContext.get_current(), "wait_for_min_actors_s", 300)
    # Whose answers an image is batched with depends on what comes first: one at a time, all numbers are the same.
    command = ["pictures", "--task", "dense-caption", "--batch-size", "1"]
    local = annotate(*command, "--out", "local")
    on_ray = annotate(*command, "--out", "ray", "--engine", "ray", "--actors", "2")
    assert len(list(started.iterdir())) == 2
    expected, got = rows_in(pictures.parent / "local"), rows_in(pictures.parent / "ray")
    for row in got.values():
        if row["error"]:  # machines are told whole paths, of which long ones are shortened
            row["error"] = re.sub(r"\(.*cut\.jpg( \(\d+ characters\))?\)", "(pictures/cut.jpg)", row["error"])
    assert {name: row["error"] for name, row in got.items()} == {name: row["error"] for name, row in expected.items()}
    assert (on_ray["images"], on_ray["failed"]) == (local["images"], local["failed"]) == (7, 1)
    for identity, row in expected.items():
        for name in row:
            close = pytest.approx(row[name], abs=1e-3) if name == "scores" and row[name] else row[name]
            assert got[identity][name] == close, (identity, name)
    assert annotate(*command, "--out", "ray", "--engine", "ray")["new"] == 0
