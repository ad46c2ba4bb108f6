"""Images that a model has encoded before: what the processor gives for them in place of pixels.

They are known by what they hold, not by their class, which belongs to the model's package: `features`
float[tiles, L, D], `num_patches`, `image_size` (height, width), `image_options` and, for the model to check, `origin`.
"""

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .image_loading_argus import ImageInputError
from .tiling_argus import TileGrid

CALL_OPTIONS = ("device", "return_tensors", "input_data_format", "data_format")  # no part of what was encoded
OTHER_NAMES = {"crop_to_patches": "do_image_splitting"}  # InternVL's


def are_encoded(images: list) -> bool:
    """Whether the images of a call are encoded ones. Raises ImageInputError for a mixture."""
    encoded = [hasattr(image, "features") and hasattr(image, "image_options") for image in images]
    if any(encoded) and not all(encoded):
        raise ImageInputError(
            f"images mixes {sum(encoded)} encoded images with {encoded.count(False)} others: encode all of one call's "
            "images, or none."
        )
    return any(encoded)


def encoded_inputs(images: list, image_processor, image_seq_length: int, images_kwargs: dict) -> tuple[dict, list]:
    """({"mm_encoder_outputs", "num_patches", "image_sizes"}, each image's TileGrid), as for pixels.

    The features of all images are joined into {"image": BaseModelOutputWithPooling}, its `pooler_output` being
    float[tiles, L, D] and its `origins` the images', and stay where they are; num_patches int64[images] and image_sizes
    int64[images, 2] are on the CPU.

    Raises:
        ValueError: options that the images were not encoded with, or images encoded for another processor.
    """
    grids: list[TileGrid] = []
    for image in images:
        for name, value in images_kwargs.items():
            with_which = image.image_options.get(OTHER_NAMES.get(name, name), value)
            if name not in CALL_OPTIONS and with_which != value:
                raise ValueError(
                    f"{name}={value!r} was given, but the image was encoded with {with_which!r}: give image options "
                    "when the image is encoded."
                )
        grids.append(image_processor.get_tile_grid(*image.image_size, **image.image_options))
        tiles, length = image.features.shape[:2]
        if grids[-1].num_tiles != tiles or length != image_seq_length:
            raise ValueError(
                f"an encoded image has {tiles} tiles of {length} tokens, where this processor makes "
                f"{grids[-1].num_tiles} of {image_seq_length}: encode it with this processor and its model."
            )
    features = [image.features for image in images]
    output = BaseModelOutputWithPooling(pooler_output=torch.cat(features) if len(features) > 1 else features[0])
    output.origins = [getattr(image, "origin", None) for image in images]
    return {
        "mm_encoder_outputs": EncodedOutputs(image=output),
        "num_patches": torch.tensor([len(each) for each in features], device="cpu"),
        "image_sizes": torch.tensor([list(image.image_size) for image in images], device="cpu"),
    }, grids


class EncodedOutputs(dict):
    """{"image": BaseModelOutputWithPooling} with a tensor's `to`. On another device the origins' marks are unknown."""

    def to(self, *args, **kwargs) -> "EncodedOutputs":
        """A copy elsewhere; arguments as for `BatchFeature.to`."""
        output = self["image"]
        moved = BatchFeature({"pooler_output": output.pooler_output}).to(*args, **kwargs)
        result, origins = BaseModelOutputWithPooling(**moved), getattr(output, "origins", ())
        if result.pooler_output.device != output.pooler_output.device:
            origins = [origin and origin.elsewhere() for origin in origins]
        result.origins = origins
        return EncodedOutputs(image=result)


class EncodedBatch(BatchFeature):
    """A BatchFeature whose `to` moves and casts encoded images too; transformers' own passes by what is in a dict."""

    def to(self, *args, **kwargs) -> "EncodedBatch":
        super().to(*args, **kwargs)
        self.data["mm_encoder_outputs"] = self.data["mm_encoder_outputs"].to(*args, **kwargs)
        return self
