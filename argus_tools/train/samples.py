"""What every source of training data yields: images, and conversations about them, with boxes still in pixels.

Boxes become text only when a batch is made, with the vocabulary of the model's processor (Section 4.2), so that
readers and augmentations know nothing of bins, and one data set serves both formulations of Table 4.
"""

from dataclasses import dataclass
from typing import Any

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Region:
    """`box` x1, y1, x2, y2 in pixels of the image, and what is there, in words."""

    box: Box
    caption: str


@dataclass(frozen=True)
class Turn:
    """What the user says and what the assistant answers: words, or regions of the conversation's only image.

    A prompt that is a string stands behind all the images in a conversation's first turn. A tuple says where each
    image stands: strings and numbers of images, ("Compare ", 0, " with ", 1).
    """

    prompt: str | tuple[str | int, ...]
    answer: str | tuple[Region, ...]


@dataclass(frozen=True)
class Sample:
    """`images` in any form that the processor takes, and one or more conversations, each of which knows nothing of the
    others. `objects`: everything in the only image, where that is known. `source` says where it is from, for errors."""

    images: tuple[Any, ...]
    conversations: tuple[tuple[Turn, ...], ...]
    objects: tuple[Region, ...] = ()
    source: str = ""
