"""Tokens a second of `generate()`, prefill apart: transformers' paths against Argus in stages, over the same weights.

    python -m benchmarks.efficiency.decode

measures 256M, 2B, 500M and Qwen3-VL-2B on a GPU, and on a CPU the 256M. Physics: a step reads every weight of the
decoder and the head once, and each row's keys and values: 269 MB and 23 KB a token (256M, bf16), 3.1 GB (2B). At 3 TB/s
that is 11,000 and 970 tokens/s; what is missing from it is launches and Python. A cell is the time of N + 1 new tokens
less that of one, which is the prefill, over N; the limit is by the read bandwidth that the same run has measured.
Section 5.4's ratios are 1.77 (256M) and 1.90 (2B). Qwen3-VL-2B is transformers' own alone, as Argus has no q and k
norms: beside it stands Argus' decoder of the same sizes without them.
"""

import argparse
import gc
from collections.abc import Callable

import torch

from . import decode_again, decode_answers
from .common import Report, build_parser, repeats_of, set_up, shape_of, stacked_bars
from .decode_bars import GPU_BARS, bars
from .decode_prompts import make_prompt
from .decode_sides import (
    COMPILED,
    DEDUPLICATED,
    EAGER,
    GRAPH,
    INT8,
    KERNELS,
    LOOP,
    NORM,
    ROTARY,
    Decoder,
    build_decoders,
    bytes_per_step,
    read_bandwidth,
)
from .measuring import in_turn, median, ratio, shown, summary
from .models import build_ours, build_reference, build_same_decoder, packaged_smollm2

PARTS = ("speed", "answers", "fp32-answers", "real-answers", "again")
# (batch, context), the most telling first. A CPU reads the prompts of 16 rows for ten seconds a call.
GRID = ((1, 880), (4, 880), (16, 880), (1, 128), (1, 4096), (4, 128), (16, 128), (4, 4096), (16, 4096))
TINY_GRID = ((1, 60), (2, 24))
PROCESS = (
    "All sides share a process. Their first calls were made in the table's order, after the images had been encoded: "
    "what an earlier one compiled or loaded is warm for a later one."
)
STAGES = (
    f"A stage has what the one above it has, but for `{LOOP}` and `{GRAPH}`: these run torch's operations alone, "
    f"without the fused norms, rotary and SwiGLU of `{DEDUPLICATED}`. "
    f"`{KERNELS}` has all of them again, and is what ships."
)
CPU_GRID = ((1, 880), (1, 128), (4, 880), (1, 4096), (16, 880))


class Models:
    """key -> (reference, Argus, sides), built when a shape's turn comes; a CPU holds one shape at a time."""

    def __init__(self, report: Report, prepared: Callable | None = None):
        self.args, self.kept = report.args, {}
        self.prepared = prepared or (lambda key: build(self.args, key))

    def __call__(self, key: str) -> tuple:
        if key not in self.kept:
            if torch.device(self.args.device).type == "cpu":
                self.kept.clear()
                gc.collect()
            reference, ours = self.prepared(key)
            sides = build_decoders(shape_of(self.args, key), reference, ours, getattr(self.args, "compiled", None))
            self.kept[key] = reference, ours, sides
        return self.kept[key]


def build(args, key: str) -> tuple:
    """(transformers' model, Argus) of a shape; of Qwen3-VL Argus has the decoder's sizes alone."""
    shape = shape_of(args, key)
    reference = build_reference(shape, args.device, getattr(torch, args.dtype), args.reference_attention)
    return reference, build_same_decoder(reference) if shape.kind == "qwen3_vl" else build_ours(reference, shape)


# --- one cell ---------------------------------------------------------------------------------------------------------


def measure(
    report: Report, cell: str, sides: dict[str, Decoder], prompt, tokens: int, repeats: int, bandwidth: float
) -> dict:
    """Tokens a second of the sides, in turn; name -> values of those that ran.

    bandwidth: bytes a second; they give the tokens a second at which the memory would be busy all the time, by the
        bytes of each side's own weights.
    """
    device, batch, first, answers = report.args.device, prompt.ids.shape[0], {}, {}

    def run(side, n):
        return lambda i=0: side.generate(prompt, n).tolist()

    for name, side in sides.items():
        # N + 1 tokens first: a static cache keeps that length, and its graphs, for the calls with one.
        ran = report.always(f"{cell}: {name}", side.first_call, prompt, tokens + 1)
        if ran is not None:
            first[name], answers[name] = ran
    runs = {(name, n): run(sides[name], n) for name in first for n in (tokens + 1, 1)}
    times = in_turn(runs, repeats, device, warmup=0, budget=report.budget)
    found = {}
    for name in first:
        whole, prefill = times[name, tokens + 1], times[name, 1]
        steps = max(median(whole) - median(prefill), 0.0)
        speed = batch * tokens / steps * 1000 if steps else None  # None where noise ate the difference
        limit = batch * bandwidth / bytes_per_step(sides[name].model, batch, prompt.ids.shape[1] + tokens / 2)
        found[name] = {
            "tokens_per_second": speed,
            "ms_a_step": steps / tokens if speed else None,
            "memory_limit": limit,
            "of_the_limit": speed / limit if speed else None,
            "first_call_ms": first[name],
            "whole": summary(whole),
            "prefill": summary(prefill),
            "same_tokens": _agreeing(answers[name], answers.get(EAGER)) if sides[name].same_weights else None,
        }
    sizes = {"batch": batch, "context": prompt.ids.shape[1], "new_tokens": tokens}
    report.cell(cell, **sizes, **found)
    return found


def _agreeing(answer: list[list[int]], expected: list[list[int]] | None) -> str | None:
    """How many tokens a row has before it leaves transformers' answer, and of how many; the fewest of all rows."""
    if expected is None:
        return None
    same = (next((i for i, (x, y) in enumerate(zip(a, e)) if x != y), len(e)) for a, e in zip(answer, expected))
    return f"{min(same)} of {len(expected[0])}"


def limits_of(found: dict) -> dict[str, float]:
    """The memory's limit by the bytes of the models' own weights, and of int8 ones where a side has them."""
    usual = next((values["memory_limit"] for name, values in found.items() if name != INT8), None)
    int8 = found[INT8]["memory_limit"] if INT8 in found else None
    limits = {"the memory's limit": usual, "the memory's limit, int8": int8}
    return {name: limit for name, limit in limits.items() if limit}


def tabulate(report: Report, title: str, found: dict, note: str) -> None:
    base = found.get(EAGER, {}).get("tokens_per_second")
    rows = []
    for name, values in found.items():
        speed, share = values["tokens_per_second"], values["of_the_limit"]
        of_the_limit = "-" if share is None else f"{100 * share:.1f}%"
        times = [shown(values["ms_a_step"], 3), shown(ratio(speed, base), 2), of_the_limit]
        calls = [shown(values["prefill"]["ms"]), shown(values["first_call_ms"], 0)]
        rows.append([name, shown(speed), *times, *calls, values["same_tokens"] or "-"])
    for name, limit in limits_of(found).items():
        rows.append([f"*{name}*", shown(limit), "-", shown(ratio(limit, base), 2), "100%", "-", "-", "-"])
    header = ["side", "tokens/s", "ms a step", "x transformers", "of the limit", "prefill (ms)", "first call (ms)"]
    report.table(title, [*header, "same tokens"], rows, note)


def speed(report: Report, models: Models, cell: tuple[str, int, int], bandwidth: float, names=None) -> dict:
    """One (shape, batch, context): side -> values.

    names: the sides to measure; by default all but the compiled one, in a shape's first cell with all stages.
    """
    key, batch, context = cell
    args, shape, first = report.args, shape_of(report.args, key), cell[1:] in (GRID[0], TINY_GRID[0])
    reference, ours, sides = models(key)
    usual = [name for name in sides if name != COMPILED and (first or name not in (NORM, ROTARY))]
    chosen = {name: sides[name] for name in names or usual}
    tokens = 4 if args.tiny else 64 if batch == 1 else 32
    prompt = make_prompt(shape, reference, ours, [context] * batch)
    name, repeats = _name(cell, names), repeats_of(args, 5 if first else 3, 5 if first else 2)
    found = measure(report, name, chosen, prompt, tokens, repeats, bandwidth)
    tiles = 0 if prompt.features is None else len(prompt.features)
    note = f"{tiles} tiles in the context, {tokens} tokens after the first; read bandwidth {bandwidth / 1e9:,.0f} GB/s."
    note += f" {PROCESS}" + (f" {STAGES}" if GRAPH in chosen else "")
    if shape.kind == "qwen3_vl":
        note += " Argus cannot load this model: its rows are a decoder of the same sizes without q and k norms."
    tabulate(report, f"{shape.name}: {name.split(': ', 1)[1]}", found, note)
    return found


def _name(cell: tuple[str, int, int], names=None) -> str:
    key, batch, context = cell
    return f"{key}: batch {batch}, context {context}{', compiled' if names else ''}"


# --- plot ------------------------------------------------------------------------------------------------------------


def draw(report: Report, found: dict) -> None:
    """Tokens a second of each shape's first cell, and the memory's limit."""
    rows = []
    for key in dict.fromkeys(key for key, *_ in found):
        cell = next(cell for cell in found if cell[0] == key)
        label, sides = f"{shape_of(report.args, key).name}, batch {cell[1]}", found[cell]
        base = sides.get(EAGER, {}).get("tokens_per_second")
        for side, values in sides.items():
            times = ratio(values["tokens_per_second"], base)
            shown_as = f"{label}: {side}" + ("" if times is None else f" ({times:.2f}x)")
            rows.append((shown_as, {"measured": values["tokens_per_second"] or 0.0}))
        rows += [(f"{label}: {name}", {"limit": limit}) for name, limit in limits_of(sides).items()]
    if rows:
        unit = "tokens a second, prefill apart"
        report.plot(lambda axes: stacked_bars(axes, rows, unit), size=(10, 1.6 + 0.32 * len(rows)))


# --- all of it --------------------------------------------------------------------------------------------------------


def grid_of(args) -> list[tuple[int, int]]:
    """(batch, context) of the cells that were asked for."""
    grid = TINY_GRID if args.tiny else GRID if torch.device(args.device).type == "cuda" else CPU_GRID
    batches, contexts = (getattr(args, name, None) for name in ("batches", "contexts"))
    return [cell for cell in grid if (not batches or cell[0] in batches) and (not contexts or cell[1] in contexts)]


def run(report: Report, keys=None, prepared: Callable | None = None) -> dict:
    """The first cell of each shape, then the answers and the second call, then the other batches and contexts.

    `prepared`: key -> (reference, Argus), where a caller keeps them; it is asked when a shape's turn comes.
    """
    args = report.args
    on_gpu, dtype = torch.device(args.device).type == "cuda", getattr(torch, args.dtype)
    parts = getattr(args, "parts", None)
    grid = grid_of(args)
    keys, models = list(keys or args.shapes), Models(report, prepared)
    barred = [key for key in keys if key in GPU_BARS and (on_gpu or key == "256m")]
    found, answers, again = {}, {}, {}
    bandwidth = read_bandwidth(args.device, 0.05 if args.tiny else 1.0)
    report.cell("read bandwidth", gb_per_second=round(bandwidth / 1e9, 1))

    def wanted(part):
        return not parts or part in parts

    def write():
        words = "Greedy, random weights. A cell is the median of N + 1 new tokens less that of one, over N."
        report.write("Decoding: tokens a second", f"{words} {args.dtype} on {args.device}, {args.reference_attention}.")

    def cells(keys, sizes, names=None):
        for cell in [(key, *size) for key in keys for size in sizes if wanted("speed")]:
            made = report.attempt(_name(cell, names), speed, report, models, cell, bandwidth, names)
            if made and names is None:
                found[cell] = made
            write()

    def compare(key, dtype, built=None):
        answers.update(report.attempt(f"{key}: answers", decode_answers.run, report, key, dtype, built) or {})

    cells(barred, grid[:1])
    for key in barred if wanted("answers") else ():
        compare(key, dtype, lambda key=key: models(key)[:2])
    if "256m" in keys and wanted("fp32-answers") and dtype != torch.float32:
        compare("256m", torch.float32)
    if "256m" in keys and wanted("real-answers") and packaged_smollm2() and not args.tiny:
        for precision in dict.fromkeys((torch.float32, dtype)):
            compare(decode_answers.REAL, precision)
    if answers:
        decode_answers.table(report, answers)
    if barred and wanted("again"):
        key = barred[0]
        again = report.attempt(f"{key}: again", lambda: decode_again.measure(report, key, *models(key))) or {}
        write()
    if on_gpu or getattr(args, "compiled", None):  # it may compile for minutes
        cells(barred, grid[:1], [EAGER, COMPILED])
    cells([key for key in keys if key not in barred], grid[:1])
    cells(keys, grid[1:])
    report.verdicts(bars(found, answers, again, on_gpu, args.dtype))
    write()
    report.always("plot", draw, report, found)
    write()
    return found


def main(arguments=None) -> int:
    parser = build_parser(__doc__.splitlines()[0], shapes=None)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, help="measure these alone")
    add("--batches", nargs="+", type=int, metavar="B", help="of the batch sizes 1, 4 and 16 these alone")
    add("--contexts", nargs="+", type=int, metavar="T", help="of the contexts 880, 128 and 4096 these alone")
    add("--compiled", action="store_true", default=None, help="transformers' compiled path on a CPU too")
    args = parser.parse_args(arguments)
    if not grid_of(args):
        every = ", ".join(
            f"{batch} x {context}" for batch, context in grid_of(argparse.Namespace(tiny=args.tiny, device=args.device))
        )
        parser.error(f"--batches and --contexts leave no cell; batch x context here: {every}.")
    on_gpu = torch.device(args.device).type == "cuda"
    args.shapes = args.shapes or (["256m", "2b", "500m", "qwen3-vl-2b"] if on_gpu else ["256m"])
    set_up(args)
    report = Report("decode", args, arguments)
    run(report)
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
