"""Batches of like tile counts, files and their journal, the manifest, and COCO."""

import json
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argus_tools.annotate.batching import BatchBuffer, cut_batches
from argus_tools.annotate.coco import write_coco
from argus_tools.annotate.manifest import claim, lock
from argus_tools.annotate.preparing import Prepared
from argus_tools.annotate.schema import TASKS, arrow_schema, columns, row
from argus_tools.annotate.shards import ShardWriter, own_files, part_files, rows_of
from argus_tools.cli_support import CommandError


def image(number, tiles):
    array = None if tiles == 0 else np.zeros((tiles, 3, 1, 1), np.uint8)
    return Prepared(str(number), "x", size=tiles and (1, 1), tiles=array, error=None if tiles else "bad")


# --- batches ----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 13), max_size=60), st.integers(1, 9), st.integers(1, 30))
def test_batches_hold_every_image_once_within_both_limits(counts, batch_size, batch_tiles):
    batches = cut_batches([image(i, n) for i, n in enumerate(counts)], batch_size, batch_tiles)
    assert sorted(int(each.id) for batch in batches for each in batch) == list(range(len(counts)))
    for batch in batches:
        tiles = [each.num_tiles for each in batch]
        if 0 in tiles:
            assert set(tiles) == {0}
        else:
            assert len(batch) <= batch_size and (len(batch) == 1 or len(batch) * max(tiles) <= batch_tiles)


def test_like_counts_come_together():
    batches = cut_batches([image(i, n) for i, n in enumerate([1, 13, 1, 12, 1, 13, 1, 5])], 4, 64)
    assert sorted(sorted(each.num_tiles for each in batch) for batch in batches) == [[1, 1, 1, 1], [5, 12, 13, 13]]


def test_a_buffer_that_is_full_says_so_and_gives_what_it_has():
    buffer = BatchBuffer(batch_size=8, batch_tiles=16, waiting_tiles=10)
    for number in range(3):
        assert buffer.has_room()
        buffer.put(image(number, 4))
    assert not buffer.has_room()
    assert [each.id for each in buffer.take()] == ["0", "1", "2"]
    assert buffer.has_room()
    taken = []
    thread = threading.Thread(target=lambda: taken.append(buffer.take()))
    thread.start()
    buffer.put(image(9, 0))
    thread.join(30)
    assert [each.id for each in taken[0]] == ["9"]
    buffer.put(image(10, 2))
    buffer.end(RuntimeError("the reader is broken"))
    assert [each.id for each in buffer.take()] == ["10"]
    with pytest.raises(RuntimeError, match="the reader is broken"):
        buffer.take()


# --- files ------------------------------------------------------------------------------------------------------------


def caption_row(number, error=None):
    return row(image(number, 0 if error else 1), "caption", None if error else {"caption": f"é {number}"})


def writer(folder, file_format="jsonl", shard=0, num_shards=1, rows_per_file=3):
    return ShardWriter(folder, "caption", file_format, shard, num_shards, rows_per_file, {"argus_annotate": "{}"})


def ids(folder):
    return [each["id"] for path in part_files(folder) for each in rows_of(path)]


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_rows_come_back_as_they_were(tmp_path, file_format):
    if file_format == "parquet":
        pytest.importorskip("pyarrow")
    first = writer(tmp_path, file_format)
    rows = [caption_row(number, error=number == 4) for number in range(5)]
    first.add(rows)
    first.finish()
    assert [path.name for path in part_files(tmp_path)] == [
        f"annotations-00000-of-00001-{n:06d}.{file_format}" for n in range(2)
    ]
    assert [each for path in part_files(tmp_path) for each in rows_of(path)] == rows
    assert not first.journal.exists() and not [name for name in os.listdir(tmp_path) if name.startswith(".a")]
    again = writer(tmp_path, file_format)
    assert again.done == {"0", "1", "2", "3", "4"} and again.failed == {"4"}
    again.add([caption_row(3), caption_row(5)])
    again.finish()
    assert ids(tmp_path) == ["0", "1", "2", "3", "4", "5"]


def test_files_are_full_and_the_journal_holds_the_rest(tmp_path):
    one = writer(tmp_path)
    one.add([caption_row(number) for number in range(8)])
    assert [len(list(rows_of(path))) for path in part_files(tmp_path)] == [3, 3]
    assert [json.loads(line)["id"] for line in one.journal.read_text().splitlines()] == ["6", "7"]
    assert len(writer(tmp_path).done) == 8


def test_a_journal_with_half_a_line_goes_on(tmp_path):
    first = writer(tmp_path)
    first.add([caption_row(0), caption_row(1)])
    with open(first.journal, "ab") as file:
        file.write(json.dumps(caption_row(2)).encode()[:20])
    second = writer(tmp_path)
    assert second.done == {"0", "1"}
    second.add([caption_row(2)])
    assert ids(tmp_path) == ["0", "1", "2"]


def test_interrupted_between_the_file_and_its_journal(tmp_path, monkeypatch):
    """Ctrl-C, then what the run still does at its end: no row is in two files."""
    one = writer(tmp_path)

    def interrupted(rows):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(one, "_keep", interrupted)
        one.add([caption_row(number) for number in range(4)])
    one.finish()
    assert ids(tmp_path) == ["0", "1", "2", "3"]


def test_killed_between_the_file_and_its_journal(tmp_path):
    first = writer(tmp_path)
    first.add([caption_row(0), caption_row(1)])
    journal = first.journal.read_bytes()
    first.finish()
    first.journal.write_bytes(journal)  # the file was moved, the journal not yet removed
    second = writer(tmp_path)
    second.add([caption_row(2)])
    second.finish()
    assert ids(tmp_path) == ["0", "1", "2"]


def test_a_file_that_cannot_be_written_leaves_the_journal(tmp_path, monkeypatch):
    first = writer(tmp_path)
    monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CommandError, match=r"annotations-00000-of-00001-000000.jsonl cannot be written: No space"):
        first.add([caption_row(number) for number in range(3)])
    monkeypatch.undo()
    assert ids(tmp_path) == [] and writer(tmp_path).done == {"0", "1", "2"}


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "annotations-00000-of-00001-000000.jsonl").write_text('{"id": "0", "error": null}\nhalf')
    with pytest.raises(CommandError, match=r"000000.jsonl is damaged .*: remove it"):
        writer(tmp_path)


def test_shards_have_files_of_their_own(tmp_path):
    for shard in (0, 1):
        one = writer(tmp_path, shard=shard, num_shards=2)
        one.add([caption_row(shard)])
        one.finish()
    assert ids(tmp_path) == ["0", "1"]
    (tmp_path / "annotations-00001-of-00002-000000.jsonl").write_text("damaged, and none of shard 0's business")
    assert writer(tmp_path, shard=0, num_shards=2).done == {"0"}


def test_numbers_may_be_longer_than_their_zeros(tmp_path):
    (tmp_path / "annotations-100000-of-100001-1000000.jsonl").write_bytes(b"")
    one = writer(tmp_path, shard=100_000, num_shards=100_001)
    one.add([caption_row(0)])
    (tmp_path / "summary-100000-of-100001.json").write_text("{}")
    assert len(own_files(tmp_path)) == 3
    one.finish()
    assert [path.name for path in part_files(tmp_path) if path.stat().st_size] == [
        "annotations-100000-of-100001-1000001.jsonl"
    ]


def test_half_written_files_are_removed(tmp_path):
    names = [
        "annotations-00000-of-00002-000000.7.jsonl",
        "journal-00000-of-00002.7.jsonl",
        "summary-00000-of-00002.7.json",
    ]
    names = [
        f".{name}" for name in (*names, *(name.replace("00000-of", "00001-of") for name in names), "manifest.7.json")
    ]
    for name in (*names, ".shard-00000-of-00002.lock", ".manifest.lock"):
        (tmp_path / name).touch()
    assert {path.name for path in own_files(tmp_path)} == set(names)
    writer(tmp_path, shard=0, num_shards=2)
    assert {path.name for path in own_files(tmp_path)} == set(names[3:])  # others may be at work
    claim(tmp_path, COMMAND, restart=True)
    assert sorted(os.listdir(tmp_path)) == [".manifest.lock", ".shard-00000-of-00002.lock", "manifest.json"]


@pytest.mark.parametrize("file_format", ["jsonl", "parquet"])
def test_rows_with_an_error_are_forgotten_file_by_file(tmp_path, file_format):
    if file_format == "parquet":
        pytest.importorskip("pyarrow")
    first = writer(tmp_path, file_format)
    first.add([caption_row(number, error=number in (1, 3, 4, 5, 7)) for number in range(8)])  # 6 and 7 in the journal
    other = writer(tmp_path, file_format, shard=1, num_shards=2)
    other.add([caption_row(9, error=True)])
    other.finish()
    again = writer(tmp_path, file_format)
    again.forget_failed()
    assert again.done == {"0", "2", "6"} and not again.failed
    assert writer(tmp_path, file_format).done == {"0", "2", "6"}
    again.add([caption_row(3), caption_row(7, error=True)])
    assert ids(tmp_path) == ["0", "2", "6", "3", "7", "9"]


@pytest.mark.parametrize("task", TASKS)
def test_every_row_fits_the_schema(task):
    pa = pytest.importorskip("pyarrow")
    schema = arrow_schema(task, {"a": "b"})
    assert schema.names == list(columns(task))
    texts = {"ask": {"questions": ["?"], "answers": ["x"]}, "caption": {"caption": "x"}}
    regions = {"boxes": [[0.0, 1.0, 2.5, 3.0]], "scores": [0.5], "unparsed": []}
    regions["labels" if task == "detect" else "captions"] = ["a dog"]
    rows = [row(image(0, 2), task, texts.get(task, regions)), row(image(1, 0), task, None)]
    assert pa.Table.from_pylist(rows, schema=schema).to_pylist() == rows


# --- the manifest -----------------------------------------------------------------------------------------------------


COMMAND = {"task": "caption", "inputs": ["a"], "options": {"max_tiles": None}, "num_shards": 1}


def test_another_command_is_refused_by_name(tmp_path):
    claim(tmp_path / "out", COMMAND)
    (tmp_path / "out" / "annotations-00000-of-00001-000000.jsonl").write_text("")
    claim(tmp_path / "out", COMMAND)
    for change, words in (
        ({"task": "ask"}, "task is 'caption' there and 'ask' here"),
        ({"options": {"max_tiles": 4}}, "options max_tiles is None there and 4 here"),
        ({"num_shards": 2}, "num_shards is 1 there and 2 here"),
    ):
        with pytest.raises(CommandError, match=words):
            claim(tmp_path / "out", {**COMMAND, **change})
    (tmp_path / "out" / "mine.txt").write_text("kept")
    claim(tmp_path / "out", {**COMMAND, "task": "ask"}, restart=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.name[0] != ".") == ["manifest.json", "mine.txt"]
    claim(tmp_path / "out", COMMAND)  # no row has been written: nobody's work would be mixed with another's


def test_rows_without_a_manifest_are_nobodys(tmp_path):
    (tmp_path / "annotations-00000-of-00001-000000.jsonl").write_text("")
    with pytest.raises(CommandError, match=r"holds annotations-00000-of-00001-000000.jsonl but no manifest.json"):
        claim(tmp_path, COMMAND)


def test_one_process_a_shard(tmp_path):
    with lock(tmp_path, "shard-0"), pytest.raises(CommandError, match="another process writes shard-0"):
        with lock(tmp_path, "shard-0"):
            raise AssertionError("the lock was given twice")
    with lock(tmp_path, "shard-0"):
        pass


# --- COCO -------------------------------------------------------------------------------------------------------------


def test_coco_is_what_pycocotools_reads(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    found = [
        ("b", {"boxes": [[1, 2, 11, 22.5]], "captions": ["A  red dog"], "scores": [0.5], "unparsed": []}),
        ("a", {"boxes": [[0, 0, 4, 4], [2, 2, 3, 9]], "captions": ["a tree", "a red dog"], "scores": [1, 0.25]}),
        ("c", {"boxes": [], "captions": [], "scores": [], "unparsed": ["<loc_5>"]}),
    ]
    rows = [row(image(name, 1), "dense-caption", {"unparsed": [], **answer}) for name, answer in found]
    rows.append(row(image("bad", 0), "dense-caption", None))
    for shard in (0, 1):
        one = ShardWriter(tmp_path, "dense-caption", "jsonl", shard, 2, 10, {})
        one.add(rows[2 * shard : 2 * shard + 2])
        one.finish()
    counts = write_coco(tmp_path, "dense-caption", tmp_path / "coco.json")
    assert counts == {"images": 3, "annotations": 3, "categories": 2, "left_out": 1}
    read = coco.COCO(str(tmp_path / "coco.json"))
    assert [read.imgs[number]["file_name"] for number in (1, 2, 3)] == ["a", "b", "c"]
    assert {each["name"]: each["id"] for each in read.loadCats(read.getCatIds())} == {"a red dog": 1, "a tree": 2}
    (dog,) = read.loadAnns(read.getAnnIds(imgIds=[2]))
    assert dog == {
        "id": dog["id"],
        "image_id": 2,
        "category_id": 1,
        "bbox": [1, 2, 10, 20.5],
        "area": 205.0,
        "iscrowd": 0,
        "score": 0.5,
        "caption": "A  red dog",
    }
    results = [{k: each[k] for k in ("image_id", "category_id", "bbox", "score")} for each in read.anns.values()]
    assert len(read.loadRes(results).anns) == 3
    with pytest.raises(CommandError, match="--coco needs boxes, which ask does not give"):
        write_coco(tmp_path, "ask", tmp_path / "coco.json")
    assert json.loads((tmp_path / "coco.json").read_text())["annotations"][0]["id"] == 1


@pytest.mark.parametrize(
    "name, message",
    [
        ("pictures/a.png", "name a .json file"),
        ("out/manifest.json", "the run's own"),
        ("out/annotations-x.json", "own"),
    ],
)
def test_coco_takes_the_place_of_no_other_file(tmp_path, name, message):
    from argus_tools.annotate.command import run
    from argus_tools.cli import build_parser

    path = tmp_path / name
    path.parent.mkdir()
    path.write_text("mine")
    words = ["annotate", "--out", str(tmp_path / "out"), "--coco", str(path)]
    with pytest.raises(CommandError, match=message):
        run(build_parser().parse_args(words))
    assert path.read_text() == "mine"
