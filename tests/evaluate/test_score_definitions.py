"""The ablation of the score: tokens are told apart, definitions are worked by hand, and mAP follows the rank."""

import json

import numpy as np
import pytest
from transformers import AutoProcessor

import processing_argus
from argus_tools.evaluate.meteor import MeteorLite
from argus_tools.paths import default_model_path
from benchmarks.accuracy.scores import DEFINITIONS, compare, images_of, main, regions_of

PRODUCT, LOCATION, CAPTION, SUM, CONSTANT = DEFINITIONS
SIZE = (144, 144)


@pytest.fixture(scope="module")
def processor():
    assert processing_argus  # it registers the classes
    return AutoProcessor.from_pretrained(default_model_path())


def test_tokens_are_told_apart_and_the_first_definition_is_the_products(processor):
    text = "<loc_1><loc_2><loc_30><loc_40>a red circle<loc_5><loc_6><loc_50><loc_60>a cat"
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids.append(processor.tokenizer.eos_token_id)
    log_probs = [-(i + 1) / 100 for i in range(len(ids))]
    first, second = regions_of(processor, {"ids": ids, "log_probs": log_probs}, SIZE)
    assert (first[1], second[1]) == ("a red circle", "a cat")
    words = len(processor.tokenizer("a red circle", add_special_tokens=False)["input_ids"])
    assert first[2] == log_probs[:4] and first[3] == log_probs[4 : 4 + words]
    assert second[2] == log_probs[4 + words : 8 + words] and second[3] == log_probs[8 + words : -1]
    found = processor.post_process_dense_captioning([ids], [SIZE], scores=[np.array(log_probs, np.float32)])[0]
    for region, score, box in zip((first, second), found["scores"].tolist(), found["boxes"].tolist()):
        assert np.exp(DEFINITIONS[PRODUCT](*region[2:])) == pytest.approx(score, rel=1e-5)
        assert region[0] == pytest.approx(box, rel=1e-5)


def test_definitions_by_hand():
    values = {name: float(score([-1.0, -2.0, -3.0, -4.0], [-5.0, -7.0])) for name, score in DEFINITIONS.items()}
    assert values == {PRODUCT: -22 / 6, LOCATION: -2.5, CAPTION: -6.0, SUM: -22.0, CONSTANT: 0.0}


def test_map_follows_the_rank():
    """A wrong region before a right one of one object. By location tokens the right one is surer, by its caption the
    wrong one; by neither, the order written: wrong, right, mAP 1/2."""
    box, elsewhere = (0, 0, 72, 72), (80, 80, 144, 144)
    wrong = (elsewhere, "a cat", [-2.0] * 4, [-0.1])
    right = (box, "a cat", [-0.5] * 4, [-1.0])
    found, truths = [[wrong, right]], [(SIZE, ((box, "a cat"),))]
    rows = {row["score"]: row for row in compare(found, truths, MeteorLite(), resamples=2)}
    assert rows[LOCATION]["clean_map"] == rows[PRODUCT]["clean_map"] == pytest.approx(1.0)
    assert rows[CAPTION]["clean_map"] == rows[CONSTANT]["clean_map"] == pytest.approx(0.5)
    assert rows[CAPTION]["difference"] == pytest.approx(-0.5) and rows[PRODUCT]["difference"] == 0.0
    assert rows[LOCATION]["ap_50"] == pytest.approx(1.0)
    assert images_of(found, truths, DEFINITIONS[SUM])[0].scores == [pytest.approx(-8.1), pytest.approx(-3.0)]


def test_the_script_keeps_its_tokens_and_writes_a_table(tmp_path, capsys):
    words = ["--scenes", "2", "--size", "96", "96", "--max-objects", "2", "--meteor", "lite", "--max-new-tokens", "24"]
    words += ["--save", str(tmp_path / "t.jsonl"), "--out", str(tmp_path)]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "| mean of all tokens (the product's) |" in first and str(tmp_path) not in first
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == list(DEFINITIONS) and rows[0]["meteor"] == "meteor-lite"
    assert main(words) == 0
    assert capsys.readouterr().out.split("Scenes:")[0] == first.split("Scenes:")[0]  # from the kept tokens, the same
