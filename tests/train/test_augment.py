"""Augmentations: boxes follow the pixels, and nothing that a sample says becomes untrue."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from argus_tools.train.augment import SMALLEST, Augmentation, jitter
from argus_tools.train.samples import Region, Sample, Turn

RED = (230, 20, 20)


def picture(width: int, height: int, box) -> np.ndarray:
    """uint8[H, W, 3]: a red rectangle on grey."""
    image = np.full((height, width, 3), 128, np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = RED
    return image


def found(image: torch.Tensor) -> tuple[int, int, int, int]:
    """The box of what is redder than it is anything else."""
    red = (image[0].int() - image[1].int()) > 40
    ys, xs = torch.where(red)
    return (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)


def boxed(image, *boxes, caption="a red block") -> Sample:
    regions = tuple(Region(box, caption) for box in boxes)
    return Sample((image,), ((Turn("Describe and locate every object.", regions),),), regions, "test")


@st.composite
def pictures(draw):
    width, height = draw(st.integers(SMALLEST, 90)), draw(st.integers(SMALLEST, 90))
    x1, y1 = draw(st.integers(0, width - 3)), draw(st.integers(0, height - 3))
    return width, height, (x1, y1, draw(st.integers(x1 + 2, width)), draw(st.integers(y1 + 2, height)))


@settings(deadline=None, max_examples=150)
@given(pictures(), st.integers(0, 2**32), st.sampled_from([0.0, 1.0]), st.floats(0.2, 1.0), st.sampled_from([0.0, 0.2]))
def test_boxes_follow_the_pixels(shape, seed, flip, scale, colour):
    width, height, box = shape
    augment = Augmentation(flip=flip, scale=(scale, 1.0), colour=colour, min_visible=0.5)
    result = augment(boxed(picture(width, height, box), box), np.random.default_rng(seed), may_flip=True)
    assume(isinstance(result.images[0], torch.Tensor))
    image = result.images[0]
    assert image.dtype == torch.uint8 and image.shape[0] == 3 and min(image.shape[1:]) >= SMALLEST
    assert image.shape[1] * image.shape[2] >= scale * width * height - (width + height)  # sides are whole pixels
    (region,) = result.objects
    assert result.conversations[0][0].answer == (region,)
    assert tuple(map(int, region.box)) == region.box == found(image)
    kept = (region.box[2] - region.box[0]) * (region.box[3] - region.box[1])
    assert kept >= 0.5 * (box[2] - box[0]) * (box[3] - box[1])


@settings(deadline=None, max_examples=30)
@given(pictures())
def test_mirrored_twice_is_as_before(shape):
    width, height, box = shape
    sample, flip = boxed(picture(width, height, box), box), Augmentation(flip=1.0)
    once = flip(sample, np.random.default_rng(0), may_flip=True)
    twice = flip(once, np.random.default_rng(0), may_flip=True)
    assert once.objects[0].box == (width - box[2], box[1], width - box[0], box[3])
    assert twice.objects == sample.objects
    assert np.array_equal(twice.images[0].permute(1, 2, 0).numpy(), sample.images[0])


def test_regions_that_a_crop_hides_are_dropped():
    """One large box stays, small ones at the rim go where less than the threshold of them is seen."""
    image = picture(80, 80, (20, 20, 60, 60))
    rim = [(8, 8, 14, 14), (66, 8, 72, 14), (8, 66, 14, 72), (66, 66, 72, 72)]
    dropped = kept = 0
    for seed in range(60):
        sample = boxed(image, (20, 20, 60, 60), *rim)
        result = Augmentation(scale=(0.4, 0.7), min_visible=0.9)(sample, np.random.default_rng(seed))
        left = result.conversations[0][0].answer
        height, width = result.images[0].shape[1:]
        assert left == result.objects and 1 <= len(left) <= 5
        for region in left:
            x1, y1, x2, y2 = region.box
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
            assert (x2 - x1) * (y2 - y1) >= 0.9 * 36
        dropped, kept = dropped + 5 - len(left), kept + len(left) - 1
    assert dropped > 60 and kept > 5


def test_a_crop_never_empties_an_answer():
    """A box in each corner, asked for one by one: no crop keeps them all, so there is none."""
    corners = [(0, 0, 6, 6), (74, 0, 80, 6), (0, 74, 6, 80), (74, 74, 80, 80)]
    turns = tuple((Turn(f"Detect: block {i}.", (Region(box, f"block {i}"),)),) for i, box in enumerate(corners))
    nothing = ((Turn("Detect: cup.", ()),),)
    image = picture(80, 80, corners[0])
    for seed in range(20):
        sample = Sample((image,), turns + nothing)
        result = Augmentation(scale=(0.3, 0.6))(sample, np.random.default_rng(seed))
        assert result.conversations == sample.conversations
    alone = Augmentation(scale=(0.3, 0.6))(Sample((image,), nothing), np.random.default_rng(0))
    assert alone.images[0].shape[1] < 80  # an answer that was empty before may be


def test_crops_need_answers_that_are_regions():
    sample = boxed(picture(60, 60, (10, 10, 30, 30)), (10, 10, 30, 30))
    asked = Sample(sample.images, (*sample.conversations, (Turn("How many?", "One."),)), sample.objects)
    crop = Augmentation(scale=(0.3, 0.5))
    assert crop(sample, np.random.default_rng(0)).images[0].shape != (3, 60, 60)
    assert crop(asked, np.random.default_rng(0)) is asked


SIDED = ["What is left of it?", "the RIGHT hand", "leftmost cup", "to the north-east", "western door", "turn clockwise"]
SIDED += ["at [0.1, 0.2, 0.3, 0.4]", "at (12, 30)", "<loc_3>"]
PLAIN = [
    "a bright light",
    "upright",
    "a copyright sign",
    "an easy chair",
    "[three] cups",
    "it (the cup)",
    "a yeast roll",
]


@pytest.mark.parametrize("words", SIDED + PLAIN)
@pytest.mark.parametrize("where", ["prompt", "answer", "caption", "object"])
def test_nothing_is_mirrored_that_speaks_of_sides(words, where):
    box = (2, 3, 12, 20)
    region = Region(box, words if where == "caption" else "a block")
    turns = (
        Turn(words if where == "prompt" else "What?", words if where == "answer" else "A block."),
        Turn(("And ", 0, "?"), (region,)),
    )
    objects = (Region(box, words if where == "object" else "a block"),)
    sample = Sample((picture(40, 30, box),), (turns,), objects)
    result = Augmentation(flip=1.0)(sample, np.random.default_rng(0), may_flip=True)
    assert (result is sample) == (words in SIDED)
    assert Augmentation(flip=1.0)(sample, np.random.default_rng(0)) is sample  # a reader must allow it


def test_several_images_are_jittered_alone():
    images = (picture(40, 30, (2, 2, 9, 9)), picture(30, 40, (2, 2, 9, 9)))
    sample = Sample(images, ((Turn("Compare.", ()),),))
    result = Augmentation(flip=1.0, scale=(0.3, 0.5), colour=0.4)(sample, np.random.default_rng(1), may_flip=True)
    assert [tuple(image.shape) for image in result.images] == [(3, 30, 40), (3, 40, 30)]
    assert [found(image) for image in result.images] == [(2, 2, 9, 9)] * 2
    assert any(not np.array_equal(a.permute(1, 2, 0), b) for a, b in zip(result.images, images))
    assert Augmentation(flip=1.0, scale=(0.3, 0.5))(sample, np.random.default_rng(1), may_flip=True) is sample


def test_no_image_and_tiny_images_stay():
    every = Augmentation(flip=1.0, scale=(0.3, 0.5), colour=0.4)
    text, tiny = Sample((), ((Turn("Hello.", "Hello."),),)), boxed(picture(12, 90, (1, 1, 5, 5)), (1, 1, 5, 5))
    for sample in (text, tiny):
        assert every(sample, np.random.default_rng(0), may_flip=True) is sample


def test_without_augmentation_the_file_is_not_opened():
    sample = boxed("/nowhere/at_all.jpg", (0, 0, 1, 1))
    assert Augmentation()(sample, np.random.default_rng(0), may_flip=True) is sample


def test_jitter_by_hand():
    """(200, 100, 50) is 124.2 grey: brightness x 0.5, then saturation 0 leaves grey, contrast is around the mean."""
    image = torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4)
    assert jitter(image, (1, 1, 1)).equal(image)
    assert jitter(image, (0.5, 1, 1))[:, 0, 0].tolist() == [100, 50, 25]
    assert jitter(image, (1, 1, 0))[:, 0, 0].tolist() == [124, 124, 124]
    assert jitter(image, (1, 0, 1))[:, 0, 0].tolist() == [124, 124, 124]
    assert jitter(image, (2, 1, 1))[:, 0, 0].tolist() == [255, 200, 100]


def test_broken_image_names_its_source(tmp_path):
    path = Path(tmp_path / "cut.jpg")
    Image.effect_noise((80, 80), 90).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:900])
    sample = Sample((str(path),), ((Turn("?", ()),),), source="data.jsonl, line 7")
    with pytest.raises(ValueError, match=r"data.jsonl, line 7: the image .*cut.jpg"):
        Augmentation(colour=0.5)(sample, np.random.default_rng(0))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"flips": 0.5}, "augmentation has no 'flips'; it has flip, scale, colour, min_visible"),
        ({"flip": 2}, "flip must be between 0 and 1, got 2"),
        ({"flip": True}, "flip must be between 0 and 1, got True"),
        ({"scale": 0.5}, "scale must be two numbers"),
        ({"scale": [0.0, 1.0]}, "0 < least <= most <= 1"),
        ({"scale": [0.9, 0.5]}, "0 < least <= most <= 1"),
        ({"scale": ["a", 1]}, "scale must be between 0 and 1, got 'a'"),
        ({"colour": -0.1}, "colour must be between 0 and 1"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation.parse(options)
