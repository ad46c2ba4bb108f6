"""Tiling geometry: image size -> grid of square tiles and the sizes to resize through. No pixels here.

`aspect_ratio` is the paper's and InternVL's policy (Section 4.1): the grid whose shape is closest to the image's, one
resize to its canvas, the thumbnail made from the original. `longest_edge` is SmolVLM's and Idefics3's: a chain of two
resizes, the thumbnail made from the canvas. Both give exactly the grids, sizes and tie-breaks of transformers.
"""

import operator
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

TILING_POLICIES = ("aspect_ratio", "longest_edge")
MAX_TILES_LIMIT = 1024  # far above any model's context, far below what would fill memory
LONGEST_EDGE_LIMIT = 4096  # SmolVLM and Idefics3 never resize an image to more than this


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one image: `rows` x `cols`, row by row, then a thumbnail of the whole image if `thumbnail`."""

    rows: int
    cols: int
    thumbnail: bool = False

    @property
    def num_tiles(self) -> int:
        return self.rows * self.cols + int(self.thumbnail)


@dataclass(frozen=True)
class TilingPlan:
    """How to make a `TileGrid`: `resizes` is the chain of (height, width); the last is the canvas that is split."""

    grid: TileGrid
    resizes: tuple[tuple[int, int], ...]
    thumbnail_from_canvas: bool


@dataclass(frozen=True)
class TilingOptions:
    """The geometry's settings, checked on creation (ValueError). `min_tiles` concerns `aspect_ratio`, the side
    `longest_edge` (pixels) the policy of that name. `max_tiles` concerns both and does not count the thumbnail, as in
    InternVL; None is no limit, for `longest_edge` only. `max_upscale` concerns both: for `aspect_ratio` the most that
    a side is enlarged, for `longest_edge` the longest side; an image smaller than a tile still fills one."""

    tiling: str = "aspect_ratio"
    tile_size: int = 512
    min_tiles: int = 1
    max_tiles: int | None = 12
    use_thumbnail: bool = True
    max_upscale: float | None = None
    longest_edge: int = 2048
    do_image_splitting: bool = True

    def __post_init__(self):
        if self.tiling not in TILING_POLICIES:
            raise ValueError(
                f"tiling={self.tiling!r} is unknown; choose one of {', '.join(map(repr, TILING_POLICIES))}."
            )
        for name in ("tile_size", "min_tiles", "longest_edge"):
            _check_positive_integer(name, getattr(self, name))
        for name in ("use_thumbnail", "do_image_splitting"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} must be True or False.")
        if self.max_tiles is None:
            if self.tiling == "aspect_ratio":
                raise ValueError(
                    "max_tiles=None (no limit) is for tiling='longest_edge'; 'aspect_ratio' needs a number."
                )
        else:
            _check_positive_integer("max_tiles", self.max_tiles)
            if self.max_tiles > MAX_TILES_LIMIT:
                raise ValueError(f"max_tiles={self.max_tiles} is more than the {MAX_TILES_LIMIT} that are supported.")
            if self.min_tiles > self.max_tiles:
                raise ValueError(f"min_tiles={self.min_tiles} is larger than max_tiles={self.max_tiles}.")
        if self.max_upscale is not None:
            number = isinstance(self.max_upscale, (int, float)) and not isinstance(self.max_upscale, bool)
            if not (number and 0 < self.max_upscale < float("inf")):
                raise ValueError(f"max_upscale={self.max_upscale!r} must be a positive number, or None for no limit.")


def _check_positive_integer(name: str, value) -> None:
    try:
        valid = not isinstance(value, bool) and operator.index(value) >= 1
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(f"{name}={value!r} must be an integer of at least 1.")


@lru_cache(maxsize=4096)
def plan_tiling(height: int, width: int, options: TilingOptions) -> TilingPlan:
    """Plan the tiles of an image of `height` x `width` pixels. ValueError if a side is not a positive integer."""
    _check_positive_integer("height", height)
    _check_positive_integer("width", width)
    if options.tiling == "aspect_ratio":
        return _plan_aspect_ratio(height, width, options)
    return _plan_longest_edge(height, width, options)


# --- aspect_ratio ---------------------------------------------------------------------------------------------------


def _plan_aspect_ratio(height: int, width: int, options: TilingOptions) -> TilingPlan:
    rows, cols = _closest_grid(height, width, options) if options.do_image_splitting else (1, 1)
    grid = TileGrid(rows, cols, options.use_thumbnail and rows * cols > 1)
    return TilingPlan(grid, ((rows * options.tile_size, cols * options.tile_size),), thumbnail_from_canvas=False)


@lru_cache(maxsize=64)
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (rows, cols) with min_tiles..max_tiles tiles: fewest tiles, then fewest columns first (ties depend on it)."""
    grids = [(r, c) for c in range(1, max_tiles + 1) for r in range(1, max_tiles // c + 1) if r * c >= min_tiles]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def _closest_grid(height: int, width: int, options: TilingOptions) -> tuple[int, int]:
    S = options.tile_size
    grids = _grids(options.min_tiles, options.max_tiles)
    if options.max_upscale is not None:
        fewest = grids[0][0] * grids[0][1]
        small_enough = [g for g in grids if max(g[0] * S / height, g[1] * S / width) <= options.max_upscale]
        # An image smaller than one tile must be enlarged: then as little as min_tiles allows.
        grids = small_enough or [g for g in grids if g[0] * g[1] == fewest]
    best, best_distance = grids[0], float("inf")
    for rows, cols in grids:
        distance = abs(width / height - cols / rows)
        # Among equally close grids the larger one wins while its canvas has less than twice the image's pixels.
        if distance < best_distance or (distance == best_distance and width * height > 0.5 * S * S * cols * rows):
            best, best_distance = (rows, cols), distance
    return best


# --- longest_edge ---------------------------------------------------------------------------------------------------


def _plan_longest_edge(height: int, width: int, options: TilingOptions) -> TilingPlan:
    S = options.tile_size
    edge = limit = options.longest_edge
    if options.max_upscale is not None:  # the most whole tiles that the longest side fills without being enlarged more
        reach = min(options.max_upscale * max(height, width), edge + S)
        limit = max(int(reach // S), 1) * S
        edge = min(edge, limit)
    resized = _scale_longest_edge_to(height, width, edge)
    canvas = _round_up_to_tiles(*resized, S) if options.do_image_splitting else (S, S)
    while (options.max_tiles is not None and (canvas[0] // S) * (canvas[1] // S) > options.max_tiles) or (
        options.max_upscale is not None and max(canvas) > limit
    ):
        edge = (ceil(min(edge, LONGEST_EDGE_LIMIT) / S) - 1) * S
        if edge < S:  # an odd tile size can be rounded up beyond itself
            canvas = (S, S)
            break
        resized = _scale_longest_edge_to(height, width, edge)
        canvas = _round_up_to_tiles(*resized, S)
    rows, cols = canvas[0] // S, canvas[1] // S
    grid = TileGrid(rows, cols, options.use_thumbnail and rows * cols > 1)
    return TilingPlan(grid, (resized, canvas), thumbnail_from_canvas=True)


def _scale_longest_edge_to(height: int, width: int, edge: int) -> tuple[int, int]:
    """(height, width) with the longest side at `edge`, the other side even; then below LONGEST_EDGE_LIMIT."""
    ratio = width / height
    if width >= height:
        height, width = int(edge / ratio), edge
        height += height % 2
    else:
        height, width = edge, int(edge * ratio)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    ratio = width / height
    if width >= height and width > LONGEST_EDGE_LIMIT:
        height, width = int(LONGEST_EDGE_LIMIT / ratio), LONGEST_EDGE_LIMIT
    elif height > width and height > LONGEST_EDGE_LIMIT:
        height, width = LONGEST_EDGE_LIMIT, int(LONGEST_EDGE_LIMIT * ratio)
    return max(height, 1), max(width, 1)


def _round_up_to_tiles(height: int, width: int, S: int) -> tuple[int, int]:
    """(height, width) as multiples of S: the longer side is rounded up, the other follows the ratio and is rounded up.

    At 1 pixel, where rounding errors give the reference an empty canvas and an exception, this gives one tile."""
    ratio = width / height
    if width >= height:
        width = ceil(width / S) * S
        height = ceil(max(int(width / ratio), 1) / S) * S
    else:
        height = ceil(height / S) * S
        width = ceil(max(int(height * ratio), 1) / S) * S
    return height, width
