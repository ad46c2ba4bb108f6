"""From prompts to rows of ids: tokenize with one marker per image, splice in the image runs, truncate, pad.

Recipe 7 of Table 1: the tokenizer never sees the repeated image tokens. Everything here works on lists of ints;
tensors are made once, at the very end.
"""

from dataclasses import dataclass

import torch
from transformers.utils import logging

from .image_loading_argus import ImageInputError
from .transfer_argus import to_numpy

logger = logging.get_logger(__name__)

_NO_LIMIT = 1e20  # transformers writes 1e30 as the model_max_length of tokenizers without a limit


@dataclass
class Row:
    """One prompt: its ids, each one's characters [start, end), 1 where the assistant speaks, the image runs' spans."""

    ids: list[int]
    offsets: list[tuple[int, int]] | None = None
    assistant: list[int] | None = None
    runs: list[tuple[int, int]] | None = None


def tokenize(
    tokenizer, prompts, *, add_special_tokens: bool, with_offsets: bool, sentinel: str | None = None
) -> list[Row]:
    """Tokenizes prompts in one call of the tokenizer. At sentinels a prompt is cut and its pieces tokenized apart."""
    pieces, places = [], []  # places: (prompt, first character of the piece in it)
    for i, prompt in enumerate(prompts):
        start = 0
        for piece in prompt.split(sentinel) if sentinel else [prompt]:
            if piece:
                pieces.append(piece)
                places.append((i, start))
            start += len(piece) + 1
    rows = [Row([], [] if with_offsets else None) for _ in prompts]
    if pieces:
        if with_offsets and not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} is a slow tokenizer and has no offsets: use a fast tokenizer."
            )
        options = {"return_offsets_mapping": True} if with_offsets else {}
        encoded = tokenizer(
            pieces,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **options,
        )
        for j, (i, start) in enumerate(places):
            rows[i].ids.extend(encoded["input_ids"][j])
            if with_offsets:
                rows[i].offsets.extend((start + a, start + b) for a, b in encoded["offset_mapping"][j])
    if add_special_tokens:
        before, after = _special_ids_around(tokenizer)
        for row in rows:
            row.ids = before + row.ids + after
            if with_offsets:
                row.offsets = [(0, 0)] * len(before) + row.offsets + [(0, 0)] * len(after)
    return rows


def _special_ids_around(tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer puts around one text: most often nothing, or BOS."""
    whole = list(tokenizer("a")["input_ids"])
    inner = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    return [], []


def mark_assistant(row: Row, spans) -> None:
    """Sets `assistant` to 1 for every token that overlaps one of the character spans."""
    row.assistant = [int(any(start < b and end > a for a, b in spans)) for start, end in row.offsets]


def splice(row: Row, image_token_id: int, runs: list[list[int]]) -> None:
    """Puts the i-th run in the place of the i-th image marker and records where each run lies."""
    runs = iter(runs)
    ids, origin, spans = (
        [],
        [],
        [],
    )  # origin: for each new id, its place before splicing, or -1 - marker's place in a run
    for place, token in enumerate(row.ids):
        if token == image_token_id:
            run = next(runs)
            spans.append((len(ids), len(ids) + len(run)))
            ids.extend(run)
            origin.extend([-1 - place] * len(run))
        else:
            ids.append(token)
            origin.append(place)
    if row.offsets is not None:
        row.offsets = [row.offsets[p if p >= 0 else -1 - p] for p in origin]
    if row.assistant is not None:  # image tokens are never something that the model says
        row.assistant = [row.assistant[p] if p >= 0 else 0 for p in origin]
    row.ids, row.runs = ids, spans


def inside_runs(row: Row) -> list[int]:
    """1 for every token of an image's run, 0 for text."""
    inside = [0] * len(row.ids)
    for start, end in row.runs:
        inside[start:end] = [1] * (end - start)
    return inside


def flatten_images(images) -> tuple[list, list[int] | None]:
    """One image, a 4-D batch, a flat list or a list per prompt -> (flat list, images per prompt or None if flat).

    Raises ImageInputError for a mixed list and where one place holds several images: each has one marker.
    """
    if images is None:
        return [], None
    if getattr(images, "ndim", None) == 4:
        images = list(images)
    if not isinstance(images, (list, tuple)):
        return [images], None
    is_group = [image is None or isinstance(image, (list, tuple)) for image in images]
    if not any(is_group):
        return [_single(image, f"images[{i}]") for i, image in enumerate(images)], None
    if not all(is_group):
        raise ImageInputError("images mixes single images and lists: give a flat list, or one list per prompt.")
    groups = [list(group or []) for group in images]
    flat = [_single(image, f"images[{i}][{j}]") for i, group in enumerate(groups) for j, image in enumerate(group)]
    return flat, [len(group) for group in groups]


def _single(image, what: str):
    if isinstance(image, (list, tuple)):
        given = f"a {type(image).__name__} of {len(image)} items"
    elif getattr(image, "ndim", None) == 4:
        given = f"a batch of shape {tuple(image.shape)}"
    else:
        return image
    raise ImageInputError(f"{what} is {given}, but stands for one image: give each its own place (and marker).")


def check_counts(image_token: str, markers: list[int], num_images: int, per_prompt: list[int] | None) -> None:
    """Raises ValueError where the markers of the prompts and the images given do not match."""
    if markers == per_prompt or (per_prompt is None and sum(markers) == num_images):
        return
    if per_prompt is None:
        given = f"{num_images} in one flat list (one list per prompt would say whose they are)"
    else:
        given = f"{per_prompt}"
    raise ValueError(
        f"Every image needs one {image_token} marker in its prompt: the prompts hold {markers} markers, and the images "
        f"given are {given}."
    )


def limit_length(row: Row, tokenizer, options: dict, number: int) -> None:
    """Truncates a row if the options ask for it, and warns where it is longer than the model can read."""
    truncation = getattr(options["truncation"], "value", options["truncation"])
    if truncation not in (None, False, True, "do_not_truncate", "longest_first", "only_first"):
        raise ValueError(f"truncation={truncation!r} is unknown: use True, 'longest_first' or False.")
    limit = tokenizer.model_max_length
    if truncation not in (None, False, "do_not_truncate"):
        truncate(row, options["max_length"] or limit, getattr(tokenizer, "truncation_side", "right"), number)
    if len(row.ids) > limit and options["verbose"]:
        logger.warning(
            f"Prompt {number} has {len(row.ids)} tokens, more than the model's {limit}: it will not be read rightly. "
            "Lower max_tiles, or pass fewer images or less text."
        )


def truncate(row: Row, max_length: int, side: str, number: int) -> None:
    """Cuts a row to max_length ids. Raises ValueError where that would cut into an image's tokens."""
    length = len(row.ids)
    if length <= max_length:
        return
    keep = slice(length - max_length, length) if side == "left" else slice(0, max_length)
    for image, (start, end) in enumerate(row.runs or []):
        if start < keep.start or end > keep.stop:
            raise ValueError(
                f"max_length={max_length} would cut into the {end - start} tokens of image {image} in prompt {number}, "
                f"which is {length} tokens long: raise max_length, lower max_tiles or turn truncation off."
            )
    row.ids = row.ids[keep]
    row.offsets = None if row.offsets is None else row.offsets[keep]
    row.assistant = None if row.assistant is None else row.assistant[keep]
    row.runs = [(start - keep.start, end - keep.start) for start, end in row.runs or []]


def padded_length(tokenizer, rows: list[Row], padding, max_length: int | None, multiple: int | None) -> int | None:
    """The length that all rows are padded to, or None for no padding. `padding` is as in transformers' tokenizers:
    "max_length" without a max_length is the model's, and the longest row's where the model has no limit."""
    padding = getattr(padding, "value", padding)
    if padding in (False, None, "do_not_pad"):
        return None
    if max_length is None and tokenizer.model_max_length <= _NO_LIMIT:
        max_length = tokenizer.model_max_length
    if padding == "max_length" and max_length is not None:
        length = max_length
    elif padding in (True, "longest", "max_length"):
        length = max(len(row.ids) for row in rows)
    else:
        raise ValueError(f"padding={padding!r} is unknown: use True, 'longest', 'max_length' or False.")
    length = -(-length // multiple) * multiple if multiple else length
    if tokenizer.pad_token_id is None and any(len(row.ids) < length for row in rows):
        raise ValueError(
            "Prompts of different lengths need a pad token, and the tokenizer has none: set its pad_token."
        )
    return length


def pad(values: list, length: int | None, value, side: str) -> list:
    """A list filled up to `length` with `value` on one side."""
    if length is None or len(values) >= length:
        return values
    filler = [value] * (length - len(values))
    return filler + values if side == "left" else values + filler


def to_tensors(data: dict, return_tensors: str | None) -> dict:
    """Lists (and the image processor's tensors) -> torch tensors, numpy arrays, or as they are."""
    return_tensors = getattr(return_tensors, "value", return_tensors)
    if return_tensors is None:
        return data
    if return_tensors not in ("pt", "np"):
        raise ValueError(f"return_tensors={return_tensors!r} is unknown: use 'pt', 'np' or None.")
    tensors = {}
    for key, value in data.items():
        if not isinstance(value, torch.Tensor):
            lengths = sorted({len(row) for row in value})
            if len(lengths) > 1:
                raise ValueError(
                    f"{key} has rows of {lengths[0]} to {lengths[-1]} tokens: pass padding=True for tensors."
                )
            value = torch.tensor(value, dtype=torch.int64, device="cpu")
        tensors[key] = to_numpy(value, key) if return_tensors == "np" else value
    return tensors
