"""Worker processes: results of all images, and what becomes of one that kills whoever decodes it."""

import os
import signal

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


def test_a_decoder_that_does_not_come_back_is_ended(files, tmp_path, monkeypatch):
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


def test_what_breaks_while_tasks_are_read_is_raised(files):
    def broken():
        yield Task(item(files[0]))
        raise RuntimeError("the list is broken")

    with pytest.raises(RuntimeError, match="the list is broken"):
        run(broken())
