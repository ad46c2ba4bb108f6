"""The slow variants of recipes.py make the same tensors as Argus does, and every row gives the same answer."""

import pytest
import torch

from benchmarks.efficiency import pictures, recipes
from benchmarks.efficiency.recipes_slow import Recipes, SlowInputs, one_thread, resize
from benchmarks.efficiency.shapes import SHAPES, TINY
from benchmarks.efficiency.sides import MEAN_STD, OURS, build_sides, our_processor

STEPS = ("no_mask", "uint8", "folded", "spliced", "flat", "pinned", "on_device", "fast_decode")
PHOTO = pictures.encode(pictures.photo(64, 43))


@pytest.fixture(scope="module", params=["256m", "2b"])
def shape(request):
    return TINY[request.param]


@pytest.mark.parametrize("count", range(len(STEPS) + 1))
def test_slow_inputs_are_the_processors_own(shape, count):
    recipes_in = Recipes(**dict.fromkeys(STEPS[:count], True))
    processor = our_processor(shape)
    made = SlowInputs(recipes_in, shape, processor, dtype=torch.float32)(PHOTO)
    expected = build_sides(shape, "cpu", torch.float32, models=False)[OURS].prepare(PHOTO)
    assert made["input_ids"].tolist() == expected["input_ids"].tolist()
    assert made["attention_mask"].tolist() == expected["attention_mask"].tolist()
    tiles = expected["pixel_values"]
    assert ("pixel_attention_mask" in made) == (not recipes_in.no_mask)
    if recipes_in.folded:
        assert torch.equal(made["pixel_values"], tiles)
    else:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in MEAN_STD[shape.kind])
        assert made["pixel_values"].dtype == torch.float32
        torch.testing.assert_close(made["pixel_values"], (tiles / 255 - mean) / std, rtol=0, atol=1e-6)


def test_a_single_resize_is_another_picture_only_where_the_chain_has_two_steps():
    shape = TINY["256m"]
    processor = our_processor(shape)
    for size, same in (((64, 48), True), ((64, 43), False)):
        data = pictures.encode(pictures.photo(*size))
        chain, single = (
            SlowInputs(Recipes(folded=True, single_resize=s), shape, processor)(data)["pixel_values"]
            for s in (False, True)
        )
        assert chain.shape == single.shape and torch.equal(chain, single) == same


def test_argus_in_one_thread_is_argus(monkeypatch):
    from processing_argus import resizing_argus, tile_pixels_argus

    asked = []
    usual = resizing_argus.thread_count
    monkeypatch.setattr(resizing_argus, "thread_count", lambda nbytes: asked.append(nbytes) or usual(nbytes))
    processor = our_processor(TINY["256m"]).image_processor
    expected = processor(PHOTO, return_tensors="pt")["pixel_values"]
    assert asked
    asked.clear()
    with one_thread():
        assert torch.equal(processor(PHOTO, return_tensors="pt")["pixel_values"], expected)
        assert tile_pixels_argus.thread_count(1 << 30) == 1 == resizing_argus.thread_count(1 << 30)
    assert not asked and tile_pixels_argus.thread_count is usual


def test_lanczos_without_torchs_kernel_is_pillows(monkeypatch):
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    usual = resize(image, (40, 50), 1)

    def absent(*args, **kwargs):
        raise NotImplementedError

    monkeypatch.setattr(torch.nn.functional, "interpolate", absent)
    assert (resize(image, (40, 50), 1).int() - usual.int()).abs().max() <= 2


def test_every_row_gave_the_same_answer(run_script):
    cells = [c for c in run_script("recipes").cells("recipes") if "ttft_ms" in c]
    assert len(cells) == 15 + 14
    for cell in cells:
        if cell["cell"].split(": ")[1].startswith("aside"):
            assert cell["pixels_largest"] > 1  # it is another picture, and says so
            continue
        assert cell["same_ids"] and cell["pixels_mean"] <= 2
        ours = "Argus" in cell["cell"] or "(8)" in cell["cell"] or "(6)" in cell["cell"] or "(7)" in cell["cell"]
        if ours:
            assert cell["pixels_largest"] <= 0.01 and cell["logits_largest"] < 0.01
    gpu_rows = {c["cell"].split("+ ")[1] for c in cells if c["needs_a_gpu"]}
    assert gpu_rows == {"pin memory (4)", "GPU preprocess (3)"}


def test_a_row_with_another_answer_is_refused():
    shape = TINY["256m"]
    sides = build_sides(shape, "cpu", torch.float32)
    reference = recipes.reference_answer(sides, PHOTO)

    def inverted(data):
        inputs = sides[OURS].prepare(data)
        inputs["pixel_values"] = 255 - inputs["pixel_values"]
        return inputs

    row = recipes.Row("inverted", inverted, sides[OURS])
    with pytest.raises(AssertionError, match="inverted: pixels"):
        recipes.compare(row, PHOTO, reference, torch.float32)


def test_shapes_are_the_published_ones():
    """Parameters of the published checkpoints, counted without memory: 256M, 500M and InternVL3's 2.09B."""
    import transformers

    from benchmarks.efficiency.models import _CLASSES

    millions = {}
    for key, expected in (("256m", 256.5), ("500m", 507.5), ("2b", 2088.9)):
        shape = SHAPES[key]
        config, model = (getattr(transformers, name) for name in _CLASSES[shape.kind])
        with torch.device("meta"):
            built = model(config(**shape.config, image_token_id=5))
        millions[key] = sum(p.numel() for p in built.parameters()) / 1e6
        assert millions[key] == pytest.approx(expected, rel=0.005), millions
