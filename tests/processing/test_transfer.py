"""One packed buffer and one copy for everything that goes to a device: layout, views, counts of copies."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from processing_argus import image_processing_argus
from processing_argus.image_processing_argus import ArgusImageProcessor
from processing_argus.tile_pixels_argus import fits_device, resize_in_float32, write_tiles_on_device
from processing_argus.tiling_argus import TilingOptions, plan_tiling
from processing_argus.transfer_argus import ALIGNMENT, pack, resolve_device, send, unpack

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def noise(height, width):
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Copies(TorchDispatchMode):
    """Counts what crosses between devices, and what would wait for one."""

    def __init__(self):
        super().__init__()
        self.crossings, self.waits, self.blocking = 0, [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function._schema.name.removeprefix("aten::")
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        if name in ("copy_", "_to_copy") and tensors:
            source = tensors[1] if name == "copy_" else tensors[0]
            if source.device != result.device:
                self.crossings += 1
                self.blocking += not (args[2] if name == "copy_" and len(args) > 2 else kwargs.get("non_blocking"))
        on_device = any(x.device.type != "cpu" for x in tensors)
        if on_device and name in ("_local_scalar_dense", "nonzero", "item", "equal", "is_nonzero", "masked_select"):
            self.waits.append(name)
        return result


# --- the buffer -------------------------------------------------------------------------------------------------------

DTYPES = [torch.uint8, torch.int64, torch.float32, torch.bool, torch.int16]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), max_size=6))
def test_views_of_a_packed_buffer_are_what_was_packed(kinds):
    tensors = [(torch.rand(shape) * 200).to(dtype) for dtype, shape in kinds]
    buffer, offsets = pack(tensors)
    views = unpack(buffer, offsets, tensors)
    for tensor, view, offset in zip(tensors, views, offsets):
        assert offset % ALIGNMENT == 0 and view.data_ptr() % view.element_size() == 0
        assert view.dtype == tensor.dtype and torch.equal(view, tensor)
        assert view.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
    ends = [offset + t.numel() * t.element_size() for offset, t in zip(offsets, tensors)]
    assert all(end <= start for end, start in zip(ends, [*offsets[1:], buffer.numel()]))


def test_strided_images_arrive_in_order():
    image = torch.arange(5 * 7 * 3, dtype=torch.uint8).view(3, 5, 7)
    (sent,) = send([image.permute(1, 2, 0)], CPU)
    assert sent.is_contiguous() and torch.equal(sent.permute(2, 0, 1), image)


def test_a_device_has_its_index_where_there_are_indices():
    assert resolve_device("cpu") == CPU and resolve_device("meta") == torch.device("meta")


@pytest.mark.parametrize("device", ["gpu", "", 5.5, 99, "privateuseone:99"])
def test_a_device_that_is_none_is_named(device):
    with pytest.raises(ValueError, match=f"device={re.escape(repr(device))} cannot be used here") as error:
        resolve_device(device)
    assert "\n" not in str(error.value)


def test_a_device_is_checked_before_an_image_is_decoded(monkeypatch):
    monkeypatch.setattr(image_processing_argus, "load_image", lambda *args: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="device='gpu' cannot be used"):
        ArgusImageProcessor()(noise(9, 9), device="gpu", return_tensors="pt")


# --- the image processor ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"tiling": "longest_edge", "resample": 1}, {"do_normalize": True}])
def test_one_copy_that_does_not_wait(settings):
    processor = ArgusImageProcessor(tile_size=32, **settings)
    images = [noise(48, 64), noise(100, 30), noise(20, 20)]
    with Copies() as copies:
        output = processor(images, device="meta", return_tensors="pt")
    assert copies.crossings == 1 and copies.blocking == 0 and copies.waits == []
    assert all(value.device.type == "meta" for value in output.values())
    storage = {output[name].untyped_storage()._cdata for name in ("num_patches", "image_sizes")}
    assert len(storage) == 1
    before = dict(output.items())
    with Copies() as copies:
        after = output.to("meta")
    assert copies.crossings == 0 and all(after[name] is value for name, value in before.items())


def test_images_on_the_device_stay_there():
    image = torch.zeros(3, 48, 64, dtype=torch.uint8, device="meta")
    with Copies() as copies:
        output = ArgusImageProcessor(tile_size=32)([image, noise(9, 9)], device="meta", return_tensors="pt")
    assert copies.crossings == 1 and output["pixel_values"].is_meta  # the numbers and the other image
    with Copies() as copies:
        output = ArgusImageProcessor(tile_size=32)(image, return_tensors="pt")
    assert copies.crossings == 0 and output["pixel_values"].is_meta and output["num_patches"].device == CPU


def test_the_order_of_images_on_several_devices_does_not_matter():
    here, there = noise(20, 20), torch.zeros(3, 48, 64, dtype=torch.uint8, device="meta")
    for images in ([here, there], [there, here]):
        assert ArgusImageProcessor(tile_size=32)(images, return_tensors="pt")["pixel_values"].is_meta
    on = [SimpleNamespace(device=torch.device(name)) for name in ("cuda:1", "cpu", "cuda:0")]
    for images in (on, on[::-1]):
        with pytest.raises(ValueError, match="several devices, cuda:0, cuda:1: say which by device="):
            image_processing_argus._common_device(images)


def test_values_that_a_device_does_not_hold_are_one_clear_error():
    with pytest.raises(ValueError, match="pixel_values is on the device 'meta', which holds no values"):
        ArgusImageProcessor(tile_size=32)(noise(20, 20), device="meta", return_tensors="np")


def test_no_list_is_copied_to_a_device_to_normalize(monkeypatch):
    monkeypatch.setattr(torch, "tensor", lambda *args, **kwargs: pytest.fail("a list became a tensor"))
    processor = ArgusImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])
    pixels = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    result = image_processing_argus._normalize(pixels, processor._options({}))
    assert np.allclose(result[1, :, 2, 2], [(0.2 - 0.1) / 0.5, 0, (0.2 - 0.3) / 0.7], atol=1e-6)


class Elsewhere:
    """Stands for torch.device("cpu") where it is to be treated as a device like any other."""

    type, index = "elsewhere", None


def through_the_device_path(processor, images, monkeypatch, **kwargs):
    """The whole path of a device, its memory being the CPU's."""
    real = torch.empty
    monkeypatch.setattr(image_processing_argus, "resolve_device", lambda device: Elsewhere())
    monkeypatch.setattr(image_processing_argus, "send", lambda tensors, device: send(tensors, CPU))
    monkeypatch.setattr(
        image_processing_argus.torch,
        "empty",
        lambda *args, device=None, **kw: real(*args, device=CPU if isinstance(device, Elsewhere) else device, **kw),
    )
    return processor(images, device="elsewhere", return_tensors="pt", **kwargs)


def slow_device_tiles(image, plan, resample, S):
    """The plan written down plainly, uint8 between all steps, as transformers' torchvision backend does on a GPU."""
    mode = {0: "nearest-exact", 1: "bicubic", 2: "bilinear", 3: "bicubic"}[resample]

    def resized(pixels, size):
        return resize_in_float32(pixels.float(), size, mode).to(torch.uint8)

    image = canvas = torch.from_numpy(image).permute(2, 0, 1)
    for size in plan.resizes:
        canvas = resized(canvas, size)
    rows, cols = plan.grid.rows, plan.grid.cols
    tiles = [canvas[:, r * S : (r + 1) * S, c * S : (c + 1) * S] for r in range(rows) for c in range(cols)]
    if plan.grid.thumbnail:
        tiles.append(resized(canvas if plan.thumbnail_from_canvas else image, (S, S)))
    return torch.stack(tiles)


@pytest.mark.parametrize("resample", [0, 1, 2, 3])
@pytest.mark.parametrize("tiling", ["aspect_ratio", "longest_edge"])
def test_tiles_of_the_device_path(tiling, resample, monkeypatch):
    processor = ArgusImageProcessor(tile_size=32, tiling=tiling, resample=resample, longest_edge=128)
    images = [noise(48, 64), noise(100, 30), noise(32, 32)]
    expected = [
        slow_device_tiles(image, plan_tiling(*image.shape[:2], processor._options({}).geometry), resample, 32)
        for image in images
    ]
    output = through_the_device_path(processor, images, monkeypatch)
    assert torch.equal(output["pixel_values"], torch.cat(expected))
    assert output["num_patches"].tolist() == [len(tiles) for tiles in expected]
    assert output["image_sizes"].tolist() == [[48, 64], [100, 30], [32, 32]]


def test_what_a_device_cannot_shrink_the_cpu_tiles_before_it_is_sent(monkeypatch):
    strip, plain = noise(5, 2500), noise(40, 40)
    processor = ArgusImageProcessor(tile_size=16)
    expected = processor(strip, return_tensors="pt")["pixel_values"]
    assert not fits_device(5, 2500, plan_tiling(3, 2500, processor._options({}).geometry))
    with Copies() as copies:
        processor([strip, plain], device="meta", return_tensors="pt")
    assert copies.crossings == 1
    output = through_the_device_path(processor, [plain, strip], monkeypatch)
    assert torch.equal(output["pixel_values"][-len(expected) :], expected)


def test_the_device_path_queues_few_kernels():
    plan = plan_tiling(480, 640, TilingOptions(tiling="longest_edge"))
    image = torch.zeros(480, 640, 3, dtype=torch.uint8, device="meta").permute(2, 0, 1)
    tiles = torch.empty(13, 3, 512, 512, dtype=torch.uint8, device="meta")
    names = []

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if not any("alias" in str(r.alias_info) for r in function._schema.returns):
                names.append(function._schema.name.removeprefix("aten::"))
            return result

    with Log():
        write_tiles_on_device(image, plan, 1, tiles)
    kernels = [n for n in names if n not in ("view", "permute", "unsqueeze", "slice", "select", "_unsafe_view")]
    assert len(kernels) <= 11, kernels
    assert sum("upsample" in name for name in kernels) == 2


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("tiling", ["aspect_ratio", "longest_edge"])
def test_on_cuda_without_a_synchronisation(tiling):
    processor = ArgusImageProcessor(tiling=tiling)
    images = [noise(480, 640), noise(300, 200)]
    processor(images, device="cuda", return_tensors="pt")  # warm
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = processor(images, device="cuda", return_tensors="pt")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    here = torch.device("cuda", torch.cuda.current_device())
    assert all(value.device == here for value in output.values())
    pointers = {name: value.data_ptr() for name, value in output.items()}
    assert {name: value.data_ptr() for name, value in output.to("cuda").items()} == pointers
    expected = processor(images, return_tensors="pt")
    assert torch.equal(output["num_patches"].cpu(), expected["num_patches"])
    difference = (output["pixel_values"].cpu().int() - expected["pixel_values"].int()).abs()
    assert difference.max() <= 60 and difference.float().mean() < 1  # noise; float32 clips once, uint8 twice


@needs_cuda
@pytest.mark.gpu
def test_pinned_memory_is_not_reused_before_its_copy_has_finished():
    for round in range(200):
        sent = [send([torch.full((1 << 20,), i, dtype=torch.uint8)], torch.device("cuda"))[0] for i in range(5)]
        assert [int(x.unique()) for x in sent] == list(range(5)), round
