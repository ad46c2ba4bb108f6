"""`argus annotate` in this process, on a tiny model: rows, files, going on, refusals."""

import json
import os
import signal
import tarfile

import pytest

import argus_tools.annotate.annotator
from argus_tools.annotate.annotator import Annotator
from argus_tools.annotate.manifest import claim, lock
from argus_tools.cli import main

GOOD = {
    "pictures/0.png": (64, 40),
    "pictures/2.png": (32, 32),
    "pictures/4.png": (64, 64),
    "pictures/deep/1.png": (30, 90),
    "pictures/deep/3.png": (100, 64),
    "pictures/deep/5.png": (96, 32),
}


def test_captions_of_a_folder(pictures, annotate, rows_in):
    result = annotate("pictures", "--task", "caption", "--out", "out", "--batch-size", "2", "--rows-per-file", "4")
    assert (result["images"], result["failed"], result["new"], result["files"]) == (7, 1, 7, 2)
    rows = rows_in(pictures.parent / "out")
    assert {identity: (each["width"], each["height"]) for identity, each in rows.items() if not each["error"]} == GOOD
    assert all(isinstance(rows[identity]["caption"], str) and rows[identity]["num_tiles"] for identity in GOOD)
    bad = rows["pictures/cut.jpg"]
    assert bad["caption"] is None and bad["width"] is None and "cut.jpg" in bad["error"]
    again = annotate("pictures", "--task", "caption", "--out", "out")
    assert (again["images"], again["new"], again["failed"]) == (7, 0, 1)
    assert rows_in(pictures.parent / "out") == rows


def test_rows_are_what_the_task_commands_say(pictures, annotate, rows_in, tiny_folder, capsys):
    annotate("pictures", "--task", "ask", "-q", "What?", "-q", "Where is the dog?", "--out", "out", "--max-tiles", "3")
    rows = rows_in(pictures.parent / "out")
    argv = ["--model", tiny_folder, "--json", "--max-new-tokens", "4", "--max-tiles", "3"]
    assert main(["ask", *sorted(GOOD), "-q", "What?", "-q", "Where is the dog?", *argv]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["image"], each["question"], each["answer"]) for each in said] == [
        (identity, question, answer)
        for identity in sorted(GOOD)
        for question, answer in zip(rows[identity]["questions"], rows[identity]["answers"])
    ]


def test_boxes_and_coco(pictures, annotate, rows_in, monkeypatch, capsys):
    coco = pytest.importorskip("pycocotools.coco")

    def answers(self, images):
        found = {"boxes": [[1.0, 2.0, 9.0, 12.0]], "labels": ["a dog"], "scores": [0.5], "unparsed": []}
        return [found for _ in images]

    monkeypatch.setattr(Annotator, "_answers", answers)
    command = ["pictures", "--task", "detect", "-p", "a dog", "--out", "out"]
    result = annotate(*command, "--coco", "coco.json")
    expected = {"file": "coco.json", "images": 6, "annotations": 6, "categories": 1, "left_out": 1}
    assert result["coco"] == {**expected, "unfinished_shards": []}
    assert len(coco.COCO("coco.json").getAnnIds()) == 6
    capsys.readouterr()  # pycocotools tells its progress
    os.unlink("coco.json")
    assert annotate("--out", "out", "--coco", "coco.json")["coco"]["annotations"] == 6
    assert rows_in(pictures.parent / "out")["pictures/0.png"]["labels"] == ["a dog"]


def test_a_real_dense_caption_fits_its_columns_in_parquet(pictures, annotate, rows_in):
    pytest.importorskip("pyarrow")
    annotate("pictures", "--task", "dense-caption", "--out", "out", "--format", "parquet")
    for each in rows_in(pictures.parent / "out").values():
        if each["error"] is None:
            assert len(each["boxes"]) == len(each["captions"]) == len(each["scores"])
        else:
            assert each["boxes"] is None


def test_shards_write_into_one_folder(pictures, annotate, rows_in):
    command = ["pictures", "--task", "caption", "--out", "out", "--num-shards", "3"]
    counts = [annotate(*command, "--shard", shard)["images"] for shard in range(3)]
    rows = rows_in(pictures.parent / "out")
    assert sum(counts) == 7 and set(rows) == {*GOOD, "pictures/cut.jpg"}
    assert "num_shards is 3 there and 1 here" in annotate("pictures", "--task", "caption", "--out", "out", status=2)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_is_complete_and_goes_on(pictures, annotate, rows_in, monkeypatch, interruption):
    original, seen = Annotator.__call__, []

    def interrupted(self, batch):
        seen.append(batch)
        if len(seen) == 3:
            if interruption is KeyboardInterrupt:
                raise KeyboardInterrupt
            os.kill(os.getpid(), interruption)
        return original(self, batch)

    command = ["pictures", "--task", "caption", "--out", "out", "--batch-size", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(Annotator, "__call__", interrupted)
        error = annotate(*command, status=130 if interruption is KeyboardInterrupt else 128 + interruption)
    assert error.startswith("argus: error: ")
    before = rows_in(pictures.parent / "out")
    assert len(before) == sum(map(len, seen[:2]))
    assert annotate(*command)["new"] == 7 - len(before)
    assert len(rows_in(pictures.parent / "out")) == 7


def test_memory_that_is_short_halves_batches(pictures, annotate, rows_in, monkeypatch):
    import torch

    original, sizes, answered, refused = Annotator._answers, [], [], []

    def answers(self, images):
        sizes.append(len(images))
        if len(images) == 1 and answered and not refused:
            refused.append(images[0].id)
        if len(images) > 1 or images[0].id in refused:
            raise torch.OutOfMemoryError("no room")
        answered.append(images[0].id)
        return original(self, images)

    monkeypatch.setattr(Annotator, "_answers", answers)
    result = annotate("pictures", "--task", "caption", "--out", "out", "--batch-tiles", "1000")
    assert result["failed"] == 2 and max(sizes) > 2
    assert "not enough memory" in rows_in(pictures.parent / "out")[refused[0]]["error"]


def test_an_option_out_of_range_is_no_error_of_every_image(pictures, annotate):
    error = annotate("pictures", "--task", "caption", "--out", "out", "--max-tiles", "5000", status=2)
    assert "max_tiles=5000 is more than the 1024" in error
    assert annotate("pictures", "--task", "caption", "--out", "out", "--max-tiles", "2")["new"] == 7


def test_memory_that_suffices_for_nothing_ends_the_run(pictures, annotate, monkeypatch):
    import torch

    def answers(self, images):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Annotator, "_answers", answers)
    error = annotate("pictures", "--task", "caption", "--out", "out", status=2)
    assert "not enough memory for a single image" in error


def test_images_that_do_not_fit_are_rows_once_another_does(pictures, annotate, rows_in, monkeypatch):
    import torch

    original, asked = Annotator._answers, []

    def answers(self, images):
        asked.append(images)
        if len(asked) < 4:
            raise torch.OutOfMemoryError("no room")
        return original(self, images)

    monkeypatch.setattr(Annotator, "_answers", answers)
    result = annotate("pictures", "--task", "caption", "--out", "out", "--batch-size", "1")
    assert (result["images"], result["failed"]) == (7, 4)
    assert sum("not enough memory" in (row["error"] or "") for row in rows_in(pictures.parent / "out").values()) == 3


def test_questions_about_tars_keep_keys_and_metadata(pictures, annotate, rows_in):
    (pictures / "0.txt").write_text("grey")
    with tarfile.open("data.tar", "w") as tar:
        for name in ("0.png", "0.txt", "2.png"):
            tar.add(pictures / name, name)
    annotate("data.tar", "--task", "caption", "--out", "out", "--prompt", "What is this?")
    rows = rows_in(pictures.parent / "out")
    assert {identity: (each["key"], each["metadata"], each["source"]) for identity, each in rows.items()} == {
        "data.tar/0.png": ("0", '{"txt": "grey"}', "data.tar"),
        "data.tar/2.png": ("2", None, "data.tar"),
    }


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "there is no INPUT"),
        (["pictures"], "--task is missing: one of caption, ask"),
        (["pictures", "--task", "ask"], "--task ask needs -q"),
        (["pictures", "--task", "detect"], "--task detect needs -p"),
        (["pictures", "--task", "detect", "-p", " "], "a prompt, question or phrase is empty"),
        (["pictures", "--task", "caption", "-q", "x"], "-q belongs to --task ask, not to caption"),
        (["pictures", "--task", "caption", "--coco", "c.json"], "--coco needs boxes"),
        (["pictures", "--task", "detect", "-p", "x", "--coco", "no/c.json"], "there is no folder"),
        (["pictures", "--task", "detect", "-p", "x", "--coco", "."], "is a folder: name a file in it"),
        (["pictures", "--task", "caption", "--shard", "2", "--num-shards", "2"], "--shard 2 is none of 2"),
        (["pictures", "--task", "caption", "--num-shards", "2"], "--num-shards needs --shard"),
        (["pictures", "--task", "caption", "--shard", "0", "--num-shards", "2", "--restart"], "--restart would remove"),
        (["pictures", "--task", "caption", "--shard", "-1"], "is not a whole number of at least 0"),
        (["pictures", "--task", "caption", "--actors", "2"], "--actors belongs to --engine ray"),
        (["gone", "--task", "caption"], "gone: it does not exist. Understood are"),
        (
            ["", "--task", "caption"],
            "INPUT '' names nothing: give a name, or see whether a variable of the shell is empty",
        ),
        (["pictures", "--task", "detect", "-p", "x", "--coco", ""], "--coco '' names nothing: give a name"),
    ],
)
def test_bad_commands_are_refused_before_a_model_is_loaded(pictures, annotate, monkeypatch, words, message):
    def load(*arguments):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(argus_tools.annotate.annotator.cli_models, "load", load)
    assert message in annotate(*words, "--out", "out", status=2)
    assert not os.path.exists("out")


def test_what_was_passed_by_is_said(pictures, annotate, capsys, tiny_folder):
    for number in range(8):
        (pictures / f"film.m{number}").write_bytes(bytes(9))
    command = ["pictures", "--task", "caption", "--out", "out"]
    assert annotate(*command)["passed_by"] == {f".m{number}": 1 for number in range(8)}
    assert main(["annotate", *command, "--model", tiny_folder, "--max-new-tokens", "4"]) == 0
    words = "passed by, as no image was found in them: 1 .m0, 1 .m1, 1 .m2, 1 .m3, 1 .m4, 3 others"
    assert words in capsys.readouterr().out.splitlines()
    command[0] = "pictures/0.png"
    assert annotate(*command, "--restart")["passed_by"] == {}


def test_an_empty_name_is_not_the_current_folder(pictures, annotate):
    assert "--out '' names nothing: give" in annotate("pictures", "--task", "caption", "--out", "", status=2)
    assert os.listdir(".") == ["pictures"]


def test_a_folder_of_another_command_is_refused(pictures, annotate, monkeypatch):
    annotate("pictures/0.png", "--task", "caption", "--out", "out")
    other = ["pictures/0.png", "--task", "caption", "--out", "out", "--max-tiles", "2"]
    assert "options max_tiles is None there and 2 here" in annotate(*other, status=2)
    assert annotate(*other, "--restart")["new"] == 1
    os.makedirs("empty/pictures")
    os.rename("pictures/0.png", "empty/pictures/0.png")
    monkeypatch.chdir("empty")
    assert "located is" in annotate("pictures/0.png", "--task", "caption", "--out", "../out", status=2)


def test_failed_images_are_asked_anew(pictures, annotate, rows_in):
    command = ["pictures", "--task", "caption", "--out", "out"]
    assert annotate(*command)["failed"] == 1
    (pictures / "0.png").rename(pictures / "cut.jpg")
    assert annotate(*command)["new"] == 0
    result = annotate(*command, "--retry-failed")
    assert (result["images"], result["failed"], result["new"]) == (6, 0, 1)
    rows = rows_in(pictures.parent / "out")
    assert len(rows) == 7 and rows["pictures/cut.jpg"]["width"] == 64


def test_a_run_that_is_under_way_keeps_its_folder(pictures, annotate, rows_in):
    out, command = pictures.parent / "out", ["pictures/0.png", "--task", "caption", "--out", "out"]
    with lock(out, "shard-00000-of-00001"):  # no row yet
        claim(out, {"task": "ask", "num_shards": 1})
        before = (out / "manifest.json").read_text()
        assert "another process writes shard-00000-of-00001" in annotate(*command, status=2)
        assert (out / "manifest.json").read_text() == before
    assert annotate(*command)["new"] == 1
    rows = rows_in(out)
    for shard in ("00000-of-00001", "00001-of-00002"):
        with lock(out, f"shard-{shard}"):
            assert f"another process writes shard-{shard}" in annotate(*command, "--restart", status=2)
        assert rows_in(out) == rows
    assert annotate(*command, "--restart")["new"] == 1
