"""The recipes one by one, in the form of the paper's Tables 1 and 2: TTFT, tokens a second and end-to-end latency.

    python -m benchmarks.efficiency.recipes --shapes 256m 2b

The first rows are transformers' own path, each further row adds a recipe to the one above, the last is Argus as it
ships. The slow variants are in recipes_slow.py. Every row computes the same answer: ids are equal, tiles and the first
token's logits agree within the tolerances below, or the row fails. Rows are ordered so that each has something to
remove: the paper's order is vLLM's. On a CPU, where a model's run-to-run noise is larger than most recipes, TTFT is the
median of making the inputs plus the median of the model on that kind of input; on a GPU it is measured as one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import pictures
from .common import Report, build_parser, repeats_of, set_up, shape_of, stacked_bars
from .measuring import in_turn, median, shown, summary, tokens_per_second
from .recipes_slow import Recipes, SlowInputs, one_thread
from .sides import OURS, OURS_ONE_RESIZE, PIL, TORCHVISION, Side, build_sides

# Levels of 255 that a row's tiles may be off, largest and mean; the first token's logits, against their own spread.
SAME_KERNEL = (2.51, 0.13)  # bf16 floats hold a level to within a half; Pillow and torch round alike to 2
OTHER_KERNEL = (64, 2.0)  # Pillow rounds otherwise; 4.57's torchvision and every GPU take bicubic for Lanczos
LOGITS = {torch.float32: 0.05, torch.float16: 0.1, torch.bfloat16: 0.25}


@dataclass
class Row:
    """One row: how inputs are made, which model runs, and what differs from the row above."""

    name: str
    inputs: Callable[[bytes], dict]
    side: Side
    gpu_only: bool = False
    tolerance: tuple[float, float] = SAME_KERNEL
    aside: bool = False


def table_rows(shape, sides: dict[str, Side], device, dtype) -> list[Row]:
    """The rows of one shape, slowest first."""
    ours, on_gpu = sides[OURS], torch.device(device).type == "cuda"
    theirs = sides[TORCHVISION]

    def slow(**recipes):
        return SlowInputs(Recipes(**recipes), shape, ours.processor, device, dtype)

    def for_theirs(make):
        def inputs(data):
            made = make(data)
            if shape.kind == "smolvlm":  # their model wants a batch dimension before the tiles
                for name in ("pixel_values", "pixel_attention_mask"):
                    made[name] = made[name][None]
            return made

        return inputs

    first = {} if shape.kind == "smolvlm" else {"no_mask": True}  # InternVL has no pixel mask to remove
    rows = [
        Row(f"{shape.name}, transformers, PIL", sides[PIL].request, sides[PIL], tolerance=OTHER_KERNEL),
        Row("+ antialias kernels of Pillow-SIMD (9): torchvision", theirs.request, theirs, tolerance=OTHER_KERNEL),
        Row("+ tensors throughout (2), fewer transforms (1), one decode (5)", for_theirs(slow(**first)), theirs),
    ]
    steps = [
        ("no_mask", "+ Argus' model, no pixel mask (10)", False),
        ("uint8", "+ UInt8 transfer (8)", False),
        ("folded", "+ BF16 img normalize (6): none, folded into the model", False),
        ("spliced", "+ tokenizer (7): spliced ids", False),
        ("flat", "+ avoid split (11)", False),
        ("pinned", "+ pin memory (4)", True),
        ("on_device", "+ GPU preprocess (3)", True),
        ("fast_decode", "+ fastest faithful decoder (5, 9)", False),
    ]
    done: dict[str, bool] = {}
    for name, label, gpu_only in steps:
        done[name] = True
        if name == "no_mask" and "no_mask" in first:
            label = "+ Argus' model"
        tolerance = OTHER_KERNEL if on_gpu and "on_device" in done else SAME_KERNEL
        rows.append(Row(label, slow(**done), ours, gpu_only, tolerance))
    if not on_gpu:  # a GPU resizes by itself, and its last row has one thing left to add

        def alone(data):
            with one_thread():
                return ours.prepare(data)

        exact = {"tolerance": (0, 0)}
        rows.append(Row("+ resize in the decoder's order of bytes, straight into tiles (2)", alone, ours, **exact))
        rows.append(Row("+ resize over threads", ours.prepare, ours, **exact))
    last = "+ pack H2D transfers (12)" + (", straight into tiles (2)" if on_gpu else ", of which a CPU has none")
    tolerance = OTHER_KERNEL if on_gpu else (0, 0)
    rows.append(Row(f"{last}: Argus as it ships", ours.request, ours, tolerance=tolerance))
    if OURS_ONE_RESIZE in sides:
        side = sides[OURS_ONE_RESIZE]
        rows.append(Row("aside: one resize to the same canvas (1), other pixels", side.request, side, aside=True))
    return rows


def compare(row: Row, data: bytes, reference: dict, dtype) -> dict:
    """A row's answer against Argus' exact tiles on the CPU. Raises AssertionError where it is another answer."""
    inputs = row.inputs(data)
    levels = row.side.levels(inputs)
    pixels = (levels - reference["levels"]).abs() if levels.shape == reference["levels"].shape else None
    logits = _logits(row.side, inputs, reference["known"])
    off = (logits - reference["logits"]).abs().max().item()
    result = {
        "same_ids": inputs["input_ids"].tolist() == reference["ids"],
        "pixels_largest": None if pixels is None else round(pixels.max().item(), 3),
        "pixels_mean": None if pixels is None else round(pixels.mean().item(), 4),
        "logits_largest": round(off, 4),
        "logits_spread": round(reference["logits"].std().item(), 3),
        "same_first_token": bool(logits.argmax() == reference["logits"].argmax()),
    }
    if row.aside:
        return result  # another picture by intention: what it differs is reported
    assert result["same_ids"], f"{row.name}: other ids"
    assert pixels is not None, f"{row.name}: {list(levels.shape)} tiles"
    largest, mean = row.tolerance
    assert result["pixels_largest"] <= largest and result["pixels_mean"] <= mean, f"{row.name}: pixels {result}"
    if row.tolerance != OTHER_KERNEL:
        limit = LOGITS[dtype] * result["logits_spread"]
        assert off <= limit, f"{row.name}: logits are off by {off:.3g}, more than {limit:.3g}"
    return result


def _logits(side: Side, inputs: dict, known: list) -> torch.Tensor:
    """The first token's logits; a model that has been asked the very same tensors is not asked again."""
    for model, tensors, logits in known:
        same = model is side.model and tensors.keys() == inputs.keys()
        if same and all(torch.equal(tensors[name], inputs[name]) for name in inputs):
            return logits
    known.append((side.model, dict(inputs), side.logits(inputs)))
    return known[-1][2]


def reference_answer(sides: dict[str, Side], data: bytes) -> dict:
    """Argus' exact tiles made on the CPU, and the first token's logits."""
    side = sides[OURS]
    inputs = side.prepare(data)
    known: list = []
    logits = _logits(side, inputs.to(side.device), known)
    return {"levels": side.levels(inputs), "logits": logits, "ids": inputs["input_ids"].tolist(), "known": known}


def measure(report: Report, key: str, sides: dict[str, Side], images: list[bytes]) -> list[list]:
    """Measures all rows of one shape in turn; returns the table's rows."""
    args, budget = report.args, report.budget
    shape, dtype = shape_of(args, key), getattr(torch, args.dtype)
    on_gpu = torch.device(args.device).type == "cuda"
    photos = pictures.same_size(images)
    rows = table_rows(shape, sides, args.device, dtype)
    reference = reference_answer(sides, photos[0])
    agreed, kept = {}, []
    for row in rows:
        found = report.attempt(f"{key}: {row.name}", compare, row, photos[0], reference, dtype)
        if found is not None:
            agreed[row.name] = found
            kept.append(row)
    making = in_turn(
        {row.name: lambda i, r=row: r.inputs(photos[i % len(photos)]) for row in kept},
        repeats_of(args, 20, 25),
        args.device,
        warmup=2,
        budget=budget,
    )
    for row in kept:  # the rest may take minutes
        report.cell(f"{key}: inputs, {row.name}", shape=shape.name, **summary(making[row.name]), **agreed[row.name])
    if on_gpu:
        first, answers = _as_one(report, kept, photos, shape.new_tokens)
    else:
        first, answers = _composed(report, kept, photos, shape.new_tokens, making)
    table = []
    for row in kept:
        ttft, total = first.get(row.name), answers.get(row.name)
        speed = None if ttft is None or total is None else tokens_per_second(shape.new_tokens, ttft, total)
        facts = agreed[row.name]
        no_gpu = row.gpu_only and not on_gpu
        report.cell(
            f"{key}: {row.name}",
            shape=shape.name,
            device=args.device,
            inputs=summary(making[row.name]),
            ttft_ms=ttft,
            tokens_per_second=speed,
            end_to_end_ms=total,
            needs_a_gpu=no_gpu,
            composed=not on_gpu,
            **facts,
        )
        pixels = "-" if facts["pixels_largest"] is None else f"{facts['pixels_largest']:g} / {facts['pixels_mean']:g}"
        table.append(
            [
                f"*{row.name}* (does nothing on a CPU)" if no_gpu else row.name,
                shown(ttft),
                shown(speed),
                shown(total),
                shown(median(making[row.name]), 2),
                pixels,
                f"{facts['logits_largest']:.3f}",
            ]
        )
    return table


def _as_one(report, rows, photos, new_tokens) -> tuple[dict, dict]:
    """Median milliseconds from bytes to the first and to the last token, measured as one."""
    args = report.args

    def run(row, tokens):
        return lambda i: row.side.generate(row.inputs(photos[i % len(photos)]), tokens)

    repeats = repeats_of(args, 20, 1)
    first = in_turn({r.name: run(r, 1) for r in rows}, repeats, args.device, 2, report.budget)
    answers = in_turn({r.name: run(r, new_tokens) for r in rows}, max(repeats // 3, 1), args.device, 1, report.budget)
    return tuple({name: median(times) for name, times in cells.items()} for cells in (first, answers))


def _composed(report, rows, photos, new_tokens, making) -> tuple[dict, dict]:
    """The same from two medians: of making the inputs, and of the model on each kind of input."""
    args = report.args
    kinds = {row.side.ours: row for row in rows}  # the last of each: the fastest input that its model takes
    inputs = {kind: row.inputs(photos[0]) for kind, row in kinds.items()}
    repeats = repeats_of(args, 20, 3)
    results = []
    for tokens in (1, new_tokens):
        runs = {kind: lambda i, k=kind, n=tokens: kinds[k].side.generate(inputs[k], n) for kind in kinds}
        times = in_turn(
            runs, repeats if tokens == 1 else max(repeats - 1, 1), warmup=int(tokens == 1), budget=report.budget
        )
        model = {kind: median(values) for kind, values in times.items()}
        for kind, values in times.items():
            report.cell(f"model, {new_tokens if tokens > 1 else 1} tokens: {kinds[kind].side.name}", **summary(values))
        results.append({row.name: median(making[row.name]) + model[row.side.ours] for row in rows})
    return tuple(results)


def single_resize(report: Report, key: str, sides: dict[str, Side], sizes=((640, 480), (640, 427))) -> None:
    """`longest_edge` without its intermediate size: faster where that is not the canvas, and another picture."""
    args = report.args
    shape, dtype, side = shape_of(args, key), getattr(torch, args.dtype), sides[OURS]
    on = {"no_mask": True, "uint8": True, "folded": True, "spliced": True, "flat": True}
    chain, single = (SlowInputs(Recipes(**on, single_resize=s), shape, side.processor) for s in (False, True))
    rows = []
    for width, height in sizes:
        data = pictures.encode(pictures.photo(width, height, seed=1))
        makers = {"chain": lambda i, d=data: chain(d), "single": lambda i, d=data: single(d)}
        times = in_turn(makers, repeats_of(args, 20, 15), warmup=2, budget=report.budget)
        made = {name: {k: v.to(side.device) for k, v in m(0).items()} for name, m in makers.items()}
        pixels = (side.levels(made["single"]) - side.levels(made["chain"])).abs()
        logits = {name: side.logits(inputs) for name, inputs in made.items()}
        values = {
            "chain_ms": round(median(times["chain"]), 2),
            "single_ms": round(median(times["single"]), 2),
            "pixels_largest": pixels.max().item(),
            "pixels_mean": round(pixels.mean().item(), 3),
            "logits_largest": round((logits["single"] - logits["chain"]).abs().max().item(), 4),
            "logits_spread": round(logits["chain"].std().item(), 3),
        }
        report.cell(f"{key}: single resize, {width}x{height}", shape=shape.name, dtype=str(dtype)[6:], **values)
        rows.append([f"{width}x{height}", *values.values()])
    header = [
        "image",
        "chain (ms)",
        "single (ms)",
        "pixels, largest",
        "pixels, mean",
        "logits, largest",
        "their spread",
    ]
    note = "Levels of 255. Where the resized image is the canvas already, the chain has one resize too."
    report.table(f"{shape.name}: `longest_edge` by a single resize", header, rows, note)


def run(report: Report, keys=None, prepared=None) -> None:
    """The table of each shape of `--shapes`. `prepared`: key -> sides, where a caller keeps them."""
    args = report.args
    images, words = pictures.load(args.images, 2 if args.tiny else min(args.num_images, 20))
    bars, on_gpu = [], torch.device(args.device).type == "cuda"
    for key in keys or [key for key in args.shapes if key != "qwen3-vl-2b"]:
        shape = shape_of(args, key)
        build = (build_sides, shape, args.device, getattr(torch, args.dtype), args.reference_attention)
        sides = report.attempt(f"{key}: building", *((prepared, key) if prepared else build))
        rows = report.attempt(f"{key}: table", measure, report, key, sides, images) if sides else None
        if rows:
            report.table(
                f"{shape.name}, {shape.new_tokens} new tokens",
                ["recipe", "TTFT (ms)", "tokens/s", "E2E latency (ms)", "inputs (ms)", "pixels off", "logits off"],
                rows,
                "Cumulative, as Tables 1 and 2. `pixels off`: largest and mean difference from Argus' exact tiles in "
                "levels of 255; `logits off`: largest difference of the first token's.",
            )
            column, label = (1, "TTFT") if on_gpu else (4, "making the inputs")
            bars += [(f"{key}  {row[0].replace('*', '')}", {label: float(row[column])}) for row in rows]
        if rows and shape.kind == "smolvlm":
            report.attempt(f"{key}: single resize", single_resize, report, key, sides)
        del sides
    if bars:
        report.plot(lambda axes: stacked_bars(axes, bars), size=(11, 1.2 + 0.35 * len(bars)))
    how = "measured as one" if on_gpu else "the sum of two medians, inputs and model"
    report.write("The recipes one by one", f"Batch 1, {words}; {args.dtype} on {args.device}; TTFT is {how}.")


def main(arguments=None) -> int:
    args = build_parser(__doc__.splitlines()[0]).parse_args(arguments)
    set_up(args)
    report = Report("recipes", args, arguments)
    run(report)
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
