"""Inputs that are damaged in part: what is whole is annotated, and what is not is told."""

import os

import pytest
from encoded_images import encoded, read_all, write_tar

from argus_tools.annotate import inputs, tars
from argus_tools.annotate.inputs import list_items
from argus_tools.annotate.items import kind_of_file


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_damaged_tar_keeps_what_is_whole(here, mode):
    write_tar("x.tar", [(f"{i}.png", encoded((60, 60 + i)) + os.urandom(3000)) for i in range(6)], mode)
    whole = (here / "x.tar").read_bytes()
    (here / "x.tar").write_bytes(whole[: len(whole) * 2 // 3] if mode == "w:gz" else whole[: 4 * 4096 + 700])
    items = list_items(["x.tar"])
    found = read_all(items)
    assert items[-1].id == "x.tar/#damaged" and "cannot be read behind its first" in found["x.tar/#damaged"][3]
    good = [identity for identity, (size, *_) in found.items() if size is not None]
    assert good == [f"x.tar/{i}.png" for i in range(len(good))] and len(good) >= 2
    (here / "empty.tar").write_bytes(b"")
    assert list(read_all(list_items(["empty.tar"]))) == ["empty.tar/#damaged"]


def test_a_damaged_header_in_the_middle_of_a_tar_is_told(here):
    write_tar("x.tar", [(f"{i}.png", encoded()) for i in range(4)])
    write_tar("whole.tar", [("0.png", encoded())])
    with open("x.tar", "r+b") as file:
        file.seek(2 * 1024 + 100)  # each member is a block of its header and one of its content
        file.write(b"\xff" * 100)
    found = read_all(list_items(["x.tar", "whole.tar"]))
    assert list(found) == ["x.tar/0.png", "x.tar/1.png", "x.tar/#damaged", "whole.tar/0.png"]
    assert "behind its first 2 files: the header at byte 2048 is damaged" in found["x.tar/#damaged"][3]
    whole = (here / "x.tar").read_bytes()
    for end, names in ((2048, 2), (2048 + 60, 3)):  # without the zeros at the end, and within a header
        (here / "x.tar").write_bytes(whole[:end])
        assert len(list_items(["x.tar"])) == names


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_json_beside_an_image_may_be_anything(here, mode):
    deep = b"[" * 100_000 + b"]" * 100_000
    numbers = b'{"a": NaN, "b": [1e999, -Infinity, 1.5]}'
    write_tar("x.tar", [("0.png", encoded()), ("0.json", deep), ("1.png", encoded()), ("1.json", numbers)], mode)
    found = read_all(list_items(["x.tar"]))
    assert found["x.tar/0.png"] == ((6, 8), "0", {"json": deep.decode()}, None)
    assert found["x.tar/1.png"] == ((6, 8), "1", {"json": {"a": None, "b": [None, None, 1.5]}}, None)


def test_a_compressed_member_that_is_no_picture_by_its_size(here, monkeypatch):
    write_tar("x.tgz", [("0.png", encoded()), ("1.png", bytes(5000)), ("2.png", encoded())], "w:gz")
    monkeypatch.setattr(tars, "MAX_IMAGE_BYTES", 4999)
    found = read_all(list_items(["x.tgz"]))
    assert [size for size, *_ in found.values()] == [(6, 8), None, (6, 8)]
    assert "it has 5000 bytes, more than the" in found["x.tgz/1.png"][3]


def test_a_compressed_tar_is_read_no_further_than_is_asked(here):
    write_tar("x.tgz", [("0.png", encoded()), ("1.png", os.urandom(200_000))], "w:gz")
    (here / "x.tgz").write_bytes((here / "x.tgz").read_bytes()[:100_000])
    assert list(tars.packed_images("x.tgz", {0})) == [(0, encoded(), None)]


def test_a_compressed_tar_that_changes_meanwhile_loses_no_item(here):
    write_tar("x.tgz", [("1.png", encoded()), ("2.png", encoded())], "w:gz")
    items = list_items(["x.tgz"])
    write_tar("x.tgz", [("1.png", encoded())], "w:gz")
    found = read_all(items)
    assert found["x.tgz/1.png"][0] == (6, 8) and "not any more" in found["x.tgz/2.png"][3]


def test_a_first_row_without_an_image_does_not_hide_the_others(here):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (here / "in").mkdir()
    pq.write_table(pa.table({"picture": [None, b"", encoded()]}), "in/bytes.parquet")
    pq.write_table(pa.table({"photo": [{"bytes": b"unknown", "path": "a"}], "words": ["x"]}), "in/form.parquet")
    pq.write_table(pa.table({"photo": pa.array([None], pa.string()), "n": [1]}), "in/null.parquet")
    pq.write_table(pa.table({"vector": [b"xyz"]}), "in/vector.parquet")
    pq.write_table(pa.table({"words": ["x", "a.png"]}), "in/words.parquet")
    items = list_items(["in"])
    assert [(item.id, item.kind) for item in items] == [
        *((f"in/bytes.parquet/{row}", "row") for row in range(3)),
        ("in/form.parquet/0", "row"),
        ("in/null.parquet", "error"),
        ("in/vector.parquet", "error"),
    ]
    assert "no column of vector (binary) holds images; name one with --image-column" in items[-1].error
    assert read_all(items)["in/bytes.parquet/2"][0] == (6, 8)


def test_metadata_that_cannot_be_read_costs_no_image(here):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    words = pa.array([b"a", b"\xff\xfe", b"c", b"d"], pa.binary()).view(pa.string())
    pq.write_table(
        pa.table({"picture": [encoded()] * 4, "words": words, "n": [1.0, 2.0, float("nan"), 4.0]}), "x.parquet"
    )
    found = read_all(list_items(["x.parquet"]))
    assert [(size, metadata, error) for size, _, metadata, error in found.values()] == [
        ((6, 8), {"words": "a", "n": 1.0}, None),
        ((6, 8), None, None),
        ((6, 8), {"words": "c", "n": None}, None),
        ((6, 8), {"words": "d", "n": 4.0}, None),
    ]


def test_a_bad_line_in_a_list_is_a_row(here, monkeypatch):
    (here / "a.png").write_bytes(encoded())
    (here / "unreadable").write_bytes(b"")
    (here / "all.lst").write_bytes(b"\xef\xbb\xbfa.png\npipe\nunreadable\nno.parquet\na.png\n")
    os.mkfifo(here / "pipe")
    expected = {"pipe": "neither a file nor a folder", "unreadable": "cannot be read: Permission denied"}
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"words": ["x"]}), "no.parquet")
        expected["no.parquet"] = "no column of words"
    except ImportError:
        expected["no.parquet"] = "it is not there"

    def kind(path):
        if path.endswith("unreadable"):
            raise PermissionError(13, "Permission denied")
        return kind_of_file(path)

    monkeypatch.setattr(inputs, "kind_of_file", kind)
    first, *bad = list_items(["all.lst"])
    assert (first.id, first.kind) == ("a.png", "file")
    assert {item.id: item.kind for item in bad} == dict.fromkeys(expected, "error")
    assert all(words in item.error for item, words in zip(bad, expected.values()))
