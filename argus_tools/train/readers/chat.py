"""One's own data: chat messages with boxes, one JSON object a line.

    {"images": ["a.jpg"], "messages": [
        {"role": "user", "content": "Describe and locate every object."},
        {"role": "assistant", "content": [{"box": [10, 20, 110, 90], "caption": "a red cup"}]}]}

"conversations", a list of lists of messages, stands for "messages" where several conversations are about the same
images: they are encoded once for all of them, and none sees another.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from ..samples import Region, Turn
from .reading import Reader, clamp_box, get, get_box, import_datasets, read_lines, shorten, upright_size

_LOCATION = re.compile(r"<loc_[0-9]+>")


@dataclass(eq=False)
class Chat(Reader):
    """One sample a line.

    "images" are names relative to `images` (default: the file's own folder); the key may be left out. Messages are by
    turns from "user" and "assistant"; "content" is a string or a list of parts. A user's parts are {"type": "text",
    "text": ...} and {"type": "image"}, the next image; without any such part all images stand in front. An assistant's
    parts are text, or regions {"box": [x1, y1, x2, y2], "caption": ...} in pixels of the line's only image, upright; an
    empty list says that nothing is there. Boxes are clamped to the image, those wholly outside of it are dropped.
    A line is a bad sample (ValueError) where an answer is blank, has a box without area, has all boxes outside, or has
    all boxes in 0..1: normalised ones, which would otherwise teach that everything lies in the first pixel.
    """

    NAME: ClassVar[str] = "chat"

    def features(self):
        value = import_datasets().Value
        region = {"box": [value("float64")], "caption": value("string")}
        turn = {
            "prompt": [{"text": value("string"), "image": value("int32")}],
            "answer": value("string"),
            "regions": [region],
        }
        return {"conversations": [[turn]]}

    def records(self, notes):
        for number, record in read_lines(self.path):
            where = self.where(number)
            if not isinstance(record, dict) or ("messages" in record) == ("conversations" in record):
                raise ValueError(f"{where} must be an object with either 'messages' or 'conversations'.")
            if unknown := sorted(set(record) - {"images", "messages", "conversations", "id"}):
                raise ValueError(f"{where} has an unknown key {unknown[0]!r}; it can have images, messages, id, ...")
            images = get(record, "images", list, where) if "images" in record else []
            if not all(isinstance(name, str) and name for name in images):
                raise ValueError(f"{where}: 'images' must be a list of file names, got {shorten(images)}.")
            several = "conversations" in record
            conversations = get(record, "conversations", list, where) if several else [record["messages"]]
            rows = [
                _turns(messages, len(images), f"{where}, conversation {i}" if several else where)
                for i, messages in enumerate(conversations)
            ]
            if not rows:
                raise ValueError(f"{where}: 'conversations' is empty.")
            yield {"record": number, "images": images, "conversations": rows}

    def where(self, record):
        return f"{self.path}, line {record + 1}"

    def talk(self, row, images, where):
        size = None
        conversations = []
        for turns in row["conversations"]:
            conversation: list[Turn] = []
            for turn in turns:
                prompt = tuple(part["text"] if part["image"] is None else part["image"] for part in turn["prompt"])
                answer = turn["answer"]
                if answer is None:
                    size = size or upright_size(images[0], where)
                    answer = _regions(turn["regions"], size, where)
                elif not answer.strip():
                    raise ValueError(f"{where}: the answer {answer!r} is blank; [] says that nothing is there.")
                conversation.append(Turn(_plain(prompt, 0 if conversation else len(images)), answer))
            conversations.append(tuple(conversation))
        return tuple(conversations), ()


def _turns(messages, num_images: int, where: str) -> list[dict]:
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        raise ValueError(f"{where} needs messages by turns from user and assistant, got {shorten(messages)}.")
    turns, shown = [], 0
    for place in range(0, len(messages), 2):
        prompt, shown = _prompt(messages[place], shown, f"{where}, message {place}")
        here = f"{where}, message {place + 1}"
        answer, regions = _answer(_content(messages[place + 1], "assistant", here), num_images, here)
        turns.append({"prompt": prompt, "answer": answer, "regions": regions})
    if shown not in (0, num_images):
        raise ValueError(f"{where} shows {shown} images in its messages and has {num_images} under 'images'.")
    if not shown and num_images > 0:
        turns[0]["prompt"] = [{"text": None, "image": i} for i in range(num_images)] + turns[0]["prompt"]
    return turns


def _content(message, role: str, where: str):
    found = get(message, "role", str, where)
    if found != role:
        raise ValueError(f"{where} is from {found!r}, where {role!r} was expected: they speak by turns, user first.")
    return get(message, "content", (str, list), where)


def _prompt(message, shown: int, where: str) -> tuple[list[dict], int]:
    """Parts, text or number of an image; and how many images were shown up to here."""
    parts, content = [], _content(message, "user", where)
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if isinstance(part, dict) and part.get("type") == "image":
            parts.append({"text": None, "image": shown})
            shown += 1
        elif isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
            parts.append({"text": part["text"], "image": None})
        else:
            known = "{'type': 'text', 'text': ...} or {'type': 'image'}"
            raise ValueError(f"{where}: a user's part is {known}, got {shorten(part)}.")
    return parts, shown


def _answer(content, num_images: int, where: str) -> tuple[str | None, list[dict]]:
    """(text, []) or (None, regions)."""
    if isinstance(content, str):
        return content, []
    texts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
    if content and len(texts) == len(content):
        return "".join(get(part, "text", str, where) for part in texts), []
    if texts:
        raise ValueError(f"{where} mixes text and regions: an answer is one or the other.")
    if num_images != 1:
        raise ValueError(f"{where} has regions and its line {num_images} images: regions are of one image.")
    regions = []
    for place, part in enumerate(content):
        here = f"{where}, region {place}"
        caption = " ".join(get(part, "caption", str, here).split())
        box = get_box(get(part, "box", list, here), here, size=False)
        if not caption or _LOCATION.search(caption):
            raise ValueError(f"{here}: its caption {caption!r} is blank or holds a location token.")
        if box[2] < box[0] or box[3] < box[1]:
            raise ValueError(f"{here}: the box {list(box)} is not x1 <= x2 and y1 <= y2.")
        regions.append({"box": [float(v) for v in box], "caption": caption})
    return None, regions


def _regions(rows: list[dict], size: tuple[int, int], where: str) -> tuple[Region, ...]:
    """What the image shows of them. ValueError where that is nothing, as [] alone may say, or boxes are not pixels."""
    boxes = [row["box"] for row in rows]
    clamped = [clamp_box(box, *size) for box in boxes]
    refused = [box for box in boxes if box[0] == box[2] or box[1] == box[3]] or (boxes if not any(clamped) else [])
    if refused:
        raise ValueError(
            f"{where}: the box {refused[0]} covers nothing of its image of {size[0]}x{size[1]} pixels; boxes are "
            "x1, y1, x2, y2 in its pixels, and [] says that nothing is there."
        )
    if boxes and max(size) > 1 and all(0 <= v <= 1 for box in boxes for v in box):
        raise ValueError(
            f"{where}: the box {boxes[0]} looks normalised: boxes are x1, y1, x2, y2 in pixels of the image, here of "
            f"{size[0]}x{size[1]}; multiply x by its width and y by its height."
        )
    return tuple(Region(box, row["caption"]) for box, row in zip(clamped, rows) if box is not None)


def _plain(prompt: tuple[str | int, ...], total: int) -> str | tuple[str | int, ...]:
    """The words alone, where all `total` images stand in front of them; else the prompt as it is."""
    in_front = prompt[:total] == tuple(range(total)) and len(prompt) == total + 1
    return prompt[total] if in_front and isinstance(prompt[total], str) else prompt
