"""ArgusProcessor: text and images in, model inputs out; what the model wrote in, captions and boxes out.

The join of the other files of this package: one marker per image is tokenized and a cached id run spliced in (recipe 7 of
Table 1), chat messages are rendered with literal markers kept as text, and generated ids are parsed into boxes in pixels of
the original image. The same on transformers 4.57 and 5.x: `__call__` and `apply_chat_template` are wholly its own.
"""

import difflib

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import MultiModalData, ProcessingKwargs, Unpack
from transformers.tokenization_utils_base import PreTokenizedInput, TextInput
from transformers.utils import logging

from .chat_argus import CHAT_TEMPLATE, MarkerGuard, render, split_conversations, take_images
from .compat_processing_argus import ProcessorBase
from .encoding_argus import mark_assistant, pad, padded_length, splice, to_tensors, tokenize, truncate
from .image_loading_argus import ImageInputError
from .image_processing_argus import ArgusImageProcessorKwargs
from .locations_argus import DEFAULT_NUM_LOCATION_BINS, LocationVocabulary, location_token_ids, location_tokens
from .prompt_layout_argus import ImageRuns, PromptLayout
from .tiling_argus import TileGrid


logger = logging.get_logger(__name__)

TEXT_DEFAULTS = {
    "add_special_tokens": True,
    "padding": None,  # None: only where tensors of several prompts are asked for
    "padding_side": None,  # None: the tokenizer's, which the processor sets to "left"
    "truncation": False,
    "max_length": None,
    "pad_to_multiple_of": None,
    "return_attention_mask": True,
    "return_mm_token_type_ids": False,
    "return_offsets_mapping": False,
    "return_tensors": None,
    "verbose": True,
}
# Part of transformers' text kwargs, without a meaning here: accepted where they ask for nothing.
UNSUPPORTED_TEXT = (
    *("text_pair", "text_target", "text_pair_target", "is_split_into_words", "stride", "return_token_type_ids"),
    *("return_overflowing_tokens", "return_special_tokens_mask", "return_length", "return_text_replacement_offsets"),
)
OTHER_MODALITIES = ("videos", "audio", "audios", "videos_kwargs", "audio_kwargs")


class ArgusProcessorKwargs(ProcessingKwargs, total=False):
    """Keyword arguments of `ArgusProcessor.__call__`: flat, or grouped under text_kwargs and images_kwargs."""

    images_kwargs: ArgusImageProcessorKwargs
    _defaults = {"text_kwargs": {"padding": False}, "images_kwargs": {}}


class ArgusProcessor(ProcessorBase):
    """Image processor and tokenizer as one (Sections 3.3, 4.1 and 4.2).

    Args:
        image_processor: an ArgusImageProcessor.
        tokenizer: a tokenizer that holds the image token and the layout's tokens. Its `padding_side` is set to "left", the side
            that generation needs; pass `padding_side=` or set it afterwards for another.
        chat_template: a Jinja template; default: the tokenizer's, else the native one.
        image_token: the marker, one per image in a prompt.
        image_seq_length: tokens per tile (the model config's `image_seq_length`).
        prompt_layout: "native", "smolvlm", "internvl" or a dict, see `PromptLayout`.
        box_format: "location_tokens" or "plain_text", the two formulations of Section 4.2.
        num_location_bins: K. None: the model has no location tokens (with "plain_text": 1000).
    """

    valid_processor_kwargs = ArgusProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        image_token: str = "<image>",
        image_seq_length: int = 64,
        prompt_layout: str | dict = "native",
        box_format: str = "location_tokens",
        num_location_bins: int | None = None,
        **kwargs,
    ):
        if image_processor is None or tokenizer is None:
            raise ValueError("ArgusProcessor needs an image_processor and a tokenizer.")
        if chat_template is None:
            own = CHAT_TEMPLATE.replace("<image>", image_token)
            chat_template = getattr(tokenizer, "chat_template", None) or own
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
        tokenizer.padding_side = "left"
        self.image_token = image_token
        self.image_seq_length = image_seq_length
        self.prompt_layout = prompt_layout
        self.box_format = box_format
        self.num_location_bins = num_location_bins
        bins = num_location_bins if num_location_bins is not None else DEFAULT_NUM_LOCATION_BINS
        self._vocabulary = LocationVocabulary(bins, box_format)
        if num_location_bins is not None and box_format == "location_tokens":
            location_token_ids(tokenizer, num_location_bins)  # raises where one is missing
        self._runs = ImageRuns(PromptLayout(prompt_layout), tokenizer, image_token, image_seq_length)
        self._guards = (None, None)

    @property
    def image_token_id(self) -> int:
        return self._runs.image_token_id

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", *self.image_processor.model_input_names]

    @property
    def locations(self) -> LocationVocabulary:
        """Boxes to text and back as this model writes them. Raises ValueError for a model without location tokens."""
        if self.num_location_bins is None and self.box_format == "location_tokens":
            raise ValueError(
                "This model has no location tokens (num_location_bins is None), so it cannot give boxes: add them and train "
                '(`argus bootstrap` prepares a checkpoint), or use box_format="plain_text" for one that writes its boxes as text.'
            )
        return self._vocabulary

    # --- inputs -------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        images: ImageInput | None = None,
        text: TextInput | PreTokenizedInput | list[TextInput] | list[PreTokenizedInput] | None = None,
        **kwargs: Unpack[ArgusProcessorKwargs],
    ) -> BatchFeature:
        """Model inputs for raw text, in which every `image_token` is a marker, and its images.

        Args:
            images: one image, a flat list (dealt to the prompts by their markers) or one list per prompt. Without `text`, only
                the image inputs are returned.
            text: a prompt or a list of prompts.
            kwargs: the tokenizer's (padding, truncation, max_length, add_special_tokens, ...) and the image processor's
                (max_tiles, device, ...), flat or under text_kwargs and images_kwargs; return_tensors "pt", "np" or None.
                With `device`, ids and masks go there too. Prompts are padded if tensors of several are asked for.
        Returns:
            input_ids and attention_mask int64[B, T]; with images pixel_values uint8[tiles, 3, S, S], num_patches int64[num_images]
            and image_sizes int64[num_images, 2] (height, width). Lists and torch tensors without return_tensors.
        Raises:
            ValueError: markers and images do not match, or truncation would cut image tokens. TypeError: an unknown keyword.
        """
        text_kwargs, images_kwargs = self._split_kwargs(kwargs)
        if text is None:
            if images is None:
                raise ValueError("ArgusProcessor needs text, images or both.")
            return BatchFeature(self._image_inputs(_flatten(images)[0], text_kwargs, images_kwargs)[0])
        prompts = [text] if isinstance(text, str) else text
        if not isinstance(prompts, (list, tuple)) or not prompts or not all(isinstance(p, str) for p in prompts):
            raise ValueError("text must be a string or a non-empty list of strings.")
        return self._assemble(list(prompts), images, text_kwargs, images_kwargs)

    def apply_chat_template(
        self,
        conversation,
        chat_template: str | None = None,
        tools: list | None = None,
        documents: list | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = None,
        return_dict: bool = False,
        load_audio_from_video: bool = False,
        processor_kwargs: dict | None = None,
        **kwargs,
    ):
        """Renders one conversation or a batch with the chat template and, with `tokenize`, makes model inputs of it.

        A message's content is a string or a list of {"type": "text", "text": ...} and {"type": "image", "image" | "url" | "path" |
        "base64": ...}. Image markers, special tokens and (except in assistant messages) location tokens inside text are text.
        With tokenize=False the prompt comes back as a string, in which that difference is lost.

        Args:
            chat_template: a template, or the name of one of the processor's.
            return_assistant_tokens_mask: adds `assistant_masks` int64[B, T], 1 where the assistant speaks.
            processor_kwargs, kwargs: as for `__call__`, in a dict (5.x) or flat (4.57); other names are the template's variables.
        Returns:
            str or list[str] (tokenize=False), the inputs of `__call__` (return_dict=True), or their input_ids.
        """
        template = self._resolve_template(chat_template)
        processor_names, variables = {}, {}
        for key, value in kwargs.items():
            (processor_names if key == "images" or self._knows(key) else variables)[key] = value
        for key in [k for k in variables if k not in template]:
            self._refuse(key)
        processor_kwargs = {**processor_names, **(processor_kwargs or {})}
        given_images = processor_kwargs.pop("images", None)
        if return_tensors not in (None, "auto"):
            processor_kwargs["return_tensors"] = return_tensors
        text_kwargs, images_kwargs = self._split_kwargs(processor_kwargs)
        if continue_final_message and (add_generation_prompt or return_assistant_tokens_mask):
            raise ValueError(
                "continue_final_message excludes add_generation_prompt and return_assistant_tokens_mask: it ends the prompt inside "
                "the last message."
            )
        if return_assistant_tokens_mask and "generation" not in template:
            raise ValueError("return_assistant_tokens_mask needs a chat template with {% generation %} marks; this one has none.")

        conversations = split_conversations(conversation)
        is_batch = not isinstance(conversation[0], dict) if isinstance(conversation, (list, tuple)) else False
        bare, images = zip(*(take_images(messages) for messages in conversations))
        prompts, spans, sentinel = render(
            bare,
            template,
            self._message_guards(),
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            spans=return_assistant_tokens_mask,
            variables={**self.tokenizer.special_tokens_map, **variables},
        )
        if not tokenize:
            prompts = [prompt.replace(sentinel, "") for prompt in prompts]
            return prompts if is_batch else prompts[0]
        images = self._chat_images(list(images), given_images, is_batch)
        bos = self.tokenizer.bos_token
        if bos is not None and prompts[0].startswith(bos):
            text_kwargs["add_special_tokens"] = False  # the template has written it
        inputs = self._assemble(
            prompts, images, text_kwargs, images_kwargs, sentinel, spans if return_assistant_tokens_mask else None
        )
        return inputs if return_dict else inputs["input_ids"]

    def _assemble(self, prompts, images, text_kwargs, images_kwargs, sentinel=None, assistant_spans=None) -> BatchFeature:
        options = text_kwargs
        with_offsets = options["return_offsets_mapping"] or assistant_spans is not None
        rows = tokenize(
            self.tokenizer,
            prompts,
            add_special_tokens=options["add_special_tokens"],
            with_offsets=with_offsets,
            sentinel=sentinel,
        )
        flat, per_prompt = _flatten(images)
        markers = [row.ids.count(self.image_token_id) for row in rows]
        self._check_counts(markers, len(flat), per_prompt)
        image_inputs, grids = self._image_inputs(flat, text_kwargs, images_kwargs) if flat else ({}, [])

        runs = iter([self._runs.ids(grid.rows, grid.cols, grid.thumbnail) for grid in grids])
        for i, row in enumerate(rows):
            if assistant_spans is not None:
                mark_assistant(row, assistant_spans[i])
            splice(row, self.image_token_id, [next(runs) for _ in range(markers[i])])
            self._limit_length(row, options, number=i)
        padding = options["padding"]
        if padding is None:
            padding = options["return_tensors"] is not None and len(rows) > 1
        length = padded_length(rows, padding, options["max_length"], options["pad_to_multiple_of"])
        side = options["padding_side"] or self.tokenizer.padding_side
        pad_id = self._pad_id(rows, length)

        data = {"input_ids": [pad(row.ids, length, pad_id, side) for row in rows]}
        if options["return_attention_mask"] is not False:
            data["attention_mask"] = [pad([1] * len(row.ids), length, 0, side) for row in rows]
        if options["return_mm_token_type_ids"]:
            data["mm_token_type_ids"] = [pad(_inside_runs(row), length, 0, side) for row in rows]
        if assistant_spans is not None:
            data["assistant_masks"] = [pad(row.assistant, length, 0, side) for row in rows]
        if options["return_offsets_mapping"]:
            data["offset_mapping"] = [pad(row.offsets, length, (0, 0), side) for row in rows]
        return BatchFeature({**to_tensors(data, options["return_tensors"], images_kwargs.get("device")), **image_inputs})

    def _image_inputs(self, flat_images, text_kwargs, images_kwargs) -> tuple[dict, list[TileGrid]]:
        """The image processor's output and each image's grid."""
        features = self.image_processor(flat_images, **{**images_kwargs, "return_tensors": "pt"})
        sizes, counts = features["image_sizes"].tolist(), features["num_patches"].tolist()
        grids = [self.image_processor.get_tile_grid(*size, **images_kwargs) for size in sizes]
        if [grid.num_tiles for grid in grids] != counts:
            raise ValueError(f"The image processor made {counts} tiles where its get_tile_grid says {grids}.")
        return to_tensors(dict(features), text_kwargs["return_tensors"]), grids

    def _check_counts(self, markers: list[int], num_images: int, per_prompt: list[int] | None) -> None:
        if markers == per_prompt or (per_prompt is None and sum(markers) == num_images):
            return
        if per_prompt is None:
            given = f"{num_images} images in a flat list (one list per prompt would say whose they are)"
        else:
            given = f"{per_prompt} images"
        raise ValueError(
            f"Every image needs one {self.image_token} marker in its prompt: the {len(markers)} prompts hold {markers} markers, but "
            f"got {given}."
        )

    def _limit_length(self, row, options, number):
        truncation = getattr(options["truncation"], "value", options["truncation"])
        if truncation not in (None, False, True, "do_not_truncate", "longest_first", "only_first"):
            raise ValueError(f"truncation={truncation!r} is unknown: use True, 'longest_first' or False.")
        limit = self.tokenizer.model_max_length
        if truncation not in (None, False, "do_not_truncate"):
            truncate(row, options["max_length"] or limit, getattr(self.tokenizer, "truncation_side", "right"), number)
        if len(row.ids) > limit and options["verbose"]:
            logger.warning(
                f"Prompt {number} has {len(row.ids)} tokens, more than the model's {limit}: it will not be read rightly. Lower "
                "max_tiles, or pass fewer images or less text."
            )

    def _pad_id(self, rows, length) -> int:
        pad_id = self.tokenizer.pad_token_id
        if pad_id is None and length is not None and any(len(row.ids) < length for row in rows):
            raise ValueError("The tokenizer has no pad token, which prompts of different lengths need: set tokenizer.pad_token.")
        return pad_id

    # --- keyword arguments and templates ------------------------------------------------------------------------------

    def _image_names(self) -> set[str]:
        return set(ArgusImageProcessorKwargs.__annotations__) - {"return_tensors"}

    def _knows(self, key: str) -> bool:
        groups = ("text_kwargs", "images_kwargs", "common_kwargs")
        known = key in TEXT_DEFAULTS or key in UNSUPPORTED_TEXT or key in OTHER_MODALITIES or key in groups
        return known or key in self._image_names()

    def _refuse(self, key: str):
        close = difflib.get_close_matches(key, [*TEXT_DEFAULTS, *sorted(self._image_names())], n=1)
        hint = f": did you mean {close[0]!r}?" if close else "."
        raise TypeError(f"ArgusProcessor does not know the keyword argument {key!r}{hint}")

    def _split_kwargs(self, kwargs: dict) -> tuple[dict, dict]:
        """Flat and grouped keyword arguments -> (text options, complete; images kwargs). Refuses what is unknown."""
        kwargs = dict(kwargs)
        for key in OTHER_MODALITIES:
            value = kwargs.pop(key, None)
            if value is not None and len(value) > 0:
                raise ValueError(f"{key} was given, but ArgusVLM reads images and text only.")
        text_options, images_kwargs = {}, {}
        groups = {name: dict(kwargs.pop(name, None) or {}) for name in ("text_kwargs", "images_kwargs", "common_kwargs")}
        for name, group in {**groups, None: kwargs}.items():
            for key, value in group.items():
                is_text = name != "images_kwargs" and (key in TEXT_DEFAULTS or key in UNSUPPORTED_TEXT)
                is_image = name != "text_kwargs" and key in self._image_names()
                if name == "images_kwargs" and key == "return_tensors":
                    continue
                if not is_text and not is_image:
                    self._refuse(key)
                if name is None and key in {**groups["text_kwargs"], **groups["images_kwargs"]}:
                    raise ValueError(f"{key!r} was given twice: flat, and in text_kwargs or images_kwargs.")
                if is_text and key in UNSUPPORTED_TEXT:
                    if value:
                        raise ValueError(f"{key}={value!r} is not supported by ArgusProcessor.")
                elif is_text:
                    text_options[key] = value
                if is_image:
                    images_kwargs[key] = value
        own = {k: v for k, v in self.tokenizer.init_kwargs.items() if k in ("padding", "truncation", "max_length")}
        return {**TEXT_DEFAULTS, **own, **text_options}, images_kwargs

    def _resolve_template(self, chat_template: str | None) -> str:
        own = self.chat_template
        if isinstance(own, dict):
            name = chat_template or "default"
            if name not in own and chat_template is None:
                raise ValueError(f"The processor's chat templates are {sorted(own)}: name one with chat_template=.")
            return own.get(name, chat_template)
        return chat_template or own

    def _message_guards(self) -> dict:
        """Who may write which token as structure: the assistant its location tokens, nobody anything else."""
        if self._guards[0] != len(self.tokenizer):  # added tokens change the length
            added = self.tokenizer.added_tokens_decoder.values()
            layout = "".join(self._runs.layout.parts.values())
            tokens = {token.content for token in added if token.special or token.content in layout}
            tokens |= {*self.tokenizer.all_special_tokens, self.image_token}
            boxes = set()
            if self.num_location_bins is not None and self.box_format == "location_tokens":
                boxes = set(location_tokens(self.num_location_bins))
            guards = {"assistant": MarkerGuard(tokens - boxes), None: MarkerGuard(tokens | boxes)}
            self._guards = (len(self.tokenizer), guards)
        return self._guards[1]

    def _chat_images(self, images: list[list], given, is_batch: bool):
        if given is None or len(given) == 0:
            for i, group in enumerate(images):
                if any(image is None for image in group):
                    raise ValueError(
                        f"Image {[image is None for image in group].index(True)} of conversation {i} names no source: give it under "
                        "'image', 'url', 'path' or 'base64'."
                    )
            return images
        if any(image is not None for group in images for image in group):
            raise ValueError("Images were given both in the messages and as images=: give them in one place.")
        return given if is_batch else _flatten(given)[0]

    # --- outputs ------------------------------------------------------------------------------------------------------

    def post_process_image_text_to_text(self, generated_outputs, skip_special_tokens: bool = True, **kwargs) -> list[str]:
        """Generated ids -> texts; location tokens are kept. What transformers' pipeline calls."""
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    def post_process_dense_captioning(self, generated_ids, image_sizes, scores=None) -> list[dict]:
        """What the model wrote -> regions with captions (Section 4.2).

        Args:
            generated_ids: int[B, T] or lists of ids, the new tokens only; or the decoded strings (location tokens kept).
            image_sizes: int[B, 2], (height, width) of each sample's original image.
            scores: float[B, T] log-probabilities of the generated tokens. A region's score is exp(mean over its location and
                caption tokens): a language model has no objectness. None gives scores of 1.0.
        Returns:
            One dict per sample: "boxes" float32[N, 4] xyxy in pixels of the original image, "captions" list[str], "scores"
            float32[N], and "unparsed" list[str], all that was no well-formed region. What was written is never an error.
        """
        return self._post_process(generated_ids, image_sizes, scores, "captions")

    def post_process_detection(self, generated_ids, image_sizes, scores=None) -> list[dict]:
        """As `post_process_dense_captioning`, with the phrases under "labels"."""
        return self._post_process(generated_ids, image_sizes, scores, "labels")

    def _post_process(self, outputs, image_sizes, scores, key) -> list[dict]:
        vocabulary = self.locations
        if isinstance(outputs, str):
            outputs = [outputs]
        outputs = outputs.tolist() if hasattr(outputs, "tolist") else list(outputs)
        if outputs and isinstance(outputs[0], int):
            outputs = [outputs]
        image_sizes = image_sizes.tolist() if hasattr(image_sizes, "tolist") else [list(size) for size in image_sizes]
        if len(outputs) != len(image_sizes) or not all(len(size) == 2 for size in image_sizes):
            raise ValueError(
                f"Each output needs the (height, width) of its image: got {len(outputs)} outputs and image_sizes {image_sizes}."
            )
        if scores is not None and len(scores) != len(outputs):
            raise ValueError(f"scores must be float[B, T] like the generated ids: got {len(scores)} rows for {len(outputs)} outputs.")
        results = []
        for i, (output, size) in enumerate(zip(outputs, image_sizes)):
            if isinstance(output, str):
                if scores is not None:
                    raise ValueError("scores belong to tokens: pass generated ids, not strings, to score regions.")
                text, spans = output, []
            else:
                text, spans = self._decode_with_spans(output)
            regions, unparsed = vocabulary.parse(text)
            boxes = [vocabulary.bins_to_box(region.bins, size) for region in regions]
            results.append({
                "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                key: [region.caption for region in regions],
                "scores": _region_scores(regions, spans, None if scores is None else scores[i], len(output)),
                "unparsed": unparsed,
            })  # fmt: skip
        return results

    def _decode_with_spans(self, ids) -> tuple[str, list[tuple[int, int, int]]]:
        """The text of the ids without special tokens, and (token's place, start, end) of each token in it."""
        ids = ids.tolist() if hasattr(ids, "tolist") else [int(i) for i in ids]
        special, size = set(self.tokenizer.all_special_ids), len(self.tokenizer)
        text, spans, pending = "", [], []
        kept = [place for place, token in enumerate(ids) if 0 <= token < size and token not in special]
        for place in kept:
            # A character can be spread over several byte-level tokens: decode when it is whole, or at the end.
            pending.append(place)
            piece = self.tokenizer.decode([ids[p] for p in pending], clean_up_tokenization_spaces=False)
            if not piece.endswith("\ufffd") or place == kept[-1] or len(pending) >= 4:
                spans += [(p, len(text), len(text) + len(piece)) for p in pending]
                text, pending = text + piece, []
        return text, spans

    # --- for serving engines and trainers -----------------------------------------------------------------------------

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        """Tokens (the whole run, as `return_mm_token_type_ids` marks it) and tiles of images of the given (height, width)."""
        if image_sizes is None:
            return MultiModalData()
        _, images_kwargs = self._split_kwargs(kwargs)
        grids = [self.image_processor.get_tile_grid(*size, **images_kwargs) for size in image_sizes]
        return MultiModalData(
            num_image_tokens=[len(self._runs.ids(grid.rows, grid.cols, grid.thumbnail)) for grid in grids],
            num_image_patches=[grid.num_tiles for grid in grids],
        )


def _flatten(images) -> tuple[list, list[int] | None]:
    """One image, a flat list or a list per prompt -> (flat list, images per prompt or None if flat)."""
    if images is None:
        return [], None
    if getattr(images, "ndim", None) == 4:
        images = list(images)
    if not isinstance(images, (list, tuple)):
        return [images], None
    is_group = [image is None or isinstance(image, (list, tuple)) for image in images]
    if not any(is_group):
        return list(images), None
    if not all(is_group):
        raise ImageInputError("images mixes single images and lists: give a flat list, or one list per prompt.")
    groups = [list(group or []) for group in images]
    return [image for group in groups for image in group], [len(group) for group in groups]


def _inside_runs(row) -> list[int]:
    inside = [0] * len(row.ids)
    for start, end in row.runs:
        inside[start:end] = [1] * (end - start)
    return inside


def _region_scores(regions, spans, log_probs, num_tokens) -> torch.Tensor:
    if log_probs is None:
        return torch.ones(len(regions), dtype=torch.float32)
    log_probs = torch.as_tensor(log_probs, dtype=torch.float32).cpu()
    if log_probs.shape != (num_tokens,):
        raise ValueError(f"scores must be float[B, T] like the generated ids: {tuple(log_probs.shape)} for {num_tokens} ids.")
    values = [log_probs[[p for p, a, b in spans if a < r.end and b > r.start]].mean().exp() for r in regions]
    return torch.stack(values) if values else torch.ones(0, dtype=torch.float32)


__all__ = ["CHAT_TEMPLATE", "ArgusProcessor", "ArgusProcessorKwargs"]
