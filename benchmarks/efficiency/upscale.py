"""Fewer tiles when more say nothing: TTFT of the 256M shape, and what argus-nano loses, against `max_upscale`.

    python -m benchmarks.efficiency.upscale

Thirteen tiles of a 640x480 photo are an enlargement by 3.2: they add no information, and 93% of a 13-tile prefill is
vision. TTFT is bytes to the first token's id. Accuracy is `argus evaluate scenes` on held-out scenes of the `val`
split, of sizes that argus-nano makes one tile or several of, by how much it may enlarge them.
"""

from dataclasses import replace

import torch

from argus_tools.evaluate.models import ArgusAnswerer
from argus_tools.evaluate.scenes import score_scenes
from argus_tools.paths import default_model_path
from argus_tools.scenes import render_scene

from . import pictures
from .common import Report, build_parser, repeats_of, set_up, shape_of
from .measuring import in_turn, median, shown, summary
from .sides import OURS, build_sides

UPSCALES = (1.0, 1.5, 2.0, None)
BUDGETS = {"aspect_ratio": (12, 4), "longest_edge": (None, 4)}  # max_tiles; None is no limit
NANO_BUDGETS = (1, 4)  # what argus-nano was trained on
SCENE_SIZES = ((216, 288), (120, 240), (80, 160))  # (height, width); a tile of argus-nano has 144 pixels a side


def ttft(report: Report, key: str, images: list[bytes]) -> None:
    """One row a setting; settings that give the same tiles are measured once."""
    args = report.args
    shape, dtype = shape_of(args, key), getattr(torch, args.dtype)
    side = build_sides(shape, args.device, dtype, args.reference_attention)[OURS]
    photo = pictures.same_size(images)[0]
    width, height = pictures.size_of(photo)
    settings, grids = [], {}
    for tiling, budgets in BUDGETS.items():
        for max_tiles in budgets:
            for max_upscale in UPSCALES:
                options = {"tiling": tiling, "max_tiles": max_tiles, "max_upscale": max_upscale}
                grid = side.processor.image_processor.get_tile_grid(height, width, **options)
                settings.append((options, (tiling, grid)))
                grids.setdefault((tiling, grid), options)

    def request(options):
        chosen = replace(side, options=options)
        return chosen.generate(chosen.request(photo), 1)

    runs = {grid: lambda i, o=options: request(o) for grid, options in grids.items()}
    times = in_turn(runs, repeats_of(args, 20, 2), args.device, warmup=1, budget=report.budget)
    rows = []
    for options, grid in settings:
        tiles = grid[1].num_tiles
        report.cell(
            f"{key}: TTFT", shape=shape.name, device=args.device, tiles=tiles, **options, **summary(times[grid])
        )
        values = [str(options[name]) for name in ("tiling", "max_tiles", "max_upscale")]
        rows.append([*values, f"{grid[1].rows} x {grid[1].cols}", tiles, shown(median(times[grid]))])
    report.table(
        f"{shape.name}: time to first token of a {width}x{height} JPEG",
        ["tiling", "max_tiles", "max_upscale", "rows x columns", "tiles", "TTFT (ms)"],
        rows,
        "Settings with the same tiles share one measurement.",
    )

    def draw(axes):
        for tiling in BUDGETS:
            points = sorted({(g[1].num_tiles, median(times[g])) for o, g in settings if o["tiling"] == tiling})
            axes.plot(*zip(*points), marker="o", label=tiling)
        axes.set_xlabel(f"tiles of a {width}x{height} photo, thumbnail included")
        axes.set_ylabel("TTFT (ms)")
        axes.set_ylim(0, None)
        axes.legend()
        axes.spines[["top", "right"]].set_visible(False)

    report.plot(draw, size=(7, 4.5))


def accuracy(report: Report, scenes: int, sizes=SCENE_SIZES) -> None:
    """argus-nano's scores, one row a setting; settings that give the same tiles are scored once."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import modeling_argus
    import processing_argus

    assert modeling_argus and processing_argus  # they register the classes
    device = report.args.device
    processor = AutoProcessor.from_pretrained(default_model_path())
    model = AutoModelForImageTextToText.from_pretrained(default_model_path(), dtype=torch.float32).eval().to(device)
    rows = []
    for height, width in sizes:
        pictured, done = [render_scene(i, "val", height=height, width=width) for i in range(scenes)], {}
        for options in [{"max_tiles": n, "max_upscale": u} for n in NANO_BUDGETS for u in UPSCALES]:
            grid = processor.image_processor.get_tile_grid(height, width, **options)
            if grid not in done and report.budget.left() <= 0:
                report.cell(f"argus-nano, {width}x{height}", skipped="the budget was spent", **options)
                continue
            if grid not in done:
                done[grid] = _scores(score_scenes(ArgusAnswerer(model, processor, **options), pictured))
            values = done[grid]
            cell = {"tiles": grid.num_tiles, "scenes": scenes, **options, **values}
            report.cell(f"argus-nano, {width}x{height}", **cell)
            setting = [f"{width}x{height}", str(options["max_tiles"]), str(options["max_upscale"])]
            rows.append(
                [*setting, f"{grid.rows} x {grid.cols}", grid.num_tiles, *(f"{v:.3f}" for v in values.values())]
            )
    report.table(
        f"argus-nano's accuracy on {scenes} scenes of the val split",
        ["scene", "max_tiles", "max_upscale", "rows x columns", "tiles", *_scores(None)],
        rows,
        "F1 at IoU 0.5. argus-nano was trained on one tile mostly, with a share of grids up to 2 x 2 and 1 x 3.",
    )


def _scores(found: dict | None) -> dict[str, float]:
    """The numbers of the table out of all scores; of None, their names."""
    if found is None:
        return dict.fromkeys(("caption recall", "answers right", "detect F1", "dense F1"), 0.0)
    answers = list(found["answer"].values())
    right = sum(answer["accuracy"] * answer["questions"] for answer in answers)
    return {
        "caption recall": found["caption"]["object_recall"],
        "answers right": right / max(sum(answer["questions"] for answer in answers), 1),
        "detect F1": found["detect"]["f1_50"],
        "dense F1": found["dense_caption"]["f1_50"],
    }


def run(report: Report, scenes: int = 64, keys=None) -> None:
    args = report.args
    images, _ = pictures.load(args.images, 2 if args.tiny else 10)
    for key in keys or [key for key in args.shapes if key != "qwen3-vl-2b"]:
        report.attempt(f"{key}: TTFT", ttft, report, key, images)
    if scenes:
        report.attempt("argus-nano", accuracy, report, scenes)
    note = f"Batch 1, {args.dtype} on {args.device} for TTFT; argus-nano in float32, greedy."
    report.write("TTFT and accuracy against max_upscale", note)


def main(arguments=None) -> int:
    parser = build_parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--scenes",
        type=int,
        metavar="N",
        help="scenes that argus-nano is scored on (0: none; default: 64, 2 with --tiny)",
    )
    args = parser.parse_args(arguments)
    set_up(args)
    report = Report("upscale", args, arguments)
    run(report, (2 if args.tiny else 64) if args.scenes is None else args.scenes)
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
