"""From a run to a card's folder, with its log and a curve that can be looked at."""

import json

import pytest
from PIL import Image
from safetensors import safe_open
from test_run import config
from transformers import AutoModelForImageTextToText

from argus_tools.train.curve import draw_curve
from argus_tools.train.publish import publish, read_log
from argus_tools.train.run import run_config


def test_a_finished_run_is_published(tmp_path, squares):
    stages = [
        {"name": "naming", "steps": 2, "naming_weight": 1.0, "answer_weight": 0.0},
        {"name": "all", "steps": 3, "naming_weight": 0.5},
    ]
    settings = config(tmp_path / "run", stages)
    run_config(settings, minutes=1e-9, progress=False)
    with pytest.raises(FileNotFoundError, match="not at its end"):
        publish(tmp_path / "run", tmp_path / "card")
    run_config(settings, progress=False)
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_text("mine")
    publish(tmp_path / "run", tmp_path / "card", max_tiles=3)
    assert json.loads((tmp_path / "card" / "preprocessor_config.json").read_text())["max_tiles"] == 3
    with safe_open(tmp_path / "card" / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}
        assert "lm_head.weight" not in weights.keys()
    AutoModelForImageTextToText.from_pretrained(tmp_path / "card")
    assert (tmp_path / "card" / "README.md").read_text() == "mine"
    lines = read_log(tmp_path / "run")
    assert [line["samples"] for line in lines] == [4, 8, 12, 16, 20]
    assert "answer_loss" not in lines[0] and lines[-1]["answer_loss"] > 0 and lines[-1]["naming_loss"] > 0
    curve = Image.open(tmp_path / "card" / "training" / "curve.png").convert("RGB")
    assert (30, 90, 200) in set(curve.get_flattened_data() if hasattr(curve, "get_flattened_data") else curve.getdata())
    assert str(tmp_path) not in (tmp_path / "card" / "training" / "config.json").read_text()
    assert json.loads((tmp_path / "card" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_curve_needs_two_lines(tmp_path):
    with pytest.raises(ValueError, match="needs two"):
        draw_curve([{"samples": 1, "stage": "a", "answer_loss": 1.0}], tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
