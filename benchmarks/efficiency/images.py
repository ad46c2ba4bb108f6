"""Throughput of the image processors: encoded bytes to tiles, over image sizes, formats and batches, on the CPU.

    python -m benchmarks.efficiency.images

Physics: a 640x480 JPEG decodes in about a millisecond; its 13 tiles of 512 pixels are 10.2 MB of uint8 and four times
that in float32, and a core writes a few GB/s. Peak memory is how much a process grew at the highest point of a call,
the result included (Linux tells it), in two ways: as allocations, by memory.py in a process where freed pages are gone
at once, which the bar is held against; and as the process that was timed, where glibc keeps freed pages.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import memory, pictures
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
    width, height = pictures.size_of(batch[0])
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
            "resident_mb": None if peak is None else round(peak / 1e6, 1),
        }
    return report.cell(cell, width=width, height=height, batch=len(batch), **values)


@dataclass(frozen=True)
class Cell:
    """What is measured: its table, its name, what makes the batch of encoded images, and whether few repeats do."""

    group: str
    name: str
    make: Callable[[], list[bytes]]
    heavy: bool = False


def cells(args) -> list[Cell]:
    """All cells, the bar's first; the same ones in memory.py's process."""

    def one(size, kind="JPEG"):
        # Pixels of a large photo take longer to generate than to process: its texture is repeated.
        width, height = min(size[0], 1024), min(size[1], 1024)
        pixels = pictures.photo(width, height, seed=3)
        pixels = np.tile(pixels, (-(-size[1] // height), -(-size[0] // width), 1))[: size[1], : size[0]]
        return pictures.encode(pixels, kind)

    found = []
    for size in SIZES[:1] if args.tiny else SIZES:
        heavy = size[0] * size[1] > 4_000_000
        found.append(Cell("sizes", f"{size[0]}x{size[1]} JPEG", lambda s=size: [one(s)], heavy))
    for kind in FORMATS[2:] if args.tiny else FORMATS[1:]:
        found.append(Cell("formats", f"640x480 {kind}", lambda k=kind: [one((640, 480), k)]))
    for count in BATCHES[1:2] if args.tiny else BATCHES[1:]:
        found.append(Cell("batches", f"640x480 JPEG x {count}", lambda n=count: [one((640, 480))] * n, count > 4))
    if args.images:
        found.append(Cell("batches", "one of --images", lambda: pictures.load(args.images, 1)[0]))
    return found


def all_sides(args) -> dict[str, Side]:
    """Argus' two sides first, then transformers'; no models."""
    everyone = build_sides(shape_of(args, "256m"), "cpu", None, models=False)
    return {name: everyone[name] for name in (OURS, OURS_ONE_RESIZE, TORCHVISION, PIL)}


def memory_factor(peak_mb: float | None, values: dict) -> float | None:
    """(peak - decoded image) / output: 2.1 is the most that is allowed. None where the counter saw too little: less
    than the output."""
    if peak_mb is None or peak_mb < values["output_mb"]:
        return None
    return max(peak_mb - values["decoded_mb"], 0.0) / values["output_mb"]


def table(report: Report, title: str, found: list[dict], sides, peaks: dict) -> None:
    rows = []
    for cell in found:
        for name in sides:
            v, peak = cell[name], peaks.get((cell["cell"], name))
            cost = [shown(v["ms"] / cell["batch"], 2), shown(v["images/s"]), v["tiles"], v["output_mb"]]
            allocated = [shown(peak), shown(memory_factor(peak, v), 2)]
            resident = [shown(v["resident_mb"]), shown(memory_factor(v["resident_mb"], v), 2)]
            rows.append([cell["cell"], name, *cost, *allocated, *resident])
    header = ["images", "side", "ms an image", "images/s", "tiles", "output MB"]
    header += ["peak MB", "over output", "resident MB", "over output"]
    note = (
        "`peak`: allocations, in a process where freed pages are gone at once. `resident`: of the process that is "
        "timed, where glibc keeps freed pages. `over output`: (peak - decoded image) / output; - where the counter saw "
        "less than the output."
    )
    report.table(title, header, rows, note)


def memory_bars(factors: dict[str, float | None], resident: dict[str, float | None], names: list[str]) -> list[Bar]:
    """The memory bars from Argus' factors by cell. The worst of all is known only where all cells of `names` are.

    factors: of allocations, which are judged; resident: of glibc's pages, which are told beside them.
    """
    photo, what = "640x480 JPEG", "(peak of the processor - decoded image) / output"
    missing = [name for name in names if factors.get(name) is None]
    worst = None if missing or not names else max(names, key=factors.get)
    kept = [value for value in resident.values() if value is not None]

    def note(*words, value):
        told = "" if value is None else f"with the pages that glibc keeps: {value:.2f}"
        return "; ".join(word for word in (*words, "allocations, n = 1", told) if word)

    return [
        Bar(f"{what}, {photo}", MEMORY_FACTOR, factors.get(photo), note=note(value=resident.get(photo))),
        Bar(
            f"{what}, worst of all",
            MEMORY_FACTOR,
            None if worst is None else factors[worst],
            note=f"missing: {', '.join(missing)}" if missing else note(worst or "", value=max(kept, default=None)),
        ),
    ]


def child_arguments(args) -> list[str]:
    """The options that decide what memory.py's process meets."""
    chosen = ["--tiny"] if args.tiny else []
    chosen += ["--images", str(args.images.resolve())] if args.images else []
    return chosen + (["--threads", str(args.threads)] if args.threads else [])


def run(report: Report) -> None:
    args, budget = report.args, report.budget
    shape, sides = shape_of(args, "256m"), all_sides(report.args)
    chosen, done = cells(args), {"sizes": [], "formats": [], "batches": []}
    for cell in chosen:
        found = report.attempt(cell.name, lambda c=cell: measure(report, sides, c.name, c.make(), c.heavy))
        done[cell.group] += [found] if found else []

    def allocations():
        found = memory.peaks(child_arguments(args), max(min(budget.left(), 300), 60))
        peaks.update({key: peak / 1e6 for key, peak in found.items() if peak is not None})
        report.cell("peak memory", megabytes={f"{c}: {n}": round(peak, 1) for (c, n), peak in peaks.items()})

    peaks: dict[tuple[str, str], float] = {}
    report.always("peak memory", allocations)
    for group, found in done.items():
        if found:
            table(report, f"By {group}", found, sides, peaks)
    measured = {cell["cell"]: cell[OURS] for found in done.values() for cell in found}
    factors = {name: memory_factor(peaks.get((name, OURS)), values) for name, values in measured.items()}
    resident = {name: memory_factor(values["resident_mb"], values) for name, values in measured.items()}
    report.verdicts(memory_bars(factors, resident, [cell.name for cell in chosen]))
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
