"""Rows, journals and manifests that somebody edited: named, with what to do, and never an exception."""

import json

import pytest

from argus_tools.annotate.coco import write_coco
from argus_tools.annotate.manifest import read
from argus_tools.annotate.preparing import Prepared
from argus_tools.annotate.schema import arrow_schema, check_row, row
from argus_tools.annotate.shards import ShardWriter
from argus_tools.cli_support import CommandError

ROW = row(Prepared("0", "x", size=(1, 1)), "caption", {"caption": "é"})


def writer(folder, file_format="jsonl"):
    return ShardWriter(folder, "caption", file_format, 0, 1, 3, {})


EDITED = {
    "no row": [{}],
    "nothing": [None],
    "a number": [5],
    "no answer": [{**ROW, "caption": None}],
    "an id that is none": [{**ROW, "id": 7}],
    "a width of words": [{**ROW, "width": "wide"}],
    "one column less": [{name: value for name, value in ROW.items() if name != "error"}],
}


@pytest.mark.parametrize("rows", EDITED.values(), ids=EDITED)
@pytest.mark.parametrize("name", ["annotations-00000-of-00001-000000.jsonl", "journal-00000-of-00001.jsonl"])
def test_edited_rows_are_named(tmp_path, name, rows):
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CommandError, match=rf"{name} is damaged \(.*\): remove it, and its images are annotated anew"):
        writer(tmp_path)


@pytest.mark.parametrize("change", [{"id": [7]}, {"error": [[1.5]]}, {"width": [["a"]]}, {"caption": None}])
def test_edited_parquet_is_named(tmp_path, change):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "annotations-00000-of-00001-000000.parquet"
    table = pa.Table.from_pylist([ROW], schema=arrow_schema("caption", {}))
    pq.write_table(table.append_column("mine", pa.array([1])), path)
    assert writer(tmp_path, "parquet").done == {"0"}  # a column of one's own harms nothing
    for name, values in change.items():
        place = table.schema.names.index(name)
        table = table.remove_column(place) if values is None else table.set_column(place, name, pa.array(values))
    pq.write_table(table, path)
    with pytest.raises(CommandError, match=r"000000.parquet is damaged \(.*\): remove it, and its images are"):
        writer(tmp_path, "parquet")


def test_boxes_that_are_none_are_damage(tmp_path):
    found = {"boxes": [[1, 2, 3, 4]], "captions": ["a"], "scores": [0.5], "unparsed": []}
    whole = row(Prepared("0", "x", size=(1, 1)), "dense-caption", found)
    check_row(whole, "dense-caption")
    changes = ({"boxes": [[1, 2, 3]]}, {"boxes": [5]}, {"boxes": ["abcd"]}, {"boxes": [[0, 0, 1, float("nan")]]})
    for change in (*changes, {"captions": [None]}, {"scores": ["0.5"]}, {"scores": [10**400]}, {"unparsed": "x"}):
        with pytest.raises(ValueError, match=f"a row's {next(iter(change))} is "):
            check_row({**whole, **change}, "dense-caption")
        (tmp_path / "annotations-00000-of-00001-000000.jsonl").write_text(json.dumps({**whole, **change}))
        with pytest.raises(CommandError, match="is damaged"):
            write_coco(tmp_path, "dense-caption", tmp_path / "coco.json")


@pytest.mark.parametrize("change", [{"task": "dance"}, {"num_shards": "two"}])
def test_an_edited_manifest_is_named(tmp_path, change):
    (tmp_path / "manifest.json").write_text(
        json.dumps({"argus_annotate": 1, "task": "caption", "num_shards": 1, **change})
    )
    with pytest.raises(CommandError, match=r"manifest.json is damaged: --restart begins anew"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["{}", "null"])
def test_edited_rows_end_the_run_with_advice(pictures, annotate, content):
    command = ["pictures/0.png", "--task", "caption", "--out", "out"]
    annotate(*command)
    with open("out/annotations-00000-of-00001-000000.jsonl", "w") as file:
        file.write(content + "\n")
    assert "000000.jsonl is damaged (a row " in annotate(*command, status=2)
