"""Time to first token: Argus against transformers' own classes, same weights, same tiles, in turn in one process.

    python -m benchmarks.efficiency.ttft

measures the 256M and the 2B on a GPU; on a CPU the 256M and what comes before the model of the 2B, whose model runs
there only if it is named (--shapes 256m 2b). Before anything is timed the sides are compared: ids, tile counts, pixels.

Physics (256M, 13 tiles of 512 pixels): 13 x 215 GFLOP of vision and 214 of prefill, 3 TFLOP in all: 7.5 ms at half of
an H100's peak, 1.2 s at the 2.5 TFLOP/s of a small CPU. The whole is bytes of a JPEG to the first token's id on the
host, its steps are decode, resize and tile, tokenize, transfer, vision, prefill. That a 640x480 image becomes 13 tiles
is SmolVLM's tiling at its published size; the paper states no tile counts.
"""

import time

import torch

from . import pictures
from .common import Report, build_parser, repeats_of, set_up, shape_of, stacked_bars
from .figure6 import figure_6
from .measuring import Bar, in_turn, median, ratio, shown, summary, synchronise
from .recipes import LOGITS, OTHER_KERNEL, SAME_KERNEL
from .sides import OURS, OURS_NATIVE, OURS_ONE_RESIZE, PIL, TORCHVISION, Side, build_sides, whole

STEPS = ("decode", "resize and tile", "tokenize", "transfer", "vision", "prefill")
INPUTS, MODEL, WHOLE, HOST = "inputs ready", "model to first token", "whole", "host"
AGREEMENT, LOGITS_AGREE = "agreement", "logits"


def agreement(sides: dict[str, Side], data: bytes) -> dict:
    """How far the sides' ids, tile counts and pixels differ from Argus' exact tiles made on the CPU, on one image.

    Cheap, so that it comes before any timing. On a GPU what arrives there is compared as well. "problems" lists what
    makes them different requests, and so voids the bars: other ids, another tile count, or pixels beyond recipes.py's
    tolerance for other kernels.
    """
    ours = sides[OURS].prepare(data)
    levels, ids = sides[OURS].levels(ours), ours["input_ids"].tolist()
    result = {"tiles": len(levels), "prompt tokens": len(ids[0]), "problems": []}
    for name in (OURS, OURS_ONE_RESIZE, TORCHVISION, PIL):
        side = sides.get(name)
        if side is None or (name == OURS and side.device.type == "cpu"):
            continue
        made = [] if name == OURS else [side.prepare(side.decode(data))]
        if side.device.type == "cuda":
            made.append(side.request(data))
        theirs = [side.levels(inputs) for inputs in made]
        facts = {
            "same ids": all(inputs["input_ids"].tolist() == ids for inputs in made),
            "tiles": len(theirs[-1]),
            "pixel levels, largest": None,
            "pixel levels, mean": None,
        }
        if not facts["same ids"]:
            result["problems"].append(f"{name}: other ids")
        if any(pixels.shape != levels.shape for pixels in theirs):
            result["problems"].append(f"{name}: {facts['tiles']} tiles, Argus has {len(levels)}")
        else:
            off = [(pixels - levels).abs() for pixels in theirs]
            largest, mean = max(o.max().item() for o in off), max(o.mean().item() for o in off)
            facts |= {"pixel levels, largest": round(largest, 2), "pixel levels, mean": round(mean, 4)}
            if not (largest <= OTHER_KERNEL[0] and mean <= OTHER_KERNEL[1]):
                result["problems"].append(f"{name}: pixels are off by {largest:.1f} levels, {mean:.2f} on average")
        result[name] = facts
    return result


def logit_agreement(sides: dict[str, Side], data: bytes, facts: dict, dtype: torch.dtype) -> dict:
    """The first token's logits of both models, on the tiles of transformers' backend that is nearest to Argus'.

    They are held to recipes.py's tolerance where the tiles are the same but for rounding; else the difference is the
    pixels', and is reported alone.
    """
    name = min((TORCHVISION, PIL), key=lambda n: facts[n]["pixel levels, mean"])
    ours, theirs = sides[OURS], sides[name]
    inputs = (side.transfer(side.prepare(side.decode(data))) for side in (ours, theirs))
    mine, other = (side.logits(made) for side, made in zip((ours, theirs), inputs))
    largest, spread = (mine - other).abs().max().item(), other.std().item()
    pixels = ours.levels(ours.prepare(data)) - theirs.levels(theirs.prepare(theirs.decode(data)))
    held = pixels.abs().max().item() <= SAME_KERNEL[0] and pixels.abs().mean().item() <= SAME_KERNEL[1]
    limit = LOGITS[dtype] * spread
    off = held and not largest <= limit
    return {
        "against": name,
        "logits, largest": round(largest, 4),
        "logits, spread": round(spread, 3),
        "limit": round(limit, 4) if held else None,
        "same first token": bool(mine.argmax() == other.argmax()),
        "problems": [f"logits are off by {largest:.3g}, more than {limit:.3g}"] if off else [],
    }


def inputs_ready(sides: dict[str, Side], images: list[bytes], repeats: int, budget) -> dict[str, list[float]]:
    """JPEG bytes to ready inputs, all on the CPU."""

    def prepare(side):
        return lambda i: side.prepare(images[i % len(images)] if side.ours else side.decode(images[i % len(images)]))

    return in_turn({name: prepare(side) for name, side in sides.items()}, repeats, warmup=3, budget=budget)


def steps(sides: dict[str, Side], images: list[bytes], repeats: int, budget) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of the steps before the model: decode, resize and tile, tokenize, transfer.

    Tokenizing is what the processor takes beyond its image processor; it is the difference of two calls that follow
    each other. With Argus on a device the transfer is part of the processor's call, so it is what that call takes
    beyond the same call without a device, which may be less than nothing: the device resizes faster.
    """
    functions = {}
    for name, side in sides.items():
        functions |= {(name, part): function for part, function in _parts(side, images).items()}
    device = next(iter(sides.values())).device
    times = in_turn(functions, repeats, device, warmup=2, budget=budget)
    found = {}
    for name, side in sides.items():
        decode, tile, prepare, send = (times[name, part] for part in ("decode", "tile", "prepare", "send"))
        if side.ours:
            send = [a - b if device.type == "cuda" else 0.0 for a, b in zip(send, prepare)]
        tokenize = [max(a - b, 0.0) for a, b in zip(prepare, tile)]
        found[name] = dict(zip(STEPS, (decode, tile, tokenize, send)))
    return found


def _parts(side: Side, images: list[bytes]) -> dict:
    decoded = [side.decode(data) for data in images]
    prepared = None if side.ours else side.prepare(decoded[0])
    return {
        "decode": lambda i: side.decode(images[i % len(images)]),
        "tile": lambda i: side.tile(decoded[i % len(images)]),
        "prepare": lambda i: side.prepare(decoded[i % len(images)]),
        "send": lambda i: side.prepare_on_device(decoded[i % len(images)]) if side.ours else side.transfer(prepared),
    }


def host_share(side: Side, images: list[bytes], repeats: int) -> list[float]:
    """Milliseconds until the processor's call returns, the device still at work: what the host itself does."""
    times = []
    for i in range(repeats + 2):
        synchronise(side.device)
        start = time.perf_counter()
        side.request(images[i % len(images)])
        times.append((time.perf_counter() - start) * 1000)
        synchronise(side.device)
    return times[2:]


def model_times(sides: dict[str, Side], images, repeats: int, budget) -> tuple[dict, dict]:
    """(model to first token, vision alone) from ready inputs on the device."""
    inputs = {name: side.request(images[0]) for name, side in sides.items()}
    device = next(iter(sides.values())).device
    first = {name: lambda i, n=name: sides[n].generate(inputs[n], 1) for name in sides}
    vision = {name: lambda i, n=name: sides[n].encode(inputs[n]) for name in sides}
    return (
        in_turn(first, repeats, device, budget=budget),
        in_turn(vision, repeats, device, warmup=int(device.type == "cuda"), budget=budget),
    )


def measure(report: Report, key: str, sides: dict[str, Side], images: list[bytes]) -> dict:
    """All cells of one shape. Returns {(measure, side): median ms}, and what is of no side under (name, None)."""
    args, budget = report.args, report.budget
    shape, medians, repeats = shape_of(args, key), {}, {}
    photos = pictures.same_size(images)
    on_gpu = torch.device(args.device).type == "cuda"
    medians["repeats", None] = repeats
    medians["640x480", None] = pictures.has_size(images)

    def keep(what: str, times: dict[str, list[float]]) -> None:
        for name, values in times.items():
            if values:
                medians[what, name] = median(values)
                repeats[what, name] = len(values)
        values = {name: summary(v) for name, v in times.items() if v}
        report.cell(f"{key}: {what}", shape=shape.name, device=args.device, dtype=args.dtype, **values)

    def check(what, function, *arguments):
        facts = function(sides, photos[0], *arguments)
        medians[what, None] = facts
        report.cell(f"{key}: {what}", shape=shape.name, **facts)
        if facts["problems"]:
            raise AssertionError("sides disagree: " + "; ".join(facts["problems"]))

    def prepare():
        keep(INPUTS, inputs_ready(sides, photos, repeats_of(args, 20, 30), budget))

    def model():
        # PIL's tensors go through the same model as torchvision's: one of the two is enough.
        chosen = {name: side for name, side in sides.items() if name in (OURS, OURS_NATIVE, TORCHVISION)}
        first, vision = model_times(chosen, photos, repeats_of(args, 20, 3), budget)
        keep(MODEL, first)
        keep("vision", vision)
        for name in first:
            medians["prefill", name] = medians[MODEL, name] - medians["vision", name]

    def all_of_it():
        names = (OURS, OURS_NATIVE, TORCHVISION, *((OURS_ONE_RESIZE, PIL) if on_gpu else ()))
        chosen = {name: side for name, side in sides.items() if name in names}
        keep(WHOLE, whole(chosen, photos, 1, repeats_of(args, 20, 2), budget, warmup=2 if on_gpu else 0))

    def taken_apart():
        for name, found in steps(sides, photos, repeats_of(args, 15, 15), budget).items():
            for step, values in found.items():
                medians[step, name] = median(values)
        values = {n: {s: round(medians[s, n], 3) for s in STEPS if (s, n) in medians} for n in sides}
        report.cell(f"{key}: steps", shape=shape.name, device=args.device, **values)

    report.attempt(f"{key}: {AGREEMENT}", check, AGREEMENT, agreement)
    report.attempt(f"{key}: {INPUTS}", prepare)
    if sides[OURS].model is None:
        report.attempt(f"{key}: steps", taken_apart)
        return medians
    if on_gpu:
        report.attempt(f"{key}: {WHOLE}", all_of_it)
        report.attempt(f"{key}: {HOST}", lambda: keep(HOST, {OURS: host_share(sides[OURS], photos, 30)}))
    report.attempt(f"{key}: {MODEL}", model)
    if not on_gpu:
        report.attempt(f"{key}: {WHOLE}", all_of_it)
    # On a CPU a model's forward is seconds: after the timings, and whatever the budget, as they count for nothing else.
    facts = medians.get((AGREEMENT, None))
    if facts and not facts["problems"] and ((MODEL, OURS) in medians or (WHOLE, OURS) in medians):
        report.always(f"{key}: {LOGITS_AGREE}", check, LOGITS_AGREE, logit_agreement, facts, getattr(torch, args.dtype))
    report.attempt(f"{key}: steps", taken_apart)
    return medians


def objection(medians: dict, what: str) -> str:
    """Why the medians of a shape prove nothing about `what`; "" where they do."""
    if not medians.get(("640x480", None)):
        return "no 640x480 image"
    for name in (AGREEMENT, LOGITS_AGREE) if what in (MODEL, WHOLE) else (AGREEMENT,):
        facts = medians.get((name, None))
        if facts is None:
            return "not compared"
        if facts["problems"]:
            return "sides disagree"
    return ""


def bars(found: dict[str, dict], on_gpu: bool, dtype: str = "bfloat16", attention: str = "sdpa") -> list[Bar]:
    """The bars of the project as verdicts, over the medians of `measure` by shape.

    None is measured where the sides were not compared, or disagreed.
    """

    def bar(name, limit, key, what, other=None, mine=OURS, faster=False, when=True, note=""):
        medians, names = found.get(key, {}), [mine] if other is None else [mine, other]
        values = [medians.get((what, name)) for name in names]
        value = values[0] if other is None else ratio(*(reversed(values) if faster else values))
        notes = [note] if note else []
        if value is not None and when:
            notes.append(f"n = {min(medians['repeats', None][what, name] for name in names)}")
            refused = objection(medians, what)
            value, notes = (None, [*notes, refused]) if refused else (value, notes)
        return Bar(name, limit, value if when else None, "ms" if other is None else "x", faster, "; ".join(notes))

    part, what = (WHOLE, "TTFT") if on_gpu else (INPUTS, "preprocessing and tokenizing")
    run_as = f"{dtype}, {attention}"
    note = run_as if on_gpu else "on a CPU this part is held to the ratio"
    native = found.get("256m", {}).get((WHOLE, OURS_NATIVE))
    less = f"; native tiling, end to end: {native:.0f} ms, less work" if native and not on_gpu else ""
    exact, one, on_cpu = "CPU, exact SmolVLM tiles", "CPU, one resize", {"faster": True, "when": not on_gpu}
    return [
        bar(f"Section 5.4, SmolVLM-256M: {what}, Argus / transformers", 0.37, "256m", part, TORCHVISION, note=note),
        bar(f"Section 5.4, InternVL3-2B: {what}, Argus / transformers", 0.72, "2b", part, TORCHVISION, note=note),
        bar(f"{exact}, torchvision / Argus", 3, "256m", INPUTS, TORCHVISION, **on_cpu),
        bar(f"{exact}, PIL / Argus", 10, "256m", INPUTS, PIL, **on_cpu),
        bar(f"{one}, torchvision / Argus", 4.5, "256m", INPUTS, TORCHVISION, OURS_ONE_RESIZE, **on_cpu),
        bar(f"{one}, PIL / Argus", 15, "256m", INPUTS, PIL, OURS_ONE_RESIZE, **on_cpu),
        bar(
            "CPU, 256M, model to first token, Argus / transformers",
            0.8,
            "256m",
            MODEL,
            TORCHVISION,
            when=not on_gpu and run_as == "bfloat16, sdpa",
            note=f"{run_as}{'' if run_as == 'bfloat16, sdpa' else ': the bar is for bfloat16, sdpa'}{less}",
        ),
        bar("GPU, 256M, bytes to first token", 22.8, "256m", WHOLE, when=on_gpu, note=f"aim: 12; {run_as}"),
        bar("GPU, 2B, bytes to first token", 57.7, "2b", WHOLE, when=on_gpu, note=run_as),
        bar("GPU, host share of preprocessing, 256M", 3, "256m", HOST, when=on_gpu),
    ]


def tables(report: Report, key: str, medians: dict) -> None:
    """One table a shape: a row a side, a column a step."""
    shape, facts = shape_of(report.args, key), medians.get((AGREEMENT, None), {})
    size = "a 640x480 JPEG" if medians.get(("640x480", None)) else "the JPEGs given, none of them 640x480"

    names = list(dict.fromkeys(name for _, name in medians if name))
    columns = (*STEPS, INPUTS, MODEL, WHOLE)
    report.table(
        f"{shape.name}: milliseconds"
        + (f", {facts['tiles']} tiles, {facts['prompt tokens']} prompt tokens" if facts else ""),
        ["side", *columns],
        [[name, *(shown(medians.get((column, name)), 2) for column in columns)] for name in names],
        f"Medians of {size}. `inputs ready` is measured on the CPU and as one; `whole` is bytes to the first "
        "token's id. `native tiling` has fewer tiles and so less work. On a GPU Argus resizes there: its `transfer` is "
        "what the call with a device takes beyond the one without, below zero where the device is faster.",
    )
    rows = [[name, *values.values()] for name, values in facts.items() if isinstance(values, dict)]
    logits = medians.get((LOGITS_AGREE, None))
    if rows:
        note = "Compared before anything was timed, on one image; levels of 255."
        if logits:
            limit = logits["limit"]
            held = "not held to a limit, as the tiles differ" if limit is None else f"limit {limit:g}"
            note += (
                f" The first token's logits differ by {logits['logits, largest']:g} at most from "
                f"{logits['against']} (spread {logits['logits, spread']:g}; {held})."
            )
        header = ["side", "same ids", "tiles", "pixel levels, largest", "pixel levels, mean"]
        report.table(f"{shape.name}: difference from Argus", header, rows, note)


def draw(report: Report, found: dict) -> None:
    """Two pictures, as one would hide the other: all steps of the sides that ran the model, and the steps before it."""
    before_model = STEPS[: STEPS.index("vision")]
    rows, inputs = [], []
    for key, medians in found.items():
        for name in dict.fromkeys(name for _, name in medians if name):
            parts = {step: max(medians[step, name], 0.0) for step in STEPS if (step, name) in medians}
            label = f"{shape_of(report.args, key).name}: {name}"
            if "vision" in parts:
                rows.append((label, parts))
            inputs.append((label, {step: parts[step] for step in before_model if step in parts}))
    for name, bars_of in (("ttft", rows), ("ttft_inputs", [row for row in inputs if row[1]])):
        if bars_of:
            size = (10, 1.6 + 0.4 * len(bars_of))
            report.plot(lambda axes, bars_of=bars_of: stacked_bars(axes, bars_of), size=size, name=name)


def run(report: Report, keys=None, prepared=None) -> dict[str, dict]:
    """Measures the shapes of `--shapes`, then on a CPU what comes before the model of a 2B, which would take minutes.

    `prepared`: key -> sides, where a caller keeps them; it is asked when a shape's turn comes.
    """
    args = report.args
    images, words = pictures.load(args.images, 3 if args.tiny else args.num_images)
    keys = list(keys or args.shapes)
    found, dtype = {}, getattr(torch, args.dtype)
    on_gpu = torch.device(args.device).type == "cuda"
    without_model = [] if on_gpu or "2b" in keys or "256m" not in keys else ["2b"]
    for key in [key for key in keys if key != "qwen3-vl-2b"] + without_model:
        shape, has_model = shape_of(args, key), key not in without_model
        build = (build_sides, shape, args.device, dtype, args.reference_attention, has_model)
        sides = report.attempt(f"{key}: building", *((prepared, key) if prepared and has_model else build))
        if sides:
            found[key] = measure(report, key, sides, images)
            report.always(f"{key}: tables", tables, report, key, found[key])
        del sides
    if "qwen3-vl-2b" in keys:
        report.attempt("figure 6", figure_6, report, images)
    if {"256m", "2b"} & set(keys):
        report.verdicts(bars(found, on_gpu, args.dtype, args.reference_attention))
    draw(report, found)
    report.write("Time to first token", f"Batch 1, {words}; {args.dtype} on {args.device}, random weights.")
    return found


def main(arguments=None) -> int:
    args = build_parser(__doc__.splitlines()[0], shapes=None).parse_args(arguments)
    args.shapes = args.shapes or (["256m", "2b"] if torch.device(args.device).type == "cuda" else ["256m"])
    set_up(args)
    report = Report("ttft", args, arguments)
    run(report)
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
