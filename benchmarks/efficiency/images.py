"""Throughput of the image processors: encoded bytes to tiles, over image sizes, formats and batches, on the CPU.

    python -m benchmarks.efficiency.images

Physics: a 640x480 JPEG decodes in about a millisecond; its 13 tiles of 512 pixels are 10.2 MB of uint8 and four times
that in float32, and a core writes a few GB/s. Peak memory is how much the process grew at the highest point of a call,
the result included (Linux tells it).
"""

import io

import numpy as np
from PIL import Image

from . import pictures
from .common import Report, build_parser, repeats_of, set_up, shape_of, stacked_bars
from .measuring import Bar, in_turn, median, peak_bytes, shown, summary
from .sides import OURS, OURS_ONE_RESIZE, PIL, TORCHVISION, Side, build_sides

SIZES = ((640, 480), (64, 64), (320, 240), (1280, 960), (1920, 1080), (4000, 3000), (8000, 6000))
FORMATS = ("JPEG", "PNG", "WEBP")
BATCHES = (1, 4, 16)
MEMORY_FACTOR = 2.1


def process(side: Side, batch: list[bytes]):
    """Encoded bytes -> the side's tiles, as tensors on the CPU."""
    images = batch if side.ours else [side.decode(data) for data in batch]
    if not side.ours and side.processor.image_processor.__class__.__name__.startswith("SmolVLM"):
        images = [[image] for image in images]  # one sample each
    return side.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]


def measure(report: Report, sides: dict[str, Side], cell: str, batch: list[bytes], heavy: bool) -> dict:
    """One cell: every side in turn on one batch."""
    with Image.open(io.BytesIO(batch[0])) as image:
        width, height = image.size
    decoded = width * height * 3 * len(batch)
    runs = {name: lambda i, s=side: process(s, batch) for name, side in sides.items()}
    repeats = min(repeats_of(report.args, 15, 15), 3) if heavy else repeats_of(report.args, 15, 15)
    times = in_turn(runs, repeats, warmup=1, budget=report.budget)
    values = {}
    for name, side in sides.items():
        tiles = process(side, batch)
        size, count = tiles.numel() * tiles.element_size(), tiles.numel() // (3 * tiles.shape[-1] ** 2)
        del tiles
        peak = peak_bytes(lambda s=side: process(s, batch))
        values[name] = {
            **summary(times[name]),
            "images/s": round(len(batch) * 1000 / median(times[name]), 2),
            "tiles": count,
            "output_mb": round(size / 1e6, 2),
            "decoded_mb": round(decoded / 1e6, 2),
            "peak_mb": None if peak is None else round(peak / 1e6, 1),
        }
    return report.cell(cell, width=width, height=height, batch=len(batch), **values)


def memory_factor(values: dict) -> float | None:
    """(peak - decoded image) / output: 2.1 is the most that is allowed."""
    if values["peak_mb"] is None:
        return None
    return max(values["peak_mb"] - values["decoded_mb"], 0.0) / values["output_mb"]


def table(report: Report, title: str, cells: list[dict], sides) -> None:
    rows = []
    for cell in cells:
        for name in sides:
            v = cell[name]
            factor = memory_factor(v)
            cost = [shown(v["ms"] / cell["batch"], 2), shown(v["images/s"]), v["tiles"], v["output_mb"]]
            rows.append([cell["cell"], name, *cost, shown(v["peak_mb"]), shown(factor, 2)])
    header = ["images", "side", "ms an image", "images/s", "tiles", "output MB", "peak MB", "peak over output"]
    report.table(title, header, rows, "`peak over output`: (peak - decoded image) / output.")


def run(report: Report) -> None:
    args = report.args
    shape = shape_of(args, "256m")
    everyone = build_sides(shape, "cpu", None, models=False)
    sides = {name: everyone[name] for name in (OURS, OURS_ONE_RESIZE, TORCHVISION, PIL)}
    sizes = SIZES[:1] if args.tiny else SIZES
    done: dict[str, list[dict]] = {"sizes": [], "formats": [], "batches": []}

    def cell(group, name, make, heavy=False):
        found = report.attempt(name, lambda: measure(report, sides, name, make(), heavy))
        done[group] += [found] if found else []

    def one(size, kind="JPEG"):
        # Pixels of a large photo take longer to generate than to process: its texture is repeated.
        width, height = min(size[0], 1024), min(size[1], 1024)
        pixels = pictures.photo(width, height, seed=3)
        pixels = np.tile(pixels, (-(-size[1] // height), -(-size[0] // width), 1))[: size[1], : size[0]]
        return pictures.encode(pixels, kind)

    for size in sizes:
        heavy = size[0] * size[1] > 4_000_000
        cell("sizes", f"{size[0]}x{size[1]} JPEG", lambda s=size: [one(s)], heavy)
    for kind in FORMATS[2:] if args.tiny else FORMATS[1:]:
        cell("formats", f"640x480 {kind}", lambda k=kind: [one((640, 480), k)])
    for count in BATCHES[1:2] if args.tiny else BATCHES[1:]:
        cell("batches", f"640x480 JPEG x {count}", lambda n=count: [one((640, 480))] * n, count > 4)
    if args.images:
        images, _ = pictures.load(args.images, min(args.num_images, 10))
        cell("batches", "one of --images", lambda: images[:1])
    for group, cells in done.items():
        if cells:
            table(report, f"By {group}", cells, sides)
    factors = {c["cell"]: f for cells in done.values() for c in cells if (f := memory_factor(c[OURS])) is not None}
    worst = max(factors, key=factors.get, default=None)
    name = "(peak of the processor - decoded image) / output"
    report.verdicts(
        [
            Bar(f"{name}, 640x480 JPEG", MEMORY_FACTOR, factors.get("640x480 JPEG")),
            Bar(f"{name}, worst of all", MEMORY_FACTOR, factors.get(worst), note=worst or ""),
        ]
    )
    bars = [(f"{c['cell']}: {n}", {"ms": c[n]["ms"]}) for c in done["sizes"] for n in sides]
    if bars:

        def draw(axes):
            stacked_bars(axes, bars)
            axes.set_xscale("log")
            axes.set_xlim(0.5, None)
            axes.get_legend().remove()

        report.plot(draw, size=(10, 1.2 + 0.25 * len(bars)))
    report.write("Image processors", f"{shape.name}'s tiles: {shape.tile_size} pixels; all on the CPU.")


def main(arguments=None) -> int:
    args = build_parser(__doc__.splitlines()[0], device="cpu").parse_args(arguments)
    set_up(args)
    report = Report("images", args, arguments)
    run(report)
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
