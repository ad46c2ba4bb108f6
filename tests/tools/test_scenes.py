"""Rendered scenes: the same everywhere, boxes that fit what is drawn, words that the location parser reads back."""

from collections import Counter

import numpy as np
import pytest

from argus_tools.train.scene_text import (
    QUESTION_KINDS,
    TASKS,
    all_labels,
    caption,
    dense_caption,
    detection,
    make_example,
    plural,
    where,
    with_article,
)
from argus_tools.train.scenes import COLOURS, SHAPES, Scene, SceneObject, atlas_info, pictograms, render_scene
from argus_tools.train.score import average_precision, caption_labels, iou, match
from processing_argus.locations_argus import LocationVocabulary

BINS = 64
SCENES = [render_scene(i, "val") for i in range(60)]


def test_a_scene_is_a_function_of_its_arguments():
    for index in (0, 7):
        first, again = (render_scene(index, "train", height=100, width=140) for _ in range(2))
        assert first.objects == again.objects
        assert np.array_equal(first.image, again.image)
    assert first.image.shape == (100, 140, 3) and first.image.dtype == np.uint8


def test_splits_hold_different_scenes():
    def digests(split):
        return {render_scene(i, split).image.tobytes() for i in range(40)}

    train, val, test = digests("train"), digests("val"), digests("test")
    assert len(train) == len(val) == len(test) == 40
    assert not train & val and not train & test and not val & test


@pytest.mark.parametrize("index", range(12))
def test_boxes_lie_inside_and_objects_hardly_overlap(index):
    scene = render_scene(index, "val", height=120, width=170)
    assert scene.objects
    for o in scene.objects:
        x1, y1, x2, y2 = o.box
        assert 0 <= x1 < x2 <= 170 and 0 <= y1 < y2 <= 120
        assert (x2 - x1) * (y2 - y1) >= 60
    for i, a in enumerate(scene.objects):
        assert all(iou(a.box, b.box) < 0.2 for b in scene.objects[i + 1 :])


def test_boxes_are_tight():
    """On a plain background, exactly the box holds pixels that differ from it."""
    checked = 0
    for scene in (render_scene(i, "val", max_objects=1) for i in range(80)):
        if scene.background != "plain":
            continue
        (o,) = scene.objects
        difference = np.abs(scene.image.astype(int) - scene.image[0, 0].astype(int)).max(-1)
        if (difference[0] > 0).any() or (difference[:, 0] > 0).any():  # the corner may belong to the object
            continue
        ys, xs = np.nonzero(difference > 24)
        seen = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert np.abs(np.array(seen) - np.array(o.box)).max() <= 3
        checked += 1
    assert checked >= 5


def test_reading_order_is_by_top_edge_then_left():
    for scene in SCENES:
        keys = [(o.box[1], o.box[0]) for o in scene.objects]
        assert keys == sorted(keys)


def test_every_style_has_every_pictogram():
    info = atlas_info()
    for style in info["styles"] + info["unseen_styles"]:
        sprites = pictograms(style)
        assert list(sprites) == info["classes"]
        assert all(min(sprite.size) >= 15 for sprite in sprites.values())
    assert len(info["styles"]) >= 2 and len(all_labels()) == len(info["classes"]) + len(SHAPES) * len(COLOURS)


def test_dense_captions_and_detections_round_trip_through_the_parser():
    vocabulary, rng = LocationVocabulary(BINS), np.random.default_rng(0)
    for scene in SCENES:
        regions, unparsed = vocabulary.parse(dense_caption(scene, BINS))
        assert not unparsed
        assert [r.caption for r in regions] == [with_article(o.label) for o in scene.objects]
        for region, o in zip(regions, scene.objects):
            box = vocabulary.bins_to_box(region.bins, scene.size)
            assert np.abs(np.array(box) - np.array(o.box)).max() <= max(scene.size) / BINS
        example = make_example(scene, rng, "detect", BINS)
        regions, unparsed = vocabulary.parse(example.answer)
        assert not unparsed and {r.caption for r in regions} <= set(example.phrases)
        phrases = set(example.phrases)
        assert len(regions) == sum(bool(phrases & {o.label, with_article(o.label)}) for o in scene.objects)


def test_captions_say_what_is_there():
    for scene in SCENES:
        assert caption_labels(caption(scene)) == Counter(o.label for o in scene.objects)


def _scene(*objects) -> Scene:
    return Scene(np.zeros((90, 90, 3), np.uint8), list(objects), "plain", "black")


def test_the_grammar_word_for_word():
    scene = _scene(
        SceneObject("apple", None, (0, 0, 20, 20)),
        SceneObject("circle", "red", (60, 0, 80, 20)),
        SceneObject("apple", None, (0, 60, 20, 80)),
    )
    assert caption(scene) == "Two apples and a red circle."
    assert dense_caption(scene, 9) == (
        "<loc_0><loc_0><loc_2><loc_2>an apple<loc_0><loc_6><loc_2><loc_8>a red circle"
        "<loc_6><loc_0><loc_8><loc_2>an apple"
    )
    assert detection(scene, ["red circle"], 9) == "<loc_0><loc_6><loc_2><loc_8>red circle"
    assert detection(scene, ["a cat", "an apple"], 9).count("an apple") == 2
    assert detection(scene, ["cat"], 9) == ""
    assert plural("butterfly") == "butterflies" and plural("yellow star") == "yellow stars"
    assert where((60, 0, 80, 20), 90, 90) == "top right" and where((35, 35, 55, 55), 90, 90) == "middle"
    rng = np.random.default_rng(3)
    answers = {make_example(scene, rng, "answer", BINS, kind).task for kind in QUESTION_KINDS}
    assert answers == {f"answer:{kind}" for kind in QUESTION_KINDS}
    example = make_example(scene, rng, "answer", BINS, "where")
    assert (example.prompt, example.answer) == ("Where is the red circle?", "At the top right.")
    example = make_example(scene, rng, "answer", BINS, "colour")
    assert example.answer == "Red."


def test_examples_are_deterministic_and_answers_are_right():
    for scene in SCENES[:20]:
        for task in TASKS:
            one, two = (make_example(scene, np.random.default_rng(5), task, BINS) for _ in range(2))
            assert one == two
        labels = {o.label for o in scene.objects}
        for seed in range(5):
            example = make_example(scene, np.random.default_rng(seed), "answer", BINS, "yes_no")
            asked = example.prompt.removeprefix("Is there an ").removeprefix("Is there a ").rstrip("?")
            assert example.answer == ("Yes." if asked in labels else "No.")


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="split"):
        render_scene(0, "validation")
    with pytest.raises(ValueError, match="max_objects"):
        render_scene(0, max_objects=6)
    with pytest.raises(ValueError, match="unknown task"):
        make_example(SCENES[0], np.random.default_rng(0), "count", BINS)


def test_the_scores_count_as_they_say():
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    boxes, labels = [(0, 0, 10, 10), (0, 0, 10, 9), (50, 50, 60, 60)], ["cat", "cat", "dog"]
    assert match(boxes, labels, [(0, 0, 10, 10), (50, 50, 60, 60)], ["cat", "cow"]) == [0, None, None]
    assert match(boxes, [None] * 3, [(0, 0, 10, 10), (50, 50, 60, 60)], ["cat", "cow"]) == [0, None, 1]
    assert average_precision([(0.9, True), (0.8, False), (0.7, True)], 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision([], 3) == 0.0
