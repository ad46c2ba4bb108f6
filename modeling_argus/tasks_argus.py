"""One call per task: caption, answer, detect, dense_caption. A prompt, a `generate()` and a parser each.

Every call takes its subject first and the processor by name, works in batches, and gives back one result per image.
What it does not name goes to `generate()`: `do_sample=True`, `num_beams=3`, a streamer for a single image.
"""

import torch

TASK_PROMPTS = {
    "caption": "Describe the image.",
    "detect": "Detect: {phrases}.",
    "dense_caption": "Describe and locate every object.",
}


class ArgusTasksMixin:
    """The task calls of a model that can `generate()`."""

    def caption(
        self, images, *, processor, prompt: str | None = None, max_new_tokens: int = 64, **options
    ) -> list[str]:
        """Describes each image in words.

        Args:
            images: an image or a list of them, in any form that the processor takes (PIL, path, bytes, array, ...).
            processor: the model's ArgusProcessor.
            prompt: asks in other words than "Describe the image.".
            options: `batch_size` (default 8), `streamer`, the image processor's options (`max_tiles`, `max_upscale`,
                `min_tiles`) and whatever `generate()` takes.

        Returns:
            One caption per image.

        Raises:
            ValueError: inputs that do not fit together, or a streamer for more than one image.
        """
        images = _listed(images)
        prompts = [prompt or TASK_PROMPTS["caption"]] * len(images)
        return [text for text, *_ in self._run(images, prompts, processor, max_new_tokens, **options)]

    def answer(self, images, questions, *, processor, max_new_tokens: int = 64, **options) -> list[str]:
        """Answers one question about each image (Section 4.1's chat template, one turn).

        Args:
            images: an image or a list; an item that is itself a list shows several images to one question.
            questions: one for all images, or a list with one for each; one image may have several questions.
            options: as for `caption`.

        Returns:
            One answer per question.
        """
        images, questions = _paired(_listed(images), questions, "questions")
        return [text for text, *_ in self._run(images, questions, processor, max_new_tokens, **options)]

    def detect(self, images, phrases, *, processor, max_new_tokens: int = 256, **options) -> list[dict]:
        """Finds what phrases name.

        Args:
            images: an image or a list of them.
            phrases: a phrase or a list of phrases for all images, or one list of phrases for each image.
            options: as for `caption`.

        Returns:
            One dict per image: "boxes" float32[N, 4] (x1, y1, x2, y2 in pixels of the original image), "labels"
            list[str], "scores" float32[N] (exp of the mean log-probability of a region's tokens; not calibrated), and
            "unparsed", what the model wrote that is no region.

        Raises:
            ValueError: a model without location tokens whose boxes are not plain text either.
        """
        images = _single(_listed(images), "detect")
        if isinstance(phrases, str):
            phrases = [phrases]
        if all(isinstance(phrase, str) for phrase in phrases):
            phrases = [phrases] * len(images)
        words_only = all(isinstance(row, (list, tuple)) and all(isinstance(p, str) for p in row) for row in phrases)
        if len(phrases) != len(images) or not all(phrases) or not words_only:
            raise ValueError(
                f"detect needs phrases for all images, or a list of them for each of {len(images)}, got {phrases!r}."
            )
        prompts = [TASK_PROMPTS["detect"].format(phrases=", ".join(row)) for row in phrases]
        return self._regions(images, prompts, processor, max_new_tokens, "post_process_detection", options)

    def dense_caption(self, images, *, processor, max_new_tokens: int = 512, **options) -> list[dict]:
        """Finds and describes every object (Section 4.2).

        Args and Returns: as for `detect`, with "captions" in place of "labels" and no phrases.
        """
        images = _single(_listed(images), "dense_caption")
        prompts = [TASK_PROMPTS["dense_caption"]] * len(images)
        return self._regions(images, prompts, processor, max_new_tokens, "post_process_dense_captioning", options)

    def _regions(self, images, prompts, processor, max_new_tokens, parser, options) -> list[dict]:
        _ = processor.locations  # says what to do where a model cannot write boxes, before anything runs
        results = []
        for _, ids, scores, image_size in self._run(images, prompts, processor, max_new_tokens, scored=True, **options):
            results += getattr(processor, parser)([ids], [image_size], scores=[scores])
        return results

    @torch.no_grad()
    def _run(self, images, prompts, processor, max_new_tokens, batch_size=8, streamer=None, scored=False, **options):
        """Yields (text, ids of the new tokens, their log-probabilities or None, (height, width)) for each prompt."""
        if streamer is not None and len(prompts) > 1:
            raise ValueError(f"a streamer shows one answer at a time; {len(prompts)} were asked for.")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}.")
        known = ("min_tiles", "max_tiles", "max_upscale", "use_thumbnail", "longest_edge", "do_image_splitting")
        image_options = {name: options.pop(name) for name in known if name in options}
        if options.get("num_return_sequences", 1) != 1:
            raise ValueError("the task calls give one result for each image: call generate() for num_return_sequences.")
        for start in range(0, len(prompts), batch_size):
            messages = [
                _message(image, prompt)
                for image, prompt in zip(images[start : start + batch_size], prompts[start : start + batch_size])
            ]
            inputs = processor.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                padding=True,
                **image_options,
            )
            image_sizes = inputs["image_sizes"].tolist()
            images_per_row = [len(message[0]["content"]) - 1 for message in messages]
            output = self.generate(
                **inputs.to(self.device),
                max_new_tokens=max_new_tokens,
                streamer=streamer,
                return_dict_in_generate=True,
                output_scores=scored,
                **options,
            )
            new_ids = output.sequences[:, inputs["input_ids"].shape[1] :]
            scores = None
            if scored:
                scores = self.compute_transition_scores(
                    output.sequences, output.scores, getattr(output, "beam_indices", None), normalize_logits=True
                ).float()
            texts = processor.batch_decode(new_ids, skip_special_tokens=True)
            first = 0
            for row, text in enumerate(texts):
                yield text.strip(), new_ids[row], scores[row] if scored else None, image_sizes[first]
                first += images_per_row[row]


def _listed(images) -> list:
    return list(images) if isinstance(images, (list, tuple)) else [images]


def _single(images: list, task: str) -> list:
    if any(isinstance(image, (list, tuple)) for image in images):
        raise ValueError(f"{task} boxes things in one image at a time: pass a flat list of images, not a nested one.")
    return images


def _paired(images: list, texts, name: str) -> tuple[list, list[str]]:
    texts = [texts] * len(images) if isinstance(texts, str) else list(texts)
    if len(images) == 1:
        images = images * len(texts)
    if len(images) != len(texts) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{name} must be a string, or one string for each image: got {len(texts)} for {len(images)} images."
        )
    return images, texts


def _message(image, prompt: str) -> list[dict]:
    several = image if isinstance(image, (list, tuple)) else [image]
    content = [{"type": "image", "image": each} for each in several]
    return [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
