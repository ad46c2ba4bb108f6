"""The embedded model as it is committed: its size, its files, and what it is good for on held-out scenes."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoProcessor

from argus_tools.evaluate.card import FILE, measure
from argus_tools.evaluate.predictions import fingerprint
from argus_tools.paths import default_model_path
from argus_tools.scenes import SCENES_VERSION


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


@pytest.fixture(scope="module")
def committed(folder):
    return json.loads((folder / FILE).read_text(encoding="utf-8"))


def test_the_committed_scores_are_those_of_the_committed_model_and_scenes(folder, committed):
    assert committed["first_16"]["model"]["fingerprint"] == fingerprint(folder)
    assert committed["first_16"]["data"]["scenes_version"] == SCENES_VERSION


def test_evaluating_it_reproduces_the_committed_scores(folder, committed):
    """The first 16 scenes of the test split. Another CPU may round otherwise and change an answer or a box in one."""
    known = committed["first_16"]
    found = measure(str(folder), ["first_16"], meteor="lite")["first_16"]
    assert found["data"] == known["data"] and found["options"] == known["options"]
    compare(found["scores"], known["scores"])


def compare(found: dict, known: dict, where: str = "") -> None:
    for name, value in found.items():
        assert name in known, f"{where}{name} is not among the committed scores"
        if isinstance(value, dict):
            compare(value, known[name], f"{where}{name} / ")
        elif isinstance(value, int):
            assert value == known[name], f"{where}{name}"
        else:
            assert value == pytest.approx(known[name], abs=0.07), f"{where}{name}"


def test_the_card_states_the_scores_that_were_measured(folder, committed):
    card = (folder / "README.md").read_text(encoding="utf-8")
    measured = committed["test"].get("scores", committed["test"])
    for name in ("dense_caption", "detect"):
        assert f"{measured[name]['f1_50']:.3f}" in card
    assert f"{measured['caption']['object_recall']:.3f}" in card
