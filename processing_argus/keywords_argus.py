"""The processor's keyword arguments: which exist, whose they are, and a clear refusal of the rest.

transformers warns about a keyword that it does not know, or ignores it; here it is a TypeError naming the one meant.
"""

import difflib

from transformers.processing_utils import ProcessingKwargs

from .image_processing_argus import ArgusImageProcessorKwargs

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
GROUPS = ("text_kwargs", "images_kwargs", "common_kwargs")
IMAGE_NAMES = frozenset(ArgusImageProcessorKwargs.__annotations__) - {"return_tensors"}


class ArgusProcessorKwargs(ProcessingKwargs, total=False):
    """Keyword arguments of `ArgusProcessor.__call__`: flat, or grouped under text_kwargs and images_kwargs."""

    images_kwargs: ArgusImageProcessorKwargs
    _defaults = {"text_kwargs": {"padding": False}, "images_kwargs": {}}


def is_keyword(key: str) -> bool:
    """Whether the processor knows this keyword argument, flat or as a group's name."""
    return key in TEXT_DEFAULTS or key in IMAGE_NAMES or key in (*UNSUPPORTED_TEXT, *OTHER_MODALITIES, *GROUPS)


def refuse_keyword(key: str, also_known=()) -> None:
    """Raises TypeError for a keyword argument that nobody knows."""
    close = difflib.get_close_matches(key, [*TEXT_DEFAULTS, *sorted(IMAGE_NAMES), *sorted(also_known)], n=1)
    hint = f": did you mean {close[0]!r}?" if close else "."
    raise TypeError(f"ArgusProcessor does not know the keyword argument {key!r}{hint}")


def split_keywords(kwargs: dict, tokenizer_defaults: dict) -> tuple[dict, dict]:
    """Flat and grouped keyword arguments -> (text options, all of `TEXT_DEFAULTS`; images kwargs, only those given).

    `tokenizer_defaults` may hold padding, truncation and max_length, as the tokenizer was set up with. Raises TypeError
    for unknown keywords, ValueError for videos or audio, for what is not supported, and for a keyword given flat and in
    a group.
    """
    kwargs = dict(kwargs)
    for key in OTHER_MODALITIES:  # harnesses pass empty lists
        value = kwargs.pop(key, None)
        if value is not None and len(value) > 0:
            raise ValueError(f"{key} was given, but ArgusVLM reads images and text only.")
    groups = {name: dict(kwargs.pop(name, None) or {}) for name in GROUPS}
    groups["images_kwargs"].pop("return_tensors", None)  # the processor decides for both
    text_options, images_kwargs = {}, {}
    for name, group in {**groups, None: kwargs}.items():
        for key, value in group.items():
            for_text = name != "images_kwargs" and (key in TEXT_DEFAULTS or key in UNSUPPORTED_TEXT)
            for_images = name != "text_kwargs" and key in IMAGE_NAMES
            if not for_text and not for_images:
                refuse_keyword(key)
            if name is None and any(key in other for other in groups.values()):
                raise ValueError(f"{key!r} was given twice, flat and in a group: give it once.")
            if key in UNSUPPORTED_TEXT and value:
                raise ValueError(f"{key}={value!r} is not supported by ArgusProcessor.")
            if key in TEXT_DEFAULTS and for_text:
                text_options[key] = value
            if for_images:
                images_kwargs[key] = value
    own = {key: value for key, value in tokenizer_defaults.items() if key in ("padding", "truncation", "max_length")}
    return {**TEXT_DEFAULTS, **own, **text_options}, images_kwargs
