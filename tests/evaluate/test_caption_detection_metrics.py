"""BLEU, CIDEr and detection mAP: the packages are fed right, and say what they should on cases worked by hand."""

import json
import math
from pathlib import Path

import pytest

from argus_tools.cli_support import CommandError
from argus_tools.evaluate import annotations, captions, detection
from argus_tools.evaluate.datasets import Detection
from argus_tools.evaluate.meteor import why_no_java

pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
pytest.importorskip("pycocotools", reason="pycocotools is not installed")
FILES = Path(__file__).parent / "fixtures"
needs_java = pytest.mark.skipif(bool(why_no_java()), reason=f"the PTB tokenizer cannot run: {why_no_java()}")
TEXTS = [
    "A man's hat doesn't fit, isn't it?",
    "Two dogs running at 3.5 mph; well-known.",
    "Can't stop — won't stop!",
    "it's the cats' toy",
    "  two\nlines ",
    "",
]


def test_the_fallback_tokenizer():
    assert captions.tokenize(TEXTS, "lite") == [
        "a man 's hat does n't fit is n't it",
        "two dogs running at 3.5 mph well-known",
        "ca n't stop wo n't stop",
        "it 's the cats toy",
        "two lines",
        "",
    ]


@needs_java
def test_the_ptb_tokenizer_agrees_on_plain_captions():
    assert captions.tokenize(TEXTS, "jar") == captions.tokenize(TEXTS, "lite")
    assert captions.tokenizer_name("jar") == "PTB tokenizer"
    assert captions.tokenize(["a cat (red)"], "jar") == ["a cat -lrb- red -rrb-"]  # as the COCO evaluation has it


def test_without_java_the_result_says_so(monkeypatch):
    monkeypatch.setattr(captions, "why_no_java", lambda: "Java is not installed")
    with pytest.raises(CommandError, match="the PTB tokenizer cannot run here: Java is not installed"):
        captions.tokenizer_name("jar")
    assert captions.score({1: ["a cat"], 2: ["a dog"]}, {1: "a cat", 2: "a dog"})["tokenizer"] == "ptb-lite"


def test_bleu_by_hand():
    """Reference and caption of six words, one of them another: 5/6 words, 3/5 pairs, 2/4 and 1/3: the caption
    "the cat sat on a mat" has the pairs the-cat cat-sat sat-on, triples the-cat-sat cat-sat-on, and one of four."""
    found = captions.score({1: ["the cat sat on the mat"], 2: ["x"]}, {1: "the cat sat on a mat", 2: "x"}, "lite")
    # The second image adds one right word and nothing longer.
    assert found["bleu_1"] == pytest.approx(6 / 7, rel=1e-6)
    assert found["bleu_4"] == pytest.approx((6 / 7 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25, rel=1e-6)


def test_bleu_is_short_of_a_short_caption():
    found = captions.score({1: ["a red cat on a mat"]}, {1: "a red cat"}, "lite")
    assert found["bleu_1"] == pytest.approx(math.exp(1 - 6 / 3), rel=1e-6)


def test_cider_by_hand():
    """Two images that share no words, each caption its reference, of two words: 1 for n of 1 and 2, 0 for 3 and 4."""
    found = captions.score({1: ["red cat"], 2: ["big dog"]}, {1: "red cat", 2: "big dog"}, "lite")
    assert found["cider"] == pytest.approx(10 * 2 / 4)
    none = captions.score({1: ["red cat"], 2: ["big dog"]}, {1: "big dog", 2: "red cat"}, "lite")
    assert none["cider"] == 0.0


def test_references_without_words_are_refused():
    with pytest.raises(CommandError, match="the references of 2 images hold no words"):
        captions.score({1: ["!"], 2: [""]}, {1: "a cat", 2: ""}, "lite")


def test_captions_of_the_official_file():
    rows = annotations.read_captions(FILES / "coco_captions.json")
    references = {row["id"]: row["captions"] for row in rows}
    found = captions.score(
        references, {139: "A cat sits next to a dog.", 285: "A big cat looking at the camera"}, "lite"
    )
    assert found["bleu_4"] == pytest.approx(1.0, rel=1e-6) and found["images"] == 2


@needs_java
def test_scores_are_those_of_the_coco_evaluation():
    """Numbers of COCO, COCOEvalCap's PTBTokenizer, Bleu and Cider on the same file and captions."""
    rows = annotations.read_captions(FILES / "coco_captions.json")
    said = {139: "Two animals: a cat sits by a dog.", 285: "A cat's face looking at a camera, up close!"}
    found = captions.score({row["id"]: row["captions"] for row in rows}, said, "jar")
    assert found["bleu_1"] == pytest.approx(0.7222222221820989) and found["bleu_3"] == pytest.approx(0.3382216144734206)
    assert found["cider"] == pytest.approx(1.838050712437197) and found["tokenizer"] == "PTB tokenizer"


def _detected(*rows):
    return {"boxes": [r[0] for r in rows], "labels": [r[1] for r in rows], "scores": [r[2] for r in rows]}


CAT, DOG, OTHER_CAT = [10, 10, 50, 50], [50, 5, 70, 55], [0, 20, 40, 70]


def test_detections_that_are_all_right():
    dataset = annotations.read_coco(FILES / "coco_instances.json", "bbox")
    found = detection.score(
        dataset, {139: _detected((CAT, "cat", 0.9), (DOG, "Dog ", 0.8)), 285: _detected((OTHER_CAT, "cat", 0.7))}
    )
    assert found["ap"] == found["ap_50"] == found["ar_100"] == pytest.approx(1.0)
    assert found["ap_large"] is None  # there is none that large
    assert (found["images"], found["detections"], found["labels_that_are_no_category"]) == (2, 3, 0)


def test_detection_ap_by_hand():
    """Cats: right, one of two missed, so precision 1 at 51 of 101 recalls. Dogs: the box is the cat's, 0.
    The car has no ground truth and counts for nothing; a horse is no category."""
    dataset = annotations.read_coco(FILES / "coco_instances.json", "bbox")
    predicted = {139: _detected((CAT, "cat", 0.9), (CAT, "dog", 0.8), (CAT, "horse", 1.0)), 285: _detected()}
    found = detection.score(dataset, predicted)
    assert found["ap_50"] == found["ap"] == pytest.approx(51 / 101 / 2)
    assert found["labels_that_are_no_category"] == 1


def test_no_detections_at_all():
    dataset = annotations.read_coco(FILES / "coco_instances.json", "bbox")
    assert detection.score(dataset, {139: _detected(), 285: _detected()})["ap"] == 0.0
    alone = dataset | {"images": dataset["images"][:1]}
    assert detection.score(alone, {139: _detected((CAT, "cat", 1.0), (DOG, "dog", 0.5))})["ap"] == pytest.approx(1.0)


@pytest.mark.parametrize("ids", [[0, 1, 2], [7, 7, 7], [None, None, None]])
def test_the_ids_of_annotations_do_not_matter(ids):
    """pycocotools takes a match with id 0 for none, and keeps one annotation of those that share an id."""
    dataset = json.loads((FILES / "coco_instances.json").read_text())
    for row, number in zip(dataset["annotations"], ids, strict=True):
        row.pop("id")
        row |= {} if number is None else {"id": number}
    right = {139: _detected((CAT, "cat", 0.9), (DOG, "dog", 0.8)), 285: _detected((OTHER_CAT, "cat", 0.7))}
    assert detection.score(dataset, right)["ap"] == pytest.approx(1.0)


class Finds:
    """Finds the cat of the official file in every image, if asked for it; keeps what it was asked."""

    def __init__(self, everything: bool):
        self.detects_everything, self.asked = everything, []

    def detect(self, images, phrases):
        self.asked.append(phrases[0])
        return [_detected((CAT, "cat", 0.9)) if "cat" in each else _detected() for each in phrases]


@pytest.mark.parametrize("everything, prompts", [(False, [20, 20, 5]), (True, [45])])
def test_categories_are_asked_for_some_at_a_time(everything, prompts, tmp_path):
    dataset = annotations.read_coco(FILES / "coco_instances.json", "bbox")
    dataset["categories"] += [{"id": 100 + i, "name": f"thing {i}"} for i in range(42)]
    for image in dataset["images"]:
        (tmp_path / image["file_name"]).write_bytes(b"")
    benchmark, model = Detection("detection", dataset, tmp_path, {}), Finds(everything)
    rows = benchmark.predict(model, benchmark.ids())
    assert [len(names) for names in model.asked] == prompts
    assert [row["labels"] for row in rows] == [["cat"], ["cat"]]
    assert benchmark.score(dict(zip(benchmark.ids(), rows)))["ap_50"] == pytest.approx(51 / 101 / 2)


@pytest.mark.parametrize("place", [0, 3])
def test_a_heading_with_a_categorys_name_is_no_category(place, tmp_path):
    """Annotation tools write headings ("supercategories") among the categories; no box is of them."""
    dataset = json.loads((FILES / "coco_instances.json").read_text())
    dataset["categories"].insert(place, {"id": 0, "name": "Cat"})
    (tmp_path / "headings.json").write_text(json.dumps(dataset))
    dataset = annotations.read_coco(tmp_path / "headings.json", "bbox")
    for image in dataset["images"]:
        (tmp_path / image["file_name"]).write_bytes(b"")
    right = {139: _detected((CAT, "cat", 0.9), (DOG, "dog", 0.8)), 285: _detected((OTHER_CAT, "cat", 0.7))}
    assert detection.score(dataset, right)["ap"] == pytest.approx(1.0)
    model = Finds(True)
    Detection("detection", dataset, tmp_path, {}).predict(model, [139])
    assert [name.lower() for name in model.asked[0]] == ["cat", "dog", "car"]


def test_a_file_without_areas_is_read():
    dataset = json.loads((FILES / "coco_instances.json").read_text())
    for row in dataset["annotations"]:
        del row["area"], row["iscrowd"]
    assert detection.score(dataset, {139: _detected((CAT, "cat", 0.9)), 285: _detected()})["ap_50"] > 0
