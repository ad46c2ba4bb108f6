"""Time to first token: Argus against transformers' own classes, same weights, same tiles, in turn in one process.

    python -m benchmarks.efficiency.ttft --shapes 256m 2b

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
from .sides import OURS, OURS_NATIVE, OURS_ONE_RESIZE, PIL, TORCHVISION, Side, build_sides, whole

STEPS = ("decode", "resize and tile", "tokenize", "transfer", "vision", "prefill")
INPUTS, MODEL, WHOLE, HOST = "inputs ready", "model to first token", "whole", "host"


def agreement(sides: dict[str, Side], data: bytes) -> dict:
    """How far the sides' tokens, pixels and first logits differ from Argus' on one image."""
    inputs = {name: side.request(data) for name, side in sides.items()}
    ours, logits = inputs[OURS], sides[OURS].logits(inputs[OURS])
    levels = sides[OURS].levels(ours)
    result = {"tiles": len(levels), "prompt tokens": int(ours["input_ids"].shape[1])}
    for name in (TORCHVISION, PIL):
        theirs = sides[name].logits(inputs[name])
        pixels = (sides[name].levels(inputs[name]) - levels).abs()
        result[name] = {
            "same ids": inputs[name]["input_ids"].tolist() == ours["input_ids"].tolist(),
            "pixel levels, largest": round(pixels.max().item(), 2),
            "pixel levels, mean": round(pixels.mean().item(), 4),
            "logits, largest": round((theirs - logits).abs().max().item(), 4),
            "logits, spread": round(theirs.std().item(), 3),
            "same first token": bool(theirs.argmax() == logits.argmax()),
        }
    return result


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
    """All cells of one shape. Returns {(measure, side): median ms}, and ("agreement", None)."""
    args, budget = report.args, report.budget
    shape, medians = shape_of(args, key), {}
    photos = pictures.same_size(images)
    on_gpu = torch.device(args.device).type == "cuda"

    def keep(what: str, times: dict[str, list[float]]) -> None:
        for name, values in times.items():
            if values:
                medians[what, name] = median(values)
        values = {name: summary(v) for name, v in times.items() if v}
        report.cell(f"{key}: {what}", shape=shape.name, device=args.device, dtype=args.dtype, **values)

    def check():
        medians["agreement", None] = agreement(sides, photos[0])
        report.cell(f"{key}: agreement", shape=shape.name, **medians["agreement", None])

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
    report.attempt(f"{key}: steps", taken_apart)
    report.attempt(f"{key}: agreement", check)
    return medians


def bars(found: dict[str, dict], on_gpu: bool) -> list[Bar]:
    """The bars of the project as verdicts, over the medians of `measure` by shape."""

    def value(key, what, name):
        return found.get(key, {}).get((what, name))

    def against(key, what, other=TORCHVISION, mine=OURS):
        return ratio(value(key, what, mine), value(key, what, other))

    def times_faster(other, mine=OURS):
        found_ratio = against("256m", INPUTS, other, mine)
        return None if on_gpu or not found_ratio else 1 / found_ratio

    part = WHOLE if on_gpu else INPUTS
    what = "TTFT" if on_gpu else "preprocessing and tokenizing"
    note = "" if on_gpu else "on a CPU this part is held to the ratio"
    native = value("256m", WHOLE, OURS_NATIVE)
    return [
        Bar(f"Section 5.4, SmolVLM-256M: {what}, Argus / transformers", 0.37, against("256m", part), note=note),
        Bar(f"Section 5.4, InternVL3-2B: {what}, Argus / transformers", 0.72, against("2b", part), note=note),
        Bar("CPU, exact SmolVLM tiles, torchvision / Argus", 3, times_faster(TORCHVISION), at_least=True),
        Bar("CPU, exact SmolVLM tiles, PIL / Argus", 10, times_faster(PIL), at_least=True),
        Bar("CPU, one resize, torchvision / Argus", 4.5, times_faster(TORCHVISION, OURS_ONE_RESIZE), at_least=True),
        Bar("CPU, one resize, PIL / Argus", 15, times_faster(PIL, OURS_ONE_RESIZE), at_least=True),
        Bar(
            "CPU, 256M, model to first token, Argus / transformers",
            0.8,
            None if on_gpu else against("256m", MODEL),
            note="" if on_gpu or not native else f"native tiling, end to end: {native:.0f} ms, less work",
        ),
        Bar(
            "GPU, 256M, bytes to first token",
            22.8,
            value("256m", WHOLE, OURS) if on_gpu else None,
            "ms",
            note="aim: 12",
        ),
        Bar("GPU, 2B, bytes to first token", 57.7, value("2b", WHOLE, OURS) if on_gpu else None, "ms"),
        Bar("GPU, host share of preprocessing, 256M", 3, value("256m", HOST, OURS), "ms"),
    ]


def tables(report: Report, key: str, medians: dict) -> None:
    """One table a shape: a row a side, a column a step."""
    shape, facts = shape_of(report.args, key), medians.get(("agreement", None), {})

    names = list(dict.fromkeys(name for _, name in medians if name))
    columns = (*STEPS, INPUTS, MODEL, WHOLE)
    report.table(
        f"{shape.name}: milliseconds"
        + (f", {facts['tiles']} tiles, {facts['prompt tokens']} prompt tokens" if facts else ""),
        ["side", *columns],
        [[name, *(shown(medians.get((column, name)), 2) for column in columns)] for name in names],
        "Medians of a 640x480 JPEG. `inputs ready` is measured on the CPU and as one; `whole` is bytes to the first "
        "token's id. `native tiling` has fewer tiles and so less work. On a GPU Argus resizes there: its `transfer` is "
        "what the call with a device takes beyond the one without, below zero where the device is faster.",
    )
    rows = [[name, *facts[name].values()] for name in (TORCHVISION, PIL) if name in facts]
    if rows:
        report.table(f"{shape.name}: difference from Argus", ["side", *facts[TORCHVISION]], rows)


def draw(report: Report, found: dict) -> None:
    rows = [
        (f"{shape_of(report.args, key).name}: {name}", parts)
        for key, medians in found.items()
        for name in dict.fromkeys(name for _, name in medians if name)
        if (parts := {s: max(medians[s, name], 0.0) for s in STEPS if (s, name) in medians})
    ]
    if rows:
        report.plot(lambda axes: stacked_bars(axes, rows), size=(10, 1.2 + 0.4 * len(rows)))


def run(report: Report, keys=None, prepared=None) -> dict[str, dict]:
    """Measures the shapes of `--shapes`, then on a CPU what comes before the model of a 2B, which would take minutes.

    `prepared`: sides by shape, where a caller has built them already.
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
        sides = (prepared or {}).get(key) or report.attempt(f"{key}: building", *build)
        if sides:
            found[key] = measure(report, key, sides, images)
            tables(report, key, found[key])
        del sides
    if "qwen3-vl-2b" in keys:
        report.attempt("figure 6", figure_6, report, images)
    if {"256m", "2b"} & set(found):
        report.verdicts(bars(found, on_gpu))
    draw(report, found)
    report.write("Time to first token", f"Batch 1, {words}; {args.dtype} on {args.device}, random weights.")
    return found


def main(arguments=None) -> int:
    args = build_parser(__doc__.splitlines()[0]).parse_args(arguments)
    set_up(args)
    report = Report("ttft", args, arguments)
    run(report)
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
