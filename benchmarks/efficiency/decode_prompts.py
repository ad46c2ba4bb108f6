"""Prompts of decode.py that both models take, with what their images have become.

That is computed once, by Argus, and handed to both: decoding knows nothing of vision, and on a CPU the noise of seconds
of vision would hide the tokens.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch

from .models import image_token_id
from .offline_tokenizer import offline_tokenizer
from .shapes import Shape

FIRST_TEXT_ID = 100  # the special tokens stand below it
ROOM_FOR_TEXT = 16


@dataclass
class Prompt:
    """Ids int64[B, T], a mask where rows are padded on the left, and what the tiles of one row have become.

    Attributes:
        features: float[tiles, tokens_per_tile, D], the same in every row; None without images.
        form: a result of transformers' `get_image_features`, whose form differs between versions.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    features: torch.Tensor | None = None
    form: Any = None

    def inputs(self, ours: bool) -> dict:
        """Keyword arguments of `generate()`."""
        inputs = {"input_ids": self.ids, "attention_mask": self.mask}
        if self.features is None:
            return inputs
        B, tiles = self.ids.shape[0], len(self.features)
        if ours:
            return {**inputs, "mm_encoder_outputs": {"image": self.features.repeat(B, 1, 1)}}
        return {**inputs, "pixel_values": self.features.new_zeros(B, tiles, 3, 1, 1)}  # `known_images` has the answer

    def for_theirs(self, dtype: torch.dtype):
        """The features of all rows as transformers' `get_image_features` gives them."""
        rows = self.features.to(dtype).repeat(len(self.ids), 1, 1)
        if isinstance(self.form, torch.Tensor):
            return rows
        form = copy.copy(self.form)
        in_one = isinstance(form.pooler_output, torch.Tensor)
        form.pooler_output = rows if in_one else list(rows.view(len(self.ids), -1, rows.shape[-1]))
        return form


@torch.no_grad()
def make_prompt(shape: Shape, reference, ours, contexts: list[int], seed: int = 0, max_tiles: int = 13) -> Prompt:
    """A row a context, random text around the tokens of as many tiles as fit into the shortest; Qwen3-VL gets text.

    The tiles are random bytes, encoded by Argus for both sides, and the same in all rows.
    """
    device, kind = reference.device, shape.kind
    generator = torch.Generator().manual_seed(seed)
    image = image_token_id(kind)
    vocabulary = reference.config.get_text_config().vocab_size
    longest, tiles = max(contexts), 0
    if kind != "qwen3_vl":
        tiles = max(0, min(max_tiles, (min(contexts) - ROOM_FOR_TEXT) // shape.tokens_per_tile))
    visual = tiles * shape.tokens_per_tile
    ids = torch.full((len(contexts), longest), offline_tokenizer(kind).pad_token_id)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(contexts):
        text = torch.randint(FIRST_TEXT_ID, vocabulary, (length - visual,), generator=generator)
        before = min(4, len(text))
        ids[row, longest - length :] = torch.cat((text[:before], torch.full((visual,), image), text[before:]))
        mask[row, longest - length :] = 1
    prompt = Prompt(ids.to(device), mask.to(device))
    if tiles:
        side = shape.tile_size
        pixels = torch.randint(0, 256, (tiles, 3, side, side), dtype=torch.uint8, generator=generator).to(device)
        prompt.features = ours.get_image_features(pixels, return_dict=True).pooler_output
        black = prompt.features.new_full((1, 3, side, side), -1.0)
        prompt.form = reference.model.get_image_features(pixel_values=black[None] if kind == "smolvlm" else black)
    return prompt
