"""The embedded model as it is committed: its size, its files, and what it is good for on held-out scenes."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

from argus_tools.paths import default_model_path
from argus_tools.scenes import render_scene
from argus_tools.train.score import score


@pytest.fixture(scope="module")
def folder():
    return default_model_path()


def test_the_weights_keep_the_promised_size(folder):
    path = folder / "model.safetensors"
    assert path.stat().st_size < 15_000_000
    with safe_open(path, "pt") as weights:
        tensors = [weights.get_slice(name) for name in weights.keys()]
        assert {t.get_dtype() for t in tensors} == {"BF16"}
        assert sum(torch.Size(t.get_shape()).numel() for t in tensors) <= 7_000_000
        assert "lm_head.weight" not in weights.keys()


def test_the_tokenizer_keeps_the_promised_size(folder):
    processor = AutoProcessor.from_pretrained(folder)
    words = [t for t in processor.tokenizer.get_vocab() if not t.startswith("<loc_")]
    assert len(words) <= 4000
    assert len(processor.tokenizer) - len(words) == processor.num_location_bins


def test_it_describes_answers_and_boxes_held_out_scenes(folder):
    """Floors well under the card's scores, which are over more scenes: this finds a broken model, not a worse one."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    scores = score(model, processor, [render_scene(i, "test", height=144, width=144) for i in range(16)])
    assert scores["caption"]["object_recall"] > 0.7
    assert scores["detect"]["f1_50"] > 0.6
    assert scores["dense_caption"]["f1_50"] > 0.8
    assert scores["answer"]["what"]["accuracy"] > 0.8


def test_the_card_states_the_scores_that_were_measured(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    measured = json.loads((folder / "training" / "scores.json").read_text(encoding="utf-8"))
    for name in ("dense_caption", "detect"):
        assert f"{measured['test'][name]['f1_50']:.3f}" in card
    assert f"{measured['test']['caption']['object_recall']:.3f}" in card
