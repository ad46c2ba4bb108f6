"""Florence-2 and SmolVLM behind the same interface as Argus: tiny random models of transformers' own classes."""

import argparse
import math

import pytest
import tiny_florence
import torch
from parity.reference_checkpoints import make_source
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.smolvlm import processing_smolvlm

from argus_tools.cli_support import CommandError
from argus_tools.evaluate.models import check_model, num_parameters, open_model
from argus_tools.evaluate.other_models import CAPTION_REQUEST, FlorenceAnswerer, SmolVLMAnswerer, florence_scores

PICTURES = [Image.new("RGB", (80, 60), (200, 90, 10)), Image.new("RGB", (50, 100), (10, 90, 200))]


@pytest.fixture(scope="module")
def florence():
    processor = tiny_florence.processor()
    return FlorenceAnswerer(
        tiny_florence.model(processor.tokenizer), processor, "florence", batch_size=2, max_new_tokens=12
    )


@pytest.fixture(scope="module")
def florence_folder(florence, tmp_path_factory):
    folder = tmp_path_factory.mktemp("florence")
    florence.model.save_pretrained(folder)
    florence.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def smolvlm_folder(tmp_path_factory):
    processing_smolvlm.num2words = processing_smolvlm.num2words or str  # it wants the package, for videos alone
    folder = tmp_path_factory.mktemp("smolvlm")
    make_source("smolvlm", folder)
    return folder


def writes(monkeypatch, answerer, texts):
    """Makes the model write these answers, each token with a log-probability of -(its place + 1) / 10."""
    tokenizer = answerer.processor.tokenizer
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    T = max(len(row) for row in rows) + 1
    rows = [[*row, tokenizer.eos_token_id] + [tokenizer.pad_token_id] * (T - 1 - len(row)) for row in rows]

    class Output:
        sequences = torch.tensor([[tokenizer.eos_token_id, *row] for row in rows])
        logits = []

    for step in range(T):
        probability = math.exp(-(step + 1) / 10)
        values = torch.full((len(rows), len(tokenizer)), math.log((1 - probability) / (len(tokenizer) - 1)))
        for i, row in enumerate(rows):
            values[i, row[step]] = math.log(probability)
        Output.logits.append(values)
    monkeypatch.setattr(answerer.model, "generate", lambda **inputs: Output())
    return rows


def test_florence_speaks(florence):
    captions = florence.caption(PICTURES)
    assert len(captions) == 2 and all(isinstance(text, str) for text in captions)
    for found, picture in zip(florence.dense_caption(PICTURES), PICTURES):
        assert len(found["boxes"]) == len(found["captions"]) == len(found["scores"])
        assert all(0 <= x <= picture.width and 0 <= y <= picture.height for x, y, *_ in found["boxes"])


def test_florences_regions_are_its_own_parsers(florence, monkeypatch):
    """Two regions of one phrase and one of another; 80 x 60 pixels in a thousand bins, centres, whole pixels."""
    boxes = "<loc_100><loc_200><loc_499><loc_999>"
    text = f"a cat{boxes}<loc_0><loc_0><loc_999><loc_999>the red car<loc_250><loc_250><loc_750><loc_750>"
    (row,) = writes(monkeypatch, florence, [text])
    (found,) = florence.dense_caption(PICTURES[:1])
    assert found["captions"] == ["a cat", "a cat", "the red car"]
    assert found["boxes"] == [[8, 12, 39, 59], [0, 0, 79, 59], [20, 15, 60, 45]]
    words = len(florence.processor.tokenizer("a cat", add_special_tokens=False)["input_ids"])

    def expected(places):
        return math.exp(-sum((place + 1) / 10 for place in places) / len(places))

    assert found["scores"][0] == pytest.approx(expected(range(words + 4)), rel=1e-4)
    assert found["scores"][1] == pytest.approx(expected([*range(words), *range(words + 4, words + 8)]), rel=1e-4)
    assert found["scores"][2] == pytest.approx(expected(range(words + 8, len(row) - 1)), rel=1e-4)


def test_a_phrase_with_a_line_break_is_skipped_as_the_parser_skips_it(florence, monkeypatch):
    box = "<loc_1><loc_2><loc_300><loc_400>"
    writes(monkeypatch, florence, [f"a\ncat{box}\n the dog{box}the car\n{box}"])
    (found,) = florence.dense_caption(PICTURES[:1])
    assert found["captions"] == ["the dog"] and len(found["boxes"]) == len(found["scores"]) == 1


def test_florence_detects_what_it_knows_and_phrases_filter_it(florence, monkeypatch):
    box = "<loc_0><loc_0><loc_999><loc_999>"
    writes(monkeypatch, florence, [f"cat{box}dog{box}", f"car{box}"])
    first, second = florence.detect(PICTURES, [["Dog", "horse"], ["cat"]])
    assert first["labels"] == ["dog"] and len(first["boxes"]) == len(first["scores"]) == 1
    assert second == {"boxes": [], "labels": [], "scores": []}


def test_scores_follow_the_tokens():
    text = "ab<loc_1><loc_2><loc_3><loc_4><loc_5>c<loc_1><loc_2>"  # a fifth location is no box, nor are two
    spans = [(0, 1), (1, 2), (2, 9), (9, 16), (16, 23), (23, 30), (30, 37), (37, 38), (38, 45), (45, 52)]
    assert florence_scores(text, spans, [-0.1, -0.3, -0.2, -0.2, -0.2, -0.2, -9, -9, -9, -9]) == [
        pytest.approx(math.exp(-0.2))
    ]
    assert florence_scores("no regions", [(0, 10)], [-1.0]) == []


def test_smolvlm_speaks_and_batches_do_not_matter(smolvlm_folder):
    model = AutoModelForImageTextToText.from_pretrained(smolvlm_folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(smolvlm_folder)
    alone, together = (SmolVLMAnswerer(model, processor, batch_size=n, max_new_tokens=4) for n in (1, 2))
    questions = ["What is this?", "Is there a red car near the tree, or a dog in the grass?"]
    assert alone.answer(PICTURES, questions) == together.answer(PICTURES, questions)
    assert together.caption(PICTURES) == together.answer(PICTURES, [CAPTION_REQUEST] * 2)


def arguments(**changes):
    values = {"device": "cpu", "dtype": "auto", "batch_size": 2, "max_new_tokens": 4, "max_tiles": None}
    return argparse.Namespace(**{**values, "trust_remote_code": False, **changes})


def test_folders_are_told_apart_by_their_config(florence_folder, smolvlm_folder):
    for folder, kind, expected in (
        (florence_folder, "florence2", FlorenceAnswerer),
        (smolvlm_folder, "smolvlm", SmolVLMAnswerer),
    ):
        found, name, identity = check_model(str(folder))
        assert found == kind == identity["type"] and len(identity["fingerprint"]) == 12
        model = open_model(found, name, identity, arguments())
        held = {tensor.data_ptr(): tensor.numel() for tensor in model.model.state_dict().values()}  # a tied head once
        assert num_parameters(str(folder)) == sum(held.values())
        assert type(model) is expected and model.name == folder.name
        assert len(model.caption(PICTURES)) == 2
        with pytest.raises(CommandError, match="--max-tiles is an option of Argus models"):
            open_model(found, name, identity, arguments(max_tiles=2))
    assert not hasattr(SmolVLMAnswerer, "dense_caption") and not hasattr(FlorenceAnswerer, "answer")


def test_a_damaged_model_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "florence2"}')
    with pytest.raises(CommandError, match="could not be loaded"):
        open_model(*check_model(str(tmp_path)), arguments())
