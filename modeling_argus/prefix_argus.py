"""What encodes images once, and what lets prompts that begin with them share their beginning.

A prompt up to its last image token is a prefix. Its keys and values are kept with its first image, copied into each
call's cache, and the rest of the prompts, padded on the left between prefix and question, goes through `generate()`.
"""

from dataclasses import dataclass

import torch
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .checks_argus import deferred_checks
from .encoded_argus import EncodedImage, EncodedImages, Origin, are_encoded, flat, sent, weights_mark

GEOMETRY = ("tiling", "tile_size", "min_tiles", "max_tiles", "use_thumbnail", "max_upscale", "longest_edge",
            "do_image_splitting")  # fmt: skip
# Settings under which padding between prefix and question could be seen in what is generated, and their neutral values.
READS_PROMPT = {"repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
                "encoder_no_repeat_ngram_size": 0, "min_length": 0, "sequence_bias": None, "bad_words_ids": None,
                "watermarking_config": None, "stop_strings": None}  # fmt: skip
# Settings that want a cache of their own, or none, or another prompt.
OWN_CACHE = {"use_cache": True, "cache_implementation": None, "prefill_chunk_size": None, "guidance_scale": 1.0,
             "token_healing": False}  # fmt: skip
PLAIN_MODES = ("greedy_search", "sample", "beam_search", "beam_sample")


@dataclass
class _Row:
    """A prompt without padding; ids[:cut] is its prefix, which ends in the last token of its last image."""

    ids: list[int]
    cut: int
    images: list[EncodedImage]

    @property
    def key(self) -> tuple:
        return tuple(self.ids[: self.cut]), tuple(image.origin.number for image in self.images)


class ArgusEncodingMixin:
    """Images that are encoded once, and prompts that begin with them."""

    @torch.no_grad()
    def encode_images(self, images, *, processor, batch_size: int = 8, **image_options) -> EncodedImages:
        """Runs the vision tower and the connector, once.

        The result stands for the images in the task calls, as an image of a chat message and in the processor's
        `images=`; it copies and pickles (torch.load needs weights_only=False). It is refused when the model's weights
        have been changed since, by training, `load_state_dict` or adapters (added, merged, switched on or off), as far
        as `weights_mark` sees. A pickle, or an image moved to another device, does not know its weights: the first
        model that fits takes it for its own.

        Answers are those of the images themselves, tested equal in float32; in 16 bits they may differ as those of any
        other batching may.

        Args:
            images: an image or a flat list of them, in any form that the processor takes.
            processor: the model's ArgusProcessor.
            batch_size: images at a time.
            image_options: the image processor's options (`max_tiles`, `max_upscale`, ...) but for `device`, which is
                the model's.

        Returns:
            One EncodedImage per image. See there for what it holds and how large it is.

        Raises:
            ValueError: an image that cannot be read, or that is encoded already. TypeError: an unknown option.
        """
        if "device" in image_options:
            raise ValueError(
                f"encode_images works where the model is, on {self._input_device}: leave device="
                f"{image_options['device']!r} out, or move the model or what comes back by its to(device)."
            )
        images = list(images) if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4 else [images]
        if are_encoded(images):
            raise ValueError("the images are encoded already: pass the images themselves to encode_images().")
        if any(isinstance(image, (list, tuple)) for image in images):
            raise ValueError("encode_images takes a flat list of images, not a nested one.")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}.")
        return self._encode(images, processor, batch_size, image_options, weights_mark(self.model))

    def _encode(self, images: list, processor, batch_size: int, image_options: dict, weights: int) -> EncodedImages:
        """See `encode_images`. Counts and sizes are the host's own knowledge: nothing is read back."""
        maker = processor.image_processor
        settings = {name: getattr(maker, name) for name in GEOMETRY}
        settings |= {n: v for n, v in image_options.items() if v is not None or n in ("max_tiles", "max_upscale")}
        if "crop_to_patches" in settings:  # InternVL's name
            whole_or_tiles = settings.pop("crop_to_patches")
            if image_options.get("do_image_splitting") is None:
                settings["do_image_splitting"] = whole_or_tiles
        encoded = EncodedImages()
        with deferred_checks() as checks:  # of the values of normalised pixels, where the processor makes such
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                prepared = maker.prepare(batch, **{**image_options, "return_tensors": "pt", **self._device_option()})
                counts, sizes = [plan.grid.num_tiles for plan in prepared.plans], list(prepared.sizes)
                pixel_values = sent(maker.finish(prepared)["pixel_values"], self._input_device)
                features = self.get_image_features(pixel_values, return_dict=True).pooler_output.to(self.dtype)
                for tiles, size in zip(features.split(counts), sizes):
                    # a copy each: one can go without the others
                    encoded.append(EncodedImage(tiles.clone(), size, settings, Origin(weights=weights)))
            checks.settle(wait=True)
        return encoded

    @torch.no_grad()
    def with_prefix(self, inputs, images) -> dict:
        """Inputs for `generate()` whose prompts' beginnings are in the cache already.

            inputs = processor.apply_chat_template(messages with EncodedImages, ..., return_tensors="pt")
            inputs = model.with_prefix(inputs, images)
            new_ids = model.generate(**inputs)[:, inputs["input_ids"].shape[1]:]

        `generate()` writes into their cache, which is a copy of the kept one; given to it again, they begin anew.
        Prefixes that no call has needed yet are computed here. Rows of several lengths are padded on the left of the
        prefix and between it and the question, where `attention_mask` is 0. Ids, mask and weights' marks are read
        first; no GPU is waited for afterwards.

        Args:
            inputs: the processor's input_ids and attention_mask int64[B, T] for prompts with `images`.
            images: the EncodedImages in the prompts' order, flat or a list for each prompt. Another order is noticed
                where the numbers of tiles differ or `inputs` hold the processor's mm_encoder_outputs.

        Returns:
            input_ids and attention_mask int64[B, prefix + rest], past_key_values of B rows, is_padded. `inputs` as they
            are where keys and values could not be kept or would differ: in training mode, and where a dynamic rotary
            base would grow with the prompt.

        Raises:
            ValueError: images that do not fit the prompts or this model; a prompt that ends in an image.
        """
        rows = self._prefix_rows(inputs, images, weights_mark(self.model))
        output = (inputs.get("mm_encoder_outputs") or {}).get("image")
        made = [getattr(origin, "number", None) for origin in getattr(output, "origins", None) or ()]
        given = [image.origin.number for row in rows for image in row.images]
        if None not in made and made not in ([], given):
            raise ValueError(
                "the encoded images are others than the inputs were made with, or stand in another order: give the "
                "images of the prompts, in their order."
            )
        return self._join_prefixes(rows) if self._prefix_can_be_kept(rows) else inputs

    def _check_encoded_output(self, output) -> None:
        """Refuses the processor's features of encoded images where another model, or other weights, made them.

        Args:
            output: `mm_encoder_outputs`, or what it holds under "image". What does not say where it comes from, as
                transformers' own BaseModelOutputWithPooling, passes.

        Raises:
            ValueError: features that another model, or this one with other weights, has made.
        """
        output = output.get("image", output) if isinstance(output, dict) else output
        origins = [origin for origin in getattr(output, "origins", None) or () if hasattr(origin, "weights")]
        if origins:
            self._check_origins(origins, weights_mark(self.model))

    def _check_origins(self, origins: list[Origin], weights: int) -> None:
        """Adopts what came from elsewhere."""
        for origin in origins:
            if origin.weights is None:
                origin.weights = weights
            if origin.weights != weights:
                raise ValueError(
                    "an encoded image comes from another model, or the model's weights have been changed or moved "
                    "since: encode it again."
                )

    def _check_encoded(self, images: list[EncodedImage], weights: int) -> None:
        """Refuses what another model, or this one with other weights, has encoded; adopts what came from elsewhere."""
        expected = (self.config.image_seq_length, self.config.text_config.hidden_size)
        for image in images:
            features = image.features
            if tuple(features.shape[1:]) != expected:
                raise ValueError(
                    f"an encoded image has tiles of {features.shape[1]} tokens x {features.shape[2]}, this model's are "
                    f"{expected[0]} x {expected[1]}: encode it with this model."
                )
            if features.dtype != self.dtype or features.device != self._input_device:
                raise ValueError(
                    f"an encoded image is {features.dtype} on {features.device}, the model {self.dtype} on "
                    f"{self._input_device}: encode it again, or move it by its to(device)."
                )
        self._check_origins([image.origin for image in images], weights)

    def _prefix_rows(self, inputs, images, weights: int) -> list[_Row]:
        """Prompts cut behind their last image token, and each one's images; `weights` is the model's mark by now."""
        left = list(flat(images))
        if left and not are_encoded(left):
            raise ValueError("with_prefix needs the encoded images of the prompts: encode_images() makes them.")
        self._check_encoded(left, weights)
        ids, mask = _lists(inputs["input_ids"]), _lists(inputs.get("attention_mask"))
        token, length, rows = self.config.image_token_id, self.config.image_seq_length, []
        for number, row in enumerate(ids):
            row = row if mask is None else [each for each, kept in zip(row, mask[number]) if kept]
            tiles, own = row.count(token), []
            while left and sum(image.num_patches for image in own) * length < tiles:
                own.append(left.pop(0))
            if sum(image.num_patches for image in own) * length != tiles:
                raise ValueError(
                    f"prompt {len(rows)} holds {tiles} image tokens, which are not those of its encoded images: give "
                    "the images that the prompts were made with, in their order."
                )
            cut = len(row) - row[::-1].index(token) if tiles else 0
            if cut == len(row):
                raise ValueError(f"prompt {len(rows)} ends in an image: there must be something to read behind it.")
            rows.append(_Row(row, cut, own))
        if left:
            raise ValueError(f"{len(left)} encoded images more than the prompts hold were given.")
        return rows

    def _prefix_can_be_kept(self, rows: list[_Row]) -> bool:
        config = self.config.text_config
        longest = max(len(row.ids) for row in rows)
        grows = config.rope_parameters["rope_type"] == "dynamic" and longest > config.max_position_embeddings
        return not self.training and not grows and any(row.cut for row in rows)

    def _join_prefixes(self, rows: list[_Row]) -> dict:
        """See `with_prefix`."""
        front, back = max(row.cut for row in rows), max(len(row.ids) - row.cut for row in rows)
        pad = self.generation_config.pad_token_id
        pad = pad if isinstance(pad, int) and pad != self.config.image_token_id else rows[0].ids[-1]
        padded = torch.full((2, len(rows), front + back), pad)
        padded[1] = 0
        for i, row in enumerate(rows):
            question = row.ids[row.cut :]
            for start, ids in ((front - row.cut, row.ids[: row.cut]), (front + back - len(question), question)):
                padded[0, i, start : start + len(ids)] = torch.tensor(ids, dtype=torch.int64)
                padded[1, i, start : start + len(ids)] = 1
        input_ids, attention_mask = sent(padded, self._input_device)
        order = self._prefixes_of(rows)
        cache = DynamicCache(config=self.config.text_config)
        cache.prefix_length = front  # see `_prepare_model_inputs`
        shared = all(prefix is order[0] for prefix in order)
        shape = next(prefix.shape for prefix in order if prefix is not None)
        for layer in range(shape[0]):
            if shared:  # the cache copies what it is given: it grows by concatenation
                states = order[0][layer][:, None].expand(2, len(order), *shape[2:])
            else:
                states = torch.zeros(
                    (2, len(order), shape[2], front, shape[4]), dtype=self.dtype, device=self._input_device
                )
                for i, prefix in enumerate(order):
                    if prefix is not None:
                        states[:, i, :, front - prefix.shape[3] :] = prefix[layer]
            cache.update(states[0], states[1], layer)
        # Known here: read from the mask later, it would make the host wait for a GPU.
        known = {"is_padded": any(len(row.ids) < front + back for row in rows)}
        return {"input_ids": input_ids, "attention_mask": attention_mask, "past_key_values": cache, **known}

    def _prefixes_of(self, rows: list[_Row]) -> list[torch.Tensor | None]:
        """float[layers, 2, key-value heads, cut, head_dim] for each row; computes those that are not kept yet."""
        found = {row.key: row.images[0]._kept(row.key) for row in rows if row.cut}
        missing: dict[int, dict] = {}  # by length, so that nothing is padded
        for row in rows:
            if row.cut and found[row.key] is None:
                missing.setdefault(row.cut, {})[row.key] = row
        groups = [
            (group, sent(torch.tensor([row.ids[: row.cut] for row in group.values()]), self._input_device))
            for group in missing.values()
        ]
        for group, ids in groups:
            features = torch.cat([image.features for row in group.values() for image in row.images])
            with deferred_checks():  # and never looked at: `_prefix_rows` has counted the tokens on the host
                outputs = self.model(
                    input_ids=ids,
                    mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features)},
                    use_cache=True,
                    return_dict=True,
                )
            layers = outputs.past_key_values.layers
            for i, (key, row) in enumerate(group.items()):
                found[key] = torch.stack([torch.stack((layer.keys[i], layer.values[i])) for layer in layers])
                row.images[0]._keep(key, found[key])
        return [found[row.key] if row.cut else None for row in rows]

    def _device_option(self) -> dict:
        """The processor's `device=`: on a GPU it sends raw images and ids in one copy and makes the tiles there."""
        return {"device": self._input_device} if self._input_device.type == "cuda" else {}

    @property
    def _input_device(self) -> torch.device:
        """Where inputs go: the model's device or, where accelerate offloads weights, that which they come to."""
        hook = getattr(self.get_input_embeddings(), "_hf_hook", None)
        device = getattr(hook, "execution_device", None)
        return self.device if device is None else torch.empty(0, device=device).device

    def _prepare_model_inputs(self, inputs=None, bos_token_id=None, model_kwargs=None):
        """What `generate()` does first. A cache of `with_prefix` that a call has filled goes back to its prefixes."""
        cache = (model_kwargs or {}).get("past_key_values")
        ids = inputs if inputs is not None else (model_kwargs or {}).get("input_ids")
        prefix = getattr(cache, "prefix_length", None)
        if prefix is not None and ids is not None and cache.get_seq_length() >= ids.shape[1]:
            cache.crop(prefix - cache.get_seq_length())
            held = cache.layers[0].keys.shape[0]
            if held % len(ids) == 0 and held != len(ids):  # beams, which share their prompt's prefix
                first = torch.arange(0, held, held // len(ids), device=cache.layers[0].keys.device)
                cache.batch_select_indices(first)
        return super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)


def fits_generation(settings, options: dict, rows: list[_Row]) -> bool:
    """Whether `generate()` gives the same with kept prefixes: `settings` and `options` are those of a task call."""
    if any(getattr(settings, name, None) not in (None, plain) for name, plain in OWN_CACHE.items()):
        return False
    harmless = {"synced_gpus", "tokenizer", "fast_decode", "output_logprobs"}
    if set(options) - harmless - {"logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"}:
        return False
    if settings.get_generation_mode().value not in PLAIN_MODES:
        return False
    if len({(row.cut, len(row.ids)) for row in rows}) == 1:
        return True  # the very same prompts: no padding anywhere
    reads = any(getattr(settings, name, None) not in (None, plain) for name, plain in READS_PROMPT.items())
    return not reads and not set(options) - harmless


def _lists(ids) -> list[list[int]] | None:
    return ids.tolist() if isinstance(ids, torch.Tensor) else ids
