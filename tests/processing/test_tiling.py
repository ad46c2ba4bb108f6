"""Tiling geometry against transformers' own (InternVL's, SmolVLM's), and the properties that both policies keep."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from processing_argus.tiling_argus import TileGrid, TilingOptions, plan_tiling

try:
    from transformers.models.smolvlm import image_processing_smolvlm_fast as smolvlm  # 4.57

    SmolVLMReference = smolvlm.SmolVLMImageProcessorFast
except ImportError:
    from transformers.models.smolvlm import image_processing_smolvlm as smolvlm

    SmolVLMReference = smolvlm.SmolVLMImageProcessor

sides = st.one_of(
    st.integers(1, 64), st.integers(1, 5000), st.sampled_from([336, 448, 480, 512, 640, 896, 1024, 2048, 4096])
)
tile_sizes = st.sampled_from([14, 32, 96, 224, 364, 448, 511, 512])


class SizesOnly(SmolVLMReference):
    """transformers' own processor, with pixels on the meta device: only sizes remain."""

    def resize(self, image, size, *args, **kwargs):
        if size.longest_edge:
            new_size = smolvlm.get_resize_output_image_size(image, resolution_max_side=size.longest_edge)
        else:
            new_size = (size.height, size.width)
        return torch.empty(*image.shape[:-2], *new_size, device="meta")


def smolvlm_reference(height, width, longest_edge, tile_size):
    """-> ((resized, canvas), rows, cols, frames) of SmolVLM's chain."""
    reference = SizesOnly()
    image = torch.empty(1, 3, height, width, device="meta")
    resized = reference.resize(image, smolvlm.SizeDict(longest_edge=longest_edge))
    canvas = reference.resize_for_vision_encoder(resized, tile_size)
    assume(0 not in canvas.shape)  # at 1 pixel, rounding gives the reference an empty canvas and an exception
    frames, rows, cols = reference.split_images(canvas, {"longest_edge": tile_size})
    return (tuple(resized.shape[-2:]), tuple(canvas.shape[-2:])), rows[0], cols[0], frames.shape[1]


@settings(max_examples=300, deadline=None)
@given(sides, sides, st.sampled_from([224, 448, 512]), st.integers(1, 6), st.integers(0, 40))
def test_aspect_ratio_is_internvls(height, width, tile_size, min_tiles, more):
    options = TilingOptions(tile_size=tile_size, min_tiles=min_tiles, max_tiles=min_tiles + more)
    plan = plan_tiling(height, width, options)
    cols, rows = get_optimal_tiled_canvas((height, width), (tile_size, tile_size), min_tiles, min_tiles + more)
    assert (plan.grid.rows, plan.grid.cols) == (rows, cols)
    assert plan.grid.thumbnail == (rows * cols > 1) and not plan.thumbnail_from_canvas
    assert plan.resizes == ((rows * tile_size, cols * tile_size),)


@settings(max_examples=300, deadline=None)
@given(sides, sides, st.sampled_from([364, 500, 1456, 2048, 4096, 5000]), tile_sizes)
def test_longest_edge_is_smolvlms(height, width, longest_edge, tile_size):
    options = TilingOptions(tiling="longest_edge", tile_size=tile_size, longest_edge=longest_edge, max_tiles=None)
    plan = plan_tiling(height, width, options)
    resizes, rows, cols, frames = smolvlm_reference(height, width, longest_edge, tile_size)
    assert plan.resizes == resizes
    assert (plan.grid.rows, plan.grid.cols) == (max(rows, 1), max(cols, 1))
    assert plan.grid.num_tiles == frames


@settings(max_examples=300, deadline=None)
@given(
    sides,
    sides,
    st.sampled_from(["aspect_ratio", "longest_edge"]),
    tile_sizes,
    st.integers(1, 30),
    st.integers(1, 4096),
    st.one_of(st.none(), st.floats(0.1, 8)),
    st.booleans(),
    st.booleans(),
)
def test_every_plan_is_whole(height, width, tiling, tile_size, max_tiles, edge, upscale, thumbnail, splitting):
    options = TilingOptions(
        tiling=tiling,
        tile_size=tile_size,
        max_tiles=max_tiles,
        longest_edge=edge,
        max_upscale=upscale,
        use_thumbnail=thumbnail,
        do_image_splitting=splitting,
    )
    plan = plan_tiling(height, width, options)
    grid = plan.grid
    assert plan.resizes[-1] == (grid.rows * tile_size, grid.cols * tile_size)
    assert 1 <= grid.rows * grid.cols <= (max_tiles if splitting else 1)
    assert grid.thumbnail == (thumbnail and grid.rows * grid.cols > 1)
    assert grid.num_tiles == grid.rows * grid.cols + grid.thumbnail
    assert all(side >= 1 for size in plan.resizes for side in size)


@settings(max_examples=200, deadline=None)
@given(sides, sides, st.integers(1, 12), st.floats(0.5, 4))
def test_max_upscale_bounds_the_enlargement(height, width, max_tiles, max_upscale):
    options = TilingOptions(tile_size=448, max_tiles=max_tiles, max_upscale=max_upscale)
    grid = plan_tiling(height, width, options).grid
    upscale = max(grid.rows * 448 / height, grid.cols * 448 / width)
    assert upscale <= max_upscale or (grid.rows, grid.cols) == (1, 1)
    unlimited = TilingOptions(tile_size=448, max_tiles=max_tiles, max_upscale=1e9)
    assert plan_tiling(height, width, unlimited) == plan_tiling(
        height, width, TilingOptions(tile_size=448, max_tiles=max_tiles)
    )


@pytest.mark.parametrize("height, width", [(480, 640), (1, 5000), (2000, 2000), (3000, 100)])
def test_longest_edge_shrinks_only_as_far_as_the_budget_asks(height, width):
    grids = [
        plan_tiling(height, width, TilingOptions(tiling="longest_edge", max_tiles=budget)).grid
        for budget in range(1, 17)
    ]
    tiles = [grid.rows * grid.cols for grid in grids]
    assert tiles == sorted(tiles) and tiles[0] == 1
    unlimited = plan_tiling(height, width, TilingOptions(tiling="longest_edge", max_tiles=None)).grid
    assert grids[-1] == unlimited


def test_known_grids():
    photo = (480, 640)
    assert plan_tiling(*photo, TilingOptions()).grid == TileGrid(3, 4, True)
    assert plan_tiling(*photo, TilingOptions(max_upscale=1.5)).grid == TileGrid(1, 1, False)
    assert plan_tiling(*photo, TilingOptions(tiling="longest_edge", max_tiles=None)).grid == TileGrid(3, 4, True)
    assert plan_tiling(*photo, TilingOptions(tiling="longest_edge", max_tiles=6)).grid == TileGrid(2, 2, True)
    assert plan_tiling(*photo, TilingOptions(use_thumbnail=False)).grid.num_tiles == 12
    # The canvas of a square image may hold at most twice its pixels: 700 px stay one tile of 512, 800 px become 2 x 2.
    assert plan_tiling(700, 700, TilingOptions()).grid == TileGrid(1, 1)
    assert plan_tiling(800, 800, TilingOptions()).grid == TileGrid(2, 2, True)


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"tiling": "squares"}, "tiling='squares'"),
        ({"tile_size": 0}, "tile_size=0"),
        ({"tile_size": 512.0}, "tile_size=512.0"),
        ({"max_tiles": 0}, "max_tiles=0"),
        ({"max_tiles": -3}, "max_tiles=-3"),
        ({"max_tiles": True}, "max_tiles=True"),
        ({"max_tiles": None}, "needs a number"),
        ({"min_tiles": 7, "max_tiles": 6}, "min_tiles=7 is larger than max_tiles=6"),
        ({"longest_edge": -1}, "longest_edge=-1"),
        ({"max_upscale": 0}, "max_upscale=0"),
        ({"max_upscale": float("nan")}, "max_upscale=nan"),
        ({"use_thumbnail": "yes"}, "use_thumbnail='yes'"),
    ],
)
def test_bad_settings_are_refused_with_their_values(bad, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        TilingOptions(**bad)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (5, 2.5)])
def test_bad_sizes_are_refused(size):
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        plan_tiling(*size, TilingOptions())


def test_a_tile_budget_that_would_fill_memory_is_refused():
    with pytest.raises(ValueError, match=r"max_tiles=9{30} is more than the 1024"):
        TilingOptions(max_tiles=int("9" * 30))


@settings(max_examples=300, deadline=None)
@given(sides, sides, tile_sizes, st.integers(1, 4096), st.floats(0.1, 8), st.booleans())
def test_max_upscale_bounds_the_longest_side_of_smolvlms_canvas(height, width, tile_size, edge, max_upscale, splitting):
    options = {"tiling": "longest_edge", "tile_size": tile_size, "longest_edge": edge, "max_tiles": None}
    options["do_image_splitting"] = splitting
    plan = plan_tiling(height, width, TilingOptions(**options, max_upscale=max_upscale))
    unlimited = plan_tiling(height, width, TilingOptions(**options))
    longest, whole = max(height, width), max(unlimited.resizes[-1])
    canvas = max(plan.resizes[-1])
    within = [side for side in range(tile_size, whole + 1, tile_size) if side <= max_upscale * longest]
    most = max(within, default=tile_size)
    assert canvas == most or (tile_size % 2 and canvas <= most)  # odd sizes are rounded up beyond themselves
    if splitting and whole <= max_upscale * longest:
        assert plan == unlimited


def test_known_grids_of_a_photo_that_is_not_enlarged():
    def grid(max_upscale, height=480, width=640):
        return plan_tiling(height, width, TilingOptions(tiling="longest_edge", max_upscale=max_upscale)).grid

    assert grid(None) == grid(3.2) == grid(1e308) == TileGrid(3, 4, True)
    assert grid(3.19) == grid(2.4) == TileGrid(3, 3, True)
    assert grid(1.6) == TileGrid(2, 2, True)
    assert grid(1.0) == grid(0.01) == grid(1.0, 20, 30) == TileGrid(1, 1)


def test_an_odd_tile_size_is_not_rounded_up_beyond_what_max_upscale_allows():
    """The even side of a square image of 99 pixels is 100, which would be a tile more."""
    options = TilingOptions(tiling="longest_edge", tile_size=33, longest_edge=330, max_upscale=1.0)
    assert max(plan_tiling(99, 99, options).resizes[-1]) <= 99


def test_without_splitting_the_first_size_of_the_chain_is_limited_too():
    options = TilingOptions(tiling="longest_edge", tile_size=32, max_upscale=1.0, do_image_splitting=False)
    assert plan_tiling(64, 96, options).resizes == ((64, 96), (32, 32))
