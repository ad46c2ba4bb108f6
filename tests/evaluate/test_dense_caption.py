"""Region-caption mAP: cases worked by hand, and a slow transcription of the protocol on random scenes."""

import densecap_oracle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argus_tools.evaluate.dense_caption import (
    RegionImage,
    average_precision,
    dense_caption_map,
    merge_groups,
    normalise,
    overlaps,
    pixel_corners,
)
from argus_tools.evaluate.meteor import MeteorLite

SIZE = (720, 720)
A, B, C = (0, 0, 100, 100), (200, 200, 300, 300), (500, 500, 600, 600)


class Words:
    """A stand-in METEOR: the share of the caption's words that the best reference holds."""

    name = "words"

    def score(self, pairs):
        return [
            max((share(caption, reference) for reference in references), default=0.0) for caption, references in pairs
        ]


def share(caption, reference):
    words = caption.split()
    return sum(word in reference.split() for word in words) / len(words) if words else 0.0


def image(predictions, truth, size=SIZE):
    """predictions: (box, caption, score); truth: (box, caption)."""
    boxes, captions, scores = zip(*predictions) if predictions else ((), (), ())
    true_boxes, true_captions = zip(*truth) if truth else ((), ())
    return RegionImage(size, boxes, captions, scores, true_boxes, true_captions)


def maps(*images):
    found = dense_caption_map(images, Words())
    return found["reference"]["map"], found["clean"]["map"]


def test_all_right_is_one():
    found = dense_caption_map([image([(A, "a cat", 0.9), (B, "a dog", 0.8)], [(A, "a cat"), (B, "a dog")])], Words())
    assert found["reference"]["map"] == found["clean"]["map"] == pytest.approx(1.0)
    assert (found["meteor"], found["images"], found["regions"], found["predictions"]) == ("words", 1, 2, 2)
    assert len(found["reference"]["ap"]) == 5 and all(len(row) == 6 for row in found["reference"]["ap"].values())


def test_half_of_it_right():
    """One of two regions: precision 1 up to recall 0.5, that is at 51 of 101 recalls, in each of the 30 cells."""
    assert maps(image([(A, "a cat", 0.9)], [(A, "a cat"), (B, "a dog")])) == (pytest.approx(51 / 101),) * 2


def test_a_wrong_one_before_the_right_one():
    """Ranked wrong, right, of one region: precision 1/2 at every recall."""
    assert maps(image([(C, "a cat", 0.9), (B, "a cat", 0.8)], [(B, "a cat")]))[1] == pytest.approx(0.5)


def test_thresholds_of_iou_count_when_reached():
    """A box of half the area inside the other: IoU exactly 1/2 passes .3 .4 .5 and not .6 .7: 3 of 5 rows."""
    assert maps(image([((0, 0, 50, 100), "a cat", 0.9)], [(A, "a cat")])) == (pytest.approx(0.6),) * 2


def test_thresholds_of_meteor_must_be_passed():
    """A METEOR of exactly 1/4 passes 0 .05 .1 .15 .2 and not .25: 5 of 6 columns; of 0 it passes none, not even 0."""
    assert maps(image([(A, "cat w x y", 0.9)], [(A, "cat")])) == (pytest.approx(5 / 6),) * 2
    assert maps(image([(A, "dog", 0.9)], [(A, "cat")])) == (0.0, 0.0)


def test_images_without_predictions_count():
    with_one = image([(A, "a cat", 0.9)], [(A, "a cat")])
    assert maps(with_one) == (pytest.approx(1.0),) * 2
    assert maps(with_one, image([], [(B, "a dog")])) == (pytest.approx(51 / 101),) * 2
    assert maps(image([], [(B, "a dog")])) == (0.0, 0.0)


def test_images_without_ground_truth_give_false_positives():
    wrong_first = image([(A, "a cat", 0.95)], [])
    assert maps(wrong_first, image([(A, "a cat", 0.9)], [(A, "a cat")])) == (pytest.approx(0.5),) * 2


def test_a_second_hit_is_a_false_positive():
    """Right, twice the same, right: of two regions, precision 1 up to recall .5 and 2/3 up to 1."""
    predicted = [(A, "a cat", 0.9), (A, "a cat", 0.8), (B, "a dog", 0.7)]
    expected = (51 + 50 * 2 / 3) / 101
    assert maps(image(predicted, [(A, "a cat"), (B, "a dog")])) == (pytest.approx(expected),) * 2


def test_a_poor_hit_uses_the_region_up_in_the_reference_only():
    """The first overlaps the region by 1/10. Lua marks it taken, and the good second one is false: nothing is right.
    Clean: wrong, then right, of one region: 1/2 everywhere."""
    predicted = [((0, 0, 100, 10), "a cat", 0.9), (A, "a cat", 0.8)]
    assert maps(image(predicted, [(A, "a cat")])) == (0.0, pytest.approx(0.5))


def test_a_hit_with_wrong_words_uses_the_region_up_in_the_reference_only():
    predicted = [(A, "a dog", 0.9), (A, "cat", 0.8)]
    assert maps(image(predicted, [(A, "cat")])) == (0.0, pytest.approx(0.5))


def test_a_hit_on_nothing_uses_up_the_last_region_in_the_reference_only():
    """Torch7's index -1. Of A and B, B is the last merged box: a stray first prediction takes it away.
    Reference: stray, A right, B false: one of two regions, at precision 1/2 up to recall .5.
    Clean: stray, right, right: precision 2/3 at every recall."""
    predicted = [(C, "a cat", 0.95), (A, "a cat", 0.9), (B, "a dog", 0.8)]
    reference, clean = maps(image(predicted, [(A, "a cat"), (B, "a dog")]))
    assert reference == pytest.approx(51 / 101 / 2)
    assert clean == pytest.approx(2 / 3)
    # The other way round the last one is A.
    reference, _ = maps(image(predicted, [(B, "a dog"), (A, "a cat")]))
    assert reference == pytest.approx(51 / 101 / 3)


def test_ranks_are_over_all_images():
    """0.9 wrong, 0.8 right, 0.7 right over two images: precision 2/3 at every recall of two regions."""
    one = image([(B, "a cow", 0.9), (A, "a cat", 0.7)], [(A, "a cat")])
    two = image([(B, "a dog", 0.8)], [(B, "a dog")])
    assert maps(one, two)[1] == pytest.approx(2 / 3)


def test_ground_truth_is_merged_and_keeps_all_captions():
    """Boxes that overlap by at least 0.7 are one region with two references, at their mean."""
    near = (0, 0, 100, 80)  # IoU 0.8 with A; mean (0, 0, 100, 90): IoU 0.9 with A
    found = dense_caption_map([image([(A, "a cat", 0.9)], [(A, "animal"), (near, "a cat")])], Words())
    assert found["regions"] == 1 and found["reference"]["map"] == pytest.approx(1.0)
    apart = (0, 0, 100, 69)  # IoU 0.69
    assert dense_caption_map([image([], [(A, "animal"), (apart, "a cat")])], Words())["regions"] == 2
    at = (0, 0, 100, 70)  # IoU 0.7 counts
    assert dense_caption_map([image([], [(A, "animal"), (at, "a cat")])], Words())["regions"] == 1


def test_the_largest_group_is_merged_first():
    """Of boxes of heights 100, 85, 72: the middle one is near both others (.85, .847), which are not near each other
    with .72 (>= .7 they are): take .66. So middle, with both, is the largest group; alone nothing is left."""
    boxes = [(0, 0, 100, 100), (0, 0, 100, 80), (0, 0, 100, 66)]  # .8, .825, .66
    assert [group.tolist() for group in merge_groups(pixel_corners(boxes, SIZE))] == [[0, 1, 2]]
    boxes = [(0, 0, 100, 100), (0, 0, 100, 66), (400, 0, 500, 100)]
    assert sorted(group.tolist() for group in merge_groups(pixel_corners(boxes, SIZE))) == [[0], [1], [2]]


def test_iou_counts_pixels():
    """Pixels 0..9 and 5..14: 5 shared of 15; one pixel is a box of area 1; neighbours share nothing."""
    assert overlaps([(0, 0, 9, 9)], [(5, 0, 14, 9)])[0, 0] == pytest.approx(1 / 3)
    assert overlaps([(3, 3, 3, 3)], [(3, 3, 3, 3)])[0, 0] == 1.0
    assert overlaps([(0, 0, 4, 4)], [(5, 0, 9, 4)])[0, 0] == 0.0


def test_coordinates_are_those_of_a_long_side_of_720():
    """(10, 20)-(50, 60) of 360 x 240 pixels: doubled, and the last pixel is one before the edge."""
    assert pixel_corners([(10, 20, 50, 60)], (240, 360)).tolist() == [[20.0, 40.0, 99.0, 119.0]]
    small = image([((0, 0, 5, 10), "a cat", 0.9)], [((0, 0, 10, 10), "a cat")], size=(72, 72))
    assert maps(small) == (pytest.approx(0.6),) * 2


def test_average_precision_by_hand():
    assert average_precision([True, False, True], 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision([], 3) == average_precision([False], 3) == 0.0
    assert average_precision([True] * 7, 20) == pytest.approx(36 / 101)  # 7/20 reaches 0.35: recalls 0 .. 0.35
    # Precision is the best at this recall or above: wrong, right, right.
    assert average_precision([False, True, True], 3) == pytest.approx(67 * (2 / 3) / 101)


def test_captions_are_normalised():
    assert normalise("  A  man's hat, (red).") == "a mans hat red"
    assert normalise("½ of a café—table…") == "half of a cafetable"


@pytest.mark.parametrize(
    "broken, message",
    [
        (RegionImage(SIZE, [A], [], [1.0], [A], ["a"]), "1 boxes and 0 captions of predictions"),
        (RegionImage(SIZE, [A], ["a"], [], [A], ["a"]), "1 boxes and 0 scores"),
        (RegionImage(SIZE, [A], ["a"], [float("nan")], [A], ["a"], "7.jpg"), "image 7.jpg: .* not a finite"),
        (RegionImage((0, 5), [], [], [], [A], ["a"]), "above 0"),
        (RegionImage(SIZE, [], [], [], [], []), "no ground truth"),
    ],
)
def test_bad_input_is_refused(broken, message):
    with pytest.raises(ValueError, match=message):
        dense_caption_map([broken], Words())


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="unknown mode 'lua'"):
        dense_caption_map([], Words(), modes=["lua"])


WORDS = ["cat", "dog", "red", "hat", "on"]


@st.composite
def scenes(draw):
    """Images of a few boxes on a coarse grid, so that boxes coincide, touch and overlap by much."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner = rng.integers(0, 8, (n, 2)) * 20
        return np.concatenate([corner, corner + rng.integers(1, 6, (n, 2)) * 20 + rng.integers(0, 3, (n, 2))], 1)

    def texts(n):
        return [" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in range(n)]

    result = []
    for _ in range(int(rng.integers(1, 5))):
        n, m = int(rng.integers(0, 7)), int(rng.integers(0, 7))
        scores = rng.permutation(1000)[:n] / 1000 + len(result) * 1e-5  # no ties
        size = (int(rng.integers(200, 700)), int(rng.integers(200, 700)))
        result.append(
            {
                "size": size,
                "boxes": boxes(n).tolist(),
                "captions": texts(n),
                "scores": scores.tolist(),
                "true_boxes": boxes(m).tolist(),
                "true_captions": texts(m),
            }
        )
    return result


@settings(max_examples=150, deadline=None)
@given(scenes())
def test_it_is_the_protocol_word_for_word(images):
    if not any(each["true_boxes"] for each in images):
        return
    regions = [
        RegionImage(i["size"], i["boxes"], i["captions"], i["scores"], i["true_boxes"], i["true_captions"])
        for i in images
    ]
    for meteor in (Words(), MeteorLite()):
        expected = densecap_oracle.evaluate(images, lambda text, references, m=meteor: m.score([(text, references)])[0])
        found = dense_caption_map(regions, meteor, modes=["reference"])
        assert found["reference"]["map"] == pytest.approx(expected, abs=1e-12)


def test_the_oracle_is_right_about_a_case_by_hand():
    """The oracle itself, on the case of the last region above: 51/101 x 1/2."""
    images = [
        {
            "size": SIZE,
            "boxes": [C, A, B],
            "captions": ["a cat", "a cat", "a dog"],
            "scores": [0.95, 0.9, 0.8],
            "true_boxes": [A, B],
            "true_captions": ["a cat", "a dog"],
        }
    ]
    assert densecap_oracle.evaluate(
        images, lambda text, references: max(share(text, r) for r in references)
    ) == pytest.approx(51 / 101 / 2)
