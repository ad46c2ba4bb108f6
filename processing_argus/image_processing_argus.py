"""ArgusImageProcessor: images of any kind in, flat uint8 tiles out; made on the CPU or, with `device=`, there.

Each image is decoded once, resized by torch's antialiased uint8 kernels and written tile by tile into the output,
which is allocated once; with `device=` it crosses as it is, in one buffer with all else, and is resized there.
Normalisation is folded into the model's patch embedding (Section 3.3), so uint8 is the default.
"""

import difflib
import os
import types
from dataclasses import dataclass
from typing import Optional, Union

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ImagesKwargs, Unpack

from .compat_processing_argus import ArgusImageProcessorBase
from .decoding_argus import DECODERS  # noqa: F401 - transformers' loader wants every sibling named in this file
from .image_loading_argus import ImageInputError, iterate_images, load_image
from .resizing_argus import TORCH_MODES
from .threads_argus import MAX_THREADS  # noqa: F401 - likewise
from .tile_pixels_argus import fits_device, write_tiles_on_cpu, write_tiles_on_device
from .tiling_argus import TileGrid, TilingOptions, TilingPlan, plan_tiling
from .transfer_argus import resolve_device, send, to_numpy


class ArgusImageProcessorKwargs(ImagesKwargs, total=False):
    """
    tiling (`str`): "aspect_ratio" (the paper, InternVL) or "longest_edge" (SmolVLM, Idefics3).
    tile_size (`int`): side of a tile in pixels; the vision tower's image size.
    min_tiles (`int`): fewest tiles without the thumbnail (`aspect_ratio`).
    max_tiles (`int`, *optional*): most tiles without the thumbnail; None is no limit (`longest_edge` only).
    use_thumbnail (`bool`): add the whole image as a last tile when there is more than one.
    max_upscale (`float`, *optional*): do not enlarge an image more than this, which is fewer tiles for a small one.
    longest_edge (`int`): longest side of the canvas in pixels (`longest_edge`).
    do_image_splitting (`bool`): False makes one tile of each image.
    crop_to_patches (`bool`): InternVL's name for `do_image_splitting`, by which TRL asks; of a call alone.
    """

    tiling: Optional[str]
    tile_size: Optional[int]
    min_tiles: Optional[int]
    max_tiles: Optional[int]
    use_thumbnail: Optional[bool]
    max_upscale: Optional[float]
    longest_edge: Optional[int]
    do_image_splitting: Optional[bool]
    crop_to_patches: Optional[bool]
    do_convert_rgb: Optional[bool]  # 4.57's ImagesKwargs lacks it


_TILING_NAMES = tuple(TilingOptions.__dataclass_fields__)
_PIXEL_NAMES = ("resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_convert_rgb")
_CALL_NAMES = ("device", "return_tensors", "input_data_format", "data_format", "crop_to_patches")
_NONE_IS_A_SETTING = ("max_tiles", "max_upscale")
# What transformers writes beside the settings in preprocessor_config.json and processor_config.json.
_SERVICE_NAMES = (
    "image_processor_type",
    "processor_class",
    "feature_extractor_type",
    "auto_map",
    "backend",
    "_processor_class",
)

_PIL_RESAMPLES = {"nearest": 0, "nearest-exact": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


@dataclass
class PreparedImages:
    """Images of one call before a pixel is resized: uint8[3, H, W] each, their (height, width), plans and settings."""

    images: list[torch.Tensor]
    sizes: list[tuple[int, int]]
    plans: list[TilingPlan]
    options: types.SimpleNamespace


class ArgusImageProcessor(ArgusImageProcessorBase):
    """Turns images into tiles (Sections 3.3 and 4.1).

    All settings are saved in preprocessor_config.json and can be overridden per call.

    Args:
        tiling, tile_size, min_tiles, max_tiles, use_thumbnail, max_upscale, longest_edge, do_image_splitting: the
            geometry, see `ArgusImageProcessorKwargs`.
        resample: PIL's number of the filter (3 bicubic, 1 Lanczos, 2 bilinear, 0 nearest; 4 box and 5 Hamming on the
            CPU only).
        do_normalize: True gives float32, rescaled by `rescale_factor` (if `do_rescale`) and normalised by `image_mean`
            and `image_std` as transformers does; False (default) gives uint8, whatever `do_rescale` says.
        do_convert_rgb: False refuses images that are not RGB.
        device: where to resize and tile; None is where the images are: on the one device other than the CPU that has
            any of a call's, else on the CPU.
    Raises:
        TypeError: unknown or misspelt setting. ValueError: a setting out of range.
    """

    model_input_names = ["pixel_values", "num_patches", "image_sizes"]
    valid_kwargs = ArgusImageProcessorKwargs
    saved_settings = _TILING_NAMES + _PIXEL_NAMES

    def __init__(
        self,
        tiling: str = "aspect_ratio",
        tile_size: int = 512,
        min_tiles: int = 1,
        max_tiles: Optional[int] = 12,
        use_thumbnail: bool = True,
        max_upscale: Optional[float] = None,
        longest_edge: int = 2048,
        do_image_splitting: bool = True,
        resample: int = 3,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = False,
        image_mean: Union[float, list[float]] = (0.5, 0.5, 0.5),
        image_std: Union[float, list[float]] = (0.5, 0.5, 0.5),
        do_convert_rgb: bool = True,
        device: Optional[Union[str, torch.device]] = None,
        **kwargs,
    ):
        _refuse_unknown(kwargs, known=_SERVICE_NAMES)
        super().__init__(**kwargs)
        self.tiling = tiling
        self.tile_size = tile_size
        self.min_tiles = min_tiles
        self.max_tiles = max_tiles
        self.use_thumbnail = use_thumbnail
        self.max_upscale = max_upscale
        self.longest_edge = longest_edge
        self.do_image_splitting = do_image_splitting
        self.resample = _resample_number(resample)
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = list(image_mean) if isinstance(image_mean, (list, tuple)) else image_mean
        self.image_std = list(image_std) if isinstance(image_std, (list, tuple)) else image_std
        self.do_convert_rgb = do_convert_rgb
        self.device = device
        self._options({})

    @classmethod
    def from_dict(cls, image_processor_dict, **kwargs):
        """As in transformers, but `from_pretrained(path, max_tile=4)` is refused with the setting that was meant."""
        for name in kwargs:
            if name not in cls.saved_settings and difflib.get_close_matches(name, cls.saved_settings, cutoff=0.85):
                _refuse_unknown({name: kwargs[name]}, known=())
        return super().from_dict(image_processor_dict, **kwargs)

    # --- geometry ---------------------------------------------------------------------------------------------------

    def get_tile_grid(self, height: int, width: int, **overrides) -> TileGrid:
        """The grid that an image of `height` x `width` pixels (upright) becomes; `overrides` as in a call."""
        return plan_tiling(height, width, self._options(overrides).geometry).grid

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: Optional[dict] = None) -> int:
        """The number of tiles, thumbnail included; transformers' name for `get_tile_grid(...).num_tiles`."""
        return self.get_tile_grid(height, width, **(images_kwargs or {})).num_tiles

    # --- pixels -----------------------------------------------------------------------------------------------------

    def fetch_images(self, images: ImageInput, input_data_format: Optional[str] = None):
        """Load images, keeping the nesting: each becomes uint8[3, H, W], which later calls take as it is.

        With `input_data_format` the layout of arrays whose shape does not tell; see `load_image` for the errors.
        """
        return self._fetch(images, "images", input_data_format, self.do_convert_rgb)

    def _fetch(self, images, what, input_data_format, convert_rgb):
        if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4:
            return [self._fetch(x, f"{what}[{i}]", input_data_format, convert_rgb) for i, x in enumerate(images)]
        return load_image(images, "the image" if what == "images" else what, input_data_format, convert_rgb)

    def preprocess(self, images: ImageInput, **kwargs: Unpack[ArgusImageProcessorKwargs]) -> BatchFeature:
        """Load, resize and tile one image, a list or nested lists of images.

        Returns a BatchFeature, flat over all images in order:
            pixel_values: uint8[tiles, 3, S, S] (float32 with do_normalize), on `device`.
            num_patches: int64[images], tiles of each image, thumbnail included.
            image_sizes: int64[images, 2], height and width of each original, upright.
        With `device` all of them are there: the images cross as they are, in one buffer with the numbers, and become
        tiles there. Without it pixels stay where the images are, on the CPU most often, and the numbers on the CPU.
        As torch tensors with return_tensors="pt", numpy arrays with "np", else lists (of uint8[3, S, S] tensors).
        Raises:
            ImageInputError: an image cannot be read. TypeError: unknown keyword. ValueError: a setting out of range.
        """
        return BatchFeature(data=self.finish(self.prepare(images, **kwargs)))

    def prepare(self, images: ImageInput, **kwargs: Unpack[ArgusImageProcessorKwargs]) -> "PreparedImages":
        """The first half of a call: images are loaded and their tiles planned; nothing is resized or sent yet."""
        options = self._options(kwargs)
        if options.device is not None:
            options.device = resolve_device(options.device)
        loaded = []
        for name, image in iterate_images(images):
            loaded.append(load_image(image, name, options.input_data_format, options.do_convert_rgb))
            # What was decoded here is nobody else's; an array's memory is its owner's.
            loaded[-1]._argus_spare = isinstance(image, (Image.Image, str, bytes, bytearray, memoryview, os.PathLike))
        if not loaded:
            raise ImageInputError("There is no image to process: the list of images is empty.")
        sizes = [(image.shape[1], image.shape[2]) for image in loaded]
        return PreparedImages(loaded, sizes, [plan_tiling(*size, options.geometry) for size in sizes], options)

    def finish(self, prepared: "PreparedImages", others: Optional[dict[str, torch.Tensor]] = None) -> dict:
        """The second half: tiles. Empties `prepared.images`, so that each image's memory is free as soon as it can be.

        Args:
            others: CPU tensors that go to `device` in the same buffer as the images (recipe 12 of Table 1).
        Returns:
            `others`, moved, and what `preprocess` returns.
        """
        options, plans, images = prepared.options, prepared.plans, prepared.images
        counts, S = [plan.grid.num_tiles for plan in plans], options.geometry.tile_size
        device = options.device if options.device is not None else _common_device(images)
        host = dict(others or {})
        if options.return_tensors == "pt":
            host["num_patches"] = torch.tensor(counts, device="cpu")
            host["image_sizes"] = torch.tensor(prepared.sizes, device="cpu")
        if device.type == "cpu":
            pixel_values = _tiles_on_cpu(images, plans, options.resample, S)
        else:
            if options.resample not in TORCH_MODES:
                raise ValueError(f"resample={options.resample} (box, Hamming) works on the CPU only, not on {device}.")
            sent, raw = _send(images, plans, options, host, device)
            host = sent if options.device is not None else host
            pixel_values = torch.empty((sum(counts), 3, S, S), dtype=torch.uint8, device=device)
            for pixels, plan, tiles in zip(raw, plans, pixel_values.split(counts)):
                if pixels.ndim == 4:  # tiles already
                    tiles.copy_(pixels)
                else:
                    write_tiles_on_device(pixels, plan, options.resample, tiles)
        if options.do_normalize:
            pixel_values = _normalize(pixel_values, options)
        return _outputs(pixel_values, counts, prepared.sizes, host, options.return_tensors)

    # --- settings ---------------------------------------------------------------------------------------------------

    def _options(self, overrides: dict) -> types.SimpleNamespace:
        """Settings of one call, all checked. None means the configured value, except where None is itself a setting."""
        _refuse_unknown(overrides, known=self.saved_settings + _CALL_NAMES)
        given = {k: v for k, v in overrides.items() if v is not None or k in _NONE_IS_A_SETTING}
        if "crop_to_patches" in given:
            given.setdefault("do_image_splitting", given.pop("crop_to_patches"))
        values = {name: given.get(name, getattr(self, name)) for name in self.saved_settings}
        options = types.SimpleNamespace(
            geometry=TilingOptions(**{name: values[name] for name in _TILING_NAMES}),
            resample=_resample_number(values["resample"]),
            do_rescale=_flag("do_rescale", values["do_rescale"]),
            rescale_factor=values["rescale_factor"],
            do_normalize=_flag("do_normalize", values["do_normalize"]),
            image_mean=_per_channel("image_mean", values["image_mean"]),
            image_std=_per_channel("image_std", values["image_std"]),
            do_convert_rgb=_flag("do_convert_rgb", values["do_convert_rgb"]),
            device=given.get("device", self.device),
            return_tensors=getattr(given.get("return_tensors"), "value", given.get("return_tensors")),
            input_data_format=given.get("input_data_format"),
        )
        if not isinstance(options.rescale_factor, (int, float)) or options.rescale_factor == 0:
            raise ValueError(f"rescale_factor={options.rescale_factor!r} must be a number other than 0.")
        if 0 in options.image_std:
            raise ValueError(f"image_std={values['image_std']!r} must not contain 0.")
        if options.return_tensors not in (None, "pt", "np"):
            raise ValueError(f"return_tensors={options.return_tensors!r} must be 'pt', 'np' or None.")
        data_format = getattr(given.get("data_format"), "value", given.get("data_format"))
        if data_format not in (None, "channels_first"):
            raise ValueError(f"data_format={data_format!r}: tiles are always 'channels_first'.")
        return options


def _refuse_unknown(kwargs, known):
    unknown = [name for name in kwargs if name not in known]
    if unknown:
        name = unknown[0]
        all_names = _TILING_NAMES + _PIXEL_NAMES + _CALL_NAMES
        close = difflib.get_close_matches(name, all_names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(all_names)}."
        raise TypeError(f"ArgusImageProcessor has no setting {name!r}; {hint}")


def _flag(name, value) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True or False.")
    return value


def _resample_number(resample) -> int:
    """PIL's enum or number, torchvision's InterpolationMode or a name -> PIL's number."""
    value = getattr(resample, "value", resample)
    number = _PIL_RESAMPLES.get(value.lower()) if isinstance(value, str) else value
    if isinstance(number, bool) or number not in _PIL_RESAMPLES.values():
        names = ", ".join(f"{number} ({name})" for name, number in _PIL_RESAMPLES.items() if name != "nearest-exact")
        raise ValueError(f"resample={resample!r} is unknown; choose one of {names}.")
    return int(number)


def _per_channel(name, value) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3
    if len(values) != 3 or not all(isinstance(v, (int, float)) and abs(v) < float("inf") for v in values):
        raise ValueError(f"{name}={value!r} must be one number or three.")
    return values


def _normalize(pixel_values: torch.Tensor, options: types.SimpleNamespace) -> torch.Tensor:
    """(x * rescale_factor - mean) / std in float32, the factor folded into mean and std as in transformers."""
    scale = 1.0 / options.rescale_factor if options.do_rescale else 1.0
    mean, std = torch.empty((2, 3, 1, 1), dtype=torch.float32, device=pixel_values.device)
    for constants, values in ((mean, options.image_mean), (std, options.image_std)):
        for channel, value in zip(constants, values):
            channel.fill_(value)  # a list would be copied to the device, and waited for
    return pixel_values.to(torch.float32).sub_(mean * scale).div_(std * scale)


def _common_device(images: list[torch.Tensor]) -> torch.device:
    """Where the images of a call without `device` become tiles, whatever their order."""
    devices = sorted({image.device for image in images if image.device.type != "cpu"}, key=str)
    if len(devices) > 1:
        raise ValueError(f"The images lie on several devices, {', '.join(map(str, devices))}: say which by device=.")
    return devices[0] if devices else torch.device("cpu")


def _tiles_on_cpu(images: list, plans: list[TilingPlan], resample: int, S: int) -> torch.Tensor:
    """uint8[tiles, 3, S, S] from uint8[3, H, W] each; allocated only when the first image has its first resize behind
    it, and so may be gone. Empties `images`."""
    counts = [plan.grid.num_tiles for plan in plans]
    output = []

    def tiles_of(index):
        if not output:
            output.append(torch.empty((sum(counts), 3, S, S), dtype=torch.uint8, device="cpu"))
        return output[0].split(counts)[index]

    for index, plan in enumerate(plans):
        source = [images.pop(0).to("cpu")]
        write_tiles_on_cpu(source, plan, resample, lambda index=index: tiles_of(index))
    return output[0]


def _send(images: list, plans, options, host: dict, device: torch.device) -> tuple[dict, list[torch.Tensor]]:
    """Brings `host` and all images to the device in one copy. An image is uint8[3, H, W] afterwards, a view of
    [H, W, 3], or, where only the CPU can shrink it so much, its tiles uint8[n, 3, S, S]. One that is there stays."""
    waiting = []
    for plan in plans:
        image = images.pop(0)
        if not fits_device(*image.shape[1:], plan):
            waiting.append(_tiles_on_cpu([image], [plan], options.resample, options.geometry.tile_size))
        else:
            waiting.append(image.permute(1, 2, 0) if image.device.type == "cpu" else image.to(device))
    crossing = [index for index, pixels in enumerate(waiting) if pixels.device.type == "cpu"]
    names = list(host) if options.device is not None else []
    if crossing or names:
        sent = send([*(host[name] for name in names), *(waiting[index] for index in crossing)], device)
        host = {**host, **dict(zip(names, sent))}
        for index, pixels in zip(crossing, sent[len(names) :]):
            waiting[index] = pixels if pixels.ndim == 4 else pixels.permute(2, 0, 1)
    return host, waiting


def _outputs(pixel_values, counts, sizes, host: dict, return_tensors) -> dict:
    if return_tensors == "pt":
        last = {name: host.pop(name) for name in ("num_patches", "image_sizes")}
        return {**host, "pixel_values": pixel_values, **last}
    if return_tensors == "np":
        arrays = {"num_patches": np.array(counts), "image_sizes": np.array(sizes)}
        return {**host, "pixel_values": to_numpy(pixel_values, "pixel_values"), **arrays}
    return {
        **host,
        "pixel_values": list(pixel_values),
        "num_patches": counts,
        "image_sizes": [list(size) for size in sizes],
    }


__all__ = ["ArgusImageProcessor", "ArgusImageProcessorKwargs", "ImageInputError"]
