"""What stands before, between and after an image's tile tokens, as data, and the id runs made of it (recipe 7).

Only one marker per image is tokenized. The ids that replace it are built once per grid: the layout's literal pieces
are tokenized on their own, which gives the ids of the fully expanded text as long as every piece is bounded by added
tokens. That is checked on the tokenizer itself when the runs are set up.
"""

PROMPT_LAYOUTS = {
    "native": {"image_start": "<image_start>", "image_end": "<image_end>"},
    "internvl": {"image_start": "<img>", "image_end": "</img>"},
    "smolvlm": {
        "tile_prefix": "<fake_token_around_image><row_{row}_col_{col}>",
        "row_suffix": "\n",
        "thumbnail_prefix": "\n<fake_token_around_image><global-img>",
        "single_prefix": "<fake_token_around_image><global-img>",
        "image_end": "<fake_token_around_image>",
    },
}
LAYOUT_KEYS = ("image_start", "tile_prefix", "row_suffix", "thumbnail_prefix", "single_prefix", "image_end")

# Grids and neighbouring texts that the splice is tried on when a processor is built.
_TRIAL_GRIDS = ((1, 1, False), (2, 1, False), (2, 2, True))
_TRIAL_NEIGHBOURS = (("", ""), ("a", "a"), (" a ", " a "), ("\n", "\n"), ("a:\n\n", "\n\n b"), ("<", ">"))
_MAX_CACHED_GRIDS = 512


class PromptLayout:
    """One prompt layout: a name of `PROMPT_LAYOUTS` or a dict of its keys (missing ones are empty).

    `tile_prefix` may hold `{row}` and `{col}`, both counted from 1. A grid of one tile has `single_prefix` instead, and
    the thumbnail, which stands last, `thumbnail_prefix`.
    """

    def __init__(self, layout: str | dict = "native"):
        if isinstance(layout, str):
            if layout not in PROMPT_LAYOUTS:
                raise ValueError(
                    f"prompt_layout={layout!r} is unknown: use one of {', '.join(PROMPT_LAYOUTS)} or a dict."
                )
            layout = PROMPT_LAYOUTS[layout]
        unknown = sorted(set(layout) - set(LAYOUT_KEYS))
        if unknown or not all(isinstance(v, str) for v in layout.values()):
            raise ValueError(
                f"prompt_layout holds {unknown or layout}: it takes strings under {', '.join(LAYOUT_KEYS)}."
            )
        self.parts = {key: layout.get(key, "") for key in LAYOUT_KEYS}

    def __eq__(self, other):
        return isinstance(other, PromptLayout) and self.parts == other.parts

    def literals(self, rows: int, cols: int, thumbnail: bool) -> list[str]:
        """The text before, between and after the tiles' token runs: one piece more than there are tiles."""
        parts = self.parts
        pieces, text = [], parts["image_start"]
        for row in range(1, rows + 1):
            for col in range(1, cols + 1):
                prefix = parts["single_prefix"] if rows * cols == 1 else parts["tile_prefix"]
                pieces.append(text + prefix.replace("{row}", str(row)).replace("{col}", str(col)))
                text = ""
            text = parts["row_suffix"] if rows * cols > 1 else ""
        if thumbnail:
            pieces.append(text + parts["thumbnail_prefix"])
            text = ""
        return [*pieces, text + parts["image_end"]]

    def expand(self, rows: int, cols: int, thumbnail: bool, tile_text: str) -> str:
        """The text of a whole image, with `tile_text` standing for each tile."""
        return tile_text.join(self.literals(rows, cols, thumbnail))


class ImageRuns:
    """The ids that replace an image's marker, built once per grid.

    Raises ValueError at construction where splicing would not give the ids of the expanded text: the image token is not
    one token, or the layout's outer edges would merge with the text beside them.
    """

    def __init__(self, layout: PromptLayout, tokenizer, image_token: str, image_seq_length: int):
        if isinstance(image_seq_length, bool) or not isinstance(image_seq_length, int) or image_seq_length < 1:
            raise ValueError(f"image_seq_length={image_seq_length!r} must be a positive integer.")
        self.layout = layout
        self.tokenizer = tokenizer
        self.image_token = image_token
        self.image_seq_length = image_seq_length
        self._cache: dict[tuple[int, int, bool], list[int]] = {}
        ids = self._tokenize(image_token)
        if len(ids) != 1 or ids[0] != tokenizer.get_vocab().get(image_token):
            raise ValueError(
                f"image_token={image_token!r} is not one token of this tokenizer but {len(ids)}: add it as a "
                "special token, or name the tokenizer's own."
            )
        self.image_token_id = ids[0]
        self._check_edges()

    def ids(self, rows: int, cols: int, thumbnail: bool) -> list[int]:
        """int[run]: the ids of one image. The list is shared: do not change it."""
        key = (rows, cols, thumbnail)
        if key not in self._cache:
            if len(self._cache) >= _MAX_CACHED_GRIDS:
                self._cache.clear()
            self._cache[key] = self._build(*key, self.image_seq_length)
        return self._cache[key]

    def _build(self, rows, cols, thumbnail, tile_length):
        first, *rest = self.layout.literals(rows, cols, thumbnail)
        ids = self._tokenize(first)
        for literal in rest:
            ids += [self.image_token_id] * tile_length + self._tokenize(literal)
        return ids

    def _tokenize(self, text):
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _check_edges(self):
        added = tuple(token.content for token in self.tokenizer.added_tokens_decoder.values())
        for grid in _TRIAL_GRIDS:
            first, *_, last = self.layout.literals(*grid)
            bounded = (not first or first.startswith(added)) and (not last or last.endswith(added))
            expanded, run = self.layout.expand(*grid, self.image_token), self._build(*grid, tile_length=1)
            for left, right in _TRIAL_NEIGHBOURS:
                marker = self._tokenize(left + self.image_token + right)
                at = marker.index(self.image_token_id) if marker.count(self.image_token_id) == 1 else len(marker)
                spliced = marker[:at] + run + marker[at + 1 :]
                if not bounded or spliced != self._tokenize(left + expanded + right):
                    raise ValueError(
                        f"prompt_layout {self.layout.parts} cannot be spliced in for {self.image_token!r} with this "
                        "tokenizer, because its outer edges would merge with the text beside them: begin and end it "
                        "with tokens that the tokenizer holds as added tokens."
                    )
