"""Statistics, budgets, memory and stacks, by values worked out by hand."""

from collections import Counter

import pytest
import torch

from benchmarks.efficiency import flame, measuring, pictures
from benchmarks.efficiency.measuring import (
    Budget,
    in_turn,
    median,
    peak_bytes,
    quantile,
    ratio,
    shown,
    summary,
    tokens_per_second,
)


def test_quantiles_by_hand():
    assert median([3.0, 1.0, 2.0]) == 2.0 and median([4.0, 1.0, 2.0, 3.0]) == 2.5 and median([7.0]) == 7.0
    assert quantile([0.0, 10.0], 0.25) == 2.5 and quantile([5.0, 1.0, 3.0], 0.75) == 4.0
    assert summary([1.0, 2.0, 3.0, 4.0, 5.0]) == {"ms": 3.0, "q25": 2.0, "q75": 4.0, "n": 5}


def test_tokens_per_second_by_hand():
    assert tokens_per_second(33, 20.0, 84.0) == pytest.approx(500.0)  # 32 tokens in 64 ms
    assert tokens_per_second(33, 84.0, 20.0) is None
    assert ratio(3.0, 4.0) == 0.75 and ratio(None, 4.0) is None and shown(None) == "-" and shown(1.25, 2) == "1.25"


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_budget_runs_out_and_is_shared():
    clock = Clock()
    budget = Budget(2, clock)
    clock.now = 30.0
    assert budget.left() == 90.0
    assert budget.part(0.25).left() == 30.0
    clock.now = 110.0
    assert budget.part(0.25).left() == 10.0  # no more than the whole has
    clock.now = 130.0
    assert budget.left() < 0 and budget.part(0.5).left() == 0
    assert Budget(None, clock).left() == float("inf")


def test_sides_take_turns_in_alternating_order():
    order = []
    times = in_turn({name: lambda i, n=name: order.append((n, i)) for name in "ab"}, repeats=3, warmup=1)
    assert order == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert [len(values) for values in times.values()] == [3, 3] and min(times["a"]) >= 0


def test_rounds_stop_when_the_budget_is_spent_but_not_before_one():
    clock = Clock()
    budget = Budget(1, clock)

    def work(i):
        clock.now += 40

    assert len(in_turn({"a": work}, repeats=5, warmup=0, budget=budget)["a"]) == 2


def test_peak_memory_counts_a_result_and_what_it_took():
    grown = peak_bytes(lambda: torch.ones(64_000_000, dtype=torch.uint8).add(1))
    if grown is None:
        pytest.skip("this system does not tell a process' peak memory")
    assert 120e6 < grown < 160e6


def test_a_kernel_without_the_high_water_mark_is_no_measurement(monkeypatch):
    def status(name):
        if name == "VmHWM":
            raise OSError("no VmHWM")
        return 1024

    monkeypatch.setattr(measuring, "_status", status)
    assert peak_bytes(lambda: pytest.fail("nothing to measure it with")) is None
    monkeypatch.undo()
    with pytest.raises(OSError, match="has no VmNone"):
        measuring._status("VmNone")


def test_a_folder_without_the_size_says_so():
    small = pictures.encode(pictures.photo(32, 24))
    assert pictures.same_size([small]) == [small] and not pictures.has_size([small])
    assert pictures.has_size([small], (32, 24)) and pictures.size_of(small) == (32, 24)


def test_generated_photos_have_cocos_sizes_and_weights():
    images = pictures.generated(4)
    assert images == pictures.generated(4) and pictures.same_size(images)[0] == images[0]
    assert sum(pictures.COCO_SIZES.values()) == 50
    assert all(60_000 < len(data) < 300_000 for data in images)
    assert pictures.photo(20, 10).shape == (10, 20, 3)


def test_images_come_from_a_folder(tmp_path):
    (tmp_path / "a.jpg").write_bytes(pictures.encode(pictures.photo(32, 24)))
    images, words = pictures.load(tmp_path, 5)
    assert len(images) == 1 and str(tmp_path.parent) not in words
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"holds no \.jpg files"):
        pictures.load(tmp_path, 5)


AUSTIN = """# austin: 3.7.0
# mode: wall

P12;T0:12;/x/lib/python3.11/runpy.py:_run:86;/x/repo/benchmarks/efficiency/profile.py:profiled_requests:40;\
/x/lib/python3.11/site-packages/torch/nn/modules/module.py:Module._call_impl:1787 1500
P12;T0:12;/x/lib/python3.11/runpy.py:_run:86;/x/repo/benchmarks/efficiency/profile.py:profiled_requests:44 500
P12;T0:12;/x/lib/python3.11/runpy.py:_run:86;/x/repo/benchmarks/efficiency/models.py:build_ours:44 900
"""


def test_austins_stacks_are_cut_to_the_workload():
    stacks = flame.collapse(flame.read_austin(AUSTIN))
    root = "benchmarks/efficiency/profile.py:profiled_requests"
    assert stacks == {(root, "torch/nn/modules/module.py:_call_impl"): 3, (root,): 1}


def test_rectangles_by_hand():
    stacks = Counter({("a", "b"): 1, ("a", "c", "d"): 2, ("a",): 1})
    boxes = flame.rectangles(stacks)
    assert boxes == [(0, 0.0, 1.0, "a"), (1, 0.0, 0.25, "b"), (1, 0.25, 0.5, "c"), (2, 0.25, 0.5, "d")]


def test_the_sampling_thread_sees_the_calling_thread():
    def profiled_requests():
        total = 0
        while len(sampler.stacks) == 0 or total < 200_000:
            total += 1
        return total

    with flame.Sampler(interval=0.0005) as sampler:
        profiled_requests()
    assert any(frame.endswith(":profiled_requests") for stack in sampler.stacks for frame in stack)
