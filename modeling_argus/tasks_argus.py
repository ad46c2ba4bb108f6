"""One call per task: caption, answer, detect, dense_caption. A prompt, a `generate()` and a parser each.

Every call takes its subject first and the processor by name, works in batches, and gives back one result per image.
What it does not name goes to `generate()`: `do_sample=True`, `num_beams=3`, a streamer for a single image. An image
that several prompts of a call are about is encoded once, and its prompts' common beginning is read once.
"""

import copy
from collections import Counter

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .encoded_argus import are_encoded, sent, weights_mark
from .prefix_argus import fits_generation

TASK_PROMPTS = {
    "caption": "Describe the image.",
    "detect": "Detect: {phrases}.",
    "dense_caption": "Describe and locate every object.",
}
# New tokens at most, unless the call or a generation_config of the caller says otherwise.
TASK_LENGTHS = {"caption": 64, "answer": 64, "detect": 256, "dense_caption": 512}
IMAGE_OPTIONS = ("min_tiles", "max_tiles", "max_upscale", "use_thumbnail", "longest_edge", "do_image_splitting")


class ArgusTasksMixin:
    """The task calls of a model that can `generate()`."""

    def caption(self, images, *, processor, prompt: str | None = None, **options) -> list[str]:
        """Describes each image in words.

        Args:
            images: an image or a list of them, in any form that the processor takes (PIL, path, bytes, array, ...), or
                what `encode_images` made of them.
            processor: the model's ArgusProcessor.
            prompt: asks in other words than "Describe the image.".
            options: `max_new_tokens` (default 64), `batch_size` (default 8), `streamer`, the image processor's
                options (`max_tiles`, `max_upscale`, `min_tiles`, ...) and whatever `generate()` takes.

        Returns:
            One caption per image.

        Raises:
            ValueError: inputs that do not fit together, or a streamer for more than one image.
            TypeError: a processor that is not an ArgusProcessor.
        """
        images = _listed(images)
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"prompt must be a string for all images, got {prompt!r}; answer() takes one for each.")
        prompts = _texts(TASK_PROMPTS["caption"] if prompt is None else prompt, "prompt") * len(images)
        return [text for text, *_ in self._run("caption", images, prompts, processor, **options)]

    def answer(self, images, questions, *, processor, **options) -> list[str]:
        """Answers one question about each image (Section 4.1's chat template, one turn).

        Args:
            images: an image or a list; an item that is itself a list shows several images to one question.
            questions: one for all images, or a list with one for each; one image may have several questions.
            options: as for `caption`.

        Returns:
            One answer per question.
        """
        images, questions = _paired(_listed(images), questions, "questions")
        return [text for text, *_ in self._run("answer", images, questions, processor, **options)]

    def detect(self, images, phrases, *, processor, **options) -> list[dict]:
        """Finds what phrases name.

        Args:
            images: an image or a list of them.
            phrases: a phrase or a list of phrases for all images, or one list of phrases for each image.
            options: as for `caption`; `max_new_tokens` is 256 by default.

        Returns:
            One dict per image: "boxes" float32[N, 4] (x1, y1, x2, y2 in pixels of the original image), "labels"
            list[str], "scores" float32[N] (exp of the mean log-probability of a region's tokens; not calibrated), and
            "unparsed", what the model wrote that is no region.

        Raises:
            ValueError: a model without location tokens whose boxes are not plain text either; or as for `caption`.
        """
        images = _single(_listed(images), "detect")
        if isinstance(phrases, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in phrases):
            phrases = [_texts(list(row), "phrases") for row in phrases]
        else:
            phrases = [_texts(phrases, "phrases")] * len(images)
        if len(phrases) != len(images) or not all(phrases):
            raise ValueError(
                f"detect needs phrases for all images, or a list of them for each of {len(images)}, got {phrases!r}."
            )
        prompts = [TASK_PROMPTS["detect"].format(phrases=", ".join(row)) for row in phrases]
        return self._regions("detect", images, prompts, processor, "post_process_detection", options)

    def dense_caption(self, images, *, processor, **options) -> list[dict]:
        """Finds and describes every object (Section 4.2).

        Args and Returns: as for `detect`, with "captions" in place of "labels" and no phrases; `max_new_tokens` is 512
        by default.
        """
        images = _single(_listed(images), "dense_caption")
        prompts = [TASK_PROMPTS["dense_caption"]] * len(images)
        return self._regions("dense_caption", images, prompts, processor, "post_process_dense_captioning", options)

    def _regions(self, task, images, prompts, processor, parser, options) -> list[dict]:
        _check_processor(processor)
        _ = processor.locations  # says what to do where a model cannot write boxes, before anything runs
        results = []
        for _, ids, scores, image_size in self._run(task, images, prompts, processor, scored=True, **options):
            results += getattr(processor, parser)([ids], [image_size], scores=[scores])
        return results

    @torch.no_grad()
    def _run(
        self,
        task,
        images,
        prompts,
        processor,
        max_new_tokens=None,
        batch_size=8,
        streamer=None,
        scored=False,
        generation_config=None,
        **options,
    ):
        """Yields (text, ids of the new tokens, their log-probabilities or None, (height, width)) for each prompt."""
        _check_processor(processor)
        if streamer is not None and len(prompts) > 1:
            raise ValueError(f"a streamer shows one answer at a time; {len(prompts)} were asked for.")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}.")
        for name, plain in (("output_scores", False), ("return_dict_in_generate", False)):
            if options.pop(name, plain) != plain:
                raise ValueError(f"the task calls give one result for each image: call generate() for {name}.")
        image_options = {name: options.pop(name) for name in IMAGE_OPTIONS if name in options}
        settings = copy.deepcopy(self.generation_config if generation_config is None else generation_config)
        for name in [name for name in options if hasattr(settings, name) and name != "max_length"]:
            setattr(settings, name, options.pop(name))
        if settings.num_return_sequences not in (None, 1):
            raise ValueError("the task calls give one result for each image: call generate() for num_return_sequences.")
        max_length = options.pop("max_length", None)  # prompt included
        if generation_config is not None and max_length is None and generation_config.max_length not in (None, 20):
            max_length = generation_config.max_length  # 20 is what transformers 4 says where nobody has
        if max_new_tokens is None and generation_config is not None:
            max_new_tokens = generation_config.max_new_tokens
        plain = settings.get_generation_mode().value in ("greedy_search", "sample") and "assistant_model" not in options
        # One float a token where there are no beams, whose scores have to be traced back.
        settings.return_dict_in_generate, settings.output_scores = scored, scored and not plain
        if scored and plain:
            options["output_logprobs"] = True
        encoded = bool(images) and are_encoded(images)
        kept = None if encoded or self.training else _Kept(images)
        # Read once, before anything is launched.
        weights = weights_mark(self.model) if encoded or (kept is not None and kept.repeated) else None
        for start in range(0, len(prompts), batch_size):
            rows = [_several(image) for image in images[start : start + batch_size]]
            in_cache = encoded or (kept is not None and kept.wants(rows))
            if in_cache and not encoded:
                rows = kept.encode(rows, lambda new: self._encode(new, processor, batch_size, image_options, weights))
            messages = [_message(row, prompt) for row, prompt in zip(rows, prompts[start : start + batch_size])]
            inputs = processor.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors=None if in_cache else "pt",  # lists stay on the host, where prompts are cut
                padding=True,
                **({} if in_cache else self._device_option()),
                **image_options,
            )
            T = len(inputs["input_ids"][0])
            if max_new_tokens is not None or max_length is None:
                settings.max_new_tokens = TASK_LENGTHS[task] if max_new_tokens is None else max_new_tokens
            elif max_length > T:
                settings.max_new_tokens = max_length - T
            else:
                raise ValueError(f"max_length {max_length} leaves no room behind a prompt of {T} tokens.")
            image_sizes = inputs.pop("image_sizes")
            del inputs["num_patches"]
            if in_cache:
                inputs = self._with_prefix_if_equal(inputs, rows, settings, options, weights)
                T, image_sizes = inputs["input_ids"].shape[1], [image.image_size for row in rows for image in row]
            inputs = {name: sent(each, self._input_device) for name, each in inputs.items()}
            output = self.generate(**inputs, generation_config=settings, streamer=streamer, **options)
            new_ids, scores, texts, image_sizes = self._read_back(output, T, scored, processor, image_sizes)
            first = 0
            for row, text in enumerate(texts):
                yield text.strip(), new_ids[row], scores[row] if scored else None, image_sizes[first]
                first += len(rows[row])

    def _read_back(self, output, T: int, scored: bool, processor, image_sizes) -> tuple:
        """(new ids, their log-probabilities or None, texts, image sizes as lists), now that the device has done."""
        new_ids, scores = (output.sequences if scored else output)[:, T:], getattr(output, "logprobs", None)
        if scored and scores is None:
            scores = self.compute_transition_scores(
                output.sequences, output.scores, getattr(output, "beam_indices", None), normalize_logits=True
            ).float()
        texts = processor.batch_decode(new_ids.tolist(), skip_special_tokens=True)
        return new_ids, scores, texts, image_sizes.tolist() if hasattr(image_sizes, "tolist") else image_sizes

    def _with_prefix_if_equal(self, inputs, images, settings, options, weights: int) -> dict:
        """`with_prefix`, where what comes out of `generate()` is the same; else the inputs, as tensors."""
        prompts = self._prefix_rows(inputs, images, weights)
        if self._prefix_can_be_kept(prompts) and fits_generation(settings, options, prompts):
            joined = self._join_prefixes(prompts)
            joined["past_key_values"].wants_new_tokens = False  # nobody goes on with it
            return joined
        features = inputs["mm_encoder_outputs"]["image"].pooler_output  # checked: `generate()` need not do so again
        return {
            "input_ids": torch.tensor(inputs["input_ids"]),
            "attention_mask": torch.tensor(inputs["attention_mask"]),
            "is_padded": any(0 in row for row in inputs["attention_mask"]),
            "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)},
        }


class _Kept:
    """The images of a call that several of its prompts are about: encoded once, let go after the last of them."""

    def __init__(self, images):
        self.left = Counter(_key(image) for row in images for image in _several(row))
        self.encoded = {}
        self.repeated = {key for key, count in self.left.items() if count > 1}

    def wants(self, rows: list[list]) -> bool:
        """Whether these prompts' images are better encoded apart."""
        return any(_key(image) in self.repeated for row in rows for image in row)

    def encode(self, rows: list[list], encode_images) -> list[list]:
        """The rows with encoded images in place of images."""
        new = {_key(image): image for row in rows for image in row if _key(image) not in self.encoded}
        if new:
            self.encoded.update(zip(new, encode_images(list(new.values()))))
        result = [[self.encoded[_key(image)] for image in row] for row in rows]
        for row in rows:
            for image in row:
                self.left[_key(image)] -= 1
                if not self.left[_key(image)]:
                    del self.encoded[_key(image)]
        return result


def _key(image):
    """What tells that two images of a call, all of which it holds, are one."""
    return image if isinstance(image, str) else id(image)


def _check_processor(processor) -> None:
    if not hasattr(processor, "image_processor") or not hasattr(type(processor), "locations"):
        raise TypeError(
            "processor must be the model's ArgusProcessor, as AutoProcessor.from_pretrained gives it, got "
            f"{type(processor).__name__}."
        )


def _listed(images) -> list:
    images = list(images) if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4 else [images]
    if any(isinstance(image, (list, tuple)) and not image for image in images):
        raise ValueError("an item of images is an empty list: give at least one image for each prompt.")
    return images


def _single(images: list, task: str) -> list:
    if any(isinstance(image, (list, tuple)) for image in images):
        raise ValueError(f"{task} boxes things in one image at a time: pass a flat list of images, not a nested one.")
    return images


def _texts(texts, name: str) -> list[str]:
    """A string or a list of strings -> a list; ValueError for anything else and for blank ones."""
    listed = [texts] if isinstance(texts, str) else texts
    if not isinstance(listed, (list, tuple)) or not all(isinstance(text, str) and text.strip() for text in listed):
        raise ValueError(f"{name} must be a string that is not blank, or a list of them, got {texts!r}.")
    return list(listed)


def _paired(images: list, texts, name: str) -> tuple[list, list[str]]:
    listed = _texts(texts, name) * (len(images) if isinstance(texts, str) else 1)
    if len(images) == 1:
        images = images * len(listed)
    if len(images) != len(listed):
        raise ValueError(
            f"{name} must be a string, or one string for each image: got {len(listed)} for {len(images)} images."
        )
    return images, listed


def _several(image) -> list:
    return list(image) if isinstance(image, (list, tuple)) else [image]


def _message(images: list, prompt: str) -> list[dict]:
    content = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
