"""Samples to batches: boxes as text, the chat template, labels for the assistant's words, images encoded once.

A row holds an image's prefix and then branches, each a whole conversation: `prefix | branch 1 | branch 2 | ...`. A
branch sees the prefix and itself only, and its positions count on from the prefix, so each is exactly the prompt that
the processor makes, while the images are encoded once for all of them. One conversation makes a plain row.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .samples import Region, Sample, Turn

IGNORED = -100


@dataclass(frozen=True)
class SizedImage:
    """Stands for an image that has its tiles already, so that the processor writes the image's tokens without pixels.

    It has the names of an encoded image (`encoded_inputs_argus`) with features of no width.
    """

    features: torch.Tensor  # float[tiles, L, 0]
    image_size: tuple[int, int]
    image_options: dict


class Collator:
    """Samples -> the model's inputs. Picklable, so that worker processes can have it.

    Args:
        processor: an ArgusProcessor.
        max_length: tokens of a conversation at most, image tokens included; answers are cut at their end.
        max_tiles: the tile budget, if not the processor's.
        pad_to_multiple_of: rows' lengths.
        answer_weighting: "tokens" or "root", see `DataConfig`.
        naming: whether to make `names`, for the loss at the visual tokens.
        branches: False gives each conversation a row and a copy of the images: for attention that takes no 4D masks.

    Calling it gives pixel_values uint8[tiles, 3, S, S]; input_ids, labels int64[B, T] (-100 for all that is not the
    assistant's); attention_mask int64[B, T]; and, where a row has several branches, position_ids and segments
    int64[B, T] (0 the prefix, 1.. the branches, -1 padding); label_weights float32[B, T] with "root"; names
    int64[tiles, L] with `naming`, -100 where nothing is known.

    Raises:
        ValueError: a sample with no words to learn, or whose images alone are longer than max_length.
    """

    def __init__(
        self,
        processor,
        *,
        max_length: int | None = None,
        max_tiles: int | None = None,
        pad_to_multiple_of: int = 8,
        answer_weighting: str = "tokens",
        naming: bool = False,
        branches: bool = True,
    ):
        self.processor, self.max_length = processor, max_length
        self.image_options = {} if max_tiles is None else {"max_tiles": max_tiles}
        self.pad_to_multiple_of, self.answer_weighting = pad_to_multiple_of, answer_weighting
        self.naming, self.branches = naming, branches

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        tiles, stand_ins, sizes = self._tiles(samples)
        conversations = [
            _messages(turns, images, self.processor.locations if _has_regions(turns) else None)
            for sample, images in zip(samples, stand_ins)
            for turns in sample.conversations
        ]
        encoded = self._encode(samples, conversations)
        rows, pixel_values, names = [], [], []
        for sample, images, size in zip(samples, tiles, sizes):
            branches = [next(encoded) for _ in sample.conversations]
            orders = [_image_order(turns, len(images)) for turns in sample.conversations]
            shared = _shared_length(branches, self.processor.image_token_id) if self.branches else None
            one_row = shared is not None and all(order == orders[0] for order in orders)
            known = self._names(sample, images, size) if self.naming and images else []
            for group, order in [(branches, orders[0])] if one_row else [([b], o) for b, o in zip(branches, orders)]:
                rows.append(_pack(group, shared if len(group) > 1 else 0))
                pixel_values += [images[number] for number in order]
                names += [known[number] for number in order] if known else []
        batch = self._pad(rows)
        if pixel_values:
            batch["pixel_values"] = torch.cat(pixel_values)
        if names:
            batch["names"] = torch.cat(names)
        return batch

    def _tiles(self, samples):
        """Of each sample: its images' tiles, what stands for them in messages, and the images' sizes."""
        flat = [image for sample in samples for image in sample.images]
        if not flat:
            return [[] for _ in samples], [[] for _ in samples], [[] for _ in samples]
        try:
            inputs = self.processor.image_processor(flat, return_tensors="pt", **self.image_options)
        except (ValueError, OSError) as error:
            raise ValueError(f"an image of {self._blame(samples)} cannot be used: {error}") from error
        parts = iter(inputs["pixel_values"].split(inputs["num_patches"].tolist()))
        all_sizes = iter([tuple(size) for size in inputs["image_sizes"].tolist()])
        tiles = [[next(parts) for _ in sample.images] for sample in samples]
        sizes = [[next(all_sizes) for _ in sample.images] for sample in samples]
        length = self.processor.image_seq_length
        stand_ins = [
            [SizedImage(torch.empty(len(t), length, 0), size, self.image_options) for t, size in zip(*pair)]
            for pair in zip(tiles, sizes)
        ]
        return tiles, stand_ins, sizes

    def _blame(self, samples) -> str:
        """The source of the first sample whose images cannot be used."""
        for sample in samples:
            try:
                if sample.images:
                    self.processor.image_processor(list(sample.images), **self.image_options)
            except (ValueError, OSError):
                return sample.source or "a sample"
        return "a batch"

    def _encode(self, samples, conversations):
        """Yields (ids, labels) of each conversation."""
        cut = {} if self.max_length is None else {"truncation": True, "max_length": self.max_length}
        marked = re.search(r"\{%-?\s*generation\b", self.processor.chat_template or "") is not None
        options = {"tokenize": True, "return_dict": True, "return_tensors": None, "padding": False}
        inputs = self.processor.apply_chat_template(
            conversations, return_assistant_tokens_mask=marked, **options, **cut
        )
        ids_of = inputs["input_ids"]
        masks = inputs["assistant_masks"] if marked else self._masks_by_prefix(conversations, ids_of, options)
        sources = iter([sample.source for sample in samples for _ in sample.conversations])
        for ids, mask, source in zip(ids_of, masks, sources):
            if not any(mask):
                raise ValueError(
                    f"a conversation of {source or 'a sample'} has no word of the assistant to learn within "
                    f"{len(ids)} tokens: raise max_length, lower max_tiles, or leave the sample out."
                )
            # What follows the last answer (a line break) is learnt from by nothing.
            end = len(mask) - mask[::-1].index(1)
            yield ids[:end], [token if said else IGNORED for token, said in zip(ids[:end], mask)]

    def _masks_by_prefix(self, conversations, ids_of, options) -> list[list[int]]:
        """1 where the assistant speaks, for a template without {% generation %} marks, as SmolVLM's and InternVL's are.

        An answer is what the conversation up to it, rendered, has more than the prompt for it.
        """
        masks = []
        for messages, ids in zip(conversations, ids_of):
            mask = [0] * len(ids)
            for turn in range(1, len(messages), 2):
                parts = [
                    self.processor.apply_chat_template(messages[:turn], add_generation_prompt=True, **options),
                    self.processor.apply_chat_template(messages[: turn + 1], **options),
                ]
                start, end = (len(part["input_ids"][0]) for part in parts)
                if parts[1]["input_ids"][0][:start] != parts[0]["input_ids"][0]:
                    raise ValueError(
                        "the chat template has no {% generation %} marks, and does not begin an answer as it prompts "
                        "for it: add the marks around the assistant's words (processor.chat_template)."
                    )
                said = ids[start:end]
                if self.processor.tokenizer.eos_token_id in said:  # a line break behind it is nobody's
                    said = said[: len(said) - said[::-1].index(self.processor.tokenizer.eos_token_id)]
                mask[start : start + len(said)] = [1] * len(said)
            masks.append(mask)
        return masks

    def _names(self, sample: Sample, images, sizes) -> list[torch.Tensor]:
        """int64[tiles, L] for each image: the token that names what lies at each visual token."""
        L, tokenizer = self.processor.image_seq_length, self.processor.tokenizer
        if not sample.objects or len(images) != 1:
            return [torch.full((len(tiles), L), IGNORED) for tiles in images]
        grid = self.processor.image_processor.get_tile_grid(*sizes[0], **self.image_options)
        words = [_first_ids(tokenizer, region.caption) for region in sample.objects]
        nothing = tokenizer(".", add_special_tokens=False)["input_ids"][0]
        height, width = sizes[0]
        named = []
        for row in range(grid.rows):
            for column in range(grid.cols):
                box = (column / grid.cols, row / grid.rows, (column + 1) / grid.cols, (row + 1) / grid.rows)
                named.append(_cells(sample.objects, words, nothing, box, height, width, L))
        if grid.thumbnail:
            named.append(_cells(sample.objects, words, nothing, (0, 0, 1, 1), height, width, L))
        return [torch.from_numpy(np.stack(named))]

    def _pad(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        T = -(-max(len(row["input_ids"]) for row in rows) // self.pad_to_multiple_of) * self.pad_to_multiple_of
        fill = {
            "input_ids": self.processor.tokenizer.pad_token_id,
            "labels": IGNORED,
            "position_ids": 0,
            "segments": -1,
        }
        if fill["input_ids"] is None:
            raise ValueError(
                "rows of different lengths need a pad token, and the tokenizer has none: set its pad_token."
            )
        batch = {name: np.full((len(rows), T), value, np.int64) for name, value in fill.items()}
        for i, row in enumerate(rows):
            for name in fill:
                batch[name][i, : len(row[name])] = row[name]
        result = {name: torch.from_numpy(values) for name, values in batch.items()}
        result["attention_mask"] = (result["segments"] >= 0).long()
        if self.answer_weighting == "root":
            result["label_weights"] = torch.from_numpy(_root_weights(batch["labels"], batch["segments"]))
        if not (batch["segments"] > 0).any():  # plain rows need neither
            del result["segments"], result["position_ids"]
        return result


def _has_regions(turns) -> bool:
    return any(not isinstance(turn.answer, str) for turn in turns)


def _image_order(turns: tuple[Turn, ...], count: int) -> list[int]:
    """The numbers of the images, in the order that a conversation shows them."""
    order = list(range(count)) if isinstance(turns[0].prompt, str) else []
    placed = [turn.prompt for turn in turns if not isinstance(turn.prompt, str)]
    return order + [part for prompt in placed for part in prompt if isinstance(part, int)]


def _messages(turns: tuple[Turn, ...], images: list[SizedImage], locations) -> list[dict]:
    """Chat messages of a conversation; its images stand before the first prompt, or where that says."""
    messages = []
    for number, turn in enumerate(turns):
        parts = turn.prompt
        if isinstance(parts, str):
            parts = (*range(len(images)), parts) if number == 0 else (parts,)
        content = [
            {"type": "image", "image": images[part]} if isinstance(part, int) else {"type": "text", "text": part}
            for part in parts
        ]
        answer = turn.answer
        if not isinstance(answer, str):
            if len(images) != 1:
                raise ValueError(f"an answer with boxes is about one image; its conversation has {len(images)}.")
            answer = locations.encode_regions(
                [region.box for region in answer], [region.caption for region in answer], images[0].image_size
            )
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return messages


def _shared_length(branches: list[tuple[list[int], list[int]]], image_token_id: int) -> int | None:
    """How many ids all conversations begin with, where those hold all images; else None.

    Never up to an answer: its first token is predicted from within the branch.
    """
    if len(branches) == 1:
        return 0
    first = branches[0][0]
    length = 0
    for values in zip(*(ids for ids, _ in branches)):
        if any(value != values[0] for value in values):
            break
        length += 1
    answers = min(next(i for i, label in enumerate(labels) if label != IGNORED) for _, labels in branches)
    length = min(length, answers - 1)
    count = first.count(image_token_id)
    holds = (
        all(ids.count(image_token_id) == count for ids, _ in branches) and first[:length].count(image_token_id) == count
    )
    return length if length > 0 and holds else None


def _pack(branches: list[tuple[list[int], list[int]]], shared: int) -> dict[str, list[int]]:
    """One row of ids, labels, positions and segments; with nothing shared, a plain row in segment 0."""
    if not shared:
        ids, labels = branches[0]
        return {"input_ids": ids, "labels": labels, "position_ids": range(len(ids)), "segments": [0] * len(ids)}
    row = {"input_ids": branches[0][0][:shared], "labels": [IGNORED] * shared}
    row |= {"position_ids": list(range(shared)), "segments": [0] * shared}
    for number, (ids, labels) in enumerate(branches, start=1):
        row["input_ids"] += ids[shared:]
        row["labels"] += labels[shared:]
        row["position_ids"] += range(shared, len(ids))
        row["segments"] += [number] * (len(ids) - shared)
    return row


def _root_weights(labels: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """float32[B, T]: each token of a conversation with n to learn counts 1 / sqrt(n)."""
    weights = np.zeros(labels.shape, np.float32)
    for row in range(len(labels)):
        known = labels[row] != IGNORED
        for number in np.unique(segments[row][known]):
            wanted = known & (segments[row] == number)
            weights[row, wanted] = wanted.sum() ** -0.5
    return weights


def _first_ids(tokenizer, caption: str) -> list[int]:
    """The first token of each of the caption's last two words, "a" and "the" left out: colour and shape by turns."""
    words = [word for word in caption.split() if word not in ("a", "an", "the")][-2:]
    return [tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in words]


def _cells(objects: Sequence[Region], words, nothing: int, box, height: int, width: int, L: int) -> np.ndarray:
    """int64[L]: of one tile, that covers `box` (shares of the image), the name at each visual token's centre."""
    side = round(L**0.5)
    labels = np.full((side, side), nothing, np.int64)
    left, top, right, bottom = box
    ys = (top + (bottom - top) * (np.arange(side) + 0.5) / side) * height
    xs = (left + (right - left) * (np.arange(side) + 0.5) / side) * width
    turns = np.add.outer(np.arange(side), np.arange(side))
    order = sorted(range(len(objects)), key=lambda i: -_area(objects[i].box))  # the smallest is what is named
    for i in order:
        if words[i]:
            x1, y1, x2, y2 = objects[i].box
            inside = ((ys >= y1) & (ys < y2))[:, None] & ((xs >= x1) & (xs < x2))[None]
            labels = np.where(inside, np.array(words[i])[turns % len(words[i])], labels)
    return labels.flatten()


def _area(box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
