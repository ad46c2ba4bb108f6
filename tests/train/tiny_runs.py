"""What the training tests share: samples made of coloured squares, and a tiny nano to train on them."""

from dataclasses import replace

import numpy as np

from argus_tools.train.samples import Region, Sample, Turn

NANO = {
    "vision": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    "text": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    "num_location_bins": 64,
}
COLOURS = {"red": (220, 20, 20), "green": (20, 180, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}


def square_sample(index: int, side: int = 32, conversations: int = 3) -> Sample:
    """A coloured square on black: where it is, what colour it has, and a conversation of two turns."""
    rng = np.random.default_rng([7, index])
    colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
    size = int(rng.integers(side // 4, side // 2))
    x, y = (int(rng.integers(0, side - size)) for _ in range(2))
    image = np.zeros((side, side, 3), np.uint8)
    image[y : y + size, x : x + size] = COLOURS[colour]
    region = Region((x, y, x + size, y + size), f"a {colour} square")
    turns = (
        (Turn("Describe and locate every object.", (region,)),),
        (Turn("What color is the square?", f"{colour.capitalize()}."), Turn("Is there a circle?", "No.")),
        (Turn("Describe the image.", f"A {colour} square."),),
    )
    return Sample((image,), turns[:conversations], (region,), f"square {index}")


class Squares:
    """A reader of squares: `count` of them, each with so many conversations.

    text_every, broken_every: each n-th is of text alone, has an image that cannot be read (0: none).
    """

    def __init__(self, count: int = 64, conversations: int = 3, text_every: int = 0, broken_every: int = 0):
        self.count, self.conversations = count, conversations
        self.text_every, self.broken_every = text_every, broken_every

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if self.text_every and index % self.text_every == 0:
            return Sample((), ((Turn("Is there an image?", "No."),),), source=f"text {index}")
        sample = square_sample(index, conversations=self.conversations)
        broken = self.broken_every and index % self.broken_every == 0
        return replace(sample, images=(b"no image",)) if broken else sample
