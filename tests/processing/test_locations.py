"""The location vocabulary: half a bin for any image size, both formulations, and no exception on any garbage."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from processing_argus.locations_argus import LocationVocabulary, location_tokens

relaxed = settings(deadline=None, max_examples=100)

FORMATS = ("location_tokens", "plain_text")
SIZES = st.tuples(st.integers(1, 20000), st.integers(1, 20000))
# Words as captions have them: no line ends, no bracketed text that could be taken for a location token.
WORDS = st.text(st.characters(blacklist_categories=("Cs", "Zl", "Zp", "Cc"), blacklist_characters="<>"), min_size=1)
CAPTIONS = WORDS.map(lambda text: " ".join(text.split())).filter(bool)
FRAGMENTS = st.sampled_from(
    [
        "<loc_0>",
        "<loc_9>",
        "<loc_99999>",
        "<loc_",
        "<loc_-1>",
        "<loc_007>",
        "[1, 2, 3, 4]",
        "[1,2",
        "]",
        "\n",
        " a dog",
        "٣",
    ]
)


@st.composite
def images_with_boxes(draw, max_boxes=4):
    height, width = draw(SIZES)
    boxes = []
    for _ in range(draw(st.integers(1, max_boxes))):
        x1, x2 = sorted(draw(st.floats(0, width)) for _ in range(2))
        y1, y2 = sorted(draw(st.floats(0, height)) for _ in range(2))
        boxes.append((x1, y1, x2, y2))
    return (height, width), boxes


@relaxed
@given(images_with_boxes(), st.integers(1, 2000))
def test_a_box_comes_back_within_half_a_bin(case, num_bins):
    image_size, boxes = case
    vocabulary = LocationVocabulary(num_bins)
    for box in boxes:
        bins = vocabulary.box_to_bins(box, image_size)
        assert all(0 <= b < num_bins for b in bins)
        back = vocabulary.bins_to_box(bins, image_size)
        for value, decoded, size in zip(box, back, (image_size[1], image_size[0]) * 2):
            assert abs(value - decoded) <= 0.5 * size / num_bins * (1 + 1e-9)


@relaxed
@given(st.integers(1, 2000), SIZES)
def test_every_bin_survives_decoding_and_encoding(num_bins, image_size):
    vocabulary = LocationVocabulary(num_bins)
    for b in {0, num_bins // 3, num_bins - 1}:
        assert vocabulary.box_to_bins(vocabulary.bins_to_box((b,) * 4, image_size), image_size) == (b,) * 4


@pytest.mark.parametrize("box_format", FORMATS)
@relaxed
@given(case=images_with_boxes(), captions=st.lists(CAPTIONS, min_size=4, max_size=4), num_bins=st.integers(1, 1500))
def test_regions_round_trip_through_text(box_format, case, captions, num_bins):
    image_size, boxes = case
    vocabulary = LocationVocabulary(num_bins, box_format)
    text = vocabulary.encode_regions(boxes, captions[: len(boxes)], image_size)
    regions, unparsed = vocabulary.parse(text)
    assert unparsed == []
    assert [r.caption for r in regions] == captions[: len(boxes)]
    assert [r.bins for r in regions] == [vocabulary.box_to_bins(box, image_size) for box in boxes]
    assert "".join(text[r.start : r.end] + "\n" * (box_format == "plain_text") for r in regions).strip() == text.strip()


@pytest.mark.parametrize("box_format", FORMATS)
@relaxed
@given(text=st.one_of(st.text(), st.lists(st.one_of(FRAGMENTS, st.text(max_size=4))).map("".join)))
@example(text="<loc_" + "9" * 5000 + ">" + "[" + "9" * 5000 + ", 1, 1, 1] a")
def test_parsing_garbage_never_raises_and_loses_no_text(box_format, text):
    regions, unparsed = LocationVocabulary(10, box_format).parse(text)
    for region in regions:
        x1, y1, x2, y2 = region.bins
        assert region.caption and 0 <= x1 <= x2 < 10 and 0 <= y1 <= y2 < 10
    kept = "".join(text[r.start : r.end] for r in regions) + "".join(unparsed)
    assert sorted("".join(kept.split())) == sorted("".join(text.split()))


def test_the_two_formulations_read_as_the_paper_writes_them():
    box, size = (10, 20, 30, 99.9), (100, 200)  # y is on 100 pixels, x on 200
    assert (
        LocationVocabulary(10).encode_regions([box], ["a  red\ncar "], size) == "<loc_2><loc_0><loc_9><loc_1>a red car"
    )
    assert LocationVocabulary(10, "plain_text").encode_regions([box], ["a red car"], size) == "[0, 2, 1, 9] a red car"
    assert LocationVocabulary(10).bins_to_box((0, 2, 1, 9), size) == (10.0, 25.0, 30.0, 95.0)
    assert location_tokens(3) == ["<loc_0>", "<loc_1>", "<loc_2>"]


@pytest.mark.parametrize(
    "text, captions, unparsed",
    [
        ("<loc_1><loc_1><loc_2><loc_2> a dog <loc_3><loc_3><loc_4><loc_4>a cat", ["a dog", "a cat"], []),
        ("So: <loc_1><loc_1><loc_2><loc_2>a dog", ["a dog"], ["So:"]),
        ("<loc_1><loc_1><loc_2>a dog<loc_1><loc_1><loc_2><loc_2>a cat", ["a cat"], ["<loc_1><loc_1><loc_2>a dog"]),
        ("<loc_1><loc_1><loc_2><loc_2>a dog<loc_1><loc_1><loc_2><loc_2>", ["a dog"], ["<loc_1><loc_1><loc_2><loc_2>"]),
        ("<loc_5><loc_1><loc_2><loc_2>upside down", [], ["<loc_5><loc_1><loc_2><loc_2>upside down"]),
        ("<loc_1><loc_1><loc_2><loc_10>out of range", [], ["<loc_1><loc_1><loc_2><loc_10>out of range"]),
        ("<loc_1><loc_1><loc_2><loc_2><loc_3><loc_3><loc_3><loc_3>x", ["x"], ["<loc_1><loc_1><loc_2><loc_2>"]),
        ("<loc_9><loc_1><loc_2><loc_3><loc_4>dog", ["dog"], ["<loc_9>"]),
        (
            "<loc_1><loc_2><loc_3><loc_4>dog<loc_9><loc_9><loc_9><loc_1><loc_2><loc_3><loc_4>cat",
            ["dog", "cat"],
            ["<loc_9><loc_9><loc_9>"],
        ),
        ("<loc_9>" + "<loc_1><loc_2><loc_3><loc_4>" * 2 + "dog", ["dog"], ["<loc_9>", "<loc_1><loc_2><loc_3><loc_4>"]),
        ("a dog in the grass", [], ["a dog in the grass"]),
        ("", [], []),
    ],
)
def test_what_is_well_formed_is_kept_and_the_rest_is_reported(text, captions, unparsed):
    regions, rest = LocationVocabulary(10).parse(text)
    assert [r.caption for r in regions] == captions
    assert rest == unparsed


def test_plain_text_is_read_line_by_line():
    regions, rest = LocationVocabulary(10, "plain_text").parse(
        "[1,2, 3,4]a dog\nhm\n [ 0, 0, 9, 10] too far\n[3, 1, 1, 4] x"
    )
    assert [(r.bins, r.caption) for r in regions] == [((1, 2, 3, 4), "a dog")]
    assert rest == ["hm", "[ 0, 0, 9, 10] too far", "[3, 1, 1, 4] x"]


def test_a_line_of_plain_text_is_cut_at_each_box():
    text = "So: [1, 2, 3, 4] dog [5, 6] [5, 6, 7, 8] cat [9, 9, 9, 10] far [1, 1, 1, 1]"
    regions, rest = LocationVocabulary(10, "plain_text").parse(text)
    assert [(r.bins, r.caption) for r in regions] == [((1, 2, 3, 4), "dog [5, 6]"), ((5, 6, 7, 8), "cat")]
    assert [text[r.start : r.end].strip() for r in regions] == ["[1, 2, 3, 4] dog [5, 6]", "[5, 6, 7, 8] cat"]
    assert rest == ["So:", "[9, 9, 9, 10] far", "[1, 1, 1, 1]"]


def test_outside_coordinates_are_clamped():
    vocabulary = LocationVocabulary(10)
    assert vocabulary.box_to_bins((-1e308, -5, 1e308, 50), (10, 20)) == (0, 0, 9, 9)


@pytest.mark.parametrize("box", [(0, 0, math.nan, 1), (0, 0, math.inf, 1), (2, 0, 1, 1), (0, 2, 1, 1)])
def test_impossible_boxes_are_refused(box):
    with pytest.raises(ValueError, match="box"):
        LocationVocabulary(10).encode_box(box, (10, 10))


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="image_size"):
        LocationVocabulary(10).encode_box((0, 0, 1, 1), (0, 10))
    with pytest.raises(ValueError, match="num_location_bins"):
        LocationVocabulary(0)
    with pytest.raises(ValueError, match="box_format"):
        LocationVocabulary(10, "xml")
    with pytest.raises(ValueError, match="2 boxes and 1 captions"):
        LocationVocabulary(10).encode_regions([(0, 0, 1, 1)] * 2, ["a"], (10, 10))
    for caption in ("  ", "a <loc_3>"):
        with pytest.raises(ValueError, match="caption"):
            LocationVocabulary(10).encode_regions([(0, 0, 1, 1)], [caption], (10, 10))
    with pytest.raises(ValueError, match="holds a box"):
        LocationVocabulary(10, "plain_text").encode_regions([(0, 0, 1, 1)], ["a [1,2, 3, 4]"], (10, 10))
