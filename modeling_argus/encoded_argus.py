"""Images as the decoder sees them, kept for more questions: visual tokens, and keys and values of prompts' prefixes.

encoded = model.encode_images([photo], processor=processor)      # vision runs, once
model.answer(encoded[0], "How many dogs?", processor=processor)  # the decoder reads the image, once
model.answer(encoded[0], "Where?", processor=processor)          # the decoder reads the question alone
"""

import torch

MAX_PREFIXES = 4  # kept with an image: its prompts of one kind need one, those with other images before it more


class EncodedImage:
    """One image as the decoder sees it; stands wherever an image may stand in task calls, chats and the processor.

    Attributes:
        features: float[tiles, image_seq_length, D], detached, on the model's device and in its dtype.
        num_patches: the tiles, thumbnail included.
        image_size: (height, width) of the original, upright.
        image_options: the image processor's geometry that made the tiles.

    A prefix's keys and values are 2 * layers * key-value heads * head_dim numbers a token: in bf16 23 KB for
    SmolVLM-256M, so that a photo of 13 tiles keeps about 20 MB of them beside 1 MB of features. At most 4 prefixes are
    kept with an image, the longest unused goes first; `forget()` lets all of them go, and so does copying.
    """

    def __init__(self, features: torch.Tensor, image_size, image_options: dict | None = None, weights=None):
        self.features, self.image_size = features.detach(), tuple(image_size)
        self.image_options = dict(image_options or {})
        self._weights = weights  # None until a model has seen it: whoever carried it here vouches for the weights
        self._identity, self._prefixes = object(), {}

    @property
    def num_patches(self) -> int:
        return self.features.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the features and of the keys and values kept with them."""
        return sum(x.numel() * x.element_size() for x in (self.features, *self._prefixes.values()))

    def to(self, device) -> "EncodedImage":
        """This image on another device, without its prefixes; itself where it is there already."""
        moved = self.features.to(device)
        return self if moved is self.features else EncodedImage(moved, self.image_size, self.image_options)

    def forget(self) -> None:
        """Lets the kept keys and values go; the next call computes them anew, without vision."""
        self._prefixes = {}

    def __getstate__(self):
        return {name: getattr(self, name) for name in ("features", "image_size", "image_options")}

    def __setstate__(self, state):
        self.__init__(**state)

    def __repr__(self):
        tiles, L, D = self.features.shape
        (height, width), kind = self.image_size, str(self.features.dtype).removeprefix("torch.")
        return (
            f"EncodedImage(tiles={tiles} of {L} tokens x {D}, {kind} on {self.features.device}, "
            f"image_size=({height}, {width}), prefixes={len(self._prefixes)}, {self.nbytes / 1e6:.1f} MB)"
        )

    def _kept(self, key) -> torch.Tensor | None:
        prefix = self._prefixes.get(key)
        if prefix is not None:
            self._keep(key, prefix)  # used last
        return prefix

    def _keep(self, key, prefix: torch.Tensor) -> None:
        rest = [(other, value) for other, value in self._prefixes.items() if other != key]
        self._prefixes = dict([*rest, (key, prefix)][-MAX_PREFIXES:])  # replaced, not changed: threads may be reading


class EncodedImages(list):
    """A list of `EncodedImage`, which answers for all of them."""

    @property
    def nbytes(self) -> int:
        """Bytes of all features and of the keys and values kept with them."""
        return sum(image.nbytes for image in self)

    def to(self, device) -> "EncodedImages":
        """See `EncodedImage.to`."""
        return EncodedImages(image.to(device) for image in self)

    def forget(self) -> None:
        """See `EncodedImage.forget`."""
        for image in self:
            image.forget()


def are_encoded(images) -> bool:
    """Whether images, however nested, are EncodedImages. Raises ValueError for a mixture."""
    # Not by the class: models loaded from two folders have one each.
    kinds = {hasattr(image, "features") and hasattr(image, "image_options") for image in flat(images)}
    if len(kinds) > 1:
        raise ValueError("images mixes encoded images with others: encode all of one call's images, or none.")
    return kinds == {True}


def weights_mark(module: torch.nn.Module) -> int:
    """A number that changes when a weight is written, moved, replaced or added; no weight is looked at."""
    marks, modules = [], [module]
    while modules:  # by hand: three times as fast as parameters(), which makes every name
        module = modules.pop()
        modules += [child for child in module._modules.values() if child is not None]
        for parameter in module._parameters.values():
            if parameter is not None:
                try:
                    marks.append((parameter.data_ptr(), parameter._version))
                except RuntimeError:  # loaded under inference mode, or a tensor that is made of others
                    marks.append((id(parameter), 0))
    return hash(tuple(marks))


def flat(images):
    for image in images if isinstance(images, (list, tuple)) else [images]:
        if isinstance(image, (list, tuple)):
            yield from flat(image)
        else:
            yield image


__all__ = ["EncodedImage", "EncodedImages"]
