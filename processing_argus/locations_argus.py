"""The location vocabulary (Section 4.2): boxes <-> location tokens <-> plain text.

K bins are shared by both axes. Encoding is `floor(v / size * K)` clamped to 0..K-1, decoding is the bin's centre, so
a coordinate inside the image comes back within half a bin. Both formulations of the paper stand behind one small class:
`<loc_y1><loc_x1><loc_y2><loc_x2>caption`, regions concatenated, or `[x1, y1, x2, y2] caption`, one region a line.
Parsing never raises: what is not well formed is handed back as it was written.
"""

import math
import re
from dataclasses import dataclass

from transformers.tokenization_utils_base import AddedToken

BOX_FORMATS = ("location_tokens", "plain_text")
DEFAULT_NUM_LOCATION_BINS = 1000

# [0-9], not \d (which matches other scripts' digits), and bounded (int() refuses thousands of digits).
_LOCATION_TOKEN = re.compile(r"<loc_(0|[1-9][0-9]{0,8})>")
_LOCATION_RUN = re.compile(rf"{_LOCATION_TOKEN.pattern}(?:\s*{_LOCATION_TOKEN.pattern})*")
_PLAIN_BOX = re.compile(r"\[" + r"\s*,".join([r"\s*([0-9]{1,9})"] * 4) + r"\s*\]")


def location_token(index: int) -> str:
    """The token that names bin `index`."""
    return f"<loc_{index}>"


def location_tokens(num_location_bins: int) -> list[str]:
    """All K location tokens in order: `<loc_0>` .. `<loc_{K-1}>`."""
    return [location_token(i) for i in range(num_location_bins)]


def is_location_token(text: str) -> bool:
    """Whether `text` is one whole location token."""
    return _LOCATION_TOKEN.fullmatch(text) is not None


def add_location_tokens(tokenizer, num_location_bins: int = DEFAULT_NUM_LOCATION_BINS) -> int:
    """Adds `<loc_0>` .. `<loc_{K-1}>` to a tokenizer as single tokens and returns how many were new.

    They are added tokens, yet not "special" ones: `batch_decode(..., skip_special_tokens=True)` keeps them, so a
    decoded answer still holds its boxes. Resize the model's embeddings afterwards.
    """
    tokens = [AddedToken(t, special=False, normalized=False) for t in location_tokens(num_location_bins)]
    return tokenizer.add_tokens(tokens)


def location_token_ids(tokenizer, num_location_bins: int) -> list[int]:
    """int[K]: the ids of the K location tokens. Raises ValueError where the tokenizer lacks any of them."""
    vocabulary = tokenizer.get_vocab()
    missing = [t for t in location_tokens(num_location_bins) if t not in vocabulary]
    if missing:
        raise ValueError(
            f"num_location_bins={num_location_bins}, but the tokenizer lacks {len(missing)} location tokens (first: "
            f"{missing[0]}): call add_location_tokens(tokenizer, {num_location_bins}) and resize the embeddings, or "
            'use box_format="plain_text".'
        )
    return [vocabulary[t] for t in location_tokens(num_location_bins)]


@dataclass(frozen=True)
class Region:
    """One parsed region: bins (x1, y1, x2, y2), the caption, and where it stands in the text as [start, end)."""

    bins: tuple[int, int, int, int]
    caption: str
    start: int
    end: int


class LocationVocabulary:
    """Boxes to text and back, in one of the two formulations of Section 4.2.

    Args:
        num_location_bins: K, the number of bins of each axis.
        box_format: "location_tokens" or "plain_text".

    Boxes are xyxy in pixels of the original image; `image_size` is its (height, width).
    """

    def __init__(self, num_location_bins: int = DEFAULT_NUM_LOCATION_BINS, box_format: str = "location_tokens"):
        if box_format not in BOX_FORMATS:
            raise ValueError(f"box_format={box_format!r} is unknown: use one of {', '.join(BOX_FORMATS)}.")
        if isinstance(num_location_bins, bool) or not isinstance(num_location_bins, int) or num_location_bins < 1:
            raise ValueError(f"num_location_bins={num_location_bins!r} must be a positive integer.")
        self.num_location_bins = num_location_bins
        self.box_format = box_format

    def box_to_bins(self, box, image_size) -> tuple[int, int, int, int]:
        """float[4] xyxy pixels -> four bins x1, y1, x2, y2. Coordinates outside of the image are clamped into it."""
        height, width = _checked_image_size(image_size)
        x1, y1, x2, y2 = values = tuple(float(v) for v in box)
        if not all(math.isfinite(v) for v in values):
            raise ValueError(f"The box {values} holds a value that is not finite.")
        if x2 < x1 or y2 < y1:
            raise ValueError(f"The box {values} is not x1 <= x2 and y1 <= y2: boxes are x1, y1, x2, y2 in pixels.")
        return (self._bin(x1, width), self._bin(y1, height), self._bin(x2, width), self._bin(y2, height))

    def bins_to_box(self, bins, image_size) -> tuple[float, float, float, float]:
        """Four bins x1, y1, x2, y2 -> xyxy pixels (floats): the centres of the bins."""
        height, width = _checked_image_size(image_size)
        x1, y1, x2, y2 = ((b + 0.5) / self.num_location_bins for b in bins)
        return (x1 * width, y1 * height, x2 * width, y2 * height)

    def encode_box(self, box, image_size) -> str:
        """`<loc_y1><loc_x1><loc_y2><loc_x2>` or `[x1, y1, x2, y2]` for one box."""
        x1, y1, x2, y2 = self.box_to_bins(box, image_size)
        if self.box_format == "plain_text":
            return f"[{x1}, {y1}, {x2}, {y2}]"
        return "".join(location_token(i) for i in (y1, x1, y2, x2))

    def encode_regions(self, boxes, captions, image_size) -> str:
        """The text that a model is trained to write: each box and then its caption, in the order given.

        White space in a caption is collapsed to single spaces. Raises ValueError for an empty caption, one that holds
        a box or a location token, and for different numbers of boxes and captions.
        """
        boxes, captions = list(boxes), [" ".join(c.split()) for c in captions]
        if len(boxes) != len(captions):
            raise ValueError(f"Each box needs one caption: got {len(boxes)} boxes and {len(captions)} captions.")
        for caption in captions:
            if not caption or _LOCATION_TOKEN.search(caption):
                raise ValueError(f"The caption {caption!r} is empty or holds a location token.")
            if self.box_format == "plain_text" and _PLAIN_BOX.search(caption):
                raise ValueError(f"The caption {caption!r} holds a box, which could not be told from the next region.")
        encoded = [self.encode_box(box, image_size) for box in boxes]
        if self.box_format == "plain_text":
            return "\n".join(f"{box} {caption}" for box, caption in zip(encoded, captions))
        return "".join(f"{box}{caption}" for box, caption in zip(encoded, captions))

    def parse(self, text: str) -> tuple[list[Region], list[str]]:
        """Finds the regions in what a model wrote. Never raises on any string.

        Returns the well-formed regions in order, and the pieces of text that are none: leading or stray text, boxes
        without a caption (also one cut off at the end), bins outside of 0..K-1, and boxes with x2 < x1 or y2 < y1.
        """
        spans = self._plain_spans(text) if self.box_format == "plain_text" else self._token_spans(text)
        regions, unparsed = [], []
        for start, end, bins, caption in spans:
            if bins is not None and caption and self._valid(bins):
                regions.append(Region(bins, caption, start, end))
            elif text[start:end].strip():
                unparsed.append(text[start:end].strip())
        return regions, unparsed

    def _bin(self, value: float, size: float) -> int:
        # Clamped before the multiplication: a huge float must not become inf.
        return min(int(min(max(value / size, 0.0), 1.0) * self.num_location_bins), self.num_location_bins - 1)

    def _valid(self, bins) -> bool:
        x1, y1, x2, y2 = bins
        return max(bins) < self.num_location_bins and x1 <= x2 and y1 <= y2

    def _token_spans(self, text):
        """Yields (start, end, bins or None, caption): the text cut at every group of four location tokens.

        Of a run that is no multiple of four, the first tokens are the stray ones: a caption follows its box.
        """
        runs = list(_LOCATION_RUN.finditer(text))
        yield (0, runs[0].start() if runs else len(text), None, "")
        for i, run in enumerate(runs):
            end = runs[i + 1].start() if i + 1 < len(runs) else len(text)
            tokens = list(_LOCATION_TOKEN.finditer(text, run.start(), run.end()))
            strays = len(tokens) % 4
            yield (run.start(), tokens[strays].start() if strays < len(tokens) else end, None, "")
            for j in range(strays, len(tokens), 4):  # of several boxes in a row, only the last one has the caption
                y1, x1, y2, x2 = (int(t.group(1)) for t in tokens[j : j + 4])
                is_last = j + 4 == len(tokens)
                piece_end = end if is_last else tokens[j + 4].start()
                yield (tokens[j].start(), piece_end, (x1, y1, x2, y2), text[run.end() : end].strip() if is_last else "")

    def _plain_spans(self, text):
        """Yields (start, end, bins or None, caption): every line, cut at each box in it."""
        start = 0
        for line in text.split("\n"):
            boxes = list(_PLAIN_BOX.finditer(line))
            yield (start, start + (boxes[0].start() if boxes else len(line)), None, "")
            for i, box in enumerate(boxes):
                end = boxes[i + 1].start() if i + 1 < len(boxes) else len(line)
                yield (start + box.start(), start + end, tuple(map(int, box.groups())), line[box.end() : end].strip())
            start += len(line) + 1


def build_vocabulary(tokenizer, num_location_bins: int | None, box_format: str) -> LocationVocabulary:
    """A processor's vocabulary (K None: the default). Raises ValueError where its tokenizer lacks location tokens."""
    vocabulary = LocationVocabulary(
        DEFAULT_NUM_LOCATION_BINS if num_location_bins is None else num_location_bins, box_format
    )
    if num_location_bins is not None and box_format == "location_tokens":
        location_token_ids(tokenizer, num_location_bins)
    return vocabulary


def _checked_image_size(image_size) -> tuple[float, float]:
    height, width = (float(v) for v in image_size)
    if not (math.isfinite(height) and math.isfinite(width) and height > 0 and width > 0):
        raise ValueError(f"image_size must be (height, width) in pixels, both above 0: got {(height, width)}.")
    return height, width
