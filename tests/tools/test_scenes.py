"""Rendered scenes: the same everywhere, boxes that fit what is drawn, words that the location parser reads back."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argus_tools.scenes import (
    BACKGROUNDS,
    COLOURS,
    DIGITS,
    NUMBERS,
    QUESTION_KINDS,
    SCENES_VERSION,
    SHAPES,
    TASKS,
    WORDS,
    Scene,
    SceneObject,
    all_labels,
    ask,
    atlas_info,
    caption,
    caption_labels,
    class_names,
    pictograms,
    plural,
    render_scene,
    vocabulary_text,
    where,
    with_article,
    without_article,
)
from argus_tools.scenes.atlas import styles_of
from argus_tools.scenes.questions import absent_label, clear_labels
from argus_tools.scenes.words import KINDS
from argus_tools.train.readers.scenes import ScenesReader
from argus_tools.train.samples import Region, Sample, Turn
from processing_argus.locations_argus import LocationVocabulary

BINS = 64
SCENES = [render_scene(i, "val") for i in range(60)]
LARGE = [render_scene(i, "val", height=288, width=288, max_objects=10) for i in range(25)]


def shared(a, b) -> float:
    """The share of the smaller box that two boxes have in common."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)]
    return max(0, w) * max(0, h) / min(areas)


def test_a_scene_is_a_function_of_its_arguments():
    for index in (0, 7):
        first, again = (render_scene(index, "train", height=100, width=140) for _ in range(2))
        assert first.objects == again.objects
        assert np.array_equal(first.image, again.image)
    assert first.image.shape == (100, 140, 3) and first.image.dtype == np.uint8


def test_version_3_draws_what_it_always_drew():
    """A change of what the numbers of scenes mean needs a new SCENES_VERSION: models are trained and scored on them."""
    assert SCENES_VERSION == 3
    assert [[o.label for o in render_scene(i, "train").objects] for i in range(4)] == [
        ["eagle", "fuel pump", "orange circle", "fuel pump", "orange circle"],
        ["parrot", "lobster"],
        ["window"],
        ["ice cream", "bell"],
    ]


def test_splits_hold_different_scenes():
    def digests(split):
        return {render_scene(i, split).image.tobytes() for i in range(40)}

    train, val, test = digests("train"), digests("val"), digests("test")
    assert len(train) == len(val) == len(test) == 40
    assert not train & val and not train & test and not val & test


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.integers(16, 300), st.integers(16, 300), st.integers(1, 10))
def test_boxes_lie_inside_and_overlap_by_a_third_at_most(index, height, width, most):
    scene = render_scene(index, "val", height=height, width=width, max_objects=most)
    assert 1 <= len(scene.objects) <= most and scene.background in BACKGROUNDS
    for o in scene.objects:
        x1, y1, x2, y2 = o.box
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
    # What is drawn shares at most 30%; what is seen of it is a pixel or two smaller than its sprite.
    if min(height, width) >= 100:
        for i, a in enumerate(scene.objects):
            assert all(shared(a.box, b.box) < 0.34 for b in scene.objects[i + 1 :])
    assert scene.objects == sorted(scene.objects, key=lambda o: (o.box[1], o.box[0]))
    assert {o.label for o in scene.objects} <= set(all_labels())


def test_some_objects_cover_each_other_and_some_scenes_keep_apart():
    overlaps = [
        max((shared(a.box, b.box) for i, a in enumerate(s.objects) for b in s.objects[i + 1 :]), default=0)
        for s in LARGE
    ]
    assert max(overlaps) > 0.15 and min(overlaps) == 0


def test_what_has_one_colour_does_not_touch():
    """Two red squares that overlap would be one blob that nobody could count."""
    pairs = 0
    for i in range(150):
        drawn = [o for o in render_scene(i, "train", max_objects=10, classes=SHAPES[:2]).objects if o.colour]
        for j, a in enumerate(drawn):
            for b in drawn[j + 1 :]:
                if a.colour == b.colour:
                    pairs += 1
                    gaps = [max(a.box[k], b.box[k]) - min(a.box[k + 2], b.box[k + 2]) for k in (0, 1)]
                    assert max(gaps) >= 2, (i, a, b)
    assert pairs > 100


def test_large_canvases_hold_more_and_smaller_objects():
    assert max(len(s.objects) for s in LARGE) > 5
    longest = [max(o.box[2] - o.box[0], o.box[3] - o.box[1]) for s in LARGE for o in s.objects]
    assert min(longest) < 45 and max(longest) > 110 and min(longest) > 12


def test_boxes_are_tight():
    """On a plain background, exactly the box of a lone object holds pixels that differ from it."""
    checked = Counter()
    for index in range(500):
        scene = render_scene(index, "val", max_objects=1)
        (o,) = scene.objects
        margins = (o.box[0], o.box[1], 128 - o.box[2], 128 - o.box[3])
        if scene.background != "plain" or min(margins) < 3:
            continue
        ground = scene.image[0, 0].astype(int)
        difference = np.abs(scene.image.astype(int) - ground).max(-1)
        # What stands in a strong colour of its own: a shape, a digit, a word.
        if o.colour is None or difference.max() < 100:
            continue
        ys, xs = np.nonzero(difference > difference.max() * 0.26)
        seen = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert np.abs(np.array(seen) - np.array(o.box)).max() <= 1, (index, o, seen)
        checked[o.is_text] += 1
    assert min(checked[True], checked[False]) >= 3


def test_pictograms_fill_their_boxes():
    """Every pictogram as it is kept touches all four sides of its picture visibly."""
    for style in atlas_info()["styles"]:
        for name, sprite in pictograms(style).items():
            seen = np.asarray(sprite)[..., 3] >= 64
            assert seen[0].any() and seen[-1].any() and seen[:, 0].any() and seen[:, -1].any(), (style, name)


def test_every_class_can_be_drawn():
    info = atlas_info()
    classes = info["classes"]
    assert 300 <= len(classes) == len(set(classes)) <= 400 and len(info["styles"]) >= 4
    for style in info["styles"] + info["unseen_styles"]:
        sprites = pictograms(style)
        assert list(sprites) == [name for name in classes if name not in info["missing"].get(style, ())]
        assert all(max(sprite.size) >= 60 and min(sprite.size) >= 8 for sprite in sprites.values())
    assert not set(info["missing"]) & set(info["unseen_styles"])
    able = styles_of(tuple(info["styles"]))
    assert list(able) == classes and min(len(styles) for styles in able.values()) >= 3
    assert len(all_labels()) == len(set(all_labels())) == len(classes) + len(SHAPES) * len(COLOURS) + 10 + len(WORDS)
    assert set(class_names()) >= {*classes, *SHAPES, *DIGITS, *WORDS}


def test_names_are_plain_words_that_a_list_can_hold():
    for name in atlas_info()["classes"]:
        words = name.split(" ")
        assert 1 <= len(words) <= 2 and all(word.isascii() and word.isalpha() and word.islower() for word in words)
        assert not {"and", "a", "an", "the", *COLOURS, *NUMBERS} & set(words), name
    assert len({plural(label) for label in all_labels()}) == len(all_labels())
    # One name, one thing: no picture of two socks or of many grapes is "a sock" or "a grape", none has two names.
    assert not {"sock", "glove", "footprint", "paw print", "chain", "cherry", "grape", "pancake", "mask"} & {
        *atlas_info()["classes"]
    }
    assert not {"telephone", "goal net", "fishing rod", "necktie", "music note"} & set(atlas_info()["classes"])


def test_the_held_out_style_is_drawn_when_it_is_asked_for():
    seen, unseen = (render_scene(3, "test", styles=styles) for styles in (None, ("twemoji",)))
    assert [o.name for o in unseen.objects] and not np.array_equal(seen.image, unseen.image)
    info = atlas_info()
    # Fluent's two sets share their outlines, so neither can be held out while the other is trained on.
    assert info["unseen_styles"] == ["twemoji"] and set(info["styles"]) == {
        *("noto", "noto_v1", "emojione", "fluent_flat", "fluent_3d")
    }
    assert list(pictograms("twemoji")) == info["classes"]


def test_only_some_classes_are_drawn_when_they_are_named():
    wanted = ("cat", "clock", "star", "digit 3")
    scenes = [render_scene(i, "train", classes=wanted) for i in range(60)]
    assert {o.name for s in scenes for o in s.objects} == set(wanted)
    assert all(sum(o.is_text for o in s.objects) <= 1 for s in scenes)
    reader = ScenesReader(count=20, classes=["word stop"], max_objects=3, conversations=("caption",))
    assert all(reader[i].conversations[0][0].answer == "The word stop." for i in range(20))


def written(regions, bins, size) -> str:
    return LocationVocabulary(bins).encode_regions([box for box, _ in regions], [text for _, text in regions], size)


def test_dense_captions_and_detections_round_trip_through_the_parser():
    vocabulary, rng = LocationVocabulary(BINS), np.random.default_rng(0)
    for scene in SCENES:
        regions, unparsed = vocabulary.parse(written(ask(scene, rng, "dense_caption").answer, BINS, scene.size))
        assert not unparsed
        assert [r.caption for r in regions] == [with_article(o.label) for o in scene.objects]
        for region, o in zip(regions, scene.objects):
            box = vocabulary.bins_to_box(region.bins, scene.size)
            assert np.abs(np.array(box) - np.array(o.box)).max() <= max(scene.size) / BINS
        example = ask(scene, rng, "detect")
        regions, unparsed = vocabulary.parse(written(example.answer, BINS, scene.size))
        assert not unparsed and {r.caption for r in regions} <= set(example.phrases)
        phrases = set(example.phrases)
        assert len(regions) == sum(bool(phrases & {o.label, with_article(o.label)}) for o in scene.objects)


def test_captions_say_what_is_there():
    for scene in SCENES + LARGE:
        assert caption_labels(caption(scene)) == Counter(o.label for o in scene.objects)
    assert caption_labels("Two cats, a unicycle and nothing and, the word stop.") == {"cat": 2, "word stop": 1}
    assert caption_labels("") == {}


def _scene(*objects) -> Scene:
    return Scene(np.zeros((90, 90, 3), np.uint8), list(objects), "plain", "black")


def test_the_grammar_word_for_word():
    scene = _scene(
        SceneObject("apple", None, (0, 0, 20, 20)),
        SceneObject("circle", "red", (60, 0, 80, 20)),
        SceneObject("apple", None, (0, 60, 20, 80)),
        SceneObject("word stop", "blue", (60, 60, 80, 80)),
    )
    assert caption(scene) == "Two apples, a red circle and the word stop."
    dense = ask(scene, np.random.default_rng(0), "dense_caption")
    assert written(dense.answer, 9, scene.size) == (
        "<loc_0><loc_0><loc_2><loc_2>an apple<loc_0><loc_6><loc_2><loc_8>a red circle"
        "<loc_6><loc_0><loc_8><loc_2>an apple<loc_6><loc_6><loc_8><loc_8>the word stop"
    )
    found = {
        asked.phrases: asked.answer
        for asked in (ask(scene, np.random.default_rng(seed), "detect") for seed in range(300))
        if len(asked.phrases) == 1
    }
    assert found["red circle",] == (((60, 0, 80, 20), "red circle"),)
    assert found["the word stop",] == (((60, 60, 80, 80), "the word stop"),)
    assert found["an apple",] == (((0, 0, 20, 20), "an apple"), ((0, 60, 20, 80), "an apple"))
    assert () in found.values()
    for one, many in (
        ("butterfly", "butterflies"),
        ("yellow star", "yellow stars"),
        ("computer mouse", "computer mice"),
        ("toothbrush", "toothbrushes"),
        ("monkey", "monkeys"),
        ("sheep", "sheep"),
        ("wolf", "wolves"),
    ):
        assert plural(one) == many
    assert [with_article(x) for x in ("hourglass", "ufo", "owl", "digit 8")] == [
        "an hourglass",
        "a ufo",
        "an owl",
        "the digit 8",
    ]
    assert all(without_article(with_article(label)) == label for label in all_labels())
    assert where((60, 0, 80, 20), 90, 90) == "top right" and where((35, 35, 55, 55), 90, 90) == "middle"
    rng = np.random.default_rng(3)
    said = {}
    for kind in QUESTION_KINDS:
        for _ in range(60):
            example = ask(scene, rng, "answer", kind)
            assert example.task == f"answer:{kind}"
            said[example.prompt] = example.answer
    assert said["Where is the red circle?"] == "At the top right."
    assert said["What colour is the circle?"] == said["What color is the circle?"] == "Red."
    assert said["What color is the word stop?"] == "Blue." and said["Which word is there?"] == "The word stop."
    assert said["What is at the bottom left?"] == "An apple." and said["Is the word stop there?"] == "Yes."
    assert said["How many apples are there?"] == "Two." and said["How many objects are there?"] == "Four."
    assert said["What is the background like?"] == "Plain." and said["What color is the background?"] == "Black."


def test_examples_are_deterministic_and_answers_are_right():
    for scene in SCENES[:20]:
        for task in TASKS:
            one, two = (ask(scene, np.random.default_rng(5), task) for _ in range(2))
            assert one == two
        labels = Counter(o.label for o in scene.objects)
        for seed in range(5):
            example = ask(scene, np.random.default_rng(seed), "answer", "yes_no")
            asked = example.prompt.removeprefix("Is there ").removeprefix("Is ").rstrip("?").removesuffix(" there")
            assert example.answer == ("Yes." if without_article(asked) in labels else "No.")
            example = ask(scene, np.random.default_rng(seed), "answer", "how_many")
            if example.task == "answer:how_many" and "objects" not in example.prompt:
                many = example.prompt.removeprefix("How many ").removesuffix(" are there?")
                (label,) = [label for label in all_labels() if plural(label) == many]
                assert example.answer.lower() == f"{NUMBERS[labels[label]]}."


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_a_question_has_one_right_answer(kind):
    """Whatever is drawn at random, the same words about the same scene never get two answers."""
    for scene in SCENES[:25] + LARGE[:10]:
        answers: dict[str, str] = {}
        rng = np.random.default_rng(1)
        for _ in range(40):
            asked = ask(scene, rng, "answer", kind)
            assert answers.setdefault(asked.prompt, asked.answer) == asked.answer


def test_nothing_but_the_image_tells_yes_from_no():
    """Half of the questions and of the phrases are of what is there, for each kind of thing."""
    rng, yes, found = np.random.default_rng(0), {}, []
    for i in range(600):
        scene = render_scene(i, "train")
        for _ in range(4):
            asked = ask(scene, rng, "answer", "yes_no")
            kind = next((k for k in ("digit", "word", *SHAPES) if f" {k} " in asked.prompt.replace("?", " ")), "thing")
            yes.setdefault("shape" if kind in SHAPES else kind, []).append(asked.answer == "Yes.")
            asked = ask(scene, rng, "detect")
            present = {o.label for o in scene.objects}
            found += [without_article(phrase) in present for phrase in asked.phrases]
    assert abs(np.mean(found) - 0.5) < 0.06
    for kind, answers in yes.items():
        assert abs(np.mean(answers) - 0.5) < 4 / len(answers) ** 0.5, (kind, len(answers))
    assert set(yes) == {"digit", "word", "shape", "thing"}


def test_where_nothing_is_absent_nothing_absent_is_asked_for():
    rng = np.random.default_rng(0)
    full = _scene(*(SceneObject(name, "red", (9 * i, 0, 9 * i + 8, 8)) for i, name in enumerate(DIGITS)))
    assert absent_label(full, rng) is None
    for _ in range(50):
        assert {without_article(phrase) for phrase in ask(full, rng, "detect").phrases} <= set(DIGITS)
        assert ask(full, rng, "answer", "yes_no").task == "answer:background"
        assert ask(full, rng, "answer").task != "answer:yes_no"
    for i in range(60):
        scene = render_scene(i, "train", height=400, width=400, max_objects=10, classes=DIGITS)
        assert all(ask(scene, rng, task).prompt for task in TASKS * 3)


def test_a_general_name_keeps_clear_of_what_it_names_too():
    classes = atlas_info()["classes"]
    assert {*KINDS, *(special for specials in KINDS.values() for special in specials)} <= set(classes)
    scene = _scene(
        SceneObject("car", None, (0, 0, 20, 20)),
        SceneObject("taxi", None, (60, 0, 80, 20)),
        SceneObject("dove", None, (0, 60, 20, 80)),
    )
    assert clear_labels(scene) == ["taxi", "dove"]
    rng, said = np.random.default_rng(0), {}
    for _ in range(1500):
        asked = ask(scene, rng, "answer")
        said[asked.prompt] = asked.answer
        assert {without_article(phrase) for phrase in ask(scene, rng, "detect").phrases}.isdisjoint({"car", "bird"})
    assert said["Is there a car?"] == said["Is there a taxi?"] == "Yes." and "Is there a bird?" not in said
    assert said["How many taxis are there?"] == "One." and said["Where is the dove?"] == "At the bottom left."
    assert not {"How many cars are there?", "How many birds are there?", "Where is the car?"} & set(said)


def test_what_is_at_a_side_is_asked_where_only_one_thing_is():
    def prompts(*boxes):
        names = ("cat", "dog", "owl")
        scene = _scene(*(SceneObject(name, None, box) for name, box in zip(names, boxes)))
        return {ask(scene, np.random.default_rng(i), "answer", "what").prompt for i in range(60)}

    top, top_left, bottom_left, left = (35, 0, 55, 20), (0, 0, 20, 20), (0, 60, 20, 80), (0, 35, 20, 55)
    assert prompts(top, bottom_left) == {"What is at the top?", "What is at the bottom left?"}
    assert "What is at the top?" not in prompts(top, top_left) and "What is at the top left?" in prompts(top, top_left)
    assert "What is on the left?" not in prompts(left, bottom_left, top)


def test_the_vocabulary_text_holds_every_word_that_is_said():
    words = {word.strip(".,?!") for line in vocabulary_text() for word in line.split()}
    rng = np.random.default_rng(2)
    for scene in SCENES[:30]:
        for task in TASKS * 3:
            asked = ask(scene, rng, task)
            answer = asked.answer if isinstance(asked.answer, str) else " ".join(text for _, text in asked.answer)
            for word in f"{asked.prompt} {answer}".split():
                assert word.strip(".,?!") in words or word.strip(".,?!").lower() in words, word


def test_the_reader_yields_samples_that_depend_on_the_index_alone():
    reader = ScenesReader(count=50, split="val", height=64, width=64)
    assert len(reader) == 50
    for i in (0, 3, 49):
        one, two = reader[i], ScenesReader(count=50, split="val", height=64, width=64)[i]
        assert isinstance(one, Sample) and one.conversations == two.conversations and one.objects == two.objects
        assert np.array_equal(one.images[0], two.images[0]) and one.images[0].dtype == np.uint8
        assert len(one.conversations) == 7 and all(isinstance(t, Turn) for c in one.conversations for t in c)
        dense = one.conversations[0][0].answer
        assert [r.box for r in dense] == [r.box for r in one.objects]
        assert [r.caption for r in dense] == [with_article(r.caption) for r in one.objects]
        assert all(isinstance(r, Region) for r in dense)
    with pytest.raises(IndexError):
        reader[50]
    assert ScenesReader(count=5, seed=1)[0].objects != ScenesReader(count=5)[0].objects
    shapes = {reader[i].images[0].shape for i in range(30)}
    assert (64, 64, 3) in shapes and 5 <= len(shapes) <= 25
    assert any(len(conversation) == 2 for i in range(30) for conversation in reader[i].conversations)


def test_the_reader_draws_several_tiles():
    several = ScenesReader(count=40, sizes="several_tiles", height=48, width=48, conversations=("caption",))
    shapes = {several[i].images[0].shape[:2] for i in range(40)}
    assert shapes == {(48, 96), (96, 48), (96, 96), (48, 144), (144, 48)}
    mixed = ScenesReader(count=60, sizes="mixed", height=48, width=48, conversations=("caption",))
    tiled = sum(mixed[i].images[0].shape[:2] in shapes for i in range(60))
    assert 3 <= tiled <= 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "validation"}, "split"),
        ({"sizes": "huge"}, "sizes"),
        ({"conversations": ("count",)}, "conversations"),
        ({"styles": ("crayon",)}, "styles"),
        ({"classes": ("gizmo",)}, "gizmo"),
        ({"count": 0}, "count"),
        ({"max_objects": 11}, "max_objects"),
    ],
)
def test_the_reader_refuses_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        ScenesReader(**options)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="split"):
        render_scene(0, "validation")
    with pytest.raises(ValueError, match="max_objects"):
        render_scene(0, max_objects=11)
    with pytest.raises(ValueError, match="16 x 16"):
        render_scene(0, height=8)
    with pytest.raises(ValueError, match="style"):
        render_scene(0, styles=("crayon",))
    with pytest.raises(ValueError, match="gizmo"):
        render_scene(0, classes=("gizmo",))
    with pytest.raises(ValueError, match="unknown task"):
        ask(SCENES[0], np.random.default_rng(0), "count")
    with pytest.raises(ValueError, match="unknown question"):
        ask(SCENES[0], np.random.default_rng(0), "answer", "why")
