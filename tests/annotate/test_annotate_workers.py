"""Worker processes: results of all images, and what becomes of one that kills whoever decodes it."""

import multiprocessing
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from argus_tools.annotate import workers
from argus_tools.annotate.batching import BatchBuffer
from argus_tools.annotate.feeding import Task
from argus_tools.annotate.items import Item
from argus_tools.annotate.preparing import build_image_processor, image_processor_recipe, prepare
from argus_tools.annotate.workers import WorkerPool, WorkersFailed
from processing_argus import ArgusImageProcessor

RECIPE = image_processor_recipe(ArgusImageProcessor(tile_size=32, max_tiles=4))


class Kills:
    """Read by a worker process, it ends that process as the kernel does where memory is short."""

    def __init__(self, marker=None):
        self.marker = marker

    def __reduce__(self):
        return _kill_once, (self.marker,)


def _kill_once(marker):
    """Ends the process; with a marker's name the first time only."""
    if marker is not None:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return None
    os.kill(os.getpid(), signal.SIGKILL)


def item(path):
    return Item(os.path.basename(path), path, "file", path)


def run(tasks, count=2, options=None, **buffer):
    """{id: Prepared} of all tasks."""
    buffer = BatchBuffer(**{"batch_size": 4, "batch_tiles": 8, **buffer})
    results = []
    with WorkerPool(iter(tasks), buffer, count, RECIPE, options or {}) as pool:
        while (batch := buffer.take()) is not None:
            pool.wake()
            results += batch
        processes = [worker.process for worker in pool._workers]
    assert not any(process.is_alive() for process in processes)
    assert len({each.id for each in results}) == len(results)
    return {each.id: each for each in results}


@pytest.fixture
def files(tmp_path):
    paths = []
    for number in range(9):
        paths.append(str(tmp_path / f"{number}.png"))
        pixels = np.random.default_rng(number).integers(0, 256, (40, 30 + 20 * number, 3), np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return [*paths, str(tmp_path / "bad.png"), str(tmp_path / "gone.png")]


def test_workers_give_what_this_process_would(files):
    tasks = [Task(item(path)) for path in files] + [Task(Item("x", "x", "error"), error="it was not listed")]
    found = run(tasks, options={"max_tiles": 2}, waiting_tiles=3)
    for task in tasks[:-1]:
        expected, got = prepare(task, build_image_processor(RECIPE), {"max_tiles": 2}), found[task.item.id]
        assert (got.size, got.error) == (expected.size, expected.error)
        assert np.array_equal(got.tiles, expected.tiles)
    assert "could not be decoded" in found["bad.png"].error or "not an image" in found["bad.png"].error
    assert "no such file" in found["gone.png"].error and found["x"].error == "it was not listed"


def test_an_image_that_kills_its_worker_is_an_error_and_the_rest_goes_on(files, tmp_path):
    tasks = [Task(item(path)) for path in files[:4]]
    tasks.insert(1, Task(Item("deadly", "x", "file"), image=Kills()))
    tasks.insert(2, Task(item(files[5]), image=Kills(str(tmp_path / "marker"))))
    found = run(tasks)
    assert len(found) == 6 and "ended twice (signal 9)" in found["deadly"].error
    assert found["5.png"].error is None and found["5.png"].size == (40, 130)  # its second worker lived
    assert all(found[f"{number}.png"].error is None for number in range(4))


@pytest.fixture
def looks_often(monkeypatch):
    """The pool looks after its workers at once, and not every five seconds."""
    wait = workers.wait
    monkeypatch.setattr(workers, "wait", lambda handles, timeout: wait(handles, 0.01))


def test_a_decoder_that_does_not_come_back_is_ended(files, tmp_path, monkeypatch, looks_often):
    monkeypatch.setattr(workers, "IMAGE_SECONDS", -1)  # whatever has not come back by the first look
    os.mkfifo(tmp_path / "pipe")
    tasks = [Task(Item("stuck", "x", "tar", str(tmp_path / "pipe"), place=(0, 9)))]
    assert "took more than -1 seconds" in run(tasks, count=1)["stuck"].error


def test_workers_that_cannot_begin_end_the_run():
    buffer = BatchBuffer(4, 8)
    with WorkerPool(iter([Task(item("x.png"))]), buffer, 1, '{"settings": {"tile_size": "none"}}', {}):
        with pytest.raises(WorkersFailed, match="end as soon as they begin"):
            while buffer.take() is not None:
                pass


def hangs(connection, *arguments):
    """In place of `preparing.serve`: never says that it is ready."""
    connection.recv_bytes()


def test_workers_that_never_begin_end_the_run(monkeypatch, looks_often):
    monkeypatch.setattr(workers, "serve", hangs)
    monkeypatch.setattr(workers, "START_SECONDS", -1)  # whatever has not begun by the first look
    with pytest.raises(WorkersFailed, match=r"or never do \(status -9\)"):
        run([Task(item("x.png"))], count=1)


@pytest.mark.parametrize("error", [KeyError, TypeError, MemoryError, multiprocessing.BufferTooShort])
def test_an_answer_that_makes_no_sense_is_an_error_of_its_image(files, monkeypatch, error):
    result = workers._Worker.result

    def odd(self):
        if self.task.item.id == "0.png":
            raise error("odd")
        return result(self)

    monkeypatch.setattr(workers._Worker, "result", odd)
    found = run([Task(item(path)) for path in files[:2]], count=1)
    assert "ended twice" in found["0.png"].error and found["1.png"].error is None


@pytest.mark.parametrize("told", [b"[]", b"{}", b'{"size": null}', b'{"size": 3, "shape": [], "dtype": "uint8"}'])
def test_a_worker_keeps_its_task_until_its_answer_is_read(told):
    worker = workers._Worker.__new__(workers._Worker)
    worker.task = Task(item("x.png"))
    worker.connection = SimpleNamespace(recv_bytes=lambda: told, recv_bytes_into=lambda buffer: None)
    with pytest.raises((KeyError, TypeError, ValueError)):
        worker.result()
    assert worker.task is not None


def test_what_breaks_while_tasks_are_read_is_raised(files):
    def broken():
        yield Task(item(files[0]))
        raise RuntimeError("the list is broken")

    with pytest.raises(RuntimeError, match="the list is broken"):
        run(broken())
