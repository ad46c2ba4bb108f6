"""Scores of held-out scenes: a model that knows the truth gets all of it, and each mistake costs what it should."""

import argparse

import pytest

from argus_tools.evaluate.card import settings
from argus_tools.evaluate.command import add_arguments, open_benchmark
from argus_tools.evaluate.predictions import Predictions
from argus_tools.evaluate.scenes import Scenes, exchanges_of, iou, match, region_scores, score_scenes
from argus_tools.scenes import QUESTION_KINDS, atlas_info, render_scene

SIZE = {"height": 96, "width": 96, "max_objects": 5, "styles": None}
SCENES = [render_scene(i, "test", **SIZE) for i in range(12)]


class Knows:
    """Answers from the ground truth. The images are those of SCENES, by identity of their pixels."""

    name = "knows"

    def __init__(self, scenes=SCENES, seed=0):
        self.asked = {s.image.tobytes(): exchanges_of(s, i, seed) for i, s in enumerate(scenes)}

    def _of(self, image):
        return self.asked[image.tobytes()]

    def caption(self, images):
        return [self._of(image)["caption"].answer for image in images]

    def answer(self, images, questions):
        known = [{each.prompt: each.answer for each in self._of(image)["answer"].values()} for image in images]
        return [answers[question] for answers, question in zip(known, questions)]

    def detect(self, images, phrases):
        return [self._regions(self._of(image)["detect"].answer, "labels") for image in images]

    def dense_caption(self, images):
        return [self._regions(self._of(image)["dense_caption"].answer, "captions") for image in images]

    def _regions(self, truth, key):
        return {
            "boxes": [list(box) for box, _ in truth],
            key: [text for _, text in truth],
            "scores": [0.9] * len(truth),
        }


def test_the_parts_count_as_they_say():
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    boxes, labels = [(0, 0, 10, 10), (0, 0, 10, 9), (50, 50, 60, 60)], ["cat", "cat", "dog"]
    assert match(boxes, labels, [(0, 0, 10, 10), (50, 50, 60, 60)], ["cat", "cow"]) == [0, None, None]
    assert match(boxes, [None] * 3, [(0, 0, 10, 10), (50, 50, 60, 60)], ["cat", "cow"]) == [0, None, 1]


def test_regions_by_hand():
    """Three predictions for two objects: right at IoU 1 (score .5), wrong words (.9), right at IoU .9 (.4).
    Ranked wrong, right, right: precision 0, 1/2, 2/3, so 2/3 at every recall."""
    cat, cow = (0, 0, 10, 10), (50, 50, 60, 60)
    predicted = {"boxes": [cat, cow, (50, 50, 60, 59)], "labels": ["cat", "dog", "cow"], "scores": [0.5, 0.9, 0.4]}
    found = region_scores([predicted], "labels", [[(cat, "cat"), (cow, "cow")]])
    assert found["recall_50"] == 1.0 and found["precision_50"] == pytest.approx(2 / 3)
    assert found["f1_50"] == pytest.approx(4 / 5) and found["ap_50"] == pytest.approx(2 / 3)
    assert found["f1_50_boxes_alone"] == pytest.approx(4 / 5) and found["mean_iou_of_right"] == pytest.approx(0.95)
    empty = region_scores([{"boxes": [], "labels": [], "scores": []}], "labels", [[(cat, "cat")]])
    assert set(empty.values()) == {0.0}


def test_ap_matches_the_best_score_first():
    """Two boxes on one cat, the worse one written first: ranked right, wrong, AP is 1; F1 counts them as written."""
    cat = (0, 0, 10, 10)
    predicted = {"boxes": [(0, 0, 10, 6), cat], "labels": ["cat", "cat"], "scores": [0.1, 0.9]}
    found = region_scores([predicted], "labels", [[(cat, "cat")]])
    assert found["ap_50"] == 1.0 and found["mean_iou_of_right"] == pytest.approx(0.6)
    assert found["f1_50"] == pytest.approx(2 / 3)


def test_who_knows_everything_scores_one():
    found = score_scenes(Knows(), SCENES)
    assert found["scenes"] == 12 and found["objects"] == sum(len(s.objects) for s in SCENES)
    assert found["caption"] == {"object_recall": 1.0, "object_precision": 1.0, "all_objects": 1.0, "exact": 1.0}
    assert set(found["answer"]) <= set(QUESTION_KINDS) and found["answer"]["yes_no"]["questions"] == 12
    assert all(each["accuracy"] == 1.0 for each in found["answer"].values())
    for task in ("detect", "dense_caption"):
        assert found[task]["ap_50"] == found[task]["f1_50"] == pytest.approx(1.0)
    assert found["dense_caption"]["map"] == {
        "meteor-lite": {"reference": pytest.approx(1.0), "clean": pytest.approx(1.0)}
    }
    assert found["dense_caption"]["localisation_map"] == pytest.approx(1.0)


def test_mistakes_cost_what_they_should():
    class Wrong(Knows):
        def caption(self, images):
            return ["A zebra crossing the road, twelve times."] * len(images)

        def answer(self, images, questions):
            return [
                text if question.startswith("Wh") else "Perhaps."
                for text, question in zip(super().answer(images, questions), questions)
            ]

        def dense_caption(self, images):
            return [r | {"captions": ["nothing known"] * len(r["captions"])} for r in super().dense_caption(images)]

        def detect(self, images, phrases):
            return [{"boxes": [], "labels": [], "scores": []} for _ in images]

    found = score_scenes(Wrong(), SCENES)
    assert set(found["caption"].values()) == {0.0}
    assert found["answer"]["where"]["accuracy"] == 1.0 and found["answer"]["yes_no"]["accuracy"] == 0.0
    assert found["answer"]["how_many"]["accuracy"] == 0.0
    assert found["detect"]["ap_50"] == 0.0
    dense = found["dense_caption"]
    assert dense["ap_50"] == 0.0 and dense["f1_50_boxes_alone"] == pytest.approx(1.0)
    assert dense["map"]["meteor-lite"]["clean"] == 0.0 and dense["localisation_map"] == pytest.approx(1.0)


def test_what_is_asked_does_not_depend_on_how_many_scenes_there_are():
    alone = exchanges_of(SCENES[7], 7, 0)
    assert alone == exchanges_of(render_scene(7, "test", **SIZE), 7, 0)
    assert (
        alone["answer"]["yes_no"] != exchanges_of(SCENES[7], 7, 1)["answer"]["yes_no"]
        or alone["detect"] != (exchanges_of(SCENES[7], 7, 1)["detect"])
    )


def test_scored_from_a_file_it_is_the_same(tmp_path):
    """Predictions made, saved and read again, by another object that renders the ground truth anew."""
    benchmark = Scenes("test", 12, **SIZE)
    predictions = Predictions(
        tmp_path / "p.jsonl", {"task": "scenes", "model": {}, "options": {}, "data": benchmark.data}
    )
    for some in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11]):
        predictions.add(zip(some, benchmark.predict(Knows(), some)))
    again = Scenes("test", 12, **SIZE)
    assert again.data == benchmark.data and again.ids() == list(range(12))
    rows = Predictions(tmp_path / "p.jsonl", predictions.header).rows
    assert again.score(rows) == score_scenes(Knows(), SCENES)


def test_options_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="max_objects must be 1 to 10"):
        Scenes("test", 1, **{**SIZE, "max_objects": 11})
    with pytest.raises(ValueError, match="style must be one of"):
        Scenes("test", 1, **{**SIZE, "styles": ("crayon",)})


def test_pictograms_alone_are_scenes_of_their_own():
    """Digits, words and shapes are drawn alike in every style, so a style is scored without them."""
    mixed, alone = Scenes("test", 12, **SIZE), Scenes("test", 12, pictograms_only=True, **SIZE)
    assert "pictograms_only" not in mixed.data and alone.data == mixed.data | {"pictograms_only": True}
    pictograms = tuple(atlas_info()["classes"])
    scenes = [render_scene(i, "test", classes=pictograms, **SIZE) for i in range(12)]
    assert {o.name for scene in scenes for o in scene.objects} <= set(pictograms)
    assert not {o.name for scene in SCENES for o in scene.objects} <= set(pictograms)
    rows = alone.predict(Knows(scenes), alone.ids())  # which knows the images of these scenes alone
    assert alone.score(dict(enumerate(rows))) == score_scenes(Knows(scenes), scenes)
    assert len(mixed.predict(Knows(), mixed.ids())) == 12


def test_the_card_scores_an_unseen_style_beside_the_training_styles_on_the_same_kinds():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    data = {name: open_benchmark(parser.parse_args(["scenes", *words])).data for name, words in settings().items()}
    assert data["unseen_style"]["pictograms_only"] and data["unseen_style"]["styles"] == ("twemoji",)
    assert data["pictograms"] == data["unseen_style"] | {"styles": None}
    assert "pictograms_only" not in data["test"] and data["test"]["count"] == data["pictograms"]["count"] == 160
