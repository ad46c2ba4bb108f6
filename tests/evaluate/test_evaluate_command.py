"""`argus evaluate` on the official files with argus-nano: predictions, scores, resuming, and bad input in one line."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from argus_tools.cli_support import CommandError
from argus_tools.evaluate import models
from argus_tools.evaluate.command import TABLES, TASKS, add_arguments, evaluate, run

FILES = Path(__file__).parent / "fixtures"
NAMES = ["000000000139.jpg", "000000000285.jpg", "0013ea2087020901.jpg", "n161313.jpg", "1.jpg", "2.jpg"]
NAMES += ["COCO_val2014_000000310196.jpg", "COCO_val2014_000000000139.jpg", "COCO_val2014_000000000285.jpg"]
SOURCES = {
    "dense-caption": ["--annotations", "region_descriptions.json"],
    "detection": ["--annotations", "coco_instances.json"],
    "coco-captions": ["--annotations", "coco_captions.json"],
    "nocaps": ["--annotations", "nocaps.json"],
    "vqav2": ["--questions", "vqav2_questions.json", "--annotations", "vqav2_annotations.json"],
    "gqa": ["--questions", "gqa_questions.json"],
    "pope": ["--questions", "pope.json"],
}
NUMBERS = {
    "dense-caption": lambda s: s["meteor-lite"]["reference"]["map"],
    "detection": lambda s: s["ap"],
    "coco-captions": lambda s: s["cider"],
    "nocaps": lambda s: s["bleu_4"],
    "vqav2": lambda s: s["accuracy"],
    "gqa": lambda s: s["exact_match"],
    "pope": lambda s: s["f1"],
}


def parse(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--debug", action="store_true")
    return parser.parse_args([str(word) for word in words])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i, name in enumerate(NAMES):
        Image.new("RGB", (80, 60), (40 * i % 256, 90, 160)).save(folder / name)
    return folder


def words_of(task, folder=FILES):
    words = [word if word.startswith("--") else str(folder / word) for word in SOURCES[task]]
    return [task, *words, "--meteor", "lite", "--max-new-tokens", "12"]


def needs(task):
    if task == "detection":
        pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    if task in ("coco-captions", "nocaps"):
        pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")


@pytest.mark.parametrize("task", SOURCES)
def test_every_task_runs_saves_and_scores_again_without_a_model(task, images, tmp_path, capsys, monkeypatch):
    needs(task)
    saved, out = tmp_path / "p.jsonl", tmp_path / "r.json"
    run(parse(*words_of(task), "--images", images, "--save", saved, "--out", out, "--json"))
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert printed["task"] == task and printed["model"]["name"] == "argus-nano"
    assert printed["parameters"] == 3_253_920  # 3.25M, as its card says
    assert 0.0 <= NUMBERS[task](printed["scores"]) <= 10.0
    assert len(saved.read_text().splitlines()) == 1 + printed["items"]

    def no_model(*arguments):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "open_model", no_model)
    again = evaluate(parse(*words_of(task), "--predictions", saved))
    assert again == printed
    assert evaluate(parse(*words_of(task), "--images", images, "--save", saved)) == printed  # complete: nothing to ask
    run(parse(*words_of(task), "--predictions", saved))
    assert f"{task}  argus-nano  {printed['items']} items" in capsys.readouterr().out


def test_an_interrupted_run_gives_the_scores_of_a_whole_one(images, tmp_path):
    whole = evaluate(
        parse(*words_of("vqav2"), "--images", images, "--save", tmp_path / "whole.jsonl", "--batch-size", 1)
    )
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "part.jsonl").write_text("".join(lines[:2]) + lines[2][:7])
    part = evaluate(parse(*words_of("vqav2"), "--images", images, "--save", tmp_path / "part.jsonl", "--batch-size", 1))
    assert part == whole and (tmp_path / "part.jsonl").read_text() == "".join(lines)


def test_scenes_are_scored(capsys):
    run(parse("scenes", "--count", 2, "--size", 96, 96, "--max-objects", 2, "--meteor", "lite"))
    text = capsys.readouterr().out
    assert "scenes  argus-nano  2 items" in text and "dense_caption / map / meteor-lite / reference" in text


def test_predictions_of_other_data_and_options_are_refused(images, tmp_path):
    saved = tmp_path / "p.jsonl"
    evaluate(parse(*words_of("pope"), "--images", images, "--save", saved, "--limit", 1))
    with pytest.raises(CommandError, match="other data: limit is 1 there and None here"):
        evaluate(parse(*words_of("pope"), "--images", images, "--save", saved))
    with pytest.raises(CommandError, match="other options: max_tiles is None there and 2 here"):
        evaluate(parse(*words_of("pope"), "--images", images, "--save", saved, "--limit", 1, "--max-tiles", 2))
    copied = tmp_path / "files"
    shutil.copytree(FILES, copied)
    (copied / "pope.json").write_text((FILES / "pope.json").read_text().replace("snowboard", "surfboard"))
    with pytest.raises(CommandError, match="other data: questions is"):
        evaluate(parse(*words_of("pope", copied), "--images", images, "--save", saved, "--limit", 1))
    with pytest.raises(CommandError, match="another task: 'pope' there and 'gqa' here"):
        evaluate(parse(*words_of("gqa"), "--predictions", saved))


REGION = {"boxes": [[0, 0, 5, 5]], "scores": [0.5]}


@pytest.mark.parametrize(
    "task, change, message",
    [
        ("pope", lambda row: row.pop("answer"), "the prediction of 1 has no 'answer'"),
        ("gqa", lambda row: row.update(answer=None), "the prediction of '201307251'.answer is null, not a text"),
        ("coco-captions", lambda row: row.update(caption=3), "the prediction of 139.caption is 3, not a text"),
        ("detection", lambda row: row.update(REGION, labels=[]), "1 boxes, 0 labels, 1 scores: one for each"),
        (
            "detection",
            lambda row: row.update(REGION, labels=["cat"], scores=[float("nan")]),
            r"scores\[0\] is NaN, not",
        ),
        ("dense-caption", lambda row: row.update(REGION, captions=["a", "b"]), "1 boxes, 2 captions, 1 scores"),
        (
            "dense-caption",
            lambda row: row.update(REGION, captions=["a"], boxes=[[1, 2]]),
            r"boxes\[0\] is \[1, 2\], not",
        ),
        ("dense-caption", lambda row: row.pop("height"), "has no 'height'"),
        ("scenes", lambda row: row["answers"].clear(), r"the prediction of 0\.answers has no '"),
        ("scenes", lambda row: row["detect"].update(labels=None), r"the prediction of 0\.detect\.labels is null"),
    ],
)
def test_predictions_of_another_form_are_one_sentence(task, change, message, images, tmp_path):
    needs(task)
    saved = tmp_path / "p.jsonl"
    words = ["scenes", "--count", 1, "--size", 96, 96] if task == "scenes" else words_of(task)
    words += ["--max-new-tokens", 4, *([] if task == "scenes" else ["--images", images])]
    evaluate(parse(*words, "--save", saved, "--meteor", "lite"))
    header, first, *rest = (json.loads(line) for line in saved.read_text().splitlines())
    change(first)
    saved.write_text("".join(json.dumps(row) + "\n" for row in (header, first, *rest)))
    for option in ("--predictions", "--save"):
        with pytest.raises(CommandError, match=message) as raised:
            evaluate(parse(*words, option, saved, "--meteor", "lite"))
        assert str(raised.value).startswith(str(saved))


def test_pope_of_several_files_is_one_test(images, tmp_path):
    """Ids that each file counts from 1 stay apart; the answers of all questions are pooled."""
    second = tmp_path / "second.json"
    second.write_text((FILES / "pope.json").read_text().replace("snowboard", "surfboard"))
    files, saved = ["--questions", FILES / "pope.json", second], tmp_path / "p.jsonl"
    found = evaluate(parse("pope", *files, "--images", images, "--save", saved, "--max-new-tokens", 4))
    assert found["items"] == found["scores"]["questions"] == 8 and len(found["data"]["questions"]) == 2
    assert [json.loads(line)["id"] for line in saved.read_text().splitlines()[1:]] == [
        f"{number}:{i}" for number in (1, 2) for i in (1, 2, 3, 4)
    ]
    assert evaluate(parse("pope", *files, "--predictions", saved)) == found
    with pytest.raises(CommandError, match="given twice"):
        evaluate(parse("pope", "--questions", second, second, "--images", images))
    with pytest.raises(CommandError, match="gqa takes one file of --questions; 2 are given"):
        evaluate(parse("gqa", "--questions", second, second, "--images", images))


def test_a_prompt_for_florence_is_refused_before_anything_runs(images, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "florence2"}')
    saved = tmp_path / "p.jsonl"
    words = [*words_of("coco-captions"), "--images", images, "--model", tmp_path, "--save", saved]
    with pytest.raises(CommandError, match=r"--prompt: .* is a Florence-2, which captions by its own <CAPTION> alone"):
        evaluate(parse(*words, "--prompt", "Describe."))
    assert not saved.exists()


@pytest.mark.parametrize("seed", ["-1", "x", "1.5"])
def test_a_seed_is_a_whole_number(seed, capsys):
    with pytest.raises(SystemExit) as raised:
        parse("scenes", f"--seed={seed}")
    assert raised.value.code == 2 and "is not a whole number of at least 0" in capsys.readouterr().err


def test_tables_are_printed(tmp_path, capsys):
    out = tmp_path / "gqa.json"
    out.write_text(json.dumps({"task": "gqa", "model": {"name": "m"}, "scores": {"exact_match": 0.5}, "data": {}}))
    run(parse("table3", out, "--out", tmp_path / "t.md"))
    text = capsys.readouterr().out
    assert "| **m** | - | 50.0 |" in text and text.strip() == (tmp_path / "t.md").read_text().strip()


@pytest.mark.parametrize(
    "words, message",
    [
        (["gqa"], "argus evaluate gqa needs --questions FILE"),
        (["vqav2", "--questions", "q.json"], "vqav2 needs --annotations FILE"),
        (["pope", "--questions", FILES / "pope.json"], "pope needs --images FOLDER"),
        (
            ["pope", "--questions", FILES / "pope.json", "--images", "nowhere"],
            "record 1: there is no COCO_val2014_.* in nowhere",
        ),
        (["scenes", "--limit", 3], "--limit belongs to data in files"),
        (["scenes", "--save", "a", "--predictions", "b"], "exclude each other"),
        (["scenes", "result.json"], "files of results belong to table3 and table4 only"),
        (["scenes", "--out", "nowhere/r.json"], "there is no folder .*nowhere"),
        (["scenes", "--out", "."], "--out . is a folder: name a file in it"),
        (["vqav2", "--questions", "q.json", "--out", "./q.json"], "--out q.json: the command reads that file"),
        (["vqav2", "--annotations", "a.json", "--out", "a.json"], "--out a.json: the command reads that file"),
        (["scenes", "--save", "s.json", "--out", "s.json"], "--out s.json: the command reads that file"),
        (["table3", "r.json", "--out", "r.json"], "--out r.json: the command reads that file"),
        (["scenes", "--model", "nowhere"], "no such folder"),
        (["scenes", "--predictions", "nowhere.jsonl"], "cannot be read: No such file"),
        (["table3", "nowhere.json"], "cannot be read: No such file"),
    ],
)
def test_bad_input_is_one_sentence(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CommandError, match=message):
        run(parse(*words))


def test_a_link_to_an_input_is_an_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("vg.json").write_text("[]")
    Path("link.json").symlink_to("vg.json")
    with pytest.raises(CommandError, match="the command reads that file"):
        run(parse("dense-caption", "--annotations", "vg.json", "--images", ".", "--out", "link.json"))
    assert Path("vg.json").read_text() == "[]"


def test_a_model_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CommandError, match="holds a model of type 'bert'"):
        evaluate(parse("scenes", "--count", 1, "--model", tmp_path))


def test_the_help_names_every_task():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for task in (*TASKS, *TABLES):
        assert task in parser.format_help()
