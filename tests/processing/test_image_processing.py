"""Tiles against transformers' own processors, settings, saving and loading, on the CPU and on the meta device."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as torchvision_v1
from transformers import AutoImageProcessor, PretrainedConfig
from transformers.image_utils import PILImageResampling
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from processing_argus.compat_processing_argus import register_auto_image_processor
from processing_argus.image_loading_argus import ImageInputError
from processing_argus.image_processing_argus import ArgusImageProcessor
from processing_argus.resizing_argus import torch_has_lanczos
from processing_argus.tile_pixels_argus import resize_in_float32
from processing_argus.tiling_argus import TileGrid

V4 = not hasattr(transformers, "SmolVLMImageProcessorPil")
LANCZOS, BILINEAR, BICUBIC = 1, 2, 3
RANDOM = np.random.default_rng(0)


def noise(height, width):
    """The hardest image for a resize: every filter's overshoot is clipped somewhere."""
    return Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))


def scene(height, width):
    """Smooth colours with sharp edges, as photographs have them."""
    y, x = np.mgrid[:height, :width]
    waves = 127.5 + 127.5 * np.sin(np.stack([x / 17 + y / 29, x / 11, y / 13], -1))
    waves[(x // 23 + y // 19) % 5 == 0] = (255, 30, 0)
    return Image.fromarray(waves.astype(np.uint8))


IMAGES = [noise(48, 64), noise(101, 37), noise(120, 121), noise(5, 200), noise(300, 260), scene(96, 128)]


# --- parity ---------------------------------------------------------------------------------------------------------


def reference_class(family, backend):
    if V4:
        name = f"{family}ImageProcessor" + ("Fast" if backend == "torchvision" else "")
    else:
        name = f"{family}ImageProcessor" + ("Pil" if backend == "pil" else "")
    return getattr(transformers, name)


def reference_tiles(family, backend, image, tile_size, resample, split=True, edge=128, **kwargs):
    kwargs = kwargs or {"do_rescale": False, "do_normalize": False}
    if family == "GotOcr2":
        size = {"height": tile_size, "width": tile_size}
        processor = reference_class(family, backend)(size=size, crop_to_patches=split, resample=resample)
        return processor([image], return_tensors="pt", **kwargs)["pixel_values"]
    processor = reference_class(family, backend)(
        size={"longest_edge": edge},
        max_image_size={"longest_edge": tile_size},
        resample=resample,
        do_image_splitting=split,
    )
    return processor([image], return_tensors="pt", **kwargs)["pixel_values"][0]


def argus_processor(family, tile_size, resample, split=True, edge=128):
    policy = {} if family == "GotOcr2" else {"tiling": "longest_edge", "longest_edge": edge, "max_tiles": None}
    return ArgusImageProcessor(tile_size=tile_size, resample=resample, do_image_splitting=split, **policy)


def largest_difference(reference, tiles):
    assert reference.shape == tiles.shape
    return int((reference.int() - tiles.int()).abs().max())


@pytest.fixture
def classic_pillow(monkeypatch):
    """Pillow as the checkpoints saw it: rows first, then columns. Pillow 13 swaps them where that is cheaper and so
    clips elsewhere, which moves its own result by up to 51 levels on noise and 27 at hard edges (0.05 in the mean)."""
    resize = Image.Image.resize

    def rows_first(self, size, resample=None, **kwargs):
        return resize(resize(self, (size[0], self.height), resample, **kwargs), size, resample, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", rows_first)


# Measured: levels of difference, largest over IMAGES. Pillow and torch round their filters' weights differently. 4.57's
# fast SmolVLM resizes in float32 and so skips the rounding and clipping between the two passes, which noise shows.
BOUNDS = {"pil": 2, "torchvision": 0}


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("backend", ["pil", "torchvision"])
@pytest.mark.parametrize("family", ["GotOcr2", "SmolVLM", "Idefics3"])
def test_tiles_are_the_references(family, backend, split, classic_pillow):
    # On 4.57 and early 5.x the torchvision backend cannot do Lanczos and silently takes bicubic.
    resample = LANCZOS if family != "GotOcr2" and backend == "pil" else BICUBIC
    bound = 18 if V4 and backend == "torchvision" and family != "GotOcr2" else BOUNDS[backend]
    for image in IMAGES:
        reference = reference_tiles(family, backend, image, 32, resample, split)
        tiles = argus_processor(family, 32, resample, split)(image, return_tensors="pt")["pixel_values"]
        assert largest_difference(reference, tiles) <= bound, f"{family}, {backend}, {image.size}"


@pytest.mark.skipif(not torch_has_lanczos(), reason="torch < 2.14 has no lanczos")
@pytest.mark.skipif(
    not hasattr(transformers.utils.import_utils, "is_torchvision_greater_or_equal"),
    reason="an older torchvision backend",
)
def test_lanczos_is_the_torchvision_backends():
    for image in IMAGES:
        reference = reference_tiles("SmolVLM", "torchvision", image, 32, LANCZOS)
        tiles = argus_processor("SmolVLM", 32, LANCZOS)(image, return_tensors="pt")["pixel_values"]
        assert largest_difference(reference, tiles) == 0


def test_published_sizes_on_a_scene(classic_pillow):
    """SmolVLM's 512 / 2048 with Lanczos and InternVL's 448 with bicubic, against the original Pillow processors."""
    image = scene(480, 640)
    smolvlm = argus_processor("SmolVLM", 512, LANCZOS, edge=2048)(image, return_tensors="pt")
    assert smolvlm["pixel_values"].shape == (13, 3, 512, 512)
    assert (
        largest_difference(reference_tiles("SmolVLM", "pil", image, 512, LANCZOS, edge=2048), smolvlm["pixel_values"])
        <= 2
    )
    internvl = argus_processor("GotOcr2", 448, BICUBIC)(image, return_tensors="pt")
    assert internvl["pixel_values"].shape == (13, 3, 448, 448)
    assert largest_difference(reference_tiles("GotOcr2", "pil", image, 448, BICUBIC), internvl["pixel_values"]) <= 2


@pytest.mark.parametrize("image", IMAGES[:3], ids=["noise", "tall", "square"])
def test_without_torchs_lanczos_pillow_gives_the_references_very_pixels(image, monkeypatch, classic_pillow):
    monkeypatch.setattr("processing_argus.resizing_argus.torch_has_lanczos", lambda: False)
    tiles = argus_processor("SmolVLM", 32, LANCZOS)(image, return_tensors="pt")["pixel_values"]
    assert largest_difference(reference_tiles("SmolVLM", "pil", image, 32, LANCZOS), tiles) == 0


@pytest.mark.parametrize("backend, tolerance", [("torchvision", 0.0), ("pil", 0.02)])  # 2 levels are 0.0157 at std 0.5
def test_normalised_floats_are_the_references(backend, tolerance):
    mean, std = [0.48, 0.46, 0.41], [0.5, 0.6, 0.7]
    kwargs = {"do_rescale": True, "do_normalize": True, "image_mean": mean, "image_std": std}
    reference = reference_tiles("GotOcr2", backend, IMAGES[0], 32, BICUBIC, **kwargs)
    tiles = argus_processor("GotOcr2", 32, BICUBIC)(IMAGES[0], return_tensors="pt", **kwargs)["pixel_values"]
    assert tiles.dtype == torch.float32
    assert float((reference - tiles).abs().max()) <= tolerance


def test_the_device_path_computes_what_torchvision_computes_in_float():
    """On a device the resize runs in float32; here the same function on the CPU against torchvision's."""
    for image in IMAGES:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        for mode in ("bilinear", "bicubic"):
            expected = torchvision_v1.resize(pixels, [40, 52], torchvision_v1.InterpolationMode(mode), antialias=True)
            assert torch.equal(resize_in_float32(pixels.float(), (40, 52), mode), expected.float())


def test_on_a_device_the_whole_way_runs_there():
    for kwargs in ({}, {"tiling": "longest_edge", "resample": LANCZOS}, {"do_normalize": True}, {"resample": 0}):
        output = ArgusImageProcessor(tile_size=32)(
            [noise(48, 64), noise(20, 400)], device="meta", return_tensors="pt", **kwargs
        )
        assert output["pixel_values"].device.type == "meta"
        assert output["pixel_values"].shape[1:] == (3, 32, 32)
        assert all(value.device.type == "meta" for value in output.values())
    with pytest.raises(ValueError, match="works on the CPU only, not on meta"):
        ArgusImageProcessor(resample=4)(noise(9, 9), device="meta")
    assert ArgusImageProcessor()(torch.zeros(3, 64, 64, dtype=torch.uint8, device="meta"))["pixel_values"][0].is_meta


# --- the output -----------------------------------------------------------------------------------------------------


def test_output_is_flat_over_the_batch():
    images = [[noise(48, 64)], [], [noise(32, 32), noise(20, 90)]]
    processor = ArgusImageProcessor(tile_size=32, max_tiles=4)
    output = processor(images, return_tensors="pt")
    assert output["pixel_values"].dtype == torch.uint8 and output["pixel_values"].is_contiguous()
    assert output["num_patches"].dtype == output["image_sizes"].dtype == torch.int64
    assert output["num_patches"].tolist() == [5, 1, 5]
    assert output["image_sizes"].tolist() == [[48, 64], [32, 32], [20, 90]]
    alone = [processor(image, return_tensors="pt")["pixel_values"] for image in (images[0][0], *images[2])]
    assert torch.equal(output["pixel_values"], torch.cat(alone))

    lists = processor(images)
    assert isinstance(lists["pixel_values"], list) and lists["num_patches"] == [5, 1, 5]
    assert torch.equal(torch.stack(lists["pixel_values"]), output["pixel_values"])
    assert lists["image_sizes"] == [[48, 64], [32, 32], [20, 90]]
    arrays = processor(images, return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in arrays.values())
    assert np.array_equal(arrays["pixel_values"], output["pixel_values"].numpy())


def test_tiles_lie_row_by_row_and_the_thumbnail_last():
    rows, cols, S = 2, 3, 16
    numbers = np.arange(rows * cols, dtype=np.uint8).reshape(rows, cols) * 20
    image = np.kron(numbers, np.ones((S, S), np.uint8))
    output = ArgusImageProcessor(tile_size=S, min_tiles=6, max_tiles=6)(image, return_tensors="pt")
    tiles = output["pixel_values"]
    assert len(tiles) == 7
    assert [tile.unique().tolist() for tile in tiles[:6]] == [[20 * i] for i in range(6)]
    assert len(tiles[6].unique()) > 6


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(["aspect_ratio", "longest_edge"]),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([0, 1, 2, 3, 4, 5]),
)
def test_the_grid_promised_is_the_grid_made(height, width, tiling, max_tiles, thumbnail, resample):
    processor = ArgusImageProcessor(
        tiling=tiling, tile_size=8, longest_edge=32, max_tiles=max_tiles, use_thumbnail=thumbnail, resample=resample
    )
    grid = processor.get_tile_grid(height, width)
    output = processor(Image.new("RGB", (width, height), (7, 77, 177)), return_tensors="pt")
    assert output["num_patches"].tolist() == [grid.num_tiles] == [processor.get_number_of_image_patches(height, width)]
    assert output["pixel_values"].shape == (grid.num_tiles, 3, 8, 8)
    assert torch.equal(
        output["pixel_values"][:, :, 0, 0].unique(dim=0), torch.tensor([[7, 77, 177]], dtype=torch.uint8)
    )


def test_long_strips_are_resized():
    for shape in ((1, 5000, 3), (5000, 2, 3)):
        output = ArgusImageProcessor(tile_size=32)(np.full(shape, 9, np.uint8), input_data_format="channels_last")
        assert output["num_patches"] == [13]


def test_exif_counts_before_the_grid_is_chosen():
    image = noise(30, 90)
    image.getexif()[0x0112] = 6
    output = ArgusImageProcessor(tile_size=32, max_tiles=3)(image, return_tensors="pt")
    assert output["image_sizes"].tolist() == [[90, 30]]
    assert ArgusImageProcessor(tile_size=32, max_tiles=3).get_tile_grid(90, 30) == TileGrid(3, 1, True)
    assert output["num_patches"].tolist() == [4]


def test_fetch_images_decodes_once_and_keeps_the_nesting(monkeypatch):
    processor = ArgusImageProcessor(tile_size=32)
    images = [[noise(64, 3)], [], [noise(9, 9), noise(8, 8)]]
    fetched = processor.fetch_images(images)
    assert [len(group) for group in fetched] == [1, 0, 2]
    monkeypatch.setattr("processing_argus.image_loading_argus._from_pil", None)
    assert torch.equal(
        processor(fetched, return_tensors="pt")["pixel_values"],
        torch.cat([processor(fetched[i][j], return_tensors="pt")["pixel_values"] for i, j in ((0, 0), (2, 0), (2, 1))]),
    )
    assert len(processor.fetch_images(torch.zeros(2, 3, 8, 8))) == 2


@pytest.mark.parametrize(
    "images, words",
    [([], "no image to process"), ([[], []], "no image"), ([noise(4, 4), None], r"images\[1\] is a NoneType")],
)
def test_bad_images_are_named(images, words):
    with pytest.raises(ImageInputError, match=words):
        ArgusImageProcessor()(images)


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, right", [("max_tile", "max_tiles"), ("do_normalise", "do_normalize"), ("size", "tile_size")]
)
def test_misspelt_settings_are_refused_with_a_suggestion(wrong, right):
    words = f"no setting '{wrong}'; did you mean '{right}'"
    for call in (ArgusImageProcessor, lambda **kw: ArgusImageProcessor()(noise(4, 4), **kw)):
        with pytest.raises(TypeError, match=words):
            call(**{wrong: 3})
    with pytest.raises(TypeError, match=words):
        ArgusImageProcessor().get_tile_grid(4, 4, **{wrong: 3})
    with pytest.raises(TypeError, match=r"no setting 'xyzzy'; known are tiling, "):
        ArgusImageProcessor()(noise(4, 4), xyzzy=1)


OVERRIDES = {
    "tiling": "longest_edge",
    "tile_size": 16,
    "min_tiles": 5,
    "max_tiles": 2,
    "use_thumbnail": False,
    "max_upscale": 1.0,
    "do_image_splitting": False,
    "resample": PILImageResampling.BILINEAR,
    "do_normalize": True,
}


def test_internvls_name_for_splitting_is_understood():
    """TRL counts the tiles of an image by `image_processor(images=..., crop_to_patches=True)["num_patches"]`."""
    processor, image = ArgusImageProcessor(tile_size=32), noise(48, 64)
    counted = processor(images=[image], crop_to_patches=True, return_tensors="pt")["num_patches"]
    assert counted.tolist() == processor(image, return_tensors="pt")["num_patches"].tolist() != [1]
    assert processor(image, crop_to_patches=False, return_tensors="pt")["num_patches"].tolist() == [1]


@pytest.mark.parametrize("name", OVERRIDES)
def test_each_setting_can_be_overridden_per_call(name):
    image, value = noise(32, 32) if name == "min_tiles" else noise(48, 64), OVERRIDES[name]
    base = {"tile_size": 32, "max_tiles": 12, "longest_edge": 64, "max_upscale": 4.0}
    processor = ArgusImageProcessor(**base)
    overridden = processor(image, return_tensors="pt", **{name: value})["pixel_values"]
    constructed = ArgusImageProcessor(**(base | {name: value}))(image, return_tensors="pt")["pixel_values"]
    default = processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(overridden, constructed)
    assert overridden.shape != default.shape or not torch.equal(overridden, default)
    if name in ("tile_size", "min_tiles", "max_tiles", "use_thumbnail", "max_upscale", "do_image_splitting"):
        assert processor.get_tile_grid(image.height, image.width, **{name: value}).num_tiles == len(overridden)
        assert processor.get_number_of_image_patches(image.height, image.width, {name: value}) == len(overridden)


def test_settings_that_matter_with_others():
    image = noise(48, 64)
    longest = ArgusImageProcessor(tiling="longest_edge", tile_size=32, longest_edge=64)
    assert longest.get_tile_grid(48, 64, longest_edge=128, max_tiles=None) == TileGrid(3, 4, True)
    plain = ArgusImageProcessor(tile_size=32, max_tiles=1, do_normalize=True)
    base = plain(image, return_tensors="pt")["pixel_values"]
    for change, expected in (
        ({"image_mean": 0.0}, base + 1),
        ({"image_std": [1.0, 1.0, 1.0]}, base / 2),
        ({"rescale_factor": 1 / 127.5}, base * 2 + 1),
        ({"do_rescale": False}, (base * 0.5 + 0.5) * 255 * 2 - 1),
    ):
        assert torch.allclose(plain(image, return_tensors="pt", **change)["pixel_values"], expected, atol=1e-4)
    # None is "as configured" where None is no setting: so wrappers may hand it through.
    assert torch.equal(plain(image, return_tensors="pt", tile_size=None, device=None)["pixel_values"], base)
    for resample in ("bicubic", PILImageResampling.BICUBIC, torchvision_v1.InterpolationMode.BICUBIC):
        assert ArgusImageProcessor(resample=resample).resample == 3


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"max_tiles": 0}, "max_tiles=0"),
        ({"max_tiles": -1}, "max_tiles=-1"),
        ({"min_tiles": 5, "max_tiles": 4}, "min_tiles=5 is larger than max_tiles=4"),
        ({"max_tiles": None}, "max_tiles=None"),
        ({"tiling": "square"}, "tiling='square'"),
        ({"tile_size": "512"}, "tile_size='512'"),
        ({"resample": 9}, "resample=9"),
        ({"resample": "cubic"}, "resample='cubic'"),
        ({"image_mean": [0.5]}, r"image_mean=\[0.5\]"),
        ({"image_std": [0.5, 0.0, 0.5]}, r"image_std=\[0.5, 0.0, 0.5\]"),
        ({"rescale_factor": 0}, "rescale_factor=0"),
        ({"do_normalize": "no"}, "do_normalize='no'"),
    ],
)
def test_bad_values_are_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        ArgusImageProcessor(**bad)
    with pytest.raises(ValueError, match=words):
        ArgusImageProcessor()(noise(4, 4), **bad)


@pytest.mark.parametrize("bad", [{"return_tensors": "tf"}, {"data_format": "channels_last"}])
def test_bad_call_values_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ArgusImageProcessor()(noise(4, 4), **bad)


# --- saving and loading ---------------------------------------------------------------------------------------------

SETTINGS = {
    "tiling": "longest_edge",
    "tile_size": 32,
    "min_tiles": 2,
    "max_tiles": None,
    "use_thumbnail": False,
    "max_upscale": 2.5,
    "longest_edge": 128,
    "do_image_splitting": False,
    "resample": LANCZOS,
    "do_rescale": False,
    "rescale_factor": 0.5,
    "do_normalize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "do_convert_rgb": False,
}


def test_settings_round_trip(tmp_path):
    assert set(SETTINGS) == set(ArgusImageProcessor.saved_settings)
    ArgusImageProcessor(**SETTINGS).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved == SETTINGS | {"image_processor_type": "ArgusImageProcessor"}
    loaded = ArgusImageProcessor.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in SETTINGS} == SETTINGS
    changed = ArgusImageProcessor.from_pretrained(tmp_path, max_tiles=4, device="meta")
    assert changed.max_tiles == 4 and changed(noise(9, 9))["pixel_values"][0].is_meta
    assert "device" not in changed.to_dict()
    with pytest.raises(TypeError, match="did you mean 'max_tiles'"):
        ArgusImageProcessor.from_pretrained(tmp_path, max_tile=4)


@pytest.fixture
def modules_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setattr(ArgusImageProcessor, "_auto_class", None)
    monkeypatch.setattr(IMAGE_PROCESSOR_MAPPING, "_extra_content", {})  # as where this project is not installed
    before = forget_modules()
    yield
    forget_modules()
    sys.modules.update(before)


def forget_modules():
    """Take the code of hub folders, and with it the folder that its package was found in, out of Python's imports."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("transformers_modules")}


def test_auto_class_loads_the_hub_code(tmp_path, modules_cache):
    ArgusImageProcessor.register_for_auto_class()
    folder = tmp_path / "hub-folder"
    ArgusImageProcessor(tile_size=32).save_pretrained(folder)
    saved = json.loads((folder / "preprocessor_config.json").read_text())
    assert saved["auto_map"] == {"AutoImageProcessor": "image_processing_argus.ArgusImageProcessor"}
    names = {"image_processing_argus.py", "image_loading_argus.py", "tiling_argus.py", "compat_processing_argus.py"}
    assert names <= {path.name for path in folder.iterdir()}
    image = noise(48, 64)
    expected = ArgusImageProcessor(tile_size=32)(image, return_tensors="pt")["pixel_values"]
    for kwargs in ({}, {"use_fast": True}, {"use_fast": False}):
        loaded = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True, **kwargs)
        assert type(loaded).__module__.startswith("transformers_modules")
        assert torch.equal(loaded(image, return_tensors="pt")["pixel_values"], expected)
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "preprocessor_config.json").read_text()) == saved
    again = AutoImageProcessor.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert torch.equal(again(image, return_tensors="pt")["pixel_values"], expected)


def test_auto_class_finds_the_registered_class(tmp_path):
    class SomeConfig(PretrainedConfig):
        model_type = "argus_image_processing_test"

    register_auto_image_processor(SomeConfig, ArgusImageProcessor)
    ArgusImageProcessor(tile_size=64).save_pretrained(tmp_path)
    for kwargs in ({}, {"use_fast": True}, {"use_fast": False}):
        loaded = AutoImageProcessor.from_pretrained(tmp_path, **kwargs)
        assert type(loaded) is ArgusImageProcessor and loaded.tile_size == 64 and loaded.is_fast


def test_the_name_that_processor_mixins_look_for():
    from processing_argus import image_processing_argus

    assert ArgusImageProcessor.valid_kwargs is image_processing_argus.ArgusImageProcessorKwargs
    assert set(ArgusImageProcessor.saved_settings) <= set(ArgusImageProcessor.valid_kwargs.__annotations__)


WITHOUT_TORCHVISION = """
import sys
sys.modules["torchvision"] = None
import numpy as np
from processing_argus.image_processing_argus import ArgusImageProcessor
image = np.arange(48 * 64 * 3, dtype=np.uint32).reshape(48, 64, 3) % 251
for kwargs in ({"resample": 3}, {"resample": 1, "tiling": "longest_edge", "longest_edge": 128}):
    output = ArgusImageProcessor(tile_size=32, **kwargs)(image.astype(np.uint8), return_tensors="np")
    print(int(output["pixel_values"].astype(np.int64).sum()))
"""


def test_works_without_torchvision():
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", WITHOUT_TORCHVISION], capture_output=True, text=True, cwd=root)
    assert result.returncode == 0, result.stderr
    image = (np.arange(48 * 64 * 3, dtype=np.uint32).reshape(48, 64, 3) % 251).astype(np.uint8)
    sums = []
    for kwargs in ({"resample": 3}, {"resample": 1, "tiling": "longest_edge", "longest_edge": 128}):
        output = ArgusImageProcessor(tile_size=32, **kwargs)(image, return_tensors="np")
        sums.append(str(output["pixel_values"].astype(np.int64).sum()))
    assert result.stdout.split() == sums
