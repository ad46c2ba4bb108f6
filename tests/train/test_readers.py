"""What all readers have in common, on fixtures in each data set's original format; missing and broken files."""

# ruff: noqa: F811 - fixtures are imported, and then named as arguments

import pickle
import re
from pathlib import Path

import pytest
from PIL import Image
from reader_fixtures import FIXTURES, SOURCES, cache, copied, opened  # noqa: F401

from argus_tools.train.collate import Collator
from argus_tools.train.readers import READERS, open_reader


def test_every_reader_has_a_fixture():
    assert set(SOURCES) == set(READERS) - {"scenes"}


@pytest.mark.parametrize("name", SOURCES)
def test_reads_its_fixture(name, opened):
    reader = opened(name)
    assert len(reader) == SOURCES[name][1]
    for i in range(len(reader)):
        sample = reader[i]
        assert sample == reader[i] and sample.source and sample.conversations
        assert Path(sample.source.split(",")[0]).exists()
        for image in sample.images:
            with Image.open(image) as picture:
                size = picture.size
            boxes = [r.box for r in sample.objects]
            assert all(0 <= b[0] < b[2] <= size[0] and 0 <= b[1] < b[3] <= size[1] for b in boxes)
        assert all(turn.prompt and isinstance(turn.answer, (str, tuple)) for t in sample.conversations for turn in t)
    assert reader[-1] == reader[len(reader) - 1]
    with pytest.raises(IndexError, match=f"{len(reader)} of {len(reader)}"):
        reader[len(reader)]


@pytest.mark.parametrize("name", SOURCES)
def test_samples_become_batches(name, opened, processor):
    """Whatever a reader yields, the collator makes rows with something to learn of it."""
    samples = list(opened(name))
    batch = Collator(processor)(samples)
    assert (batch["labels"] != -100).any(1).all()
    assert ("pixel_values" in batch) == any(sample.images for sample in samples)
    text = processor.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert all(turns[0].prompt in "".join(text) for s in samples for turns in s.conversations if len(s.images) == 1)


@pytest.mark.parametrize("name", SOURCES)
def test_survives_the_way_to_a_worker_process(name, opened):
    reader = opened(name)
    assert pickle.loads(pickle.dumps(reader))[0] == reader[0]


@pytest.mark.parametrize("name", SOURCES)
def test_missing_files_are_named(name, opened):
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere"):
        opened(name, path="nowhere")
    with pytest.raises(FileNotFoundError, match=r"there is no folder of images .*nowhere"):
        opened(name, images="nowhere")


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("wit", "chat")])
def test_cut_off_json_is_named(name, opened, copied):
    source = Path(SOURCES[name][0]["path"])
    folder = copied(source.parts[0])
    path = folder / "problems.json" if name == "scienceqa" else folder.parent / source
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(ValueError, match=f"{path.name}.*cut off"):
        opened(name, path=str(folder if name == "scienceqa" else path))


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "objects365"])
def test_missing_image_is_named_or_left_out(name, opened, copied):
    source = Path(SOURCES[name][0]["path"])
    folder = copied(source.parts[0])
    reader = opened(name)
    gone = next(sample for sample in reader if sample.images)
    image = folder / Path(gone.images[0]).relative_to(FIXTURES / source.parts[0])
    image.unlink()
    changes = {"path": str(folder.parent / source)}
    if "images" in SOURCES[name][0]:
        changes["images"] = str(folder.parent / SOURCES[name][0]["images"])
    with pytest.raises(
        FileNotFoundError, match=r"(record|annotation|image|line) \d+: there is no image .*" + re.escape(image.name)
    ):
        list(opened(name, **changes))
    if name != "vision_flan":
        kept = list(opened(name, missing="skip", **changes))
        assert 0 < len(kept) < len(reader)
    else:
        with pytest.raises(FileNotFoundError, match=r"none of the images"):
            opened(name, missing="skip", **changes)


def test_unknown_names_are_answered_with_the_known():
    with pytest.raises(ValueError, match=r"no reader 'coco'; the readers are .*coco_captions.*chat"):
        open_reader("coco", path="x")
    with pytest.raises(ValueError, match=r"has no option 'langauge'; it has .*language"):
        open_reader("wit", path="x", langauge="en")
    with pytest.raises(ValueError, match=r"needs path"):
        open_reader("chat")


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("wit", {"names": "sha1"}, "names is 'sha1'; it can be name, md5, sha256"),
        ("coco_instances", {"absent": -1}, "absent must not be negative"),
        ("coco_instances", {"absent": "two"}, "absent must be int, got 'two'"),
        ("coco_captions", {"per_image": 1}, "per_image must be bool"),
        ("chat", {"missing": "ignore"}, "missing is 'ignore'"),
        ("scienceqa", {"split": "nights"}, "no split 'nights'; it has test?.*"),
        ("coco_instances", {"dense": False, "detection": False}, "nothing is left"),
    ],
)
def test_options_that_do_not_fit(name, options, message, opened):
    with pytest.raises(ValueError, match=message if name != "scienceqa" else "no split 'nights'; it has train"):
        opened(name, **options)


def test_a_folder_is_no_annotation_file(opened):
    with pytest.raises(IsADirectoryError, match=r"is a folder"):
        opened("chat", path="chat")


def test_arrow_file_is_made_once_and_anew_when_the_source_changes(tmp_path, copied, opened):
    folder = copied("chat")
    first = opened("chat", path=str(folder / "data.jsonl"), images=str(folder / "images"), cache_dir=tmp_path / "c")
    made = list((tmp_path / "c").rglob("*.arrow"))
    assert len(made) == 1 and not list((tmp_path / "c").rglob("*.tmp*"))
    before = made[0].stat().st_mtime_ns
    again = opened("chat", path=str(folder / "data.jsonl"), cache_dir=tmp_path / "c", missing="skip", may_flip=True)
    assert made[0].stat().st_mtime_ns == before and len(list((tmp_path / "c").rglob("*.arrow"))) == 1
    assert again.may_flip and not first.may_flip
    lines = (folder / "data.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "data.jsonl").write_text("\n".join(lines[:2]), encoding="utf-8")
    assert len(opened("chat", path=str(folder / "data.jsonl"), cache_dir=tmp_path / "c")) == 2


def test_nothing_half_written_is_left_behind(tmp_path, copied, opened):
    path = copied("chat") / "data.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + '{"messages": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 5 needs messages by turns"):
        opened("chat", path=str(path), cache_dir=tmp_path / "c")
    assert not [p for p in (tmp_path / "c").rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_a_record_that_nothing_is_left_of_is_an_error_if_it_is_the_only_one(tmp_path, opened):
    (tmp_path / "a.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds no record"):
        opened("sharegpt4v", path=str(tmp_path / "a.json"))


def test_the_cache_of_datasets_is_the_default(tmp_path, opened, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    assert len(opened("chat", cache_dir=None)) == 4 and len(list(tmp_path.rglob("chat-*.arrow"))) == 1
