"""Rendered scenes as training data: item i is drawn when it is asked for, with several conversations about it.

Nothing is stored, and no item is another: each is a pure function of the reader's arguments and i. (Which i a stage
draws is the mixture's; two stages may meet the same.)
"""

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from argus_tools.scenes import SCENES_VERSION, SPLITS, TASKS, Scene, ask, atlas_info, class_names, render_scene

from ..samples import Region, Sample, Turn
from ..typed import at_least, build

# Grids of tiles, (rows, columns), of the canvases of several tiles.
GRIDS = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
SIZES = ("one_tile", "several_tiles", "mixed")
SEED_STRIDE = 10_000_000
CONVERSATIONS = ("dense_caption", "detect", "detect", "caption", "answer", "answer", "answer")


@dataclass(eq=False)
class ScenesReader:
    """`count` scenes of a split, each with one conversation for every entry of `conversations`.

    Args:
        count: how many scenes, at most ten million; seed: different seeds have different scenes.
        split: "train", "val" or "test".
        height, width: one tile in pixels.
        max_objects: the most objects in a scene; by default 5 on one tile and 10 on several.
        sizes: "one_tile" (a third of the scenes on a canvas of another size and shape, which the processor squashes
            into the tile), "several_tiles" (two to four tiles) or "mixed" (every sixth scene of several tiles).
        conversations: the task of each conversation, of `argus_tools.scenes.TASKS`. Every seventh item's last one goes
            on with a second turn, a question.
        styles: drawing styles; by default those for training. classes: what to draw; by default everything.

    Raises ValueError for options of another type, an unknown split, size, task, style or class, and for numbers out of
    range.
    """

    count: int = 1_000_000
    split: str = "train"
    seed: int = 0
    height: int = 144
    width: int = 144
    max_objects: int | None = None
    sizes: str = "one_tile"
    conversations: tuple[str, ...] = CONVERSATIONS
    styles: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None

    NAME: ClassVar[str] = "scenes"

    def __post_init__(self):
        for each in fields(self):
            setattr(self, each.name, build(each.type, getattr(self, each.name), f"scenes: {each.name}"))
        info = atlas_info()
        for name, value, known in (
            ("split", self.split, tuple(SPLITS)),
            ("sizes", self.sizes, SIZES),
            *(("conversations", task, TASKS) for task in self.conversations),
            *(("styles", style, info["styles"] + info["unseen_styles"]) for style in self.styles or ()),
            *(("classes", name, class_names()) for name in self.classes or ()),
        ):
            if value not in known:
                raise ValueError(f"scenes: {name} holds {value!r}; what is known is {', '.join(known)}.")
        if not 1 <= self.count <= SEED_STRIDE:
            raise ValueError(f"scenes: count must be 1 to {SEED_STRIDE}, got {self.count}.")
        if self.max_objects is not None and not 1 <= self.max_objects <= 10:
            raise ValueError(f"scenes: max_objects must be 1 to 10, got {self.max_objects}.")
        for name, low in (("seed", 0), ("height", 16), ("width", 16)):
            at_least(getattr(self, name), low, f"scenes: {name}")
        if not self.conversations:
            raise ValueError(f"scenes: conversations needs at least one of {', '.join(TASKS)}.")

    def _key(self) -> str:
        """What the scenes are drawn by, for runs that go on."""
        return f"scenes-{SCENES_VERSION}"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"scenes: item {index} of {self.count}.")
        rng = np.random.default_rng([self.seed, 77, SPLITS[self.split], index])
        scene = self.scene(index, rng)
        conversations = [[_turn(ask(scene, rng, task))] for task in self.conversations]
        if rng.random() < 1 / 7:
            conversations[-1].append(_turn(ask(scene, rng, "answer")))
        return Sample(
            images=(scene.image,),
            conversations=tuple(tuple(turns) for turns in conversations),
            objects=tuple(Region(o.box, o.label) for o in scene.objects),
            source=f"scenes {self.split} {index}",
        )

    def scene(self, index: int, rng: np.random.Generator) -> Scene:
        """Scene of item `index`, on a canvas that `rng` chooses."""
        several = self.sizes == "several_tiles" or (self.sizes == "mixed" and rng.random() < 1 / 6)
        if several:
            rows, columns = GRIDS[int(rng.integers(len(GRIDS)))]
            height, width, most = rows * self.height, columns * self.width, self.max_objects or 10
        else:
            height, width, most = self.height, self.width, self.max_objects or 5
            if rng.random() < 1 / 3:
                scale = math.exp(rng.uniform(math.log(0.8), math.log(2.0)))
                aspect = math.exp(rng.uniform(-0.4, 0.4))
                height, width = round(height * scale * aspect**0.5), round(width * scale / aspect**0.5)
        number = self.seed * SEED_STRIDE + index
        drawn = {"styles": self.styles or None, "classes": self.classes or None}
        return render_scene(number, self.split, height=height, width=width, max_objects=most, **drawn)


def _turn(asked) -> Turn:
    if isinstance(asked.answer, str):
        return Turn(asked.prompt, asked.answer)
    return Turn(asked.prompt, tuple(Region(box, text) for box, text in asked.answer))
