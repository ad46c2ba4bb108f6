"""The fastest faithful decoder present: JPEG, WebP and PNG through torchvision, JPEG also through torchcodec.

Recipes 5 and 9 of Table 1: encoded bytes become uint8 [H, W, 3] in one step, without Pillow's four bytes a pixel and
its copies. Pillow has read the header before, and what is not a plain 8-bit RGB picture, or what a decoder refuses,
stays Pillow's, so that pixels and errors are its own. Before its first use a decoder must give Pillow's very pixels on
small pictures of each kind. A PNG with more than pixels behind its header stays Pillow's: its EXIF may lie there.

Memory: a decoder here holds the result, 3 bytes a pixel; for progressive JPEG, libjpeg's coefficients too, 3 (4:2:0) to
6 (4:4:4). Pillow holds its own pixels, 4 bytes each (grey: 1), until they are taken over, strip by strip, into the
result.
"""

import io
import re
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from PIL import Image

_RGB = 3  # ImageReadMode.RGB of both libraries
_EXIF_SEGMENT = re.compile(rb"(\xff\xe1..)Exif\x00\x00", re.DOTALL)  # FF E1 cannot occur in entropy-coded data
_LUMA_SAMPLINGS = ((1, 1), (2, 1), (2, 2))  # 4:4:4, 4:2:2, 4:2:0: what the self-check can make, and nearly all there is
_PNG_ORIENTATION = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}  # where Pillow finds it
_STRIP = 1 << 17  # pixels that are taken over from Pillow at a time


try:
    import torchvision.io  # noqa: F401 - registers the operators; the public functions warn that they will move
except Exception:  # not installed, or built for another torch
    pass


def _torchvision_operator(name: str):
    try:  # each apart: a build may have one library and lack another
        return getattr(torch.ops.image, name).default
    except Exception:
        return None


_torchvision_jpeg = _torchvision_operator("decode_jpeg")
_torchvision_webp = _torchvision_operator("decode_webp")
_torchvision_png = _torchvision_operator("decode_png")

try:
    if _torchvision_jpeg is not None:
        raise ImportError("not needed, and slow to import")
    from torchcodec.decoders import decode_jpeg as _torchcodec_jpeg  # from 0.16 on; before, it decodes videos only
except Exception:
    _torchcodec_jpeg = None


def _by_torchvision(operator, *flags):
    return lambda data: operator(torch.frombuffer(data, dtype=torch.uint8), _RGB, *flags)


def _by_torchcodec(decode_jpeg):
    def decode(data):
        # It would turn the picture by its EXIF; here that is done afterwards, for all decoders and as Pillow reads it.
        upright = bytearray(_EXIF_SEGMENT.sub(b"\\1----\x00\x00", data))
        return decode_jpeg(torch.frombuffer(upright, dtype=torch.uint8), mode="RGB")

    return decode


DECODERS = {}
if _torchvision_jpeg is not None:
    DECODERS["JPEG"] = _by_torchvision(_torchvision_jpeg, False)
elif _torchcodec_jpeg is not None:
    DECODERS["JPEG"] = _by_torchcodec(_torchcodec_jpeg)
if _torchvision_webp is not None:
    DECODERS["WEBP"] = _by_torchvision(_torchvision_webp)
if _torchvision_png is not None:
    DECODERS["PNG"] = _by_torchvision(_torchvision_png, False)


def decode(image: Image.Image, file) -> torch.Tensor | None:
    """The pixels of a file that Pillow has opened (and not loaded), as stored: EXIF orientation is not applied.

    Args:
        image: what `Image.open(file)` gave.
        file: a binary file that can be sought; it is read from its beginning.
    Returns:
        uint8[3, H, W], a view of [H, W, 3]; None where Pillow is to decode.
    """
    kind = _kind(image)
    if kind is None or not _is_faithful(kind):
        return None
    try:
        data = _read(file)
        if kind == "PNG" and not _png_ends_with_its_pixels(data):
            return None
        pixels = DECODERS[kind](data)
    except Exception:  # truncated or odd, or whatever a decoder raises: Pillow decides
        return None
    return pixels if tuple(pixels.shape) == (3, image.height, image.width) else None


def _kind(image) -> str | None:
    if image.mode != "RGB" or "transparency" in image.info:
        return None
    if image.format in ("JPEG", "MPO") and getattr(image, "bits", 8) == 8:
        layers = getattr(image, "layer", ())
        samplings = [tuple(layer[1:3]) for layer in layers]
        plain = len(samplings) == 3 and samplings[0] in _LUMA_SAMPLINGS and samplings[1:] == [(1, 1), (1, 1)]
        return "JPEG" if plain and "JPEG" in DECODERS else None
    if image.format == "WEBP" and not getattr(image, "is_animated", False):
        return "WEBP" if "WEBP" in DECODERS else None
    if image.format == "PNG" and not getattr(image, "is_animated", False) and not _PNG_ORIENTATION & image.info.keys():
        plain = [tile[3] for tile in image.tile] == ["RGB"] and not image.info.get("interlace")  # 8 bits each
        return "PNG" if plain and "PNG" in DECODERS else None
    return None


def _png_ends_with_its_pixels(data: bytearray) -> bool:
    """Whether nothing but pixels follows the first pixels of a PNG file: Pillow reads what follows with them."""
    place, kinds = 8, []
    while place + 8 <= len(data):
        kinds.append(bytes(data[place + 4 : place + 8]))
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    first = kinds.index(b"IDAT")
    return set(kinds[first:-1]) == {b"IDAT"} and kinds[-1] == b"IEND" and place == len(data)


def _read(file) -> bytearray:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    data = bytearray(size)
    if file.readinto(data) != size:
        raise ValueError("the file became shorter while it was read")
    return data


@cache
def _is_faithful(kind: str) -> bool:
    """Whether the decoder gives Pillow's pixels; both bring their own build of the same library. About 3 ms, once."""
    try:
        options = {
            "JPEG": [{"subsampling": s, "progressive": p} for s in ("4:4:4", "4:2:2", "4:2:0") for p in (False, True)],
            "WEBP": [{"quality": 80}, {"lossless": True}],
            "PNG": [{}],
        }
        y, x = np.mgrid[:45, :67]
        picture = Image.fromarray(np.stack([x * 37 + y * y, x * y, (x // 7 + y // 5) % 2 * 255], -1).astype(np.uint8))
        for option in options[kind]:
            file = io.BytesIO()
            picture.save(file, kind, **option)
            expected = to_tensor(Image.open(file))
            if not torch.equal(DECODERS[kind](bytearray(file.getvalue())), expected):
                return False
    except Exception:  # a build of Pillow without this format, or a decoder that fails outright
        return False
    return True


def to_tensor(image: Image.Image, convert: Callable[[Image.Image], Image.Image] | None = None) -> torch.Tensor:
    """A Pillow image -> uint8[3, H, W], a view of [H, W, 3] in memory of its own.

    `convert` makes mode RGB of what has another. Strip by strip, because Pillow's own export holds the pixels three
    times at its peak, and each conversion as often again.
    """
    convert = convert or (lambda strip: strip)
    image.load()
    if image.width * image.height <= _STRIP:
        return torch.from_numpy(np.array(convert(image))).permute(2, 0, 1)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(_STRIP // image.width, 1)
    for y in range(0, image.height, rows):
        strip = image.crop((0, y, image.width, min(y + rows, image.height)))
        pixels[y : y + rows] = np.asarray(convert(strip))
    return torch.from_numpy(pixels).permute(2, 0, 1)
