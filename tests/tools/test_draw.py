"""Drawn boxes: where the colour is, labels that keep out of each other's way, colours for colour-blind eyes."""

import random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from argus_tools.draw import SUFFIXES, drawable_suffix
from processing_argus import ArgusProcessor
from processing_argus import drawing_argus as drawing
from processing_argus import lettering_argus as lettering
from processing_argus.drawing_argus import PALETTE, caption_color, draw_regions, ink, lay_out, region_colors
from processing_argus.lettering_argus import MAX_LINES, drawable, folded, written

GROUND = (120, 120, 120)


def gray(width, height):
    return Image.new("RGB", (width, height), GROUND)


def bounds(image, color):
    """x1, y1, x2, y2 of the pixels of one colour."""
    rows, columns = np.where((np.asarray(image) == color).all(-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


def overlaps(labels):
    """How much the labels of each pair cover each other, in pixels."""
    places = np.array([label.place for label in labels])
    return drawing._overlaps(places, places)[np.triu_indices(len(places), 1)]


def scattered(number, width, height, seed=0):
    """Boxes all over an image, fewer than a quarter of it on average, some beyond its edges."""
    draw, boxes = random.Random(seed), {}
    for i in range(number):
        w, h = draw.uniform(0.05, 0.25) * width, draw.uniform(0.05, 0.25) * height
        x, y = draw.uniform(0, width - w), draw.uniform(0, height - h)
        boxes[i] = (x, y, x + w, y + h)
    return boxes


def test_a_box_is_drawn_where_it_is_and_the_image_is_left_alone():
    image = gray(1000, 800)
    drawn = draw_regions(image, [(200.0, 300.0, 700.0, 650.0)], ["a red car"])
    assert drawn.size == (1000, 800) and drawn.mode == "RGB"
    x1, y1, x2, y2 = bounds(drawn, caption_color("a red car"))
    assert (x2, y2) == (700, 650) and 200 <= x1 <= 201 and 250 < y1 < 300  # the label stands above
    assert (np.asarray(image) == GROUND).all()
    assert (np.asarray(drawn)[360:640, 220:680] == GROUND).all()


# --- colours ----------------------------------------------------------------------------------------------------------


def test_colours_belong_to_captions():
    assert caption_color("a red car") == caption_color("A  red car")
    assert {caption_color(f"thing {number}") for number in range(100)} == set(PALETTE)


def test_captions_of_one_picture_have_different_colours_while_there_are_any():
    captions = [f"thing {number}" for number in range(len(PALETTE))]
    assert len(set(region_colors(captions))) == len(PALETTE)
    colors = region_colors([*captions, *captions])
    assert colors[: len(captions)] == colors[len(captions) :]
    many = region_colors([f"thing {number}" for number in range(4 * len(PALETTE))])
    assert all(many.count(color) <= 8 for color in PALETTE)
    assert region_colors(["a dog"]) == [caption_color("a dog")] and region_colors([]) == []


def linear(colors):
    values = np.asarray(colors) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def cielab(rgb):
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = np.clip(rgb, 0, 1) @ to_xyz.T / (0.95047, 1.0, 1.08883)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)


EYES = {  # Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("eye", EYES)
def test_every_eye_tells_the_colours_apart(eye):
    seen = cielab(linear(PALETTE) @ np.array(EYES[eye]).T)
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(PALETTE), 1)]
    assert distances.min() > 30  # about thirteen times what can just be told apart


@pytest.mark.parametrize("color", PALETTE)
def test_letters_stand_out_on_their_label(color):
    light = [linear(each) @ (0.2126, 0.7152, 0.0722) + 0.05 for each in (color, ink(color))]
    assert max(light) / min(light) >= 4.5  # WCAG AA
    assert ink(color) in ((0, 0, 0), (255, 255, 255))


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [200, 640, 2000, 8000])
@pytest.mark.parametrize("number", [1, 8, 40])
def test_labels_do_not_cover_each_other(side, number):
    scale = drawing._enlargement(side, side * 3 // 4)
    width, height = round(side * scale), round(side * 3 // 4 * scale)
    boxes = scattered(number, width, height)
    texts = {i: ("a small brown dog by a tree", "cat 0.50", "traffic light 0.71")[i % 3] for i in boxes}
    font, labels = lay_out(boxes, texts, (width, height))
    assert len(labels) == number and not overlaps(labels).any()
    assert width / 100 < font.size < width / 30  # as large on every screen
    assert font.size >= drawing.SMALLEST_FONT


def crowd(number, width, height, clustered, seed=0):
    """Boxes of every size all over an image, or of one size around its middle."""
    draw, boxes = random.Random(seed), {}
    for i in range(number):
        if clustered:
            x, y = draw.gauss(width / 2, width / 20), draw.gauss(height / 2, height / 20)
            w, h = width / 10, height / 10
        else:
            x, y = draw.uniform(0, 0.8 * width), draw.uniform(0, 0.8 * height)
            w, h = draw.uniform(2, 0.4 * width), draw.uniform(2, 0.4 * height)
        boxes[i] = (x, y, min(x + w, width - 1), min(y + h, height - 1))
    return boxes


STRIPS = [(200, 8000), (8000, 200), (200, 2000), (2000, 200), (200, 3000), (300, 4000), (400, 8000), (288, 288),
          (200, 200)]  # fmt: skip


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("number", [5, 50])
@pytest.mark.parametrize("size", STRIPS)
def test_labels_on_strips_and_in_crowds_are_whole_and_do_not_cover_each_other(size, number, clustered):
    scale = drawing._enlargement(*size)
    width, height = (round(side * scale) for side in size)
    boxes = crowd(number, width, height, clustered)
    texts = {i: ("a red circle", "a dog", "a small brown dog")[i % 3] for i in boxes}
    font, labels = lay_out(boxes, texts, (width, height), dict.fromkeys(boxes, "0.52"))
    assert len(labels) == number and not overlaps(labels).any()
    assert all(" ".join(label.lines) == f"{texts[label.number]} 0.52" for label in labels)
    assert all(0 <= x1 and 0 <= y1 and x2 <= width - 1 and y2 <= height - 1 for *_, (x1, y1, x2, y2), _ in labels)
    assert drawing.SMALLEST_FONT <= font.size <= max(18, min(width, height) / 10)


def test_lines_on_strips_leave_what_they_frame():
    drawn = np.asarray(draw_regions(gray(200, 8000), [(20, 1000, 180, 1400)], ["a dog"]))
    assert (drawn[1010:1390, 30:170] == GROUND).all()


def test_labels_of_equal_boxes_do_not_cover_each_other():
    for number in (4, 12):
        _, labels = lay_out(
            dict.fromkeys(range(number), (200, 200, 500, 500)), dict.fromkeys(range(12), "one"), (800, 600)
        )
        assert len(labels) == number and not overlaps(labels).any()


def test_a_label_stands_above_its_box_where_it_can_and_beside_small_ones_never_on_them():
    boxes = {0: (100, 100, 300, 300), 1: (400, 300, 412, 312), 2: (600, 0, 700, 100)}
    _, labels = lay_out(boxes, dict.fromkeys(boxes, "a dog"), (800, 600))
    places = {label.number: label.place for label in labels}
    assert places[0][0] == 100 and places[0][3] == 100
    assert not drawing._overlaps(np.array([places[1]]), np.array([boxes[1]])).any()
    assert places[2][1] >= 0


def test_a_crowd_gets_smaller_letters_and_a_hopeless_one_is_drawn_all_the_same():
    few, many = scattered(3, 800, 600), scattered(120, 800, 600)
    sizes = [lay_out(b, dict.fromkeys(b, "a person in a suit 0.50"), (800, 600))[0].size for b in (few, many)]
    assert sizes[0] > sizes[1] >= drawing.SMALLEST_FONT
    assert len(lay_out(dict.fromkeys(range(90), (1, 1, 60, 60)), dict.fromkeys(range(90), "a dog"), (64, 64))[1]) == 90


@pytest.mark.parametrize("size", [(768, 576), (64, 853), (2880, 64), (5000, 2), (64, 64)])
@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.97, 0.97, 1, 1), (0.95, 0, 1, 0.1), (0, 0.9, 0.1, 1)])
def test_labels_stay_inside_the_image(size, box):
    box = tuple(value * (side - 1) for value, side in zip(box, size * 2))
    _, (label,) = lay_out({0: box}, {0: "a caption that is long enough to be folded " * 3}, size)
    x1, y1, x2, y2 = label.place
    assert 0 <= x1 < x2 <= size[0] - 1 and 0 <= y1 < y2 <= size[1] - 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(1, 8000), (8000, 1), (1, 1), (4, 5000)])
def test_threads_of_pixels_are_drawn_without_a_word(size):
    assert draw_regions(Image.new("RGB", size), [(0, 0, *size)] * 2, ["a cat", "a dog"], [0.5, 1.0]).mode == "RGB"


def test_a_label_apart_from_its_box_is_tied_to_it():
    image, color = gray(800, 600), caption_color("a dog")
    label = drawing.Label(0, ["a dog"], (500.0, 400.0, 560.0, 420.0))
    drawing._draw_tie(drawing.ImageDraw.Draw(image), label, (100, 100, 200, 200), color, 3)
    x1, y1, *_ = bounds(image, color)
    assert x1 <= 203 and y1 <= 203


def test_small_images_are_enlarged_so_that_text_is_legible():
    drawn = draw_regions(gray(32, 16), [(4, 4, 20, 12)], ["dog"])
    assert drawn.size == (768, 384)
    x1, _, x2, y2 = bounds(drawn, caption_color("dog"))
    assert 96 <= x1 <= 97 and (x2, y2) == (480, 288)
    assert draw_regions(gray(5000, 2), [(10, 0, 4000, 1)], ["a line"]).size == (5000, 2)
    assert max(draw_regions(gray(900, 3), [], []).size) == drawing.MAX_SIDE
    assert draw_regions(gray(1, 1), [(0, 0, 1, 1)], ["a dot"], [0.5]).size == (768, 768)


# --- odd input --------------------------------------------------------------------------------------------------------


def test_odd_boxes_are_cut_ordered_or_left_out():
    image = gray(800, 800)
    drawn = draw_regions(image, [(700.0, 500.0, 300.0, 900.0)], ["turned"])
    x1, _, x2, y2 = bounds(drawn, caption_color("turned"))
    assert 300 <= x1 <= 301 and (x2, y2) == (700, 799)
    for box in ((900, 900, 950, 950), (-50, -50, -1, -1), (float("nan"), 0, 5, 5), (0, 0, float("inf"), 5)):
        assert (np.asarray(draw_regions(image, [box], ["gone"])) == GROUND).all()
    assert (np.asarray(draw_regions(image, [(400, 400, 400, 400)], ["a point"])) != GROUND).any()


# At, within a pixel of and beyond the edges of an image of 800 x 600, and anywhere.
COLUMN = st.sampled_from([-1.0, 0.0, 0.5, 799.0, 799.5, 800.0, 801.0]) | st.floats(-2, 802)
ROW = st.sampled_from([-1.0, 0.0, 0.5, 599.0, 599.5, 600.0, 601.0]) | st.floats(-2, 602)


@settings(max_examples=25, deadline=None)
@given(box=st.tuples(COLUMN, ROW, COLUMN, ROW))
@example(box=(799.5, 100.0, 799.5, 200.0))
@example(box=(100.0, 599.5, 200.0, 599.9))
@example(box=(800.0, 600.0, 800.0, 600.0))
def test_boxes_that_touch_the_edges_are_drawn(box):
    drawn = draw_regions(gray(800, 600), [box], ["an edge"])
    (x1, x2), (y1, y2) = sorted(box[0::2]), sorted(box[1::2])
    inside = x2 >= 0 and y2 >= 0 and x1 <= 800 and y1 <= 600
    assert (np.asarray(drawn) != GROUND).any() == inside


def test_captions_of_any_kind_are_drawn():
    captions = ["", "crème brûlée", "two\nlines\tof text", "猫", "x" * 500, "\x1b[31mred", "word " * 100]
    boxes = [(10 * i, 10 * i, 10 * i + 300, 10 * i + 300) for i in range(len(captions))]
    drawn = draw_regions(gray(700, 700), boxes, captions, [0.1] * len(captions))
    assert (np.asarray(drawn) != GROUND).any()


def test_long_captions_are_folded_and_cut_but_never_their_scores():
    font = ImageFont.load_default(size=16)
    for text in ("a small brown dog near a tall green tree " * 5, "x" * 200):
        lines, cut = folded(text, font, 150, "0.52")
        assert cut and len(lines) == MAX_LINES and " ".join(lines).endswith("... 0.52")
        assert all(font.getlength(line) <= 150 for line in lines)
    assert folded("a dog", font, 150) == (["a dog"], False)
    assert folded("a dog", font, 150, "0.52") == (["a dog 0.52"], False)
    assert folded("a rhinoceros", font, 50)[1]  # its word is broken


def test_one_long_caption_does_not_shrink_the_letters_of_all():
    boxes = {0: (100, 100, 300, 300), 1: (400, 200, 600, 400)}
    font, _ = lay_out(boxes, {0: "a dog", 1: "word " * 300}, (2000, 1500))
    assert font.size == lay_out(boxes, {0: "a dog", 1: "a cat"}, (2000, 1500))[0].size


# --- scripts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_system_fonts(monkeypatch):
    monkeypatch.setattr(lettering, "_system_faces", lambda: ())


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("crème\nbrûlée", "creme brulee"),
        ("Straße, søt, Łódź, æble, đak", "Strasse, sot, Lodz, aeble, dak"),
        ("Œuvre – “naïve”", "OEuvre - “naive”"),
        ("a\u200bb\u202ec\x1b", "abc"),
    ],
)
def test_latin_letters_are_written_plainly_in_pillows_own_font(text, plain):
    assert drawable(text) == plain and written(text, 1) == (plain, None)
    assert all(lettering._has(None, letter) for letter in plain)


def test_what_no_font_has_is_left_out_or_replaced_by_the_number_of_the_region(without_system_fonts):
    assert written("猫", 3) == ("#3", None) and written("a cat, кошка", 12) == ("#12", None)
    assert written("🐱 cat", 1) == ("cat", None) and written("🐱", 2) == ("#2", None)
    assert written("", 1) == written(" \n", 1) == ("", None)
    drawn = draw_regions(gray(700, 700), [(50, 50, 300, 300)] * 2, ["a dog", "кошка"])
    assert drawn.tobytes() != draw_regions(gray(700, 700), [(50, 50, 300, 300)] * 2, ["a dog", ""]).tobytes()


def test_other_scripts_are_written_in_a_font_of_the_system_that_has_them(monkeypatch):
    asked = []

    def has(face, letter):
        asked.append(face)
        return letter.isascii() or (face == "b.ttf" and letter in "кошка")

    monkeypatch.setattr(lettering, "_system_faces", lambda: ("a.ttf", "b.ttf"))
    monkeypatch.setattr(lettering, "_has", has)
    assert written("a cat", 1) == ("a cat", None) and set(asked) == {None}
    assert written("кошка", 1) == ("кошка", "b.ttf")
    assert written("кошка 🐱", 1) == ("кошка", "b.ttf")
    assert written("кошка 猫", 7) == ("#7", None)


@pytest.mark.skipif(not lettering._system_faces(), reason="no font of the system is known by name")
def test_a_label_in_a_font_of_the_system_keeps_its_place():
    face = lettering._system_faces()[0]
    boxes = dict.fromkeys(range(6), (100, 100, 300, 300))
    _, labels = lay_out(boxes, dict.fromkeys(boxes, "a dog"), (800, 600), None, {**dict.fromkeys(boxes), 2: face})
    assert {label.number: label.face for label in labels} == {**dict.fromkeys(boxes), 2: face}
    assert not overlaps(labels).any()
    assert (np.asarray(draw_regions(gray(800, 600), [(100, 100, 300, 300)], ["кошка"])) != GROUND).any()


def test_numbers_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="1 boxes, 2 captions"):
        draw_regions(gray(10, 10), [(0, 0, 1, 1)], ["a", "b"])
    with pytest.raises(ValueError, match="2 scores"):
        draw_regions(gray(10, 10), [(0, 0, 1, 1)], ["a"], [0.1, 0.2])


def test_every_format_that_is_offered_can_be_written_in_colour(tmp_path):
    for suffix in filter(drawable_suffix, SUFFIXES):
        gray(20, 10).save(tmp_path / f"out{suffix}")
        with Image.open(tmp_path / f"out{suffix}") as image:
            assert image.size == (20, 10)
    assert drawable_suffix(".PNG") and not drawable_suffix(".psd") and not drawable_suffix("")


def test_other_modes_become_rgb():
    assert draw_regions(Image.new("LA", (50, 50)), [(5, 5, 30, 30)], ["a dog"]).mode == "RGB"


@pytest.mark.parametrize("key", ["captions", "labels"])
def test_the_processor_draws_what_its_parsers_give(key):
    regions = {"boxes": torch.tensor([[100.0, 100.0, 500.0, 500.0]]), key: ["a dog"], "scores": torch.tensor([0.5])}
    image = gray(800, 600)
    drawn = ArgusProcessor.draw_regions(None, np.asarray(image), regions)
    assert drawn.tobytes() == draw_regions(image, [(100, 100, 500, 500)], ["a dog"], [0.5]).tobytes()
    plain = ArgusProcessor.draw_regions(None, image, regions, with_scores=False)
    assert plain.tobytes() == draw_regions(image, [(100, 100, 500, 500)], ["a dog"]).tobytes()
    assert ArgusProcessor.region_colors(["a dog"]) == ["#" + bytes(caption_color("a dog")).hex()]
