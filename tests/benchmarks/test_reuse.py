"""The script on reuse runs from end to end, and both sides answer the same."""

import json

import pytest

reuse = pytest.importorskip("benchmarks.efficiency.reuse")


def test_it_measures_argus_nano_and_a_tiny_shape(tmp_path, capsys):
    assert (
        reuse.main(["--tiny", "--shapes", "256m", "--device", "cpu", "--dtype", "float32", "--out", str(tmp_path)]) == 0
    )
    cells = [json.loads(line) for line in (tmp_path / "reuse.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [cell["cell"] for cell in cells] == [
        f"{model}: {asked}" for model in ("argus-nano", "256m") for asked in ("one question", "four questions")
    ]
    assert all(cell["same_answer"] for cell in cells[::2]) and cells[2]["tiles"] > 1
    table = (tmp_path / "reuse.md").read_text(encoding="utf-8")
    assert "keys and values kept" in table and "not measured" not in table.lower()
