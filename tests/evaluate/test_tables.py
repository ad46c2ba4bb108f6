"""The forms of Tables 3 and 4: every paper value as the paper has it and marked so, measured rows before them."""

import json
import re

import pytest

from argus_tools.cli_support import CommandError
from argus_tools.evaluate.models import check_model
from argus_tools.evaluate.tables import read_results, table

NANO = {"name": "argus-nano", "box_format": "location_tokens"}


def result(task, scores, model=NANO, **data):
    return {"task": task, "model": model, "options": {}, "data": data, "items": 1, "scores": scores}


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_table_3_holds_the_papers_values():
    rows = rows_of(table("table3", []))
    assert len(rows) == 2 + 13 and all(len(row) == 10 for row in rows)
    assert all(row[-1] == "the paper's" for row in rows[2:])
    assert rows[3][:9] == ["ArgusVLM", "256M", "55.3", "87.3", "70.4", "0.347", "1.191", "0.409", "1.014"]
    assert rows[-1][:9] == ["ArgusVLM", "2B", "63.3", "89.3", "80.7", "0.422", "1.420", "0.477", "1.187"]
    assert rows[2][:9] == ["SmolVLM*", "256M", "41.5", "80.1", "66.0", "0.056", "0.118", "0.087", "0.182"]
    assert rows[9][:6] == ["InternVL3*", "2B", "58.9", "89.6", "72.5", "0.394"]
    assert rows[6][:5] == ["MobileVLM", "1.7B", "56.1", "84.5", "-"]


def test_table_3_puts_results_of_one_model_in_one_row():
    results = [
        result("gqa", {"exact_match": 0.12345}),
        result("coco-captions", {"bleu_4": 0.1, "cider": 0.25, "tokenizer": "ptb-lite"}, limit=5),
        result("pope", {"accuracy": 0.6, "exact_accuracy": 0.5}, model={"name": "other"}),
    ]
    text = table("table3", results)
    rows = rows_of(text)
    assert rows[2] == ["**argus-nano**", "-", "12.3", "-", "-", "0.100", "0.250", "-", "-", "measured"]
    assert rows[3][:4] == ["**other**", "-", "-", "50.0"]
    assert "argus-nano, coco-captions: the first 5 items only" in text
    assert "argus-nano, coco-captions: tokenized by ptb-lite, not by the PTB tokenizer" in text
    assert "- POPE: LMMs-Eval's rule" in text and "- GQA: LMMs-Eval's rule" in text and "- VQAv2" not in text
    official = table("table3", [result("vqav2", {"accuracy": 0.5})])
    assert "- VQAv2: the challenge's own script" in official and "- POPE" not in official
    with pytest.raises(CommandError, match="two results of gqa for argus-nano"):
        table("table3", [results[0], results[0]])


@pytest.mark.parametrize(
    "count, shown",
    [(3_252_608, "3.25M"), (256_484_928, "256M"), (999_499_999, "999M"), (999_500_000, "1B"), (1_700_000_000, "1.7B")],
)
def test_table_3_says_how_large_a_measured_model_is(count, shown):
    results = [result("gqa", {"exact_match": 0.5}), {**result("pope", {"exact_accuracy": 0.5}), "parameters": count}]
    assert rows_of(table("table3", results))[2][:3] == ["**argus-nano**", shown, "50.0"]


def test_table_4():
    modes = {"reference": {"map": 0.0198}, "clean": {"map": 0.021}}
    text = table("table4", [result("dense-caption", {"METEOR 1.5": modes, "meteor-lite": modes})])
    rows = rows_of(text)
    assert rows[2] == ["**argus-nano**", "Location Tokens", "1.98", "measured, reference, METEOR 1.5"]
    assert rows[3][2:] == ["2.10", "measured, clean, METEOR 1.5"]
    assert [row[2] for row in rows[4:]] == ["1.89", "1.98", "1.67", "2.18", "3.21", "1.48"]
    assert {row[3] for row in rows[4:]} == {"the paper's"}
    assert "- argus-nano: all images of the file, not DenseCap's test split (--splits was not given)" in text
    split = result("dense-caption", {"METEOR 1.5": modes}, splits="0123456789ab", split="test")
    assert "--splits" not in table("table4", [split])
    lite = table("table4", [result("dense-caption", {"meteor-lite": modes})])
    assert re.search(r"- argus-nano: meteor-lite, not METEOR 1\.5", lite)


def test_models_are_told_apart_by_what_they_are_not_by_their_names():
    """Every run ends in OUT/model: names may repeat. A model that was renamed is still one."""
    one, two = ({"name": "model", "fingerprint": digits, "box_format": "plain_text"} for digits in ("1a" * 6, "2b" * 6))
    scores = {"meteor-lite": {"reference": {"map": 0.25}, "clean": {"map": 0.5}}}
    gqa = [result("gqa", {"exact_match": value}, model) for value, model in ((0.25, one), (0.5, two))]
    pope = result("pope", {"exact_accuracy": 0.75}, one | {"name": "renamed"})
    rows = rows_of(table("table3", [*gqa, pope]))[2:4]
    assert [row[:4] for row in rows] == [
        ["**model (1a1a1a1a1a1a)**", "-", "25.0", "75.0"],
        ["**model (2b2b2b2b2b2b)**", "-", "50.0", "-"],
    ]
    rows = rows_of(table("table4", [result("dense-caption", scores, model) for model in (one, two)]))[2:6]
    assert [row[0] for row in rows] == ["**model (1a1a1a1a1a1a)**"] * 2 + ["**model (2b2b2b2b2b2b)**"] * 2
    with pytest.raises(CommandError, match="two results of gqa for model: give one of them"):
        table("table3", [gqa[0], result("gqa", {"exact_match": 0.5}, one)])
    with pytest.raises(CommandError, match="two results of dense-caption for model"):
        table("table4", [result("dense-caption", scores, one)] * 2)
    hub = [result("gqa", {"exact_match": 0.5}, {"name": "a/b", "revision": revision}) for revision in "cd"]
    assert [row[0] for row in rows_of(table("table3", hub))[2:4]] == ["**a/b (c)**", "**a/b (d)**"]


def test_a_model_that_a_run_left_is_named_with_its_run(tmp_path):
    folder = tmp_path / "mine" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "florence2"}')
    assert check_model(str(folder))[2]["name"] == "mine/model"
    assert check_model(str(folder.rename(tmp_path / "other")))[2]["name"] == "other"


def test_results_of_other_tasks_and_other_files_are_refused(tmp_path):
    with pytest.raises(CommandError, match="table3 has no column for scenes"):
        table("table3", [result("scenes", {})])
    with pytest.raises(CommandError, match="table4 has no column for gqa"):
        table("table4", [result("gqa", {})])
    for text in ("{", "[]", '{"task": "gqa"}'):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(CommandError, match="is no result that `argus evaluate"):
            read_results([str(tmp_path / "r.json")])
    good = result("gqa", {"exact_match": 1.0})
    for bad, message in (
        (result("gqa", {}), "scores has no 'exact_match'"),
        (result("pope", {"accuracy": 1.0}), "scores has no 'exact_accuracy'"),
        (result("nocaps", {"bleu_4": None, "cider": 1.0}), "scores.bleu_4 is null, not a finite number"),
        (result("dense-caption", {"meteor-lite": {"clean": {"map": 1}}}), "scores.meteor-lite has no 'reference'"),
        (result("dense-caption", {}), "scores has no 'METEOR 1.5'"),
        (good | {"model": "nano"}, 'model is "nano", not an object'),
        (good | {"data": None}, "data is null, not an object"),
        (good | {"scores": 1}, "scores is 1, not an object"),
        (good | {"parameters": "3M"}, 'parameters is "3M", not a whole number above 0'),
    ):
        (tmp_path / "r.json").write_text(json.dumps(bad))
        with pytest.raises(CommandError, match=message):
            read_results([str(tmp_path / "r.json")])
    with pytest.raises(CommandError, match="cannot be read: No such file"):
        read_results([str(tmp_path / "none.json")])
    (tmp_path / "r.json").write_text(json.dumps(result("gqa", {"exact_match": 1.0})))
    assert read_results([str(tmp_path / "r.json")])[0]["task"] == "gqa"
