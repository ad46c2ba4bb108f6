"""Rendered scenes as training data: item i is drawn when it is asked for, with several conversations about it.

Nothing is stored and nothing repeats: an item is a pure function of the reader's arguments and i.
"""

import math

import numpy as np

from argus_tools.scenes import SPLITS, TASKS, Scene, ask, atlas_info, class_names, render_scene

from ..samples import Region, Sample, Turn

# Grids of tiles, (rows, columns), of the canvases of several tiles.
GRIDS = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
SIZES = ("one_tile", "several_tiles", "mixed")
SEED_STRIDE = 10_000_000
CONVERSATIONS = ("dense_caption", "detect", "detect", "caption", "answer", "answer", "answer")


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

    Raises ValueError for an unknown split, size, task, style or class, and for counts out of range.
    """

    NAME = "scenes"

    def __init__(
        self,
        count: int = 1_000_000,
        split: str = "train",
        seed: int = 0,
        height: int = 144,
        width: int = 144,
        max_objects: int | None = None,
        sizes: str = "one_tile",
        conversations=CONVERSATIONS,
        styles=None,
        classes=None,
    ):
        info = atlas_info()
        for name, value, known in (
            ("split", split, tuple(SPLITS)),
            ("sizes", sizes, SIZES),
            *(("conversations", task, TASKS) for task in conversations),
            *(("styles", style, info["styles"] + info["unseen_styles"]) for style in styles or ()),
            *(("classes", name, class_names()) for name in classes or ()),
        ):
            if value not in known:
                raise ValueError(f"scenes: {name} holds {value!r}; what is known is {', '.join(known)}.")
        if not 1 <= count <= SEED_STRIDE:
            raise ValueError(f"scenes: count must be 1 to {SEED_STRIDE}, got {count}.")
        if max_objects is not None and not 1 <= max_objects <= 10:
            raise ValueError(f"scenes: max_objects must be 1 to 10, got {max_objects}.")
        if seed < 0 or not conversations:
            raise ValueError(
                f"scenes: a seed of at least 0 and a conversation are needed, got {seed}, {conversations}."
            )
        self.count, self.split, self.seed, self.height, self.width = count, split, seed, height, width
        self.max_objects, self.sizes, self.conversations = max_objects, sizes, tuple(conversations)
        self.options = {"styles": tuple(styles) if styles else None, "classes": tuple(classes) if classes else None}

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
        return render_scene(number, self.split, height=height, width=width, max_objects=most, **self.options)


def _turn(asked) -> Turn:
    if isinstance(asked.answer, str):
        return Turn(asked.prompt, asked.answer)
    return Turn(asked.prompt, tuple(Region(box, text) for box, text in asked.answer))
