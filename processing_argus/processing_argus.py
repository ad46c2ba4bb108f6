"""ArgusProcessor: text and images in, model inputs out; what the model wrote in, captions and boxes out.

The join of the other files of this package: one marker per image is tokenized and a cached id run spliced in (recipe 7
of Table 1), chat messages are rendered with literal markers kept as text, and generated ids are parsed into boxes in
pixels of the original image. `__call__` and `apply_chat_template` are wholly its own, the same on transformers 4.57 and
5.x.
"""

import re

import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import MultiModalData, Unpack
from transformers.tokenization_utils_base import TextInput

from .chat_argus import (
    CHAT_TEMPLATE,
    message_guards,
    render,
    resolve_template,
    split_conversations,
    take_images,
    template_variables,
)
from .compat_processing_argus import ProcessorBase
from .decoding_argus import DECODERS  # noqa: F401 - transformers' loader wants every sibling named in this file
from .derived_argus import Derived
from .drawing_argus import draw_regions, region_colors
from .encoded_inputs_argus import EncodedBatch, are_encoded, encoded_inputs
from .encoding_argus import (
    check_counts,
    flatten_images,
    inside_runs,
    limit_length,
    mark_assistant,
    pad,
    padded_length,
    splice,
    to_tensors,
    tokenize,
)
from .image_loading_argus import ImageInputError, load_image
from .image_processing_argus import ArgusImageProcessor, PreparedImages
from .keywords_argus import ArgusProcessorKwargs, is_keyword, refuse_keyword, split_keywords
from .lettering_argus import font_of  # noqa: F401 - likewise
from .locations_argus import LocationVocabulary, build_vocabulary
from .prompt_layout_argus import ImageRuns, PromptLayout
from .regions_argus import read_regions
from .resizing_argus import TORCH_MODES  # noqa: F401 - likewise
from .threads_argus import MAX_THREADS  # noqa: F401 - likewise
from .tile_pixels_argus import fits_device  # noqa: F401 - likewise
from .tiling_argus import TileGrid
from .transfer_argus import resolve_device, send


class ArgusProcessor(ProcessorBase):
    """Image processor and tokenizer as one (Sections 3.3, 4.1 and 4.2).

    All settings are plain attributes: a new value holds from the next call on, which raises where it does not fit.

    Args:
        image_processor: an ArgusImageProcessor.
        tokenizer: a tokenizer that holds the image token and the layout's tokens. Its `padding_side` is set to "left",
            the side that generation needs; pass `padding_side=` or set it afterwards for another.
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
        image_processor: ArgusImageProcessor | None = None,
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
        self.image_token = image_token
        self.image_seq_length = image_seq_length
        self.prompt_layout = prompt_layout
        self.box_format = box_format
        self.num_location_bins = num_location_bins
        self._derived = Derived()
        _ = self._vocabulary, self._runs  # they raise where the settings do not fit the tokenizer

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "tokenizer":  # at any time, as all attributes
            value.padding_side = "left"

    @property
    def _vocabulary(self) -> LocationVocabulary:
        return self._derived.get(build_vocabulary, self.tokenizer, self.num_location_bins, self.box_format)

    @property
    def _runs(self) -> ImageRuns:
        layout = PromptLayout(self.prompt_layout)
        return self._derived.get(ImageRuns, layout, self.tokenizer, self.image_token, self.image_seq_length)

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
                "This model has no location tokens (num_location_bins is None), so it cannot give boxes: add them and "
                'train (`argus bootstrap` prepares a checkpoint), or set box_format="plain_text" for a model that '
                "writes its boxes as text."
            )
        return self._vocabulary

    # --- inputs -------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        images: ImageInput | None = None,
        text: TextInput | list[TextInput] | None = None,
        **kwargs: Unpack[ArgusProcessorKwargs],
    ) -> BatchFeature:
        """Model inputs for raw text, in which every `image_token` is a marker, and its images.

        Args:
            images: one image, a flat list (dealt to the prompts by their markers) or one list per prompt. Without
                `text`, only the image inputs are returned. Images that `model.encode_images` gave stand for images.
            text: a prompt or a list of prompts.
            kwargs: the tokenizer's (padding, truncation, max_length, add_special_tokens, ...) and the image
                processor's (max_tiles, device, ...), flat or under text_kwargs and images_kwargs; return_tensors "pt",
                "np" or None. With `device`, ids and masks go there too. Prompts are padded if tensors of several are
                asked for.
        Returns:
            input_ids and attention_mask int64[B, T]; with images pixel_values uint8[tiles, 3, S, S], num_patches
            int64[num_images] and image_sizes int64[num_images, 2] (height, width). Without return_tensors, ids and
            masks are lists and the rest torch tensors. For encoded images mm_encoder_outputs stands for pixel_values.
        Raises:
            ValueError: markers and images do not match, or truncation would cut image tokens. TypeError: an unknown
            keyword.
        """
        text_kwargs, images_kwargs = self._split_keywords(kwargs)
        if text is None:
            if images is None:
                raise ValueError("ArgusProcessor needs text, images or both.")
            source, _ = self._read_images(flatten_images(images)[0], images_kwargs)
            return self._deliver({}, source, text_kwargs["return_tensors"], images_kwargs)
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

        A message's content is a string or a list of {"type": "text", "text": ...} and {"type": "image", "image" |
        "url" | "path" | "base64": ...}. Image markers, special tokens and (except in assistant messages) location
        tokens inside text are text. With tokenize=False the prompt comes back as a string, in which that is lost.

        Args:
            chat_template: a template, or the name of one of the processor's.
            return_assistant_tokens_mask: adds `assistant_masks` int64[B, T], 1 where the assistant speaks.
            processor_kwargs, kwargs: as for `__call__`, in a dict (5.x) or flat (4.57); other names are the template's
                variables.
        Returns:
            str or list[str] (tokenize=False), the inputs of `__call__` (return_dict=True), or their input_ids.
        """
        template = resolve_template(self.chat_template, chat_template)
        kwargs.pop("sanitize_control_tokens", None)  # 5.23's name for what is always done here
        processor_names, variables = {}, {}
        for key, value in kwargs.items():
            (processor_names if key == "images" or is_keyword(key) else variables)[key] = value
        known = template_variables(template) if variables else ()
        for key in [k for k in variables if k not in known]:
            refuse_keyword(key, known)
        processor_kwargs = {**processor_names, **(processor_kwargs or {})}
        given_images = processor_kwargs.pop("images", None)
        if return_tensors not in (None, "auto"):
            processor_kwargs["return_tensors"] = return_tensors
        text_kwargs, images_kwargs = self._split_keywords(processor_kwargs)
        if continue_final_message and (add_generation_prompt or return_assistant_tokens_mask):
            raise ValueError(
                "continue_final_message excludes add_generation_prompt and return_assistant_tokens_mask: it ends the "
                "prompt inside the last message."
            )
        if return_assistant_tokens_mask and not re.search(r"\{%-?\s*generation\b", template):
            raise ValueError(
                "return_assistant_tokens_mask needs a chat template with {% generation %} marks; this one has none."
            )

        conversations = split_conversations(conversation)
        is_batch = not isinstance(conversation[0], dict) if isinstance(conversation, (list, tuple)) else False
        bare, images = zip(*(take_images(messages) for messages in conversations))
        prompts, spans, sentinel = render(
            bare,
            template,
            self._derived.get(message_guards, self._runs, len(self.tokenizer)),  # added tokens change the length
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

    def _assemble(
        self, prompts, images, text_kwargs, images_kwargs, sentinel=None, assistant_spans=None
    ) -> BatchFeature:
        options = text_kwargs
        with_offsets = options["return_offsets_mapping"] or assistant_spans is not None
        rows = tokenize(
            self.tokenizer,
            prompts,
            add_special_tokens=options["add_special_tokens"],
            with_offsets=with_offsets,
            sentinel=sentinel,
        )
        flat, per_prompt = flatten_images(images)
        image_runs = self._runs
        markers = [row.ids.count(image_runs.image_token_id) for row in rows]
        check_counts(self.image_token, markers, len(flat), per_prompt)
        source, grids = self._read_images(flat, images_kwargs) if flat else (None, [])

        runs = iter([image_runs.ids(grid.rows, grid.cols, grid.thumbnail) for grid in grids])
        for i, row in enumerate(rows):
            if assistant_spans is not None:
                mark_assistant(row, assistant_spans[i])
            splice(row, image_runs.image_token_id, [next(runs) for _ in range(markers[i])])
            limit_length(row, self.tokenizer, options, number=i)
        padding = options["padding"]
        if padding is None:
            padding = options["return_tensors"] is not None and len(rows) > 1
        length = padded_length(self.tokenizer, rows, padding, options["max_length"], options["pad_to_multiple_of"])
        side = options["padding_side"] or self.tokenizer.padding_side

        data = {"input_ids": [pad(row.ids, length, self.tokenizer.pad_token_id, side) for row in rows]}
        if options["return_attention_mask"] is not False:
            data["attention_mask"] = [pad([1] * len(row.ids), length, 0, side) for row in rows]
        if options["return_mm_token_type_ids"]:
            data["mm_token_type_ids"] = [pad(inside_runs(row), length, 0, side) for row in rows]
        if assistant_spans is not None:
            data["assistant_masks"] = [pad(row.assistant, length, 0, side) for row in rows]
        if options["return_offsets_mapping"]:
            data["offset_mapping"] = [pad(row.offsets, length, (0, 0), side) for row in rows]
        return self._deliver(data, source, options["return_tensors"], images_kwargs)

    def _read_images(self, images: list, images_kwargs: dict) -> tuple["PreparedImages | dict", list[TileGrid]]:
        """Images that are loaded but not yet tiled, or what stands for them where they are encoded; each one's grid."""
        if are_encoded(images):
            return encoded_inputs(images, self.image_processor, self.image_seq_length, images_kwargs)
        prepared = self.image_processor.prepare(images, **images_kwargs)
        return prepared, [plan.grid for plan in prepared.plans]

    def _deliver(self, data: dict, source, return_tensors, images_kwargs) -> BatchFeature:
        """Ids and masks as asked for, the images' inputs with them; with `device` as views of one buffer there."""
        device = images_kwargs.get("device")
        device = self.image_processor.device if device is None else device  # 0 is a device
        data = to_tensors(data, return_tensors)
        tensors = getattr(return_tensors, "value", return_tensors) == "pt"
        # Not by its class: a hub repository's image processor and processor are loaded apart, and have one each.
        if source is not None and not isinstance(source, dict):
            source.options.return_tensors = "pt"
            if tensors:
                return BatchFeature(self.image_processor.finish(source, data))
            return BatchFeature({**data, **to_tensors(self.image_processor.finish(source), return_tensors)})
        features = {}
        if source is not None:
            features = {"mm_encoder_outputs": source.pop("mm_encoder_outputs")}
            data = {**data, **to_tensors(source, return_tensors)}
        if device is not None:
            moved = [name for name, value in data.items() if isinstance(value, torch.Tensor)]
            data |= zip(moved, send([data[name] for name in moved], resolve_device(device)))
        return EncodedBatch({**data, **features}) if features else BatchFeature(data)

    def _split_keywords(self, kwargs: dict) -> tuple[dict, dict]:
        return split_keywords(kwargs, self.tokenizer.init_kwargs)

    def _chat_images(self, images: list[list], given, is_batch: bool):
        if given is None or (isinstance(given, (list, tuple)) and not given):
            for i, group in enumerate(images):
                if any(image is None for image in group):
                    raise ValueError(
                        f"Image {[image is None for image in group].index(True)} of conversation {i} names no source: "
                        "give it under 'image', 'url', 'path' or 'base64'."
                    )
            return images
        if any(image is not None for group in images for image in group):
            raise ValueError("Images were given both in the messages and as images=: give them in one place.")
        return given if is_batch else flatten_images(given)[0]

    # --- outputs ------------------------------------------------------------------------------------------------------

    def post_process_image_text_to_text(
        self, generated_outputs, skip_special_tokens: bool = True, **kwargs
    ) -> list[str]:
        """Generated ids -> texts; location tokens are kept. What transformers' pipeline calls."""
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    def post_process_dense_captioning(self, generated_ids, image_sizes, scores=None) -> list[dict]:
        """What the model wrote -> regions with captions (Section 4.2).

        Args:
            generated_ids: int[B, T] or lists of ids, the new tokens only; or decoded strings (location tokens kept).
            image_sizes: int[B, 2], (height, width) of each sample's original image.
            scores: float[B, T] log-probabilities of the generated tokens. A region's score is exp(mean over its
                location and caption tokens): a language model has no objectness. None gives scores of 1.0.
        Returns:
            One dict per sample: "boxes" float32[N, 4] xyxy in pixels of the original image, "captions" list[str],
            "scores" float32[N], and "unparsed" list[str], all that was no well-formed region. What was written is never
            an error.
        """
        return read_regions(self.tokenizer, self.locations, generated_ids, image_sizes, scores, "captions")

    def post_process_detection(self, generated_ids, image_sizes, scores=None) -> list[dict]:
        """As `post_process_dense_captioning`, with the phrases under "labels"."""
        return read_regions(self.tokenizer, self.locations, generated_ids, image_sizes, scores, "labels")

    def draw_regions(self, image, regions: dict, with_scores: bool = True):
        """A PIL image, RGB, with boxes and captions drawn on it; one below 768 pixels is enlarged.

        Args:
            image: in any form that the processor takes.
            regions: what `post_process_detection`, `post_process_dense_captioning` or a task call gave for it.
            with_scores: whether a label ends in its score.
        """
        picture = Image.fromarray(load_image(image).permute(1, 2, 0).contiguous().cpu().numpy())
        captions = regions["captions"] if "captions" in regions else regions["labels"]
        scores = [float(score) for score in regions["scores"]] if with_scores else None
        return draw_regions(picture, [list(map(float, box)) for box in regions["boxes"]], captions, scores)

    @staticmethod
    def region_colors(captions: list[str]) -> list[str]:
        """The colours of a picture with these captions, "#rrggbb", for whoever draws boxes otherwise."""
        return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in region_colors(captions)]

    # --- for serving engines and trainers -----------------------------------------------------------------------------

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        """Tokens (the run that `return_mm_token_type_ids` marks) and tiles of images of given (height, width)."""
        if image_sizes is None:
            return MultiModalData()
        _, images_kwargs = self._split_keywords(kwargs)
        grids = [self.image_processor.get_tile_grid(*size, **images_kwargs) for size in image_sizes]
        return MultiModalData(
            num_image_tokens=[len(self._runs.ids(grid.rows, grid.cols, grid.thumbnail)) for grid in grids],
            num_image_patches=[grid.num_tiles for grid in grids],
        )


__all__ = ["CHAT_TEMPLATE", "ArgusProcessor", "ArgusProcessorKwargs", "ImageInputError"]
