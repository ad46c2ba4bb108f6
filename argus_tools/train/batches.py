"""Training batches: rendered scenes as flat uint8 tiles, with several exchanges about each scene in one row of ids.

A row is the image's prefix and then branches, each a whole exchange: `prefix | branch 1 | branch 2 | ...`. A branch
sees the prefix and itself only, and its positions count on from the prefix, so every branch is exactly the prompt that
the processor makes, while the image is encoded once for all of them: two to three times as many answers in a second.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from argus_tools.scenes.render import Scene, render_scene
from argus_tools.scenes.text import Example, make_example

from .tokenizer import BOS, EOS, IMAGE, IMAGE_END, IMAGE_START

IGNORED = -100
# Grids of the multi-tile share, (rows, columns); each has a thumbnail after its tiles.
GRIDS = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
BRANCHES = ("dense_caption", "detect", "detect", "caption", "answer", "answer", "answer")


@dataclass(frozen=True)
class BatchPlan:
    """What a batch holds; a batch is a pure function of the plan, the tokenizer and its number.

    scenes: single-tile scenes a batch; a multi-tile batch holds a quarter of them. multi_tile_every: every n-th batch
    is a multi-tile one, from `multi_tile_from` on (0: none). tokens_per_tile: the model's `image_seq_length`.
    curriculum: (from batch, most objects in a scene) in rising order, the first from batch 0.
    """

    scenes: int = 24
    tile_size: int = 128
    tokens_per_tile: int = 64
    bins: int = 64
    seed: int = 0
    split: str = "train"
    multi_tile_every: int = 0
    multi_tile_from: int = 0
    curriculum: tuple[tuple[int, int], ...] = ((0, 5),)

    def max_objects(self, number: int) -> int:
        """The most objects that a scene of batch `number` can hold."""
        return [count for start, count in self.curriculum if number >= start][-1]


def encode_prefix(tokenizer: Tokenizer, tiles: int, tokens_per_tile: int) -> list[int]:
    """Ids of everything up to the user's words, for an image of `tiles` tiles (thumbnail included)."""
    ids = tokenizer.encode(f"{BOS}User:{IMAGE_START}").ids
    return ids + [tokenizer.token_to_id(IMAGE)] * (tiles * tokens_per_tile) + [tokenizer.token_to_id(IMAGE_END)]


def encode_exchange(tokenizer: Tokenizer, examples: list[Example]) -> tuple[list[int], list[int]]:
    """Ids after the image and their labels, -100 except for the assistant's words and end tokens.

    Several examples are consecutive turns of one conversation.
    """
    ids, labels = [], []
    for i, example in enumerate(examples):
        question = f"\nUser: {example.prompt}{EOS}\nAssistant:" if i else f"{example.prompt}{EOS}\nAssistant:"
        asked = tokenizer.encode(question).ids
        said = tokenizer.encode(f" {example.answer}{EOS}").ids
        ids += asked + said
        labels += [IGNORED] * len(asked) + said
    return ids, labels


def scene_tiles(scene: Scene, rows: int, columns: int, tile_size: int) -> np.ndarray:
    """uint8[tiles, 3, S, S]: the scene split row by row and, if there is more than one tile, its thumbnail last."""
    S = tile_size
    canvas = scene.image
    if canvas.shape[:2] != (rows * S, columns * S):
        canvas = np.asarray(Image.fromarray(canvas).resize((columns * S, rows * S), Image.Resampling.BICUBIC))
    tiles = canvas.reshape(rows, S, columns, S, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, S, S)
    if rows * columns == 1:
        return tiles
    thumbnail = np.asarray(Image.fromarray(canvas).resize((S, S), Image.Resampling.BICUBIC))
    return np.concatenate([tiles, thumbnail.transpose(2, 0, 1)[None]])


def pack_row(prefix: list[int], branches: list[tuple[list[int], list[int]]]) -> dict[str, np.ndarray]:
    """One row: ids, labels, positions and segments (0 for the prefix, 1.. for the branches), each int64[T]."""
    ids, labels = list(prefix), [IGNORED] * len(prefix)
    positions, segments = list(range(len(prefix))), [0] * len(prefix)
    for number, (branch, targets) in enumerate(branches, start=1):
        ids += branch
        labels += targets
        positions += range(len(prefix), len(prefix) + len(branch))
        segments += [number] * len(branch)
    return {
        k: np.array(v) for k, v in zip(("ids", "labels", "positions", "segments"), (ids, labels, positions, segments))
    }


def attention_pattern(segments: torch.Tensor) -> torch.Tensor:
    """bool[B, 1, T, T] from int64[B, T] segments (-1: padding): causal, within the prefix and the own branch."""
    T = segments.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    key, query = segments[:, None, None, :], segments[:, None, :, None]
    # A padding position sees itself, or its softmax would be over nothing.
    return causal & ((key == 0) | (key == query))


def shift_labels(labels: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Labels at the position that predicts them: the token before, in the same branch."""
    shifted = np.full_like(labels, IGNORED)
    same = segments[1:] == segments[:-1]
    shifted[:-1][same] = labels[1:][same]
    return shifted


def answer_weights(labels: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """float[T]: what each label counts. An answer of n tokens counts sqrt(n): by tokens alone, a yes or no would be
    lost beside a list of boxes; as equals, boxes beside a yes or no."""
    weights = np.zeros(len(labels))
    for number in range(1, int(segments.max()) + 1):
        wanted = (segments == number) & (labels != IGNORED)
        weights[wanted] = wanted.sum() ** -0.5
    return weights


def cell_labels(tokenizer: Tokenizer, scene: Scene, tokens_per_tile: int) -> np.ndarray:
    """int64[tokens_per_tile]: for each visual token of a single tile the first token of the name of what lies there.

    The smallest object whose box holds the token's centre; "." where there is none. Of a coloured shape's two words
    the tokens name colour and shape by turns.
    """
    side = round(tokens_per_tile**0.5)
    height, width = scene.size
    labels = np.full((side, side), tokenizer.token_to_id("."))
    for o in sorted(scene.objects, key=lambda o: -(o.box[2] - o.box[0]) * (o.box[3] - o.box[1])):
        ys = (np.arange(side) + 0.5) / side * height
        xs = (np.arange(side) + 0.5) / side * width
        inside = ((ys >= o.box[1]) & (ys < o.box[3]))[:, None] & ((xs >= o.box[0]) & (xs < o.box[2]))[None]
        words = [tokenizer.encode(f" {word}").ids[0] for word in ((o.colour, o.name) if o.colour else (o.name, o.name))]
        turns = np.add.outer(np.arange(side), np.arange(side)) % 2
        labels = np.where(inside, np.array(words)[turns], labels)
    return labels.flatten()


def scene_for(plan: BatchPlan, number: int, index: int, rng: np.random.Generator, grid: tuple[int, int]) -> Scene:
    """Scene `index` of the split, for batch `number`. A third of the single-tile ones are drawn on another canvas and
    squashed into the tile, as the processor does with images of any size."""
    rows, columns = grid
    height, width = rows * plan.tile_size, columns * plan.tile_size
    if grid == (1, 1) and rng.random() < 0.33:
        scale = float(np.exp(rng.uniform(np.log(0.8), np.log(2.0))))
        aspect = float(np.exp(rng.uniform(-0.4, 0.4)))
        height, width = round(height * scale * aspect**0.5), round(width * scale / aspect**0.5)
    return render_scene(index, plan.split, height=height, width=width, max_objects=plan.max_objects(number))


def make_batch(plan: BatchPlan, tokenizer: Tokenizer, number: int) -> dict[str, torch.Tensor]:
    """Batch `number`.

    Returns:
        pixel_values uint8[tiles, 3, S, S]; input_ids, position_ids, segments and labels int64[B, T], the labels already
        shifted to the position that predicts them; weights float32[B, T], what each counts; cells int64[B, T],
        `cell_labels` at the visual tokens themselves; T a multiple of 8.
    """
    rng = np.random.default_rng([plan.seed, 77, number])
    multi = plan.multi_tile_every and number >= plan.multi_tile_from and number % plan.multi_tile_every == 0
    grid = GRIDS[int(rng.integers(len(GRIDS)))] if multi else (1, 1)
    count = max(2, plan.scenes // 4) if multi else plan.scenes
    tiles, rows = [], []
    for i in range(count):
        scene = scene_for(plan, number, (plan.seed * 10_000_000 + number) * plan.scenes + i, rng, grid)
        tiles.append(scene_tiles(scene, *grid, plan.tile_size))
        prefix = encode_prefix(tokenizer, len(tiles[-1]), plan.tokens_per_tile)
        examples = [[make_example(scene, rng, task, plan.bins)] for task in BRANCHES]
        if rng.random() < 0.15:  # two questions as two turns of one conversation
            examples[-2:] = [examples[-2] + examples[-1]]
        rows.append(pack_row(prefix, [encode_exchange(tokenizer, e) for e in examples]))
        cells = np.full(len(prefix), IGNORED)
        if not multi:
            cells[-1 - plan.tokens_per_tile : -1] = cell_labels(tokenizer, scene, plan.tokens_per_tile)
        rows[-1]["cells"] = cells
    T = -(-max(len(row["ids"]) for row in rows) // 8) * 8
    fill = {"ids": tokenizer.token_to_id("<pad>"), "labels": IGNORED, "positions": 0, "segments": -1, "cells": IGNORED}
    out = {name: np.full((count, T), value, np.int64) for name, value in fill.items()}
    weights = np.zeros((count, T), np.float32)
    for i, row in enumerate(rows):
        row["labels"] = shift_labels(row["labels"], row["segments"])
        weights[i, : len(row["ids"])] = answer_weights(row["labels"], row["segments"])
        for name in out:
            out[name][i, : len(row[name])] = row[name]
    return {
        "pixel_values": torch.from_numpy(np.concatenate(tiles)),
        "input_ids": torch.from_numpy(out["ids"]),
        "position_ids": torch.from_numpy(out["positions"]),
        "segments": torch.from_numpy(out["segments"]),
        "labels": torch.from_numpy(out["labels"]),
        "weights": torch.from_numpy(weights),
        "cells": torch.from_numpy(out["cells"]),
    }


class SceneBatches(torch.utils.data.Dataset):
    """Batches by number, for a DataLoader with `batch_size=None`: batch `first + i` at index i."""

    def __init__(self, plan: BatchPlan, tokenizer: Tokenizer, first: int, length: int):
        self.plan, self.tokenizer, self.first, self.length = plan, tokenizer, first, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return make_batch(self.plan, self.tokenizer, self.first + index)
