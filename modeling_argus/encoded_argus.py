"""Images as the decoder sees them, kept for more questions: visual tokens, and keys and values of prompts' prefixes.

encoded = model.encode_images([photo], processor=processor)      # vision runs, once
model.answer(encoded[0], "How many dogs?", processor=processor)  # the decoder reads the image, once
model.answer(encoded[0], "Where?", processor=processor)          # the decoder reads the question alone
"""

import copy
import uuid

import torch

MAX_PREFIXES = 4  # kept with an image: its prompts of one kind need one, those with other images before it more

SAMPLES = 8  # values of each weight that its mark holds


class Origin:
    """Where features come from: an image's number, which its copies share, and the mark of the weights that made them.

    `weights` is None until a model has seen them, where someone carried them: a pickle and another device know of none.
    """

    def __init__(self, number: str | None = None, weights: int | None = None):
        self.number, self.weights = number or uuid.uuid4().hex, weights

    def elsewhere(self) -> "Origin":
        """The same image's, on another device or in another process."""
        return Origin(self.number)

    def __copy__(self):
        return Origin(self.number, self.weights)

    def __deepcopy__(self, memo):
        return Origin(self.number, self.weights)

    def __reduce__(self):
        return Origin, (self.number,)


class EncodedImage:
    """One image as the decoder sees it; stands wherever an image may stand in task calls, chats and the processor.

    Attributes:
        features: float[tiles, image_seq_length, D], detached, on the model's device and in its dtype.
        num_patches: the tiles, thumbnail included.
        image_size: (height, width) of the original, upright.
        image_options: the image processor's geometry that made the tiles.
        origin: which image, and which weights made the features.

    A prefix's keys and values are 2 * layers * key-value heads * head_dim numbers a token: in bf16 23 KB for
    SmolVLM-256M, so that a photo of 13 tiles keeps about 20 MB of them beside 1 MB of features. At most 4 prefixes are
    kept with an image, the longest unused goes first; `forget()` lets all of them go, and no copy has them. Copies on
    the same device still know the weights; whoever pickles an image or moves it elsewhere vouches for them.
    """

    def __init__(self, features: torch.Tensor, image_size, image_options: dict | None = None, origin=None):
        self.features, self.image_size = features.detach(), tuple(image_size)
        self.image_options = dict(image_options or {})
        self.origin = Origin() if origin is None else origin
        self._prefixes = {}

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
        if moved is self.features:
            return self
        return EncodedImage(moved, self.image_size, self.image_options, self.origin.elsewhere())

    def forget(self) -> None:
        """Lets the kept keys and values go; the next call computes them anew, without vision."""
        self._prefixes = {}

    def __copy__(self):
        return EncodedImage(self.features, self.image_size, self.image_options, copy.copy(self.origin))

    def __deepcopy__(self, memo):
        return EncodedImage(
            copy.deepcopy(self.features, memo), self.image_size, self.image_options, copy.copy(self.origin)
        )

    def __getstate__(self):
        return {name: getattr(self, name) for name in ("features", "image_size", "image_options", "origin")}

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


@torch.no_grad()
def weights_mark(module: torch.nn.Module) -> int:
    """A number that changes when weights are written, moved, replaced or added, or adapters switched.

    Where a weight lies, torch's count of its writes and, because fused optimizers, `.data` and the merging of adapters
    are not counted, eight of its values: one read for each device, under 2 ms for SmolVLM-256M. Quantised, sharded and
    offloaded weights go without values. What changes none of the eight in any weight stays unseen.
    """
    marks, samples, modules = [], {}, [module]
    while modules:  # by hand: three times as fast as parameters(), which makes every name
        module = modules.pop()
        modules += [child for child in module._modules.values() if child is not None]
        if hasattr(type(module), "merged_adapters"):  # a layer of PEFT's
            active = module.disable_adapters, tuple(module.active_adapters), tuple(module.merged_adapters)
            marks.append((active, str(getattr(module, "scaling", None))))
        for parameter in module._parameters.values():
            if parameter is None:
                continue
            try:
                marks.append((parameter.data_ptr(), parameter._version))
            except RuntimeError:  # loaded under inference mode, or a tensor that is made of others
                marks.append((id(parameter), 0))
            if type(parameter) is torch.nn.Parameter and parameter.device.type != "meta" and parameter.numel():
                samples.setdefault((parameter.device, parameter.dtype), []).append(_samples(parameter))
    try:
        values = [torch.cat(parts).view(torch.uint8) for parts in samples.values()]  # as bytes: NaN is not itself
        by_device = {}
        for value in values:
            by_device.setdefault(value.device, []).append(value)
        for parts in by_device.values():
            marks.append(tuple(torch.cat(parts).tolist()))
    except RuntimeError:  # values that cannot be read: fake tensors
        pass
    return hash(tuple(marks))


def _samples(parameter: torch.Tensor) -> torch.Tensor:
    """Up to eight values, evenly spread over the weight; one where it does not lie in one piece."""
    if not parameter.is_contiguous():
        for size in parameter.shape:
            parameter = parameter.select(0, size // 2)
        return parameter.reshape(1)
    count = min(SAMPLES, parameter.numel())
    step = parameter.numel() // count
    return parameter.as_strided((count,), (step,), parameter.storage_offset() + step // 2)


def sent(value, device: torch.device):
    """A tensor, or what else has a `to`, on the device. The host waits for no copy from the CPU to a GPU."""
    if isinstance(value, torch.Tensor) and value.device.type == "cpu" and device.type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device) if hasattr(value, "to") else value


def flat(images):
    for image in images if isinstance(images, (list, tuple)) else [images]:
        if isinstance(image, (list, tuple)):
            yield from flat(image)
        else:
            yield image


__all__ = ["EncodedImage", "EncodedImages"]
