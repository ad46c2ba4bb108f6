"""What inputs are understood, told by content, and which ids, keys and metadata their images get."""

import os

import pytest
from encoded_images import encoded, read_all, write_tar
from PIL import Image

from argus_tools.annotate.inputs import expand, list_items
from argus_tools.annotate.items import in_shard, kind_of_file
from argus_tools.cli_support import CommandError


def test_a_folder_is_walked_in_order_and_known_by_content(here):
    for name in ("b/2.png", "b/.hidden.png", "a.JPG", "b/no_suffix", ".git/x.png", "b/deep/1.png", "out/3.png"):
        (here / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "in" / name).write_bytes(encoded())
    (here / "in" / "b" / "notes.txt").write_text("words")
    (here / "in" / "loop").symlink_to(here / "in")
    items = list_items(["./in/"], leave_out="in/out")
    assert [item.id for item in items] == ["in/a.JPG", "in/b/2.png", "in/b/deep/1.png", "in/b/no_suffix"]
    assert [item.id for item in list_items(["in/b", "in/b/2.png", "in/*/2.png"])] == [
        "in/b/2.png",
        "in/b/deep/1.png",
        "in/b/no_suffix",
    ]


def test_globs_and_braces(here):
    for name in ("s-08.png", "s-09.png", "s-10.png", "t[1].png"):
        (here / name).write_bytes(encoded())
    assert expand("s-{08..10}.png") == ["s-08.png", "s-09.png", "s-10.png"]
    assert expand("s-{8..9}.x") == ["s-8.x", "s-9.x"]
    assert expand("{s,t}-{1..2}") == ["s-1", "s-2", "t-1", "t-2"]
    assert expand("*-*.png") == ["s-08.png", "s-09.png", "s-10.png"]
    assert expand("t[1].png") == ["t[1].png"]
    with pytest.raises(CommandError, match=r"u\*: nothing has such a name"):
        expand("u*")


def test_what_a_glob_fits_is_taken_as_in_a_folder(here):
    """One bad file, or captions beside the pictures, do not end the run; lists of names are read."""
    (here / "g").mkdir()
    for name in ("a.jpg", "b.png"):
        (here / "g" / name).write_bytes(encoded())
    (here / "g" / "c.jpg").symlink_to("nowhere")
    (here / "g" / "gone").symlink_to("nowhere")
    (here / "g" / "a.txt").write_text("a red circle")
    (here / "g" / "list.txt").write_text("b.png")
    assert [item.id for item in list_items(["g/*"])] == ["g/a.jpg", "g/b.png", "g/c.jpg"]
    assert [item.id for item in list_items(["g/*.jpg"])] == ["g/a.jpg", "g/c.jpg"]
    assert [item.id for item in list_items(["g/l*.txt"])] == ["g/b.png"]
    with pytest.raises(CommandError, match=r"g/a\*\.txt: no image in it \(1 \.txt\)"):
        list_items(["g/a*.txt"])
    with pytest.raises(CommandError, match=r"c\.jpg: it does not exist"):
        list_items(["g/c.jpg"])


def test_rows_that_were_written_below_are_no_input(here):
    (here / "p" / "rows").mkdir(parents=True)
    (here / "p" / "a.png").write_bytes(encoded())
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table({"id": ["a"], "source": ["p/a.png"]})
    pq.write_table(table, here / "p" / "rows" / "annotations-00000-of-00001-000000.parquet")
    assert [item.id for item in list_items(["p"])] == ["p/a.png"]
    with pytest.raises(CommandError, match=r"p/rows: no image in it \(1 annotations\)"):
        list_items(["p/rows"])


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_files_whose_names_are_written_alike_have_ids_of_their_own(here):
    for name in (b"n-\\xff.png", b"n-\xff.png"):
        try:
            (here / os.fsdecode(name)).write_bytes(encoded())
        except OSError:
            pytest.skip("this file system takes UTF-8 alone")
    items = list_items([".", "./"])
    assert [item.id for item in items] == [r"n-\xff.png", r"n-\xff.png#2"] and len({item.path for item in items}) == 2
    for number, name in enumerate((b"t-\\xff.tar", b"t-\xff.tar")):  # one id, in other places of other files
        write_tar(os.fsdecode(name), [("a.txt", b"x" * 2000 * number), ("a.png", encoded())])
    assert [item.id for item in list_items(["t-*.tar"])] == [r"t-\xff.tar/a.png", r"t-\xff.tar/a.png#2"]


def test_what_a_mac_hides_in_a_tar_is_no_image(here):
    names = ("./a.jpg", "./._a.jpg", "__MACOSX/._a.jpg", ".hidden/b.jpg", "../c.jpg")
    write_tar("mac.tar", [(name, encoded()) for name in names])
    assert [item.id for item in list_items(["mac.tar"])] == ["mac.tar/./a.jpg", "mac.tar/../c.jpg"]


def test_a_list_of_nothing_that_is_there_is_refused(here):
    (here / "a.png").write_bytes(encoded())
    (here / "list.txt").write_text("  a.png \n\nb.png\n")
    assert [(item.id, item.kind) for item in list_items(["list.txt"])] == [("a.png", "file"), ("b.png", "error")]
    (here / "README.txt").write_text("Pictures of my\nholidays\n")
    with pytest.raises(CommandError, match=r"README\.txt: none of its 2 lines names anything that is there, as Pict"):
        list_items(["README.txt"])


def test_a_tar_gives_keys_and_what_lies_beside(here):
    members = [
        ("0001.jpg", encoded((8, 6))),
        ("0001.json", b'{"caption": "red"}'),
        ("0001.txt", "ein rotes Bild é".encode()),
        ("sub/0002.left.png", encoded((5, 4))),
        ("sub/0002.right.png", encoded((7, 4))),
        ("0003.bin", encoded((3, 9))),
        ("0004.txt", b"no image"),
        ("0001.jpg", encoded((2, 2))),
    ]
    write_tar("plain.tar", members)
    write_tar("packed.tar.gz", members, "w:gz")
    for name in ("plain.tar", "packed.tar.gz"):
        metadata = {"json": {"caption": "red"}, "txt": "ein rotes Bild é"}
        found = read_all(list_items([name]))
        assert found == {
            f"{name}/0001.jpg": ((6, 8), "0001", metadata, None),
            f"{name}/sub/0002.left.png": ((4, 5), "sub/0002", None, None),
            f"{name}/sub/0002.right.png": ((4, 7), "sub/0002", None, None),
            f"{name}/0003.bin": ((9, 3), "0003", None, None),
            f"{name}/0001.jpg#2": ((2, 2), "0001", None, None),
        }


def test_parquet_in_three_forms(here):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (here / "pics").mkdir()
    (here / "pics" / "a.png").write_bytes(encoded((9, 9)))
    pictures = [encoded((8, height)) for height in range(1, 41)]
    extra = {"id": list(range(100, 140)), "words": [f"w{i}" for i in range(40)], "vector": [b"x"] * 40}
    pq.write_table(pa.table({"picture": pictures, **extra}), "bytes.parquet", row_group_size=7)
    structs = [{"bytes": picture, "path": None} for picture in pictures[:2]] + [{"bytes": None, "path": "pics/a.png"}]
    structs += [{"bytes": b"", "path": None}, None]
    pq.write_table(pa.table({"image": structs}), "structs.parquet")
    pq.write_table(pa.table({"file": ["pics/a.png", "http://a/b.png", "gone.png"]}), "paths.parquet")

    items = list_items(["bytes.parquet"])
    assert [item.id for item in items] == [f"bytes.parquet/{row}" for row in range(40)]
    found = read_all([item for item in items if in_shard(item.id, 1, 3)])
    assert 5 < len(found) < 25
    for identity, (size, key, metadata, error) in found.items():
        row = int(identity.rpartition("/")[2])
        assert (size, key, error) == ((row + 1, 8), str(100 + row), None)
        assert metadata == {"id": 100 + row, "words": f"w{row}"}
    found = read_all(list_items(["structs.parquet"]))
    assert [size for size, *_ in found.values()] == [(1, 8), (2, 8), (9, 9), None, None]
    assert found["structs.parquet/3"][3] == found["structs.parquet/4"][3] == "the row holds no image"
    found = read_all(list_items(["paths.parquet"]))
    assert found["paths.parquet/0"][0] == (9, 9)
    assert "not fetched" in found["paths.parquet/1"][3] and "no such file" in found["paths.parquet/2"][3]


def test_which_column_holds_images(here):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"left": [encoded()], "right": [encoded((2, 2))], "n": [1]}), "two.parquet")
    pq.write_table(pa.table({"words": ["x"]}), "none.parquet")
    with pytest.raises(CommandError, match=r"several columns hold images \(left, right\)"):
        list_items(["two.parquet"])
    assert read_all(list_items(["two.parquet"], "right"))["two.parquet/0"][0] == (2, 2)
    with pytest.raises(CommandError, match=r"no column of words \(string\) holds images"):
        list_items(["none.parquet"])
    with pytest.raises(CommandError, match="has no column 'up'; it has left"):
        list_items(["two.parquet"], "up")
    (here / "both").mkdir()
    os.rename("none.parquet", "both/none.parquet")
    (here / "both" / "a.png").write_bytes(encoded())
    assert [item.id for item in list_items(["both"])] == ["both/a.png"]
    (here / "bad.parquet").write_bytes(b"PAR1 and no more")
    (bad,) = list_items(["bad.parquet"])
    assert bad.kind == "error" and "cannot be read" in bad.error


def test_datasets_folders(here):
    datasets = pytest.importorskip("datasets")

    images = [Image.new("RGB", (8, height)) for height in (3, 4, 5)]
    features = datasets.Features({"photo": datasets.Image(), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"photo": images, "label": [7, 8, 9]}, features=features)
    data.select([2, 0]).save_to_disk(str(here / "one"))
    datasets.DatasetDict({"train": data, "val": data.select([1])}).save_to_disk(str(here / "many"))
    found = read_all(list_items(["one"]))
    assert found == {"one/0": ((5, 8), None, {"label": 9}, None), "one/1": ((3, 8), None, {"label": 7}, None)}
    found = read_all(list_items(["many"]))
    assert {identity: rest[0] for identity, rest in found.items()} == {
        "many/train/0": (3, 8),
        "many/train/1": (4, 8),
        "many/train/2": (5, 8),
        "many/val/0": (4, 8),
    }


def test_a_list_of_names(here):
    (here / "lists").mkdir()
    (here / "lists" / "a.png").write_bytes(encoded())
    write_tar("lists/b.tar", [("1.png", encoded())])
    (here / "lists" / "all.lst").write_text("a.png\n\nb.tar\r\ngone.png\nhttps://example.org/x.jpg\n")
    items = list_items(["lists/all.lst"])
    assert [item.id for item in items] == [
        "lists/a.png",
        "lists/b.tar/1.png",
        "lists/gone.png",
        "https://example.org/x.jpg",
    ]
    assert "is not there" in items[2].error and items[3].kind == "url"


def test_the_folder_that_is_written_is_no_input(here):
    (here / "out").mkdir()
    (here / "out" / "a.png").write_bytes(encoded())
    with pytest.raises(CommandError, match=r"out/: it is the folder that is being written \(--out\)"):
        list_items(["out/"], leave_out="out")


@pytest.mark.parametrize("typed", ["", " "])
def test_an_empty_name_is_shown_and_advised(here, typed):
    with pytest.raises(CommandError, match=f"^INPUT '{typed}' names nothing: give a name, or see whether a variable"):
        list_items([typed])


def test_what_is_not_understood_is_refused(here):
    (here / "data.bin").write_bytes(bytes(range(256)) * 4)
    (here / "none").mkdir()
    (here / "none" / "a.txt").write_text("words")
    (here / "none" / "b.txt").write_text("words")
    for typed, words in (
        ("data.bin", "is none of image files, folders, WebDataset tars"),
        ("none", r"no image in it \(2 .txt\). Understood are"),
        ("gone.png", "it does not exist. Understood are"),
    ):
        with pytest.raises(CommandError, match=words):
            list_items([typed])


def test_kinds_are_told_by_content(here):
    write_tar("tar_without_suffix", [("1.png", encoded())])
    contents = {"photo.dat": encoded(kind="WEBP"), "list": b"a.png\n", "zeros": bytes(9000), "damaged.jpg": b"text"}
    for name, content in contents.items():
        (here / name).write_bytes(content)
    kinds = {name: kind_of_file(name) for name in ("tar_without_suffix", *contents)}
    assert kinds == {
        "tar_without_suffix": "tar",
        "photo.dat": "image",
        "list": "text",
        "zeros": "other",
        "damaged.jpg": "image",
    }


def test_shards_are_disjoint_complete_and_stable():
    names = [f"pictures/{number}.jpg" for number in range(1000)]
    parts = [[name for name in names if in_shard(name, shard, 4)] for shard in range(4)]
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert all(200 < len(part) < 300 for part in parts)
    assert in_shard("a.jpg", 0, 1) and [in_shard("a.jpg", shard, 3) for shard in range(3)].count(True) == 1


def test_names_that_are_no_utf8(here):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (here / name).write_bytes(encoded())
    except OSError:
        pytest.skip("this file system holds UTF-8 names only")
    (item,) = list_items(["."])
    assert item.id == "caf\\xe9.png"
    assert read_all([item])[item.id][0] == (6, 8)
