"""Readers of the official files: what they read, and one clear sentence for what they cannot."""

import json
from pathlib import Path

import pytest

from argus_tools.cli_support import CommandError
from argus_tools.evaluate import annotations

FILES = Path(__file__).parent / "fixtures"


def test_coco_instances():
    data = annotations.read_coco(FILES / "coco_instances.json", "bbox")
    assert [image["id"] for image in data["images"]] == [139, 285]
    assert [category["name"] for category in data["categories"]] == ["cat", "dog", "car"]
    assert data["annotations"][1]["bbox"] == [50.0, 5.0, 20.0, 50.0]


def test_captions_of_coco_and_nocaps():
    coco = annotations.read_captions(FILES / "coco_captions.json")
    assert [(row["id"], row["file_name"], len(row["captions"])) for row in coco] == [
        (139, "000000000139.jpg", 2),
        (285, "000000000285.jpg", 2),
    ]
    (image,) = annotations.read_captions(FILES / "nocaps.json")
    assert image["id"] == 0 and image["file_name"] == "0013ea2087020901.jpg"
    assert image["captions"] == [
        "A baby is standing in front of a house.",
        "A little girl in a white jacket and sandals.",
    ]


def test_vqav2():
    rows = annotations.read_vqa(FILES / "vqav2_questions.json", FILES / "vqav2_annotations.json")
    assert [row["id"] for row in rows] == [139000, 139001, 285000]
    assert rows[0]["answers"] == ["1"] * 8 + ["one", "2"] and rows[0]["type"] == "number"
    assert rows[2]["question"] == "What animal is this?"
    assert rows[2]["file_names"] == ["COCO_val2014_000000000285.jpg", "000000000285.jpg"]


def test_gqa():
    first, second = annotations.read_gqa(FILES / "gqa_questions.json")
    assert (first["id"], first["answer"], first["type"]) == ("201307251", "no", "verify")
    assert second["question"] == "What is the animal on the grass called?"
    assert second["file_names"] == ["n161313.jpg"]


def test_pope():
    rows = annotations.read_pope(FILES / "pope.json")
    assert [(row["id"], row["label"]) for row in rows] == [(1, "yes"), (2, "no"), (3, "yes"), (4, "no")]
    assert rows[1]["question"] == "Is there a car in the image?"


def test_visual_genome():
    first, second = annotations.read_regions(FILES / "region_descriptions.json")
    assert first["boxes"] == [[10, 10, 50, 50], [12, 10, 52, 50], [0, 0, 20, 20]]  # x, y, width, height there
    assert first["captions"][1] == "a clock on a pole" and second["id"] == 2
    chosen = annotations.read_regions(FILES / "region_descriptions.json", FILES / "densecap_splits.json", "test")
    assert [row["id"] for row in chosen] == [2]


def test_an_image_is_found_wherever_the_record_may_have_it(tmp_path):
    row = annotations.read_regions(FILES / "region_descriptions.json")[0]
    with pytest.raises(CommandError, match=r"record 1: there is no 1\.jpg or VG_100K/1\.jpg or VG_100K_2/1\.jpg in"):
        annotations.find_image(tmp_path, row)
    (tmp_path / "VG_100K_2").mkdir()
    (tmp_path / "VG_100K_2" / "1.jpg").write_bytes(b"")
    assert annotations.find_image(tmp_path, row).parent.name == "VG_100K_2"


def test_files_that_are_missing_or_no_json(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text('{"images": [')
    for read in (annotations.read_captions, annotations.read_gqa, annotations.read_regions):
        with pytest.raises(CommandError, match=r"none\.json cannot be read: No such file"):
            read(tmp_path / "none.json")
        with pytest.raises(CommandError, match=r"broken\.json is not JSON: "):
            read(broken)
    with pytest.raises(CommandError, match=r"none\.json cannot be read"):
        annotations.read_pope(tmp_path / "none.json")


def _changed(name, change, path):
    value = json.loads((FILES / name).read_text())
    change(value)
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("coco_captions.json", lambda v: v.pop("images"), "not the form of COCO captions: it has no list 'images'"),
        ("coco_captions.json", lambda v: v["annotations"][1].pop("caption"), r"annotations\[1\] has no 'caption'"),
        ("coco_captions.json", lambda v: v["images"].pop(), r"annotations\[2\] is of image 285, which is not among"),
        ("coco_captions.json", lambda v: v["images"].__setitem__(0, 5), r"images\[0\] is 5, not an object with id"),
    ],
)
def test_broken_captions(tmp_path, name, change, message):
    with pytest.raises(CommandError, match=message):
        annotations.read_captions(_changed(name, change, tmp_path / name))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v: v["annotations"][0].update(bbox=[1, 2, 3]), r"annotations\[0\]\.bbox is \[1, 2, 3\], not"),
        (lambda v: v["annotations"][0].update(bbox=[1, 2, -3, 4]), r"annotations\[0\]\.bbox is \[1, 2, -3, 4\], not"),
        (lambda v: v.pop("categories"), "has no list 'categories'"),
        (lambda v: v["annotations"][0].pop("category_id"), r"annotations\[0\] has no 'category_id'"),
    ],
)
def test_broken_instances(tmp_path, change, message):
    with pytest.raises(CommandError, match=message):
        annotations.read_coco(_changed("coco_instances.json", change, tmp_path / "i.json"), "bbox")


def test_broken_questions(tmp_path):
    questions = FILES / "vqav2_questions.json"
    lacking = _changed("vqav2_annotations.json", lambda v: v["annotations"].pop(1), tmp_path / "a.json")
    with pytest.raises(CommandError, match="has no answers to question 139001"):
        annotations.read_vqa(questions, lacking)
    with pytest.raises(CommandError, match="it has no list 'questions'"):
        annotations.read_vqa(FILES / "vqav2_annotations.json", FILES / "vqav2_annotations.json")
    with pytest.raises(CommandError, match="201307251 has no 'answer'"):
        annotations.read_gqa(
            _changed("gqa_questions.json", lambda v: v["201307251"].pop("answer"), tmp_path / "g.json")
        )
    with pytest.raises(CommandError, match="not GQA's form"):
        annotations.read_gqa(FILES / "region_descriptions.json")


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"question_id": 1, "image": "a.jpg", "text": "Is it?"}', "line 1 is not POPE's form"),
        ('{"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "maybe"}', "line 1: the label is 'maybe'"),
        ("[1]", "line 1 is not POPE's form"),
        ('{"question_id": [1], "image": "a.jpg", "text": "Is it?", "label": "no"}', r"question_id is \[1\], not an id"),
        ("\n", "holds no questions"),
    ],
)
def test_broken_pope(tmp_path, text, message):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(CommandError, match=message):
        annotations.read_pope(tmp_path / "p.json")


def test_broken_regions(tmp_path):
    splits = FILES / "densecap_splits.json"
    cases = [
        (lambda v: v[0].pop("regions"), r"\[0\] has no 'regions'"),
        (lambda v: v[0]["regions"][2].pop("phrase"), r"\[0\]\.regions\[2\] has no 'phrase'"),
        (lambda v: v[1]["regions"][0].update(width=-1), r"\[1\]\.regions\[0\] has a negative width"),
        (lambda v: v.pop(1), "lacks 1 images of the split 'test' "),
    ]
    for change, message in cases:
        with pytest.raises(CommandError, match=message):
            annotations.read_regions(_changed("region_descriptions.json", change, tmp_path / "r.json"), splits, "test")
    with pytest.raises(CommandError, match="has no split 'dev'"):
        annotations.read_regions(FILES / "region_descriptions.json", splits, "dev")
    with pytest.raises(CommandError, match="a list of images with regions"):
        annotations.read_regions(FILES / "coco_captions.json")


def _set(*places):
    """A change of a file: the last of `places` is what stands at the others."""
    *path, last, value = places

    def change(file):
        for place in path:
            file = file[place]
        file[last] = value

    return change


def _instances(path):
    return annotations.read_coco(path, "bbox")


def _answers(path):
    return annotations.read_vqa(FILES / "vqav2_questions.json", path)


def _vqa_questions(path):
    return annotations.read_vqa(path, FILES / "vqav2_annotations.json")


def _splits(path):
    return annotations.read_regions(FILES / "region_descriptions.json", path, "test")


COCO, CAPTIONS, VG = "coco_instances.json", "coco_captions.json", "region_descriptions.json"
QUESTIONS, ANSWERS, GQA = "vqav2_questions.json", "vqav2_annotations.json", "gqa_questions.json"
FIRST_REGION = (0, "regions", 0)


@pytest.mark.parametrize(
    "read, name, change, message",
    [
        (_instances, COCO, _set("annotations", 0, "bbox", None), r"annotations\[0\]\.bbox is null, not"),
        (_instances, COCO, _set("annotations", 1, "bbox", [0, 0, float("nan"), 1]), r"annotations\[1\]\.bbox is .*NaN"),
        (
            _instances,
            COCO,
            _set("annotations", 0, "image_id", [139]),
            r"annotations\[0\]\.image_id is \[139\], not an id",
        ),
        (
            _instances,
            COCO,
            _set("annotations", 0, "area", None),
            r"annotations\[0\]\.area is null, not a finite number",
        ),
        (
            _instances,
            COCO,
            _set("annotations", 0, "category_id", 99),
            r"annotations\[0\] is of category 99, which is not",
        ),
        (_instances, COCO, _set("categories", 0, "name", None), r"categories\[0\]\.name is null, not a text"),
        (
            _instances,
            COCO,
            _set("categories", 1, "name", "CAT "),
            r"the categories 'cat' \(id 17\) and 'CAT ' \(id 18\) have one name",
        ),
        (_instances, COCO, _set("images", 0, "id", {}), r"images\[0\]\.id is {}, not an id"),
        (annotations.read_captions, CAPTIONS, _set("annotations", 0, "caption", None), r"\[0\]\.caption is null"),
        (annotations.read_captions, CAPTIONS, _set("annotations", []), "holds no captions"),
        (_answers, ANSWERS, _set("annotations", 0, "answers", None), r"annotations\[0\]\.answers is null, not a list"),
        (_answers, ANSWERS, _set("annotations", 0, "answers", ["1"]), r'\[0\]\.answers\[0\] is "1", not an object'),
        (
            _answers,
            ANSWERS,
            _set("annotations", 0, "answers", 1, "answer", 3),
            r"\[0\]\.answers\[1\]\.answer is 3, not a",
        ),
        (_answers, ANSWERS, _set("annotations", 0, "answers", []), "an empty list of answers to question 139000"),
        (
            _vqa_questions,
            QUESTIONS,
            _set("questions", 0, "image_id", "x"),
            r'questions\[0\]\.image_id is "x", not a whole',
        ),
        (annotations.read_gqa, GQA, _set("201307251", "answer", None), "201307251.answer is null, not a text"),
        (annotations.read_gqa, GQA, _set("201307251", "types", "verify"), '201307251.types is "verify", not an object'),
        (annotations.read_regions, VG, _set(*FIRST_REGION, "phrase", None), r"\[0\]\.regions\[0\]\.phrase is null"),
        (annotations.read_regions, VG, _set(*FIRST_REGION, "x", "1"), r'\[0\]\.regions\[0\]\.x is "1", not a finite'),
        (
            annotations.read_regions,
            VG,
            _set(*FIRST_REGION, "width", float("inf")),
            r"\.width is Infinity, not a finite",
        ),
        (annotations.read_regions, VG, _set(0, "id", [1]), r"\[0\]\.id is \[1\], not an id"),
        (annotations.read_regions, VG, _set(1, "id", 1), r"\[1\] is of image 1, which stands there already"),
        (_splits, "densecap_splits.json", _set("test", 3), "test is 3, not a list"),
        (_splits, "densecap_splits.json", _set("test", [[2]]), r"test\[0\] is \[2\], not an id"),
    ],
)
def test_values_of_another_kind_are_one_sentence(tmp_path, read, name, change, message):
    with pytest.raises(CommandError, match=message) as raised:
        read(_changed(name, change, tmp_path / name))
    assert str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)


def test_lists_in_lists_without_end_are_one_sentence(tmp_path):
    (tmp_path / "p.json").write_text("[" * 100_000)
    for read in (annotations.read_pope, annotations.read_gqa):
        with pytest.raises(CommandError, match=r"p\.json.* is not JSON: maximum recursion depth"):
            read(tmp_path / "p.json")


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "p.json").write_bytes(b"\xff\xfe\x00")
    for read in (annotations.read_pope, annotations.read_gqa):
        with pytest.raises(CommandError, match=r"p\.json is not UTF-8 text"):
            read(tmp_path / "p.json")
