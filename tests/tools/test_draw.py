"""Drawn boxes: where the colour is, that labels stay inside, small images and odd boxes."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from argus_tools import draw
from argus_tools.draw import MAX_LINES, caption_color, draw_regions

GROUND = (120, 120, 120)


def gray(width, height):
    return Image.new("RGB", (width, height), GROUND)


def bounds(image, color):
    """x1, y1, x2, y2 of the pixels of one colour."""
    rows, columns = np.where((np.asarray(image) == color).all(-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_a_box_is_drawn_where_it_is_and_the_image_is_left_alone():
    image = gray(1000, 800)
    drawn = draw_regions(image, [(200.0, 300.0, 700.0, 650.0)], ["a red car"])
    assert drawn.size == (1000, 800) and drawn.mode == "RGB"
    x1, y1, x2, y2 = bounds(drawn, caption_color("a red car"))
    assert (x1, x2, y2) == (200, 700, 650) and 250 < y1 < 300  # the label stands above
    assert (np.asarray(image) == GROUND).all()
    assert (np.asarray(drawn)[360:640, 220:680] == GROUND).all()


def test_colours_belong_to_captions():
    assert caption_color("a red car") == caption_color("A  red car")
    colors = {caption_color(f"thing {number}") for number in range(40)}
    assert len(colors) == 40
    assert all(max(color) - min(color) > 100 for color in colors)  # no greys


def test_small_images_are_enlarged_so_that_text_is_legible():
    drawn = draw_regions(gray(32, 16), [(4, 4, 20, 12)], ["dog"])
    assert drawn.size == (768, 384)
    x1, _, x2, y2 = bounds(drawn, caption_color("dog"))
    assert (x1, x2, y2) == (96, 480, 288)
    assert draw_regions(gray(5000, 2), [(10, 0, 4000, 1)], ["a line"]).size == (5000, 2)
    assert max(draw_regions(gray(900, 3), [], []).size) == draw.MAX_SIDE


@pytest.mark.parametrize("size", [(640, 480), (30, 400), (900, 20), (1, 1)])
@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.97, 0.97, 1, 1), (0.95, 0, 1, 0.1), (0, 0.9, 0.1, 1), (-1, -1, 2, 2)])
def test_labels_stay_inside_the_image(size, box, monkeypatch):
    places = []
    original = draw._draw_label
    monkeypatch.setattr(draw, "_draw_label", lambda *a: places.append(original(*a)) or places[-1])
    box = [value * side for value, side in zip(box, size * 2)]
    drawn = draw_regions(gray(*size), [box], ["a caption that is long enough to be folded " * 3], [0.5])
    (place,) = places
    assert place[0] >= 0 and place[1] >= 0 and place[2] <= drawn.width - 1 and place[3] <= drawn.height - 1
    assert place[2] > place[0] and place[3] > place[1]


def test_labels_of_equal_boxes_do_not_cover_each_other(monkeypatch):
    places = []
    original = draw._draw_label
    monkeypatch.setattr(draw, "_draw_label", lambda *a: places.append(original(*a)) or places[-1])
    draw_regions(gray(800, 600), [(200, 200, 500, 500)] * 4, ["one", "two", "three", "four"])
    assert len(places) == 4
    assert not any(draw._overlap(a, b) for i, a in enumerate(places) for b in places[:i])


def test_odd_boxes_are_cut_ordered_or_left_out():
    image = gray(800, 800)
    drawn = draw_regions(image, [(700.0, 500.0, 300.0, 900.0)], ["turned"])
    x1, _, x2, y2 = bounds(drawn, caption_color("turned"))
    assert (x1, x2, y2) == (300, 700, 799)
    for box in ((900, 900, 950, 950), (-50, -50, -1, -1), (float("nan"), 0, 5, 5), (0, 0, float("inf"), 5)):
        assert (np.asarray(draw_regions(image, [box], ["gone"])) == GROUND).all()
    assert (np.asarray(draw_regions(image, [(400, 400, 400, 400)], ["a point"])) != GROUND).any()


def test_captions_of_any_kind_are_drawn():
    captions = ["", "crème brûlée", "two\nlines\tof text", "猫", "x" * 500, "\x1b[31mred", "word " * 100]
    boxes = [(10 * i, 10 * i, 10 * i + 300, 10 * i + 300) for i in range(len(captions))]
    drawn = draw_regions(gray(700, 700), boxes, captions, [0.1] * len(captions))
    assert (np.asarray(drawn) != GROUND).any()
    assert draw._drawable("crème\nbrûlée") == "creme brulee"


def test_long_captions_are_folded_and_cut():
    font = ImageFont.load_default(size=16)
    lines = draw._wrapped("a small brown dog near a tall green tree " * 5, font, 150)
    assert len(lines) == MAX_LINES and lines[-1].endswith("...")
    assert all(font.getlength(line) <= 150 for line in lines)
    assert draw._wrapped("a dog", font, 150) == ["a dog"]
    assert font.getlength(draw._wrapped("x" * 200, font, 150)[0]) <= 150


def test_numbers_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="1 boxes, 2 captions"):
        draw_regions(gray(10, 10), [(0, 0, 1, 1)], ["a", "b"])
    with pytest.raises(ValueError, match="2 scores"):
        draw_regions(gray(10, 10), [(0, 0, 1, 1)], ["a"], [0.1, 0.2])


def test_every_format_that_is_offered_can_be_written_in_colour(tmp_path):
    for suffix in filter(draw.drawable_suffix, draw.SUFFIXES):
        gray(20, 10).save(tmp_path / f"out{suffix}")
        with Image.open(tmp_path / f"out{suffix}") as image:
            assert image.size == (20, 10)
    assert draw.drawable_suffix(".PNG") and not draw.drawable_suffix(".psd") and not draw.drawable_suffix("")


def test_other_modes_become_rgb():
    assert draw_regions(Image.new("LA", (50, 50)), [(5, 5, 30, 30)], ["a dog"]).mode == "RGB"
