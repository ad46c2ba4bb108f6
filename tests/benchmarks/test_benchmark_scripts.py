"""Every script on tiny shapes: it ends well, measures every cell, and leaves table, JSON lines and plot behind."""

import importlib.util
import re

import pytest
import torch

from benchmarks.efficiency import ttft
from benchmarks.efficiency.common import Report, build_parser, command_line
from benchmarks.efficiency.measuring import Bar
from benchmarks.efficiency.sides import OURS, OURS_NATIVE, OURS_ONE_RESIZE, PIL, TORCHVISION

SCRIPTS = ("ttft", "recipes", "images", "profile", "upscale")


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


@pytest.mark.parametrize("name", ["ttft", "recipes", "images", "upscale", "profile_256m_argus_inputs"])
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
    assert run.status == 0 and '"part": "images"' in log and '"ttft"' not in log
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
    found = {
        "256m": {
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


def test_a_bar_can_be_a_floor_or_a_ceiling():
    assert [Bar("b", 2, value).verdict for value in (1.9, 2, 2.1, None)] == ["PASS", "PASS", "MISSED", "not measured"]
    assert [Bar("b", 2, value, at_least=True).verdict for value in (1.9, 2, 2.1)] == ["MISSED", "PASS", "PASS"]
    assert Bar("b", 2, 1.5, "ms").row() == ["b", "<= 2 ms", "1.5 ms", "PASS", ""]
