"""The one strict way in for every kind of image: whatever comes, uint8 RGB [3, H, W] upright comes out, decoded once.

Nothing is guessed silently: EXIF orientation is always applied, transparency always goes to white, 16-bit grey always
to 8 bits, and what has no single meaning (channel order that cannot be told, values between two scales) is refused
with its values.
"""

import base64
import binascii
import io
import os
import urllib.error
import urllib.request
from http.client import HTTPException

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from .decoding_argus import decode, to_tensor

MAX_PIXELS = 128_000_000  # read from the header, before anything is decoded: a 24 KB file can unpack to gigabytes
MAX_DOWNLOAD_BYTES = 128 * 1024 * 1024
DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer

_CHANNELS = (1, 3, 4)
_FLOAT_TOLERANCE = 1e-3  # how far float values may lie outside of their scale by rounding alone
_EXIF_ORIENTATION = 0x0112
_ROWS_AT_ONCE = 32
_UPRIGHT = {  # orientation: (axes of the stored [H, W, 3] to reverse, swap rows and columns then)
    2: ((1,), False),
    3: ((0, 1), False),
    4: ((0,), False),
    5: ((), True),
    6: ((0,), True),
    7: ((0, 1), True),
    8: ((1,), True),
}


class ImageInputError(ValueError):
    """An image that cannot be read or has no single meaning; the message says which, why, and what to do."""


def load_image(
    image, what: str = "image", input_data_format: str | None = None, convert_rgb: bool = True
) -> torch.Tensor:
    """Read one image.

    Args:
        image: PIL image; numpy array or torch tensor [H, W], [H, W, C] or [C, H, W] with C 1, 3 or 4 (uint8, bool,
            integers 0..255, uint16 0..65535, floats); encoded bytes; path; http(s) URL; base64 data URL. Floats are
            fractions if none is above 1 (also if all are 0 or 1), and levels 0..255 if the largest is at least 2.
        what: how errors name the image.
        input_data_format: "channels_first" or "channels_last", for arrays whose shape does not tell.
        convert_rgb: False refuses images that are not RGB instead of converting them.
    Returns:
        uint8[3, H, W], RGB, EXIF orientation applied; on the tensor's device if a tensor came in, else on the CPU.
        Often a view.
    Raises:
        ImageInputError: in all other cases, with the values.
    """
    if isinstance(image, torch.Tensor):
        if getattr(image, "_argus_loaded", False) and image.dtype == torch.uint8 and image.ndim == 3:
            return image  # loaded before, by fetch_images: its layout is known
        loaded = _from_tensor(image.detach(), what, input_data_format, convert_rgb)
    elif isinstance(image, Image.Image):
        loaded = _from_pil(image, what, convert_rgb)
    elif isinstance(image, (bytes, bytearray, memoryview)):
        loaded = _from_bytes(bytes(image), what, convert_rgb)
    elif isinstance(image, (str, os.PathLike)):
        loaded = _from_name(os.fspath(image), what, convert_rgb)
    elif isinstance(image, np.ndarray) or hasattr(image, "__array__"):
        loaded = _from_array(np.asarray(image), what, input_data_format, convert_rgb)
    else:
        raise ImageInputError(
            f"{what} is a {type(image).__name__}; expected a PIL image, a numpy array, a torch tensor, bytes, a path, "
            "an http(s) URL or a base64 data URL."
        )
    loaded._argus_loaded = True
    return loaded


def iterate_images(images, what: str = "images"):
    """Yield (name, image) over one image, a batched array [N, ., ., .] or lists of them, however nested."""
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4:
        for index, item in enumerate(images):
            yield from iterate_images(item, f"{what}[{index}]")
    else:
        yield ("the image" if what == "images" else what), images


# --- names and bytes ------------------------------------------------------------------------------------------------


def _from_name(name, what, convert_rgb):
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    shown = name if len(name) <= 80 else f"{name[:32]}...{name[-40:]} ({len(name)} characters)"
    if name.startswith(("http://", "https://")):
        return _from_bytes(_download(name, f"{what} ({shown})"), f"{what} ({shown})", convert_rgb)
    if name.startswith("data:"):
        header, comma, payload = name.partition(",")
        if not comma or not header.endswith(";base64"):
            raise ImageInputError(f"{what} is a data URL without base64 content: {shown}")
        try:
            data = base64.b64decode(payload, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ImageInputError(f"{what} is a data URL whose base64 content is invalid ({error}): {shown}") from error
        return _from_bytes(data, f"{what} (data URL)", convert_rgb)
    if not os.path.isfile(name):
        kind = "a folder, not an image file" if os.path.isdir(name) else "no such file"
        raise ImageInputError(f"{what}: {kind}: {shown!r}")
    what = f"{what} ({shown})"
    try:
        with open(name, "rb") as file:
            return _from_file(file, what, convert_rgb)
    except OSError as error:
        raise ImageInputError(f"{what} could not be opened: {error}") from error


def _from_bytes(data, what, convert_rgb):
    if not data:
        raise ImageInputError(f"{what} is empty (0 bytes).")
    return _from_file(io.BytesIO(data), what, convert_rgb)


def _from_file(file, what, convert_rgb):
    try:
        image = Image.open(file)
    except UnidentifiedImageError as error:
        raise ImageInputError(f"{what} is not an image that Pillow can read.") from error
    except Image.DecompressionBombError as error:
        raise ImageInputError(f"{what} has more than {MAX_PIXELS} pixels ({error})") from error
    except Exception as error:  # Pillow's format plug-ins raise many kinds on damaged headers
        raise ImageInputError(f"{what} could not be decoded: {error}") from error
    with image:
        _check_size(image.height, image.width, what)
        pixels = decode(image, file)
        if pixels is not None:  # of a PNG nothing more is asked: Pillow would decode it to look for EXIF behind it
            return pixels if image.format == "PNG" else _upright(pixels, _orientation(image))
        return _from_pil(image, what, convert_rgb)


def _download(url, what):
    request = urllib.request.Request(url, headers={"User-Agent": "argusvlm"})
    try:
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT) as response:
            data = response.read(MAX_DOWNLOAD_BYTES + 1)
    except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
        raise ImageInputError(f"{what} could not be downloaded: {error}") from error
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise ImageInputError(f"{what} is larger than {MAX_DOWNLOAD_BYTES} bytes; download and shrink it first.")
    return data


# --- Pillow ---------------------------------------------------------------------------------------------------------


def _from_pil(image, what, convert_rgb):
    _check_size(image.height, image.width, what)
    try:
        image.load()
        return _upright(_pixels(image, what, convert_rgb), _orientation(image))
    except ImageInputError:
        raise
    except Exception as error:  # truncated data, unsupported modes, closed files: Pillow raises many kinds
        raise ImageInputError(f"{what} could not be decoded: {error}") from error


def _pixels(image, what, convert_rgb):
    """uint8[3, H, W] as stored."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return to_tensor(image)
    if not convert_rgb:
        raise ImageInputError(f"{what} has mode {image.mode}, not RGB, and do_convert_rgb is False.")
    if image.mode.startswith("I") or image.mode == "F":
        return _from_tensor(_grey_levels(image, what, image.format), what, "channels_first", convert_rgb)
    see_through = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    return to_tensor(image, _on_white if see_through else lambda strip: strip.convert("RGB"))


def _upright(pixels, orientation):
    """Applies an EXIF orientation to uint8[3, H, W], in its own memory: a second copy of a photograph is what tells in
    the peak. Rows and columns are swapped by strides alone; resizes then take the pixels strip by strip."""
    if orientation not in _UPRIGHT:
        return pixels
    reverse, swap = _UPRIGHT[orientation]
    stored = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
    if 0 in reverse:
        _reverse_rows(stored)
    if 1 in reverse:
        for y in range(0, len(stored), _ROWS_AT_ONCE):
            part = stored[y : y + _ROWS_AT_ONCE]
            part[:] = part[:, ::-1].copy()
    upright = torch.from_numpy(stored)
    return (upright.transpose(0, 1) if swap else upright).permute(2, 0, 1)


def _reverse_rows(stored):
    half = len(stored) // 2
    for start in range(0, half, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, half)
        top, bottom = stored[start:stop], stored[len(stored) - stop : len(stored) - start]
        kept = top[::-1].copy()
        top[:] = bottom[::-1]
        bottom[:] = kept


def _orientation(image):
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF does not make the pixels unreadable
        return 1


def _on_white(image):
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")


def _grey_levels(image, what, file_format):
    """I;16 is 16-bit by name; I (32-bit) if its values or its file say so, and else nobody can tell; F is floats."""
    grey = np.array(image)
    if image.mode == "F":
        return torch.from_numpy(grey)[None]
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 65535:
        raise ImageInputError(
            f"{what} has mode {image.mode} with values in [{low}, {high}]; expected 16-bit grey levels."
        )
    # Pillow reads 16-bit PNG and PGM files as mode I (some versions), 8-bit ones never.
    if image.mode == "I" and 0 < high <= 255 and file_format not in ("PNG", "PPM"):
        raise ImageInputError(
            f"{what} has mode I with values up to {high}: 8-bit levels, or an almost black 16-bit image? "
            "Pass levels as mode L, a 16-bit image as mode I;16."
        )
    return _sixteen_to_eight_bit(torch.from_numpy(grey.astype(np.int32)))[None]


# --- arrays ---------------------------------------------------------------------------------------------------------


def _from_array(array, what, input_data_format, convert_rgb):
    if array.dtype.kind not in "buif":
        raise ImageInputError(f"{what} is an array of dtype {array.dtype}; expected uint8, bool, integers or floats.")
    if array.dtype.kind == "u" and array.dtype.itemsize > 2:
        array = np.minimum(array, 2**31).astype(
            np.int64
        )  # torch has no arithmetic for these; the range is checked below
    elif array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    # torch cannot view reversed axes (image[..., ::-1] is a usual way from BGR to RGB) nor read-only memory.
    array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        array = array.copy()
    return _from_tensor(torch.from_numpy(array), what, input_data_format, convert_rgb)


def _from_tensor(tensor, what, input_data_format, convert_rgb):
    tensor = _channels_first(tensor, what, input_data_format)
    _check_size(tensor.shape[1], tensor.shape[2], what)
    tensor = _to_uint8(tensor, what)
    channels = tensor.shape[0]
    if channels == 3:
        return tensor
    if not convert_rgb:
        raise ImageInputError(f"{what} has {channels} channel(s), not RGB, and do_convert_rgb is False.")
    if channels == 1:
        return tensor.repeat(3, 1, 1)
    rgba = Image.fromarray(np.ascontiguousarray(tensor.permute(1, 2, 0).cpu().numpy()))
    return to_tensor(rgba, _on_white).to(tensor.device)


def _channels_first(tensor, what, input_data_format):
    shape = tuple(tensor.shape)
    if input_data_format is not None:
        input_data_format = getattr(input_data_format, "value", input_data_format)
        if input_data_format not in ("channels_first", "channels_last"):
            raise ImageInputError(
                f"input_data_format={input_data_format!r} must be 'channels_first' or 'channels_last'."
            )
    if tensor.ndim == 2:
        return tensor[None]
    if tensor.ndim != 3:
        raise ImageInputError(f"{what} has shape {shape}: {tensor.ndim} dimensions, but an image has 2 or 3.")
    if 0 in shape:
        raise ImageInputError(f"{what} is empty: shape {shape}.")
    first, last = shape[0] in _CHANNELS, shape[-1] in _CHANNELS
    if input_data_format is not None:
        if not (first if input_data_format == "channels_first" else last):
            raise ImageInputError(
                f"{what} has shape {shape}, which is not {input_data_format} with 1, 3 or 4 channels."
            )
        return tensor if input_data_format == "channels_first" else tensor.permute(2, 0, 1)
    if first and last:
        raise ImageInputError(
            f"{what} has shape {shape}, which could be channels first or channels last; pass "
            'input_data_format="channels_first" or "channels_last", or a PIL image.'
        )
    if not first and not last:
        raise ImageInputError(f"{what} has shape {shape}: neither the first nor the last axis has 1, 3 or 4 channels.")
    return tensor if first else tensor.permute(2, 0, 1)


def _to_uint8(tensor, what):
    if tensor.dtype == torch.uint8:
        return tensor
    if tensor.dtype == torch.bool:
        return tensor.to(torch.uint8) * 255
    if tensor.dtype == torch.uint16:
        levels = tensor.to(torch.int32)
        high = int(levels.max())
        if 0 < high <= 255:
            raise ImageInputError(
                f"{what} is a uint16 array with values up to {high}: 8-bit levels, or an almost black 16-bit image? "
                "Convert it to uint8 first."
            )
        return _sixteen_to_eight_bit(levels)
    if tensor.dtype in (torch.uint32, torch.uint64):
        tensor = tensor.to(torch.int64)
    if tensor.is_complex():
        raise ImageInputError(f"{what} is a tensor of dtype {tensor.dtype}; expected uint8, bool, integers or floats.")
    if tensor.is_floating_point():
        if tensor.dtype != torch.float64:
            tensor = tensor.float()
        if not bool(torch.isfinite(tensor).all()):
            raise ImageInputError(f"{what} holds NaN or infinite values.")
        return _floats_to_uint8(tensor, what)
    low, high = int(tensor.min()), int(tensor.max())
    if low < 0 or high > 255:
        raise ImageInputError(f"{what} holds values in [{low}, {high}]; expected integers in [0, 255].")
    if high == 1:
        raise ImageInputError(
            f"{what} is an array of {tensor.dtype} that holds only 0 and 1: a mask, or almost black levels? "
            "Pass a mask as bool, levels as uint8."
        )
    return tensor.to(torch.uint8)


def _floats_to_uint8(tensor, what):
    """Fractions or levels, told apart by the largest value. A resize that overshoots 1 must not turn black."""
    low, high = float(tensor.min()), float(tensor.max())
    if low < -_FLOAT_TOLERANCE or 1 + _FLOAT_TOLERANCE < high < 2 or high > 255 + _FLOAT_TOLERANCE:
        raise ImageInputError(
            f"{what} holds floats in [{low:g}, {high:g}]; expected [0, 1] or [0, 255]. "
            "Clip them (a resize overshoots), undo a normalisation, or pass uint8."
        )
    return (tensor * 255 if high < 2 else tensor).clamp(0, 255).round().to(torch.uint8)


def _sixteen_to_eight_bit(levels):
    return ((levels + 128) // 257).to(torch.uint8)


def _check_size(height, width, what):
    if height < 1 or width < 1:
        raise ImageInputError(f"{what} is empty: {width}x{height} pixels.")
    if height * width > MAX_PIXELS:
        raise ImageInputError(
            f"{what} is {width}x{height}: {height * width} pixels, more than the limit of {MAX_PIXELS}; "
            "make it smaller first."
        )
