"""Data sets in LLaVA's form: ShareGPT4V, Vision-FLAN (and ALLaVA's answers to it), MGM-Instruct.

One JSON array of {"id", "image", "conversations": [{"from": "human" | "gpt", "value": "<image>\\nWhat ...?"}, ...]},
read one element at a time (`json_stream`). "image" may be missing (text alone) or a list. The file is Arrow
afterwards: opening it again takes no memory.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from ..samples import Turn
from .json_stream import iterate_json
from .reading import Reader, get, import_datasets, shorten

MARKER = "<image>"
_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}


@dataclass(eq=False)
class LlavaReader(Reader):
    """What the three share.

    A message before the first human one is left out, as LLaVA's own code does, so is a last question without an answer;
    turns whose answer is blank teach nothing and are left out too, and a record that nothing is left of.

    Args:
        text_only: "keep" or "drop" records without an image.
    """

    text_only: str = "keep"

    CHOICES: ClassVar = {**Reader.CHOICES, "text_only": ("keep", "drop")}

    def features(self):
        value = import_datasets().Value
        return {"turns": [{"prompt": value("string"), "answer": value("string")}]}

    def records(self, notes):
        for number, (key, record) in enumerate(iterate_json(self.path)):
            where = self.where(number)
            if key is not None:
                raise ValueError(f"{self.path} holds an object, where {self._who()} expects an array of conversations.")
            images = self._images(record, where)
            turns = self._turns(get(record, "conversations", list, where), len(images), where)
            if turns and (images or self.text_only == "keep"):
                yield {"record": number, "images": images, "turns": turns}

    def _images(self, record, where: str) -> list[str]:
        """The names under "image": a string, a list of them, or nothing."""
        if not isinstance(record, dict) or record.get("image") in (None, "", []):
            return []
        images = get(record, "image", (str, list), where)
        images = [images] if isinstance(images, str) else images
        if not all(isinstance(name, str) and name for name in images):
            raise ValueError(f"{where}: 'image' must be a name or a list of names, got {shorten(images)}.")
        return images

    def _turns(self, messages: list, num_images: int, where: str) -> list[dict[str, str]]:
        spoken = []
        for place, message in enumerate(messages):
            here = f"{where}, message {place}"
            role = get(message, "from", str, here)
            if role not in _ROLES:
                raise ValueError(f"{here} is from {role!r}; it can be from {', '.join(_ROLES)}.")
            if _ROLES[role] != "system":
                spoken.append((_ROLES[role], get(message, "value", str, here)))
        while spoken and spoken[0][0] != "human":
            spoken.pop(0)
        if any(role != ("human", "gpt")[place % 2] for place, (role, _) in enumerate(spoken)):
            raise ValueError(f"{where}: its messages are not by turns from human and gpt.")
        pairs = list(zip(spoken[::2], spoken[1::2]))
        markers = sum(prompt.count(MARKER) for (_, prompt), _ in pairs)
        if markers not in (0, num_images):
            raise ValueError(f"{where} has {markers} {MARKER} for {num_images} images.")
        if markers and pairs[0][0][1].count(MARKER) < markers and num_images == 1:
            raise ValueError(f"{where}: {MARKER} does not stand in its first question.")
        turns = [{"prompt": prompt, "answer": answer.strip()} for (_, prompt), (_, answer) in pairs]
        # A blank answer to the question that shows an image would take the image with it.
        kept = [turn for turn in turns if self.wants(turn)]
        return kept if sum(turn["prompt"].count(MARKER) for turn in kept) == markers else []

    def wants(self, turn: dict[str, str]) -> bool:
        """Whether a turn is to be learnt."""
        return bool(turn["answer"])

    def talk(self, row, images, where):
        turns, shown = [], 0
        marked = any(MARKER in turn["prompt"] for turn in row["turns"])
        for turn in row["turns"]:
            prompt = _prompt(turn["prompt"], shown, total=len(images) if marked and not turns else 0)
            shown += turn["prompt"].count(MARKER)
            turns.append(Turn(prompt, turn["answer"]))
        return (tuple(turns),), ()


def _prompt(text: str, shown: int, total: int) -> str | tuple[str | int, ...]:
    """A question with its markers -> its words where all `total` images stand in front, else the parts in their order.

    One image goes in front of its question wherever its marker stands, as in LLaVA's training.
    """
    pieces = text.split(MARKER)
    words = [piece.strip() for piece in pieces if piece.strip()]
    in_front = not any(piece.strip() for piece in pieces[:-1])
    if len(pieces) - 1 == total and (total == 1 or (in_front and len(words) <= 1)):
        return "\n".join(words)
    parts: list[str | int] = []
    for place, piece in enumerate(pieces):
        if place:
            parts.append(shown + place - 1)
        piece = re.sub(r"^\n|\n$", "", piece)
        if piece.strip():
            parts.append(piece)
    return tuple(parts)


@dataclass(eq=False)
class ShareGPT4V(LlavaReader):
    """ShareGPT4V (Chen et al., 2024b; Lin-Chen/ShareGPT4V): share-captioner_coco_lcs_sam_1246k_1107.json, captions by
    ShareCaptioner; sharegpt4v_instruct_gpt4-vision_cap100k.json, by GPT-4V; and the mixture of instructions,
    sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k.json.

    `images` is the folder that has coco/, sam/, llava/, ... in it. The 665k mixture holds text alone too, and boxes of
    RefCOCO and Visual Genome as plain text, which stay text.
    """

    NAME: ClassVar[str] = "sharegpt4v"


@dataclass(eq=False)
class VisionFlan(LlavaReader):
    """Vision-FLAN: annotation_191-task_1k.json; and ALLaVA-Instruct-VFLAN-4V.json, ALLaVA-Caption-VFLAN-4V.json, its
    images with GPT-4V's answers, which the paper means by VFLAN (Chen et al., 2024a).

    `images` is images_191task_1k. ALLaVA's names have folders in front ("allava_vflan/images/images_191task_1k/x.jpg"),
    which need not be there.
    """

    NAME: ClassVar[str] = "vision_flan"

    def image_names(self, name):
        return (name, name.rsplit("/", 1)[-1])


@dataclass(eq=False)
class MGMInstruct(LlavaReader):
    """MGM-Instruct (Mini-Gemini, Li et al., 2024b; YanweiLi/MGM-Instruction): mgm_instruction.json.

    `images` is the folder that has coco/, gqa/, ocr_vqa/, gpt4v-dataset/, docvqa/, ... in it. The file includes the set
    of mgm_generation_pure_text.json, questions that end in <GEN> and answers with prompts for an image generator in
    <h>...</h>: those turns are left out, as this model makes no images.
    """

    NAME: ClassVar[str] = "mgm_instruct"

    def wants(self, turn):
        generates = turn["prompt"].rstrip().endswith("<GEN>") or ("<h>" in turn["answer"] and "</h>" in turn["answer"])
        return super().wants(turn) and not generates
