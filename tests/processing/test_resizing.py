"""Resizes split over threads are torch's own single call, bit for bit; the threads are safe to use anywhere."""

import io
import multiprocessing
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from processing_argus import resizing_argus, threads_argus
from processing_argus.image_processing_argus import ArgusImageProcessor
from processing_argus.resizing_argus import TORCH_MODES, resize, torch_has_lanczos
from processing_argus.tile_pixels_argus import write_tiles_on_cpu
from processing_argus.tiling_argus import TilingOptions, plan_tiling

FILTERS = [number for number in (0, 1, 2, 3) if number != 1 or torch_has_lanczos()]
sides = st.integers(1, 70)


def noise(height, width, seed=0):
    return np.random.default_rng([seed, height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def single_call(image, size, resample):
    mode = TORCH_MODES[resample]
    options = {} if mode == "nearest-exact" else {"align_corners": False, "antialias": True}
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()
    return F.interpolate(batch, size=size, mode=mode, **options)[0].permute(1, 2, 0).numpy()


@pytest.fixture
def many_threads(monkeypatch):
    """As on a machine with more cores, and for the smallest images too."""
    for module in ("resizing_argus", "tile_pixels_argus"):
        monkeypatch.setattr(f"processing_argus.{module}.thread_count", lambda nbytes: 5)
    monkeypatch.setattr(resizing_argus, "_LARGE", 1)


@pytest.mark.parametrize("threads", [1, 2, 5, 8])
@settings(max_examples=60, deadline=None)
@given(sides, sides, sides, sides, st.sampled_from(FILTERS))
def test_a_split_resize_is_the_single_call(threads, height, width, new_height, new_width, resample):
    assume((new_height, new_width) != (1, 1))  # torch's own assertion fails there, for channels first
    image = noise(height, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resizing_argus, "thread_count", lambda nbytes: threads)
        patch.setattr(resizing_argus, "_LARGE", 1)
        result = resize([image], (new_height, new_width), resample)
    assert np.array_equal(result, single_call(image, (new_height, new_width), resample))


@settings(max_examples=60, deadline=None)
@given(
    sides,
    sides,
    st.sampled_from(["aspect_ratio", "longest_edge"]),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from(FILTERS),
    st.integers(1, 8),
)
def test_tiles_are_the_canvas_cut(height, width, tiling, max_tiles, thumbnail, resample, threads):
    """Against a plain writing-down of the plan: whole resizes by one call each, then slices."""
    S = 16
    options = TilingOptions(tiling=tiling, tile_size=S, max_tiles=max_tiles, longest_edge=64, use_thumbnail=thumbnail)
    plan, image = plan_tiling(height, width, options), noise(height, width)
    tiles = torch.full((plan.grid.num_tiles, 3, S, S), 7, dtype=torch.uint8)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("resizing_argus", "tile_pixels_argus"):
            patch.setattr(f"processing_argus.{module}.thread_count", lambda nbytes: threads)
        patch.setattr(resizing_argus, "_LARGE", 1)
        write_tiles_on_cpu([torch.from_numpy(image).permute(2, 0, 1)], plan, resample, lambda: tiles)
    canvas = image
    for size in plan.resizes:
        canvas = single_call(canvas, size, resample) if canvas.shape[:2] != size else canvas
    expected = [
        canvas[r * S : (r + 1) * S, c * S : (c + 1) * S] for r in range(plan.grid.rows) for c in range(plan.grid.cols)
    ]
    if plan.grid.thumbnail:
        source = canvas if plan.thumbnail_from_canvas else image
        expected.append(single_call(source, (S, S), resample) if source.shape[:2] != (S, S) else source)
    assert np.array_equal(tiles.permute(0, 2, 3, 1).numpy(), np.stack(expected))


@pytest.mark.parametrize("resample", [1, 4, 5])
def test_pillows_filters_are_split_exactly_too(resample, many_threads, monkeypatch):
    monkeypatch.setattr(resizing_argus, "torch_has_lanczos", lambda: False)
    image = noise(61, 47)
    split = resize([image], (90, 33), resample)
    monkeypatch.setattr(resizing_argus, "thread_count", lambda nbytes: 1)
    assert np.array_equal(split, resize([image], (90, 33), resample))


@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("size", [(30, 40), (30, 90), (80, 40), (61, 20), (61, 47)])
def test_only_spare_pixels_are_written_over(size, transposed, spare, many_threads, monkeypatch):
    monkeypatch.setattr(resizing_argus, "_PIECE", 500)
    image = noise(47, 61).transpose(1, 0, 2) if transposed else noise(61, 47)
    before = image.copy()
    assert np.array_equal(resize([image], size, 3, spare), single_call(before, size, 3))
    assert np.array_equal(image, before) or (spare and size[1] < 47)


@pytest.mark.parametrize("tiling", ["aspect_ratio", "longest_edge"])
def test_what_a_caller_gives_is_never_written_over(tiling, many_threads, monkeypatch):
    """An array, a loaded image (also one that has the chain's first size) and a file give the same tiles, twice."""
    monkeypatch.setattr("processing_argus.tile_pixels_argus._SMALL", 0)
    processor = ArgusImageProcessor(tiling=tiling, tile_size=16, longest_edge=64, max_tiles=4)
    for size in [(100, 140), (64, 48), (22, 32)]:
        array = noise(*size)
        loaded, file = processor.fetch_images(Image.fromarray(array)), io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        given = [array, torch.from_numpy(array).permute(2, 0, 1), loaded, Image.fromarray(array), file.getvalue()]
        kept = array.copy()
        first = [processor(image, return_tensors="pt")["pixel_values"] for image in given]
        again = [processor(image, return_tensors="pt")["pixel_values"] for image in given]
        assert np.array_equal(array, kept) and np.array_equal(loaded.permute(1, 2, 0).numpy(), kept)
        assert all(torch.equal(tiles, first[0]) for tiles in [*first, *again])


# --- threads ----------------------------------------------------------------------------------------------------------


def test_small_images_and_one_thread_start_no_threads(monkeypatch):
    monkeypatch.setattr(threads_argus, "_pool", None)  # calling it would fail
    ArgusImageProcessor(tile_size=64)(noise(48, 64), return_tensors="pt")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        ArgusImageProcessor()(noise(480, 640), return_tensors="pt")
    finally:
        torch.set_num_threads(before)


def test_large_images_use_them(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    names = set()
    one_pass = resizing_argus._one_pass

    def watched(*args):
        names.add(threading.current_thread().name.rsplit("_", 1)[0])
        return one_pass(*args)

    monkeypatch.setattr(resizing_argus, "_one_pass", watched)
    for _ in range(20):  # a thread may always come too late
        ArgusImageProcessor()(noise(480, 640), return_tensors="pt")
    assert names == {threading.current_thread().name.rsplit("_", 1)[0], "argus-pixels"}


def test_what_a_task_raises_surfaces_when_all_have_stopped(many_threads, monkeypatch):
    running = []

    def fails(image, size, resample):
        running.append(1)
        try:
            raise MemoryError("no memory for this piece")
        finally:
            running.pop()

    monkeypatch.setattr(resizing_argus, "_one_pass", fails)
    for _ in range(20):
        with pytest.raises(MemoryError, match="no memory for this piece"):
            resize([noise(50, 50)], (90, 90), 3)
        assert not running


def test_a_failing_tasks_siblings_have_finished_before_it_raises():
    begun, go_on, finished = threading.Event(), threading.Event(), []

    def slow():
        begun.set()
        go_on.wait(10)
        sum(range(1_000_000))  # still busy when the other one has failed
        finished.append(1)

    def fails():
        assert begun.wait(10)
        go_on.set()
        raise MemoryError("no memory")

    lock, order = threading.Lock(), iter([slow, fails])

    def task():
        with lock:
            chosen = next(order)
        chosen()

    with pytest.raises(MemoryError):
        threads_argus.run_all([task, task], 2)
    assert finished


def test_modes_of_the_caller_do_not_matter(many_threads):
    image = torch.from_numpy(noise(96, 128)).permute(2, 0, 1)
    processor = ArgusImageProcessor(tile_size=32)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    for mode in (torch.inference_mode(), torch.enable_grad(), torch.device("meta")):
        with mode:
            tiles = processor(image, return_tensors="pt")["pixel_values"]
        assert not tiles.requires_grad and torch.equal(tiles, expected)


def _in_child(connection):
    tiles = ArgusImageProcessor()(noise(480, 640), return_tensors="np")["pixel_values"]
    connection.send(int(tiles.astype(np.int64).sum()))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_worker_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    expected = ArgusImageProcessor()(noise(480, 640), return_tensors="np")["pixel_values"].astype(np.int64).sum()
    assert threads_argus._POOLS  # the parent's pool exists, and its threads do not in the child
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(theirs,))
    child.start()
    assert ours.poll(60), "the child hangs"
    assert ours.recv() == expected
    child.join(10)
    assert child.exitcode == 0


def test_callers_share_the_pool():
    expected = ArgusImageProcessor()(noise(480, 640), return_tensors="pt")["pixel_values"]
    results = [None] * 4

    def call(i):
        results[i] = ArgusImageProcessor()(noise(480, 640), return_tensors="pt")["pixel_values"]

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, expected) for result in results)
