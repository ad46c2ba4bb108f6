"""The fast decoder gives Pillow's very pixels and errors, and nothing changes where there is none."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from processing_argus import decoding_argus, image_loading_argus
from processing_argus.image_loading_argus import ImageInputError, load_image

ROOT = Path(__file__).parents[2]


def photo(height, width):
    """Smooth colours, an edge and noise, so that chroma upsampling and rounding show."""
    y, x = np.mgrid[:height, :width]
    waves = 128 + 90 * np.sin(np.stack([x / 9 + y / 15, x / 7, y / 11], -1))
    waves[(x // 13 + y // 17) % 4 == 0] = (250, 20, 0)
    noise = np.random.default_rng(height).normal(0, 6, (height, width, 3))
    return Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8))


def encode(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillows(data):
    return torch.from_numpy(np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")))


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def exif_behind_the_pixels(data, exif):
    payload = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(payload) - 4) + payload + struct.pack(">I", zlib.crc32(payload))
    return data[:-12] + chunk + data[-12:]


PHOTO = photo(75, 101)
FAST_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FAST = {  # decoded by the fast decoder, where there is one
    "baseline": encode(PHOTO, quality=90),
    "progressive": encode(PHOTO, progressive=True),
    "444": encode(PHOTO, subsampling="4:4:4"),
    "422": encode(PHOTO, subsampling="4:2:2"),
    "420": encode(PHOTO, subsampling="4:2:0", quality=30),
    "one pixel": encode(photo(1, 1)),
    "icc": encode(PHOTO, icc_profile=FAST_PROFILE),
    "phone": encode(PHOTO, "MPO", save_all=True, append_images=[photo(20, 20)]),
    **{f"exif {i}": encode(PHOTO, exif=turned(i)) for i in range(1, 9)},
    "rgb jpeg": encode(PHOTO, keep_rgb=True),
}
WEBP = {
    "webp": encode(PHOTO, "WEBP"),
    "webp lossless": encode(PHOTO, "WEBP", lossless=True),
    "webp exif": encode(PHOTO, "WEBP", exif=turned(6)),
}
PNG = {"png": encode(PHOTO, "PNG"), "png with a profile": encode(PHOTO, "PNG", icc_profile=FAST_PROFILE, dpi=(72, 72))}
SEE_THROUGH = PHOTO.copy()
SEE_THROUGH.putalpha(128)
PILLOWS = {  # always Pillow's
    "grey": encode(PHOTO.convert("L")),
    "cmyk": encode(PHOTO.convert("CMYK")),
    "png grey": encode(PHOTO.convert("L"), "PNG"),
    "png palette": encode(PHOTO.quantize(16), "PNG"),
    "png exif": encode(PHOTO, "PNG", exif=turned(6)),
    "png exif behind the pixels": exif_behind_the_pixels(encode(PHOTO, "PNG"), turned(6)),
    "png animated": encode(PHOTO, "PNG", save_all=True, append_images=[PHOTO.rotate(180)]),
    "webp alpha": encode(SEE_THROUGH, "WEBP", lossless=True),
    "webp animated": encode(PHOTO, "WEBP", save_all=True, append_images=[PHOTO.rotate(180)], lossless=True),
}


@pytest.fixture(params=["fast", "none"])
def decoders(request, monkeypatch):
    if request.param == "none":
        monkeypatch.setattr(decoding_argus, "DECODERS", {})
    return request.param


@pytest.mark.parametrize("name", [*FAST, *WEBP, *PNG, *PILLOWS])
def test_pixels_are_pillows(name, decoders):
    data = {**FAST, **WEBP, **PNG, **PILLOWS}[name]
    loaded = load_image(data)
    if name != "webp alpha":  # white shines through: test_image_loading
        assert torch.equal(loaded.permute(1, 2, 0), pillows(data))
    rows = loaded.permute(1, 2, 0)  # the layout that the resizes want, or its transpose
    assert rows.is_contiguous() or rows.transpose(0, 1).is_contiguous()


@pytest.mark.parametrize("name", [*FAST, *WEBP, *PNG, *PILLOWS])
def test_only_what_is_plain_goes_to_the_fast_decoder(name, tmp_path, monkeypatch):
    """From a path as from bytes."""
    data = {**FAST, **WEBP, **PNG, **PILLOWS}[name]
    kind = "WEBP" if name in WEBP else "PNG" if name in PNG else "JPEG"
    fast = name not in PILLOWS and decoding_argus.DECODERS.get(kind) and decoding_argus._is_faithful(kind)
    path = tmp_path / "image"
    path.write_bytes(data)
    calls = []
    real = image_loading_argus._from_pil
    monkeypatch.setattr(image_loading_argus, "_from_pil", lambda *args: calls.append(args) or real(*args))
    assert torch.equal(load_image(path), load_image(Image.open(io.BytesIO(data))))
    assert len(calls) - 1 == (0 if fast else 1)


def test_the_test_environment_has_a_fast_decoder():
    assert "JPEG" in decoding_argus.DECODERS and decoding_argus._is_faithful("JPEG")


@pytest.mark.parametrize("keep", [0.2, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("name", ["baseline", "progressive", "webp", "png"])
def test_a_truncated_file_is_what_it_is_to_pillow(name, keep, monkeypatch):
    data = {**FAST, **WEBP, **PNG}[name]
    cut = data[: int(len(data) * keep)]

    def outcome():
        try:
            return load_image(cut).sum().item()
        except ImageInputError as error:
            return str(error)

    fast = outcome()
    monkeypatch.setattr(decoding_argus, "DECODERS", {})
    assert fast == outcome()


def test_a_decoder_that_differs_or_fails_is_not_used(monkeypatch):
    def fails(data):
        raise RuntimeError("no")

    def crashes(data):
        raise KeyError("what no decoder should raise")

    for decoder in (lambda data: torch.zeros(3, 45, 67, dtype=torch.uint8), fails, crashes):
        monkeypatch.setattr(decoding_argus, "DECODERS", {"JPEG": decoder})
        decoding_argus._is_faithful.cache_clear()
        assert torch.equal(load_image(FAST["420"]).permute(1, 2, 0), pillows(FAST["420"]))
    decoding_argus._is_faithful.cache_clear()


def test_the_header_is_checked_before_anything_is_decoded(monkeypatch):
    monkeypatch.setattr("processing_argus.image_loading_argus.MAX_PIXELS", 75 * 101 - 1)
    monkeypatch.setattr(decoding_argus, "DECODERS", {"JPEG": None})
    with pytest.raises(ImageInputError, match="101x75: 7575 pixels, more than the limit"):
        load_image(FAST["420"])


def test_torchcodec_turns_no_picture_by_itself(monkeypatch):
    """Its decoder applies EXIF; the bytes that it is given hold none, whoever wrote them."""
    seen = []

    def decode_jpeg(data, mode):
        seen.append(data.numpy().tobytes())
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(seen[-1])))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    monkeypatch.setattr(decoding_argus, "DECODERS", {"JPEG": decoding_argus._by_torchcodec(decode_jpeg)})
    decoding_argus._is_faithful.cache_clear()
    for orientation in range(1, 9):
        data = FAST[f"exif {orientation}"]
        assert torch.equal(load_image(data).permute(1, 2, 0), pillows(data))
        assert b"Exif\0\0" in data and b"Exif\0\0" not in seen[-1] and len(seen[-1]) == len(data)
    decoding_argus._is_faithful.cache_clear()


def test_without_torchvision_everything_works(tmp_path):
    (tmp_path / "a.jpg").write_bytes(FAST["420"])
    script = (
        "import sys; sys.modules['torchvision'] = sys.modules['torchcodec'] = None\n"
        "from processing_argus.image_loading_argus import load_image\n"
        "from processing_argus.decoding_argus import DECODERS\n"
        f"print(len(DECODERS), int(load_image({str(tmp_path / 'a.jpg')!r}).long().sum()))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["0", str(int(pillows(FAST["420"]).long().sum()))]


def test_whatever_a_decoder_raises_pillow_decodes(monkeypatch):
    def crashes(data):
        raise KeyError("what no decoder should raise")

    assert decoding_argus._is_faithful("JPEG")  # as before the failure
    monkeypatch.setattr(decoding_argus, "DECODERS", {"JPEG": crashes})
    assert torch.equal(load_image(FAST["420"]).permute(1, 2, 0), pillows(FAST["420"]))


def test_each_operator_is_looked_up_apart(monkeypatch):
    monkeypatch.setattr(torch.ops, "image", SimpleNamespace(decode_webp=SimpleNamespace(default="webp")))
    assert decoding_argus._torchvision_operator("decode_webp") == "webp"
    assert decoding_argus._torchvision_operator("decode_jpeg") is None


@pytest.mark.parametrize("sampling", [0x12, 0x41, 0x44])  # 4:4:0, 4:1:1, 4:1:0
def test_rare_chroma_samplings_stay_pillows(sampling):
    data = bytearray(FAST["420"])
    luma = data.index(b"\xff\xc0") + 11
    assert data[luma] == 0x22 and decoding_argus._kind(Image.open(io.BytesIO(data))) == "JPEG"
    data[luma] = sampling
    assert decoding_argus._kind(Image.open(io.BytesIO(data))) is None


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_conversions_strip_by_strip_are_the_whole_ones(mode, monkeypatch):
    image = (SEE_THROUGH if "A" in mode else PHOTO).convert(mode)
    whole = load_image(image)
    monkeypatch.setattr(decoding_argus, "_STRIP", 101 * 10 + 1)
    assert torch.equal(load_image(image), whole)


def test_a_large_pillow_image_is_taken_over_strip_by_strip(monkeypatch):
    monkeypatch.setattr(decoding_argus, "_STRIP", 101 * 10 + 1)
    assert np.array_equal(load_image(PHOTO).permute(1, 2, 0).numpy(), np.array(PHOTO))
