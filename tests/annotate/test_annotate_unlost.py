"""No image is lost without a word: rare layouts of tables, names that collide, and files that are passed by."""

import os
from collections import Counter

import pytest
from encoded_images import encoded, read_all, write_tar

from argus_tools.annotate.inputs import list_items
from argus_tools.cli_support import CommandError


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_tars_that_are_written_alike_keep_names_that_they_hold_twice(here):
    try:
        for count, name in enumerate((b"t-\\xff.tar", b"t-\xff.tar"), start=1):
            write_tar(os.fsdecode(name), [("a.png", encoded())] * count)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    items = list_items(["t-*.tar", "./t-*.tar"])
    assert len({(item.path, item.place) for item in items}) == len(items) == 3
    assert [item.id.rpartition("/")[2] for item in items] == ["a.png", "a.png#2", "a.png#2#2"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_may_hold_names_that_look_like_the_number_of_another(here, mode):
    names = ["a.png", "a.png", "a.png#2", "a.png", "b.png#2", "b.png", "b.png", "#damaged"]
    write_tar("x.tar", [(name, encoded((8, 1 + number))) for number, name in enumerate(names)], mode)
    content = (here / "x.tar").read_bytes()
    if mode == "w":
        (here / "x.tar").write_bytes(content[: len(names) * 1024] + b"\xff" * 512)  # a last header that is damaged
    found = read_all(list_items(["x.tar"]))
    ids = ["a.png", "a.png#2", "a.png#2#2", "a.png#3", "b.png#2", "b.png", "b.png#3", "#damaged"]
    assert {name: size for name, (size, *_) in found.items() if size} == {
        f"x.tar/{name}": (1 + number, 8) for number, name in enumerate(ids)
    }
    assert list(found)[len(names) :] == (["x.tar/#damaged#2"] if mode == "w" else [])


def test_layouts_that_a_folder_must_not_lose(here):
    """Each as in a folder, where nobody named the file or its column."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (here / "in").mkdir()
    (here / "in" / "x.png").write_bytes(encoded((5, 5)))
    one, other = ({"bytes": encoded((8, height)), "path": None} for height in (3, 4))
    black = encoded(color="black")
    tables = {
        "dictionary": {"path": pa.array(["x.png", "x.png"]).dictionary_encode()},
        "fixed": {"image": pa.array([black], pa.binary(len(black)))},
        "list": {"images": [[one], [one, other], [], None], "tags": [["a"], ["b.png"], [], None]},
        "paths": {"files": [["x.png"]], "n": [1]},
        "wide": {"image": [{"bytes": encoded(), "width": 8}]},
        "map": {"images": pa.array([[("a", encoded())]], pa.map_(pa.string(), pa.binary()))},
        "both": {"images": [[one]], "path": pa.array(["x.png"]).dictionary_encode(), "image": [encoded((9, 9))]},
        "words": {"words": [["a", "b"]], "kind": pa.array(["c"]).dictionary_encode()},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), f"in/{name}.parquet")
    counts = Counter()
    found = {
        identity.removeprefix("in/"): rest
        for identity, rest in read_all(list_items(["in"], None, None, counts)).items()
    }
    sizes = {name: size for name, (size, *_) in found.items() if size}
    assert sizes == {
        "x.png": (5, 5),
        "dictionary.parquet/0": (5, 5),
        "dictionary.parquet/1": (5, 5),
        "fixed.parquet/0": (6, 8),
        "list.parquet/0": (3, 8),
        "paths.parquet/0": (5, 5),
        "both.parquet/0": (9, 9),
    }
    assert found["list.parquet/0"][2] == {"tags": ["a"]} and found["both.parquet/0"][2] == {"path": "x.png"}
    errors = {name: error for name, (*_, error) in found.items() if error}
    assert list(errors) == [*(f"list.parquet/{row}" for row in (1, 2, 3)), "map.parquet", "wide.parquet"]
    assert errors["list.parquet/1"] == "the row holds a list of 2: give each image a row of its own"
    assert errors["list.parquet/2"] == errors["list.parquet/3"] == "the row holds no image"
    assert "name one with --image-column" in errors["map.parquet"] and "name one with" in errors["wide.parquet"]
    assert read_all(list_items(["in/wide.parquet"], "image"))["in/wide.parquet/0"][0] == (6, 8)
    assert counts == {".parquet": 1}  # words


def test_files_without_an_image_are_counted_where_that_may_surprise(here):
    (here / "in" / "deep").mkdir(parents=True)
    for name in ("a.png", "b.png", "more.png"):
        (here / name if name == "more.png" else here / "in" / name).write_bytes(encoded())
    contents = {
        "a.json": b"{}",
        "a.txt": b"words",
        "drawn.SVG": b"<svg/>",
        "film.mp4": bytes(9),
        "deep/film.mp4": bytes(9),
    }
    contents |= {
        "_SUCCESS": b"",
        ".hidden": bytes(9),
        "annotations-00000-of-00001-000000.jsonl": b"{}",
        "bin": bytes(9),
    }
    for name, content in contents.items():
        (here / "in" / name).write_bytes(content)
    write_tar("in/films.tar", [("film.mp4", bytes(9))])
    write_tar("films-0.tar", [("film.mp4", bytes(9))])
    write_tar("films-1.tar", [("a.png", encoded())])
    (here / "list.txt").write_text("more.png\nfilms-0.tar\n")
    for typed, expected in (
        (["in", "in/deep/../*.png"], {".svg": 1, ".mp4": 2, ".tar": 1, "": 1}),
        (["in", "./in"], {".svg": 1, ".mp4": 2, ".tar": 1, "": 1}),
        (["films-{0..1}.tar"], {".tar": 1}),
        (["list.txt"], {".tar": 1}),
        (["more.png"], {}),
    ):
        counts = Counter()
        list_items(typed, passed_by=counts)
        assert counts == expected, typed
    with pytest.raises(CommandError, match=r"films-0\.tar: no image in it \(it is empty\)"):
        list_items(["films-0.tar"])


def test_links_to_shards_that_are_not_there_have_a_row(here):
    (here / "in").mkdir()
    for name in ("a.tar", "b.tar.gz", "c.parquet", "d.png", "notes.txt"):
        (here / "in" / name).symlink_to("/nowhere/at/all")
    found = read_all(list_items(["in"]))
    assert sorted(found) == ["in/a.tar", "in/b.tar.gz", "in/c.parquet", "in/d.png"]
    assert all(error for *_, error in found.values())


def test_lists_of_words_are_no_images_beside_bytes_that_nobody_knows(here):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [b"of no known kind"], "tags": [["b.png"]]}), "x.parquet")
    with pytest.raises(CommandError, match=r"no column of .* holds images; name one with --image-column"):
        list_items(["x.parquet"])


def test_datasets_columns_of_other_kinds_are_metadata(here):
    datasets = pytest.importorskip("datasets")

    features = {"photo": datasets.Image(), "grid": datasets.Array2D((1, 2), "int32")}
    features["photos"] = datasets.Sequence(datasets.Image())
    image = {"bytes": encoded(), "path": None}
    rows = {"photo": [image], "grid": [[[1, 2]]], "photos": [[image, image]]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(str(here / "data"))
    assert read_all(list_items(["data"])) == {"data/0": ((6, 8), None, {"grid": [[1, 2]]}, None)}
    one = datasets.Dataset.from_dict({"photos": [[image]]}, features=datasets.Features({"photos": features["photos"]}))
    one.save_to_disk(str(here / "one"))
    one.to_parquet(str(here / "one.parquet"))
    sizes = {identity: size for identity, (size, *_) in read_all(list_items(["one", "one.parquet"])).items()}
    assert sizes == {"one/0": (6, 8), "one.parquet/0": (6, 8)}
