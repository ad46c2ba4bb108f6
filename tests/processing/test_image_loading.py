"""One strict way in: every kind and mode of image gives the same pixels, every bad one a clear ImageInputError."""

import base64
import io
import re
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from processing_argus.image_loading_argus import ImageInputError, iterate_images, load_image

H, W = 20, 31
PIXELS = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
RGB = torch.from_numpy(PIXELS).permute(2, 0, 1)
GREY = PIXELS[..., 0]


def encode(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


PNG = encode(Image.fromarray(PIXELS))


# --- kinds ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "picture.png"
    path.write_bytes(PNG)
    return path


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(PIXELS),
        PNG,
        bytearray(PNG),
        memoryview(PNG),
        "data:image/png;base64," + base64.b64encode(PNG).decode(),
        PIXELS,
        PIXELS.transpose(2, 0, 1),
        PIXELS[..., ::-1][..., ::-1],
        np.broadcast_to(PIXELS, PIXELS.shape),  # not writeable
        PIXELS.astype(">i4"),
        PIXELS.astype(np.uint32),
        PIXELS.astype(np.uint64),
        PIXELS.astype(np.uint16) * 257,
        PIXELS.astype(np.float64),
        PIXELS.astype(np.float32) / 255,
        PIXELS.astype(np.longdouble),
        RGB,
        RGB.permute(1, 2, 0),
        RGB.to(torch.int64),
        RGB.float() / 255,
        RGB.to(torch.float16),
        RGB.to(torch.bfloat16),  # 8 bits of mantissa hold 0..255
        torch.nn.Parameter(RGB.float()),
    ],
    ids=lambda image: f"{type(image).__name__}-{getattr(image, 'dtype', '')}",
)
def test_every_kind_gives_the_same_pixels(image):
    loaded = load_image(image)
    assert loaded.dtype == torch.uint8 and not loaded.requires_grad
    assert torch.equal(loaded, RGB)


def test_paths(picture):
    assert torch.equal(load_image(picture), RGB)
    assert torch.equal(load_image(str(picture)), RGB)


@pytest.mark.parametrize("format", ["BMP", "TIFF", "GIF", "WEBP", "PPM"])
def test_file_formats_with_which_transformers_stumbles(format, tmp_path):
    path = tmp_path / f"image.{format.lower()}"
    Image.fromarray(PIXELS).save(path, format, **({"lossless": True} if format == "WEBP" else {}))
    expected = np.array(Image.open(path).convert("RGB"))
    assert torch.equal(load_image(path), torch.from_numpy(expected).permute(2, 0, 1))


def test_an_animation_is_its_first_frame_and_a_pil_image_its_current_one(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif")[:, 0, 0].tolist() == [255, 0, 0]
    with Image.open(tmp_path / "a.gif") as animation:
        animation.seek(2)
        assert load_image(animation)[:, 0, 0].tolist() == [0, 0, 255]


def test_a_loaded_image_passes_unchanged():
    narrow = load_image(Image.new("RGB", (3, 64)))
    assert narrow.shape == (3, 64, 3)
    assert load_image(narrow) is narrow  # its layout is known; a fresh tensor of that shape is refused


def test_iterate_images_names_what_it_finds():
    assert list(iterate_images("a")) == [("the image", "a")]
    assert [name for name, _ in iterate_images([["a"], [], ["b", "c"]])] == [
        "images[0][0]",
        "images[2][0]",
        "images[2][1]",
    ]
    assert [name for name, _ in iterate_images(torch.zeros(2, 3, 8, 8))] == ["images[0]", "images[1]"]


# --- modes ----------------------------------------------------------------------------------------------------------


def white_blend(colour, alpha):
    return np.round(colour * (alpha / 255.0) + 255 * (1 - alpha / 255.0))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_opaque_modes_convert_as_pillow_does(mode):
    image = Image.fromarray(PIXELS).convert(mode)
    assert torch.equal(load_image(image), torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La", "PA"])
def test_transparency_goes_to_white(mode):
    alpha = np.tile(np.linspace(0, 255, W).astype(np.uint8), (H, 1))
    grey = mode in ("LA", "La")
    image = (
        Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])
        if grey
        else Image.fromarray(np.dstack([PIXELS, alpha]))
    )
    image = image.convert(mode)
    colour = np.array(image.convert("RGBA"))[..., :3] if mode == "PA" else GREY[..., None] if grey else PIXELS
    loaded = load_image(image).permute(1, 2, 0).numpy()
    tolerance = 2 if mode in ("RGBa", "La") else 1  # premultiplied colours were rounded once more
    assert np.abs(loaded - white_blend(colour, alpha[..., None])).max() <= tolerance


def test_transparency_from_file_array_and_memory_is_one():
    image = Image.fromarray(np.dstack([PIXELS, GREY]))
    expected = load_image(image)
    assert torch.equal(load_image(encode(image)), expected)
    assert torch.equal(load_image(np.array(image)), expected)
    assert torch.equal(load_image(torch.from_numpy(np.array(image)).permute(2, 0, 1)), expected)


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_a_transparent_colour_goes_to_white(mode):
    image = Image.new("RGB", (4, 4), "black").convert(mode)
    image.putpixel((0, 0), 255 if mode in "LP" else (255, 0, 0))
    key = {"P": 0, "L": 0, "RGB": (0, 0, 0)}[mode]
    with Image.open(io.BytesIO(encode(image, transparency=key))) as reopened:
        assert "transparency" in reopened.info
        assert load_image(reopened)[:, 2, 2].tolist() == [255, 255, 255]


def test_sixteen_bit_grey_is_scaled():
    levels = np.arange(H * W, dtype=np.uint16).reshape(H, W) * 105
    expected = torch.from_numpy(np.round(levels / 257.0)).to(torch.uint8).expand(3, H, W)
    image = Image.fromarray(levels)
    assert image.mode == "I;16"
    assert torch.equal(load_image(image), expected)
    assert torch.equal(load_image(encode(image)), expected)
    assert torch.equal(load_image(encode(image, "TIFF")), expected)
    assert torch.equal(load_image(levels), expected)
    assert torch.equal(load_image(Image.fromarray(levels.astype(np.int32))), expected)
    assert torch.equal(load_image(Image.fromarray(levels.astype(">u2"))), expected)


def test_another_default_device_does_not_matter():
    image = Image.fromarray(np.full((4, 5), 0.5, np.float32))
    torch.set_default_device("meta")
    try:
        loaded = load_image(image)
    finally:
        torch.set_default_device(None)
    assert loaded.device.type == "cpu" and int(loaded.max()) == 128


def test_a_dark_sixteen_bit_image_stays_dark_or_is_refused():
    dark = Image.fromarray(GREY.astype(np.uint16))
    assert load_image(dark).max() == load_image(encode(dark)).max() == 1
    with pytest.raises(ImageInputError, match=r"mode I with values up to 255.*mode L.*mode I;16"):
        load_image(dark.convert("I"))
    file = Image.fromarray(GREY.astype(np.int32))
    file.format = "PNG"  # as some versions of Pillow open 16-bit files
    assert torch.equal(load_image(file), load_image(dark))
    assert load_image(Image.new("I", (4, 4))).max() == 0


def test_eight_bit_levels_in_wide_modes():
    expected = torch.from_numpy(GREY.copy()).expand(3, H, W)
    assert torch.equal(load_image(GREY.astype(np.int32)), expected)
    assert torch.equal(load_image(Image.fromarray(GREY.astype(np.float32))), expected)
    assert torch.equal(load_image(Image.fromarray(GREY.astype(np.float32) / 255)), expected)
    assert torch.equal(load_image(GREY), expected)
    assert torch.equal(load_image(GREY[None]), expected)
    assert torch.equal(load_image(GREY[..., None]), expected)


def test_boolean_arrays_are_black_and_white():
    assert load_image(GREY > 127).unique().tolist() == [0, 255]
    assert torch.equal(load_image(GREY > 127), load_image(Image.fromarray(GREY > 127)))


def test_floats_are_fractions_up_to_one_and_levels_from_two():
    ramp = torch.linspace(0, 1, H * W).view(H, W)
    rounded = (ramp * 1.002 - 0.0005).clamp(max=1.0009)  # outside of [0, 1] by rounding alone
    assert load_image(rounded).min() == 0 and load_image(rounded).max() == 255
    assert load_image((ramp > 0.5).float()).unique().tolist() == [0, 255]
    assert load_image(ramp * 2).unique().tolist() == [0, 1, 2]
    assert load_image(torch.zeros(H, W)).max() == 0
    assert load_image(np.zeros((H, W), np.int64)).max() == 0


# --- EXIF -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG"])
def test_exif_orientation_is_honoured_for_files_and_for_memory(orientation, format, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    stored = Image.fromarray(PIXELS)
    data = encode(stored, format, exif=exif, **options)
    upright = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud}
    upright |= {5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1)}
    upright |= {7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90}
    pixels = np.array(Image.open(io.BytesIO(encode(stored, format, **options))))
    expected = torch.from_numpy(upright[orientation](pixels).copy()).permute(2, 0, 1)
    assert torch.equal(load_image(data), expected)
    assert torch.equal(load_image(Image.open(io.BytesIO(data))), expected)
    (tmp_path / "image").write_bytes(data)
    assert torch.equal(load_image(tmp_path / "image"), expected)


# --- layout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 64, 3), (1, 64, 3), (4, 4, 4), (3, 3, 3), (1, 1, 1)])
@pytest.mark.parametrize("make", [np.zeros, torch.zeros])
def test_an_ambiguous_layout_is_refused_unless_told(make, shape):
    image = make(shape)
    with pytest.raises(ImageInputError, match=rf"{re.escape(str(shape))}.*pass input_data_format="):
        load_image(image)
    assert load_image(image, input_data_format="channels_first").shape == (3, shape[1], shape[2])
    assert load_image(image, input_data_format="channels_last").shape == (3, shape[0], shape[1])


def test_input_data_format_must_fit_the_shape():
    with pytest.raises(ImageInputError, match=r"\(20, 31, 3\), which is not channels_first"):
        load_image(PIXELS, input_data_format="channels_first")
    with pytest.raises(ImageInputError, match="input_data_format='HWC'"):
        load_image(PIXELS, input_data_format="HWC")


# --- refused --------------------------------------------------------------------------------------------------------


def png_bomb(side=14_200):
    """A valid PNG of 200 megapixels in 25 KB."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + side // 8)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


BIG_PNG = encode(Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)))

REFUSED = {
    "nan": (np.full((H, W, 3), np.nan), "NaN or infinite"),
    "infinite": (torch.full((3, H, W), torch.inf), "NaN or infinite"),
    "normalised": (torch.linspace(-1, 1, 3 * H * W).view(3, H, W), r"\[-1, 1\].*undo a normalisation"),
    "too large floats": (np.full((H, W), 300.0), r"\[300, 300\]; expected \[0, 1\] or \[0, 255\]"),
    "overshooting floats": (np.linspace(0, 1.116, H * W).reshape(H, W), r"\[0, 1\.116\].*Clip them .*or pass uint8"),
    "undershooting floats": (np.linspace(-0.04, 1, H * W).reshape(H, W), r"\[-0\.04, 1\].*Clip them"),
    "undershooting levels": (torch.linspace(-3, 255, H * W).view(H, W), r"\[-3, 255\].*Clip them"),
    "integer mask": (np.eye(8, dtype=np.int64), "torch.int64 that holds only 0 and 1.*mask as bool, levels as uint8"),
    "integer mask tensor": (torch.eye(8, dtype=torch.int32), "only 0 and 1"),
    "too large integers": (np.full((H, W), 256), r"\[256, 256\]; expected integers in \[0, 255\]"),
    "negative integers": (np.full((H, W), -1, dtype=np.int16), r"\[-1, -1\]"),
    "huge unsigned": (np.full((H, W), 2**63, dtype=np.uint64), "expected integers"),
    "uint16 with 8-bit values": (PIXELS.astype(np.uint16), "uint16 array with values up to 255"),
    "mode I out of range": (Image.fromarray(np.full((4, 4), 70_000, np.int32)), r"\[70000, 70000\]"),
    "empty array": (np.zeros((0, 0, 3), np.uint8), r"empty: shape \(0, 0, 3\)"),
    "empty grey": (np.zeros((0, 5), np.uint8), "empty: 5x0 pixels"),
    "empty pil": (Image.new("RGB", (0, 0)), "empty: 0x0 pixels"),
    "five channels": (np.zeros((H, W, 5), np.uint8), r"\(20, 31, 5\): neither"),
    "one dimension": (np.zeros(5, np.uint8), "1 dimensions"),
    "five dimensions": (np.zeros((1, 1, 3, 4, 4), np.uint8), "5 dimensions"),
    "objects": (np.array([[None]]), "dtype object"),
    "complex": (np.zeros((H, W), np.complex64), "dtype complex64"),
    "complex tensor": (torch.zeros(H, W, dtype=torch.complex64), "dtype torch.complex64"),
    "none": (None, "is a NoneType"),
    "number": (7, "is a int; expected a PIL image"),
    "no file": ("no/such/file.png", "no such file: 'no/such/file.png'"),
    "nothing": ("", "no such file: ''"),
    "base64 without a header": ("A" * 5000, r"no such file.*\(5000 characters\)"),
    "null byte": ("a\0b", "no such file"),
    "folder": (Path("."), "a folder, not an image file"),
    "no bytes": (b"", "0 bytes"),
    "text": (b"not an image at all", "not an image that Pillow can read"),
    "truncated": (BIG_PNG[: len(BIG_PNG) // 2], "could not be decoded"),
    "truncated jpeg": (encode(Image.fromarray(PIXELS), "JPEG")[:-200], "could not be decoded"),
    "damaged header": (PNG[:12] + b"\xff" * 8 + PNG[20:], "could not be decoded|not an image"),
    "data url without base64": ("data:image/png,abc", "without base64 content"),
    "damaged data url": ("data:image/png;base64,@@@", "base64 content is invalid"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_with_its_values(name):
    image, words = REFUSED[name]
    with pytest.raises(ImageInputError, match=words) as caught:
        load_image(image, "images[3]")
    assert str(caught.value).startswith("images[3]") and len(str(caught.value)) < 300


def test_a_closed_file_is_refused(picture):
    with Image.open(picture) as image:
        pass
    with pytest.raises(ImageInputError, match="could not be decoded"):
        load_image(image)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    bomb = png_bomb()
    assert len(bomb) < 40_000
    with pytest.raises(ImageInputError, match=r"more than .*128000000"):
        load_image(bomb)
    smaller = png_bomb(12_000)  # 144 megapixels: Pillow alone would only warn
    with pytest.raises(ImageInputError, match="12000x12000: 144000000 pixels, more than the limit of 128000000"):
        load_image(smaller)


def test_without_conversion_only_rgb_is_taken():
    assert torch.equal(load_image(PIXELS, convert_rgb=False), RGB)
    for image in (Image.fromarray(GREY), GREY, np.dstack([PIXELS, GREY])):
        with pytest.raises(ImageInputError, match="do_convert_rgb is False"):
            load_image(image, convert_rgb=False)


# --- URLs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/picture.png"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(PNG if found else b"")

        def log_message(self, *args):
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_a_url_is_fetched(server, no_proxy):
    assert torch.equal(load_image(f"{server}/picture.png"), RGB)


def test_a_url_that_fails_is_refused(server, no_proxy, monkeypatch):
    with pytest.raises(ImageInputError, match=r"missing\.png\) could not be downloaded: .*404"):
        load_image(f"{server}/missing.png")
    with pytest.raises(ImageInputError, match="could not be downloaded"):
        load_image("http://127.0.0.1:1/nobody-listens.png")
    monkeypatch.setattr("processing_argus.image_loading_argus.MAX_DOWNLOAD_BYTES", 100)
    with pytest.raises(ImageInputError, match="larger than 100 bytes"):
        load_image(f"{server}/picture.png")
