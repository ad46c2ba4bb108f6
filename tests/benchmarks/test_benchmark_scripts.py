"""Every script on tiny shapes: it ends well, measures every cell, and leaves table, JSON lines and plot behind."""

import importlib.util
import json
import re

import pytest
import torch

from benchmarks.efficiency import all as everything
from benchmarks.efficiency import pictures, ttft
from benchmarks.efficiency.common import Report, build_parser, command_line
from benchmarks.efficiency.images import memory_bars, memory_factor
from benchmarks.efficiency.measuring import Bar, Budget
from benchmarks.efficiency.shapes import TINY
from benchmarks.efficiency.sides import OURS, OURS_NATIVE, OURS_ONE_RESIZE, PIL, TORCHVISION, build_sides

SCRIPTS = ("ttft", "recipes", "images", "profile", "upscale", "decode")


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_measures_all_its_cells(run_script, name):
    run = run_script(name)
    failed = [cell for cell in run.cells(name) if "error" in cell or "skipped" in cell]
    assert run.status == 0 and not failed


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_writes_a_table_with_where_and_how(run_script, name):
    text = (run_script(name).folder / f"{name}.md").read_text(encoding="utf-8")
    module = "all" if name == "images" else name
    assert f"`python -m benchmarks.efficiency.{module} --tiny" in text and "--out DIR" in text
    assert f"torch {torch.__version__}" in text and "cores" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 3
    assert "Tiny shapes" in text and "Not measured" not in text


@pytest.mark.parametrize("name", SCRIPTS)
def test_results_name_no_path_and_no_host(run_script, name):
    import platform

    run = run_script(name)
    written = [path for path in run.folder.rglob("*") if path.suffix in (".md", ".jsonl", ".txt")]
    assert written
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert str(run.folder) not in text and "site-packages" not in text, path
        assert not re.search(rf"\b{re.escape(platform.node())}\b", text), path


@pytest.mark.parametrize("name", ["ttft", "recipes", "images", "upscale", "decode", "profile_256m_argus_inputs"])
def test_script_draws_a_plot(run_script, name):
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib (extra `bench`) is not installed")
    path = run_script(name.split("_")[0]).folder / f"{name}.png"
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def test_without_matplotlib_a_script_says_so(tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = Report("ttft", build_parser("").parse_args(["--tiny", "--out", str(tmp_path)]), [])
    assert report.plot(lambda axes: None) is None
    assert "matplotlib is not installed" in capsys.readouterr().out


def test_ttft_has_every_step_of_both_sides(run_script):
    cells = {cell["cell"]: cell for cell in run_script("ttft").cells("ttft")}
    steps = cells["256m: steps"]
    for name in (OURS, TORCHVISION):
        assert list(steps[name]) == list(ttft.STEPS)
    assert {OURS, OURS_ONE_RESIZE, OURS_NATIVE, TORCHVISION, PIL} <= set(cells["256m: inputs ready"])
    assert cells["256m: whole"][OURS]["ms"] > 0 and cells["256m: whole"][TORCHVISION]["ms"] > 0
    for key in ("256m", "2b"):
        agreement = cells[f"{key}: agreement"]
        assert agreement["tiles"] == 13
        for name in (TORCHVISION, PIL):
            assert agreement[name]["same ids"] and agreement[name]["pixel levels, mean"] < 2
            assert agreement[name]["tiles"] == 13
        assert agreement["problems"] == [] and cells[f"{key}: logits"]["problems"] == []
        # before anything is timed, and the models after it
        order = list(cells)
        assert order.index(f"{key}: agreement") < order.index(f"{key}: inputs ready")
        assert order.index(f"{key}: model to first token") < order.index(f"{key}: logits")
    assert "Qwen3-VL-2B, torchvision" in cells["figure 6"]


def test_on_a_cpu_the_2b_is_measured_up_to_its_model_unless_it_is_named(tmp_path, capsys):
    options = ["--tiny", "--repeats", "1", "--num-images", "1", "--device", "cpu", "--out", str(tmp_path)]
    report = Report("ttft", build_parser("").parse_args(options), [])
    found = ttft.run(report)
    capsys.readouterr()
    assert report.failed == 0 and list(found) == ["256m", "2b"]
    assert (ttft.INPUTS, OURS) in found["2b"] and (ttft.INPUTS, PIL) in found["2b"]
    assert (ttft.MODEL, OURS) in found["256m"] and (ttft.MODEL, OURS) not in found["2b"]


def test_ttft_prints_every_bar_and_passes_none_on_tiny_shapes(run_script):
    run = run_script("ttft")
    bars = next(cell for cell in run.cells("ttft") if cell["cell"] == "bars")["bars"]
    assert len(bars) == 10 and {bar["is"] for bar in bars.values()} == {"not measured"}
    assert run.printed.count("| not measured |") == 10


def test_images_counts_tiles_and_memory(run_script):
    cell = next(c for c in run_script("images").cells("images") if c["cell"] == "640x480 JPEG")
    assert (cell["width"], cell["height"], cell["batch"]) == (640, 480, 1)
    for name in (OURS, TORCHVISION, PIL):
        assert cell[name]["tiles"] == 13 and cell[name]["images/s"] > 0
    assert cell[TORCHVISION]["output_mb"] == pytest.approx(4 * cell[OURS]["output_mb"], rel=0.1)


def test_images_measures_peaks_in_a_process_of_its_own(run_script):
    found = {c["cell"]: c for c in run_script("images").cells("images")}["peak memory"]["megabytes"]
    assert f"640x480 JPEG: {OURS}" in found and f"640x480 WEBP: {PIL}" in found
    cell = next(c for c in run_script("images").cells("images") if c["cell"] == "640x480 JPEG x 4")
    assert found[f"640x480 JPEG x 4: {OURS}"] >= cell[OURS]["output_mb"]


def test_the_memory_bars_by_hand():
    values = {"output_mb": 10.0, "decoded_mb": 1.0}
    assert memory_factor(21.0, values) == 2.0
    assert memory_factor(9.9, values) is None and memory_factor(None, values) is None
    names = ["640x480 JPEG", "large"]
    first, worst = memory_bars({"640x480 JPEG": 1.5, "large": 2.2}, {"640x480 JPEG": 3.0, "large": None}, names)
    assert (first.verdict, worst.verdict) == ("PASS", "MISSED")
    assert first.note == "allocations, n = 1; with the pages that glibc keeps: 3.00"
    assert worst.note == "large; allocations, n = 1; with the pages that glibc keeps: 3.00"
    for factors in ({"640x480 JPEG": 1.5}, {"640x480 JPEG": 1.5, "large": None}):
        first, worst = memory_bars(factors, {}, names)
        assert (first.verdict, worst.verdict, worst.note) == ("PASS", "not measured", "missing: large")


def test_fidelity_runs_on_tiny_tiles_as_a_child(run_script):
    run = run_script("images")
    cells = run.cells("fidelity")
    assert {cell["reference"] for cell in cells} >= {"SmolVLM, pil", "GotOcr2, torchvision"}
    exact = [c for c in cells if (c["reference"], c["argus"]) == ("SmolVLM, pil", "CPU, Pillow Lanczos")]
    assert [c["pixels"]["largest"] for c in exact] == [0]
    assert any(c["argus"].startswith("device path forced on the CPU") for c in cells)
    text = (run.folder / "fidelity.md").read_text(encoding="utf-8")
    assert "numbers mean nothing" in text and "fidelity --device cpu --out DIR --tiny`" in text


def test_upscale_has_nano_scores_and_all_settings(run_script):
    cells = run_script("upscale").cells("upscale")
    settings = {(c["tiling"], c["max_tiles"], c["max_upscale"]) for c in cells if c["cell"] == "256m: TTFT"}
    assert len(settings) == 16
    scores = [c for c in cells if c["cell"].startswith("argus-nano")]
    assert len(scores) == 24 and {c["scenes"] for c in scores} == {2}
    assert all(0 <= c["answers right"] <= 1 for c in scores) and {c["tiles"] for c in scores} == {1, 3, 5}


def test_all_runs_the_parts_that_are_asked_for(run_script):
    run = run_script("images")
    log = (run.folder / "all.json").read_text(encoding="utf-8")
    assert run.status == 0 and '"part": "images"' in log and '"part": "fidelity"' in log and '"ttft"' not in log
    assert (run.folder / "images.md").is_file() and not (run.folder / "ttft.md").exists()
    assert run.cells("images")[0]["command"].startswith("python -m benchmarks.efficiency.all --tiny")


def test_a_failing_cell_is_recorded_and_the_next_goes_on(tmp_path, capsys):
    report = Report("ttft", build_parser("").parse_args(["--out", str(tmp_path), "--device", "cpu"]), [])

    def fail():
        raise ValueError("no such thing\nsecond line")

    assert report.attempt("first", fail) is None
    assert report.attempt("second", lambda: 3) == 3
    report.budget.minutes = 0
    assert report.attempt("third", lambda: 4) is None
    capsys.readouterr()
    text = report.write("Title").read_text(encoding="utf-8")
    assert report.failed == 1
    assert "- first: ValueError: no such thing\n- third: the budget was spent" in text and "second line" not in text


def test_the_command_hides_paths():
    arguments = ["--images", "/home/me/val2017", "--out=/somewhere", "--shapes", "256m"]
    shown = command_line("benchmarks.efficiency.ttft", arguments)
    assert shown == "python -m benchmarks.efficiency.ttft --images DIR --out=DIR --shapes 256m"


def test_bars_of_a_cpu_and_of_a_gpu():
    fine = {"problems": []}
    found = {
        "256m": {
            ("640x480", None): True,
            (ttft.AGREEMENT, None): fine,
            (ttft.LOGITS_AGREE, None): fine,
            (ttft.INPUTS, OURS): 10.0,
            (ttft.INPUTS, OURS_ONE_RESIZE): 8.0,
            (ttft.INPUTS, TORCHVISION): 32.0,
            (ttft.INPUTS, PIL): 90.0,
            (ttft.MODEL, OURS): 700.0,
            (ttft.MODEL, TORCHVISION): 1000.0,
            (ttft.WHOLE, OURS): 20.0,
            (ttft.WHOLE, OURS_NATIVE): 5.0,
            (ttft.WHOLE, TORCHVISION): 100.0,
            (ttft.HOST, OURS): 4.0,
        }
    }
    medians = found["256m"]
    medians["repeats", None] = {key: 7 if key[0] == ttft.INPUTS else 3 for key in medians if key[1]}
    verdicts = {bar.name: (bar.value, bar.verdict) for bar in ttft.bars(found, on_gpu=False)}
    assert verdicts["CPU, exact SmolVLM tiles, torchvision / Argus"] == (pytest.approx(3.2), "PASS")
    assert verdicts["CPU, exact SmolVLM tiles, PIL / Argus"] == (pytest.approx(9.0), "MISSED")
    assert verdicts["CPU, one resize, torchvision / Argus"] == (pytest.approx(4.0), "MISSED")
    assert verdicts["CPU, 256M, model to first token, Argus / transformers"] == (pytest.approx(0.7), "PASS")
    part = "preprocessing and tokenizing, Argus / transformers"
    assert verdicts[f"Section 5.4, SmolVLM-256M: {part}"] == (pytest.approx(0.3125), "PASS")
    assert verdicts[f"Section 5.4, InternVL3-2B: {part}"] == (None, "not measured")
    assert verdicts["GPU, 256M, bytes to first token"] == (None, "not measured")
    verdicts = {bar.name: (bar.value, bar.verdict) for bar in ttft.bars(found, on_gpu=True)}
    assert verdicts["Section 5.4, SmolVLM-256M: TTFT, Argus / transformers"] == (pytest.approx(0.2), "PASS")
    assert verdicts["GPU, 256M, bytes to first token"] == (20.0, "PASS")
    assert verdicts["GPU, host share of preprocessing, 256M"] == (4.0, "MISSED")
    assert verdicts["CPU, exact SmolVLM tiles, torchvision / Argus"] == (None, "not measured")

    notes = {bar.name: bar.note for bar in ttft.bars(found, on_gpu=False)}
    assert notes["CPU, exact SmolVLM tiles, PIL / Argus"] == "n = 7"
    model = "CPU, 256M, model to first token, Argus / transformers"
    assert notes[model] == "bfloat16, sdpa; native tiling, end to end: 5 ms, less work; n = 3"
    for settings in (("float32", "sdpa"), ("bfloat16", "eager")):
        bar = next(bar for bar in ttft.bars(found, False, *settings) if bar.name == model)
        assert bar.value is None and f"{', '.join(settings)}: the bar is for bfloat16, sdpa" in bar.note


@pytest.mark.parametrize(
    ("name", "facts", "why"),
    [
        (ttft.AGREEMENT, None, "not compared"),
        (ttft.AGREEMENT, {"problems": ["other ids"]}, "sides disagree"),
        (ttft.LOGITS_AGREE, None, "not compared"),
        (ttft.LOGITS_AGREE, {"problems": ["logits are off"]}, "sides disagree"),
        ("640x480", False, "no 640x480 image"),
    ],
)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_no_bar_is_met_by_sides_that_were_not_found_to_agree(name, facts, why, on_gpu):
    medians = {
        (what, side): value
        for what in (ttft.INPUTS, ttft.MODEL, ttft.WHOLE, ttft.HOST)
        for side, value in ((OURS, 1.0), (OURS_ONE_RESIZE, 1.0), (TORCHVISION, 50.0), (PIL, 100.0))
    }
    medians["repeats", None] = dict.fromkeys(list(medians), 3)
    medians |= {("640x480", None): True, (ttft.AGREEMENT, None): {"problems": []}}
    medians[ttft.LOGITS_AGREE, None] = {"problems": []}
    before = [bar for bar in ttft.bars({"256m": medians, "2b": medians}, on_gpu) if bar.value is not None]
    assert {bar.verdict for bar in before} == {"PASS"} and len(before) == (5 if on_gpu else 7)
    medians[name, None] = facts
    after = {bar.name: bar for bar in ttft.bars({"256m": medians, "2b": medians}, on_gpu)}
    for bar in before:
        ran_a_model = "first token" in bar.name or "TTFT" in bar.name
        if name == ttft.LOGITS_AGREE and not ran_a_model:
            assert after[bar.name].verdict == "PASS"
        else:
            assert after[bar.name].verdict == "not measured" and after[bar.name].note.endswith(why)


@pytest.mark.parametrize("wrong", ["ids", "tiles", "pixels"])
def test_sides_that_disagree_are_found_before_anything_is_timed(tmp_path, capsys, monkeypatch, wrong):
    sides = build_sides(TINY["256m"], "cpu", torch.float32, models=False)
    usual = sides[TORCHVISION].prepare

    def other(image):
        inputs = usual(image)
        if wrong == "ids":
            inputs["input_ids"][0, -1] += 1
        elif wrong == "tiles":
            inputs["pixel_values"] = inputs["pixel_values"][:, :-1]
        else:
            inputs["pixel_values"] = -inputs["pixel_values"]
        return inputs

    sides[TORCHVISION].prepare = other
    report = Report("ttft", build_parser("").parse_args(["--tiny", "--out", str(tmp_path), "--device", "cpu"]), [])
    medians = ttft.measure(report, "256m", sides, pictures.generated(1))
    capsys.readouterr()
    assert report.failed == 1 and "sides disagree" in next(c["error"] for c in report.cells if "error" in c)
    problems = medians[ttft.AGREEMENT, None]["problems"]
    assert len(problems) == 1 and problems[0].startswith(f"{TORCHVISION}: ") and wrong in problems[0]
    assert {bar.verdict for bar in ttft.bars({"256m": medians}, on_gpu=False)} == {"not measured"}


def test_logits_that_differ_are_a_problem(monkeypatch):
    sides = build_sides(TINY["256m"], "cpu", torch.float32)
    data = pictures.generated(1)[0]
    facts = ttft.agreement(sides, data)
    nearest = min((TORCHVISION, PIL), key=lambda name: facts[name]["pixel levels, mean"])
    assert ttft.logit_agreement(sides, data, facts, torch.float32)["problems"] == []
    if ttft.logit_agreement(sides, data, facts, torch.float32)["limit"] is None:
        pytest.skip("neither backend has Argus' pixels here")
    usual = sides[nearest].logits
    sides[nearest].logits = lambda inputs: usual(inputs) + 1
    assert "logits are off by" in ttft.logit_agreement(sides, data, facts, torch.float32)["problems"][0]


def test_a_shape_that_cannot_be_built_leaves_the_others_alone(tmp_path, capsys, monkeypatch):
    def build(shape, *arguments):
        if shape is TINY["2b"]:
            raise MemoryError("no room")
        return build_sides(shape, *arguments)

    monkeypatch.setattr(everything, "build_sides", build)
    options = ["--tiny", "--repeats", "1", "--num-images", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert everything.main([*options, "--only", "ttft", "--shapes", "2b", "256m", "--dtype", "float32"]) == 1
    capsys.readouterr()
    cells = {json.loads(line)["cell"]: json.loads(line) for line in (tmp_path / "ttft.jsonl").read_text().splitlines()}
    assert cells["2b: building"]["error"] == "MemoryError: no room"
    assert cells["256m: whole"][OURS]["ms"] > 0 and "bars" in cells
    log = json.loads((tmp_path / "all.json").read_text())
    assert log[0]["failed cells"] == 1


def test_parts_past_the_budget_are_said_to_be_skipped(tmp_path, capsys):
    assert everything.main(["--tiny", "--out", str(tmp_path), "--budget-minutes", "0", "--device", "cpu"]) == 0
    assert '"skipped": "the budget was spent"' in capsys.readouterr().out
    log = json.loads((tmp_path / "all.json").read_text())
    assert {entry["part"] for entry in log} >= {"ttft", "recipes", "images", "fidelity"}
    assert all(entry["skipped"] for entry in log)


def test_every_part_gets_its_turn():
    """By a clock that stands still but for what parts take: one that overruns leaves the last its share of the rest."""
    now, names = [0.0], list(everything.SHARES)
    budget = Budget(10, lambda: now[0])
    assert sum(everything.SHARES.values()) == pytest.approx(1)
    assert everything.turn_of("ttft", names, budget).left() == pytest.approx(132)
    now[0] = 300.0
    decode, last = (everything.turn_of(name, names, budget).left() for name in ("decode", "profile"))
    assert decode == pytest.approx(300 * 0.33 / 0.78) and last == pytest.approx(300)
    part = everything.turn_of("fidelity", names, budget)
    assert part.left() < 300 and everything.seconds_for(Budget(0.1, lambda: now[0]), budget) == 60
    now[0] = 590.0
    assert everything.seconds_for(part, budget) == pytest.approx(10)
    assert everything.turn_of("decode", names, Budget()).left() == float("inf")
    assert everything.seconds_for(Budget(), Budget()) == 300


def test_a_bar_can_be_a_floor_or_a_ceiling():
    assert [Bar("b", 2, value).verdict for value in (1.9, 2, 2.1, None)] == ["PASS", "PASS", "MISSED", "not measured"]
    assert [Bar("b", 2, value, at_least=True).verdict for value in (1.9, 2, 2.1)] == ["MISSED", "PASS", "PASS"]
    assert Bar("b", 2, 1.5, "ms").row() == ["b", "<= 2 ms", "1.5 ms", "PASS", ""]
