"""Section 3.1 and Figure 4: what quantisation gains and costs in one layer, operation by operation.

    python -m benchmarks.efficiency.quantization

On a GPU bf16 against FP8 W8A8 by torch._scaled_mm, activations quantised apart or by the norm and SiLU kernels; on a
CPU bf16 against int8 weights. Physics: a token reads every weight once. Halving 212 MB (the 256m's layers) saves 35 us
at 3 TB/s on a GPU, 1.2 us a layer, about what one more kernel costs; at 30 GB/s on a CPU it saves 3.5 ms.

An operation's time is its mean over all layers, each with weights and cache of its own, as in a real step: inside a
CUDA graph, its gap to the next one included; one after another on a CPU. argus-nano's scores are in the report too.
"""

import torch

from modeling_argus.kernels_argus import choose, linear

from . import quantization_quality
from .common import Report, at_least, build_parser, repeats_of, set_up, shape_of, stacked_bars
from .measuring import in_turn, median, quantile, shown
from .quantization_layer import (
    LARGEST_BATCH,
    PRODUCTS,
    Dims,
    buffers,
    five_kernels,
    make_layers,
    operations,
    variants,
)

ROWS, TINY_ROWS = (1, 4, 16, 880), (1, 4, 80)
CONTEXT = 880
KEYS = ("256m", "500m", "2b")  # Argus has no decoder of Qwen3-VL's layers
PAPER = 499.08 / 533.28  # Section 3.1: tokens/s of FP8 by those of bf16, SmolVLM-256M on an H100
PLAIN, LAYER, STEP, FIVE = "bf16", "whole layer", "whole step", "bf16, the decoding loop's kernels"
GROUPS = ("add + norm", "quantise", "qkv", "rotary + cache", "attention", "o", "gate-up", "SiLU", "down")


def grouped(parts: dict[str, float]) -> dict[str, float]:
    """Microseconds of each row of Figure 4's table: a layer's two norms are one row, and its quantisations."""
    total: dict[str, float] = {}
    for name, value in parts.items():
        group = next(g for g in ("add + norm", "quantise", name) if name.startswith(g))
        total[group] = total.get(group, 0.0) + value
    return total


def recorded(function, device: torch.device, passes: int):
    """`passes` times the same work, as one CUDA graph; on a CPU the function itself, once."""
    if device.type != "cuda":
        return function
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(passes):
            function()
    return graph.replay


def prepare(report: Report, key: str, rows: int, passes: int) -> dict[tuple[str, str], object]:
    """(variant, operation) -> a function that does it in all layers; STEP adds the output head.

    A variant that this device cannot compute is recorded with its error, and left out.
    """
    args = report.args
    shape, device = shape_of(args, key), torch.device(args.device)
    dims, kernels = Dims.of(shape.config["text_config"]), choose("auto", device, needs_grad=False)
    like = {"dtype": torch.bfloat16, "device": device}
    context = 40 if args.tiny else CONTEXT
    capacity = (max(rows, context) // 64 + 1) * 64

    def drawn(N, K):  # activations stay of order one
        return torch.rand(N, K, **like).sub_(0.5).mul_((12 / K) ** 0.5)

    first = {name: drawn(*size) for name, size in dims.weight_shapes().items()}
    head, prompt = drawn(dims.vocab, dims.hidden), rows > LARGEST_BATCH
    runs: dict = {}
    for variant in variants(device, kernels, rows):
        b = buffers(dims, rows, context, capacity, like)
        layers = make_layers(variant, dims, first, rows, capacity, like)
        found, own_head = operations(variant, kernels, dims, rows), variant.head(head)
        times_head = linear if variant.quantise else variant.product  # FP8 checkpoints leave the head as it is

        def everywhere(chosen, layers=layers, b=b):
            def run():
                for layer in layers:
                    for operation in chosen:
                        operation(layer, b)

            return run

        def step(body=None, b=b, times_head=times_head, own_head=own_head):
            def run():
                body()
                times_head(b["x"][-1:] if prompt else b["x"], own_head)  # of a prompt the last token alone

            return run

        fill = everywhere(found.values())  # the buffers, which the operations one by one read
        if variant.name == PLAIN:
            fill()
        elif report.always(f"{key}: {rows} rows, {variant.name}", lambda fill=fill: fill() or True) is None:
            continue
        for name, operation in found.items():
            runs[variant.name, name] = everywhere([operation])
        runs[variant.name, LAYER] = everywhere(list(found.values()))
        runs[variant.name, STEP] = step(runs[variant.name, LAYER])
        if variant.name == PLAIN and device.type == "cuda" and not prompt:
            runs[FIVE, STEP] = step(five_kernels(kernels, dims, layers, b))
    return {name: recorded(run, device, passes) for name, run in runs.items()}


@torch.inference_mode()
def measure(report: Report, key: str, rows: int) -> dict:
    """One cell: of every variant the microseconds a layer of its operations, and the milliseconds of a step."""
    device = torch.device(report.args.device)
    passes = 10 if device.type == "cuda" else 1  # a clock's reading is short against the work then
    runs = prepare(report, key, rows, passes)
    repeats = repeats_of(report.args, 20, 3 if rows > LARGEST_BATCH else 15)
    timed = {name: (lambda i, run=run: run()) for name, run in runs.items()}
    times = in_turn(timed, repeats, device, warmup=1, budget=report.budget, at_least=2)
    layers = Dims.of(shape_of(report.args, key).config["text_config"]).layers
    values: dict[str, dict] = {}
    for (variant, name), taken in times.items():
        entry = values.setdefault(variant, {"us a layer": {}})
        if name == STEP:
            quartiles = [round(quantile(taken, q) / passes, 4) for q in (0.5, 0.25, 0.75)]
            entry |= dict(zip(("step ms", "q25", "q75"), quartiles)) | {"n": len(taken)}
        else:
            entry["us a layer"][name] = round(median(taken) / passes / layers * 1000, 2)
    return report.cell(f"{key}: {rows} rows", shape=shape_of(report.args, key).name, rows=rows, layers=layers, **values)


def sides_of(cell: dict) -> dict[str, dict]:
    """The variants of a cell."""
    return {name: value for name, value in cell.items() if isinstance(value, dict) and "step ms" in value}


def products(side: dict) -> float:
    return sum(side["us a layer"][name] for name in PRODUCTS)


def quantising(side: dict, plain: dict) -> float:
    """Microseconds a layer that quantising activations costs: apart, or as what norms and SiLU take longer."""
    ours, theirs = grouped(side["us a layer"]), grouped(plain["us a layer"])
    return ours.get("quantise", 0.0) + sum(ours[name] - theirs[name] for name in ("add + norm", "SiLU"))


def table(report: Report, cell: dict) -> None:
    sides = sides_of(cell)
    apart = {name: grouped(side["us a layer"]) for name, side in sides.items()}
    groups = [group for group in GROUPS if any(group in parts for parts in apart.values())]
    rows = [[group, *(shown(parts.get(group), 2) for parts in apart.values())] for group in groups]
    rows.append(["the four products", *(shown(products(s), 2) if apart[n] else "-" for n, s in sides.items())])
    rows.append([LAYER, *(shown(parts.get(LAYER), 2) for parts in apart.values())])
    rows.append([f"{STEP} (ms)", *(shown(side["step ms"], 3) for side in sides.values())])
    plain = sides[PLAIN]["step ms"]
    rows.append(["quartiles", *(f"{side['q25']:.3f} to {side['q75']:.3f}" for side in sides.values())])
    rows.append(["of bf16's step", *(shown(side["step ms"] / plain, 3) for side in sides.values())])
    what = f"a prompt of {cell['rows']} tokens" if cell["rows"] > LARGEST_BATCH else f"batch {cell['rows']}"
    report.table(f"{cell['shape']}: {what}", ["us a layer", *sides], rows)


def two_digits(value: float) -> str:
    """A signed number as precise as these are."""
    return f"{float(f'{value:.2g}'):+g}"


def finding(cells: list[dict], on_gpu: bool) -> str:
    """Whether Section 3.1's finding holds, in words made of the numbers."""
    said = []
    for cell in [c for c in cells if c["rows"] == 1]:
        sides = sides_of(cell)
        plain = sides[PLAIN]
        others = {n: s for n, s in sides.items() if n != PLAIN and s["us a layer"]}
        if not others:
            said.append(f"- {cell['shape']}, batch 1: nothing stands beside bf16, as every other variant failed.")
            continue
        name, best = min(others.items(), key=lambda item: item[1]["step ms"])
        gained, cost = products(plain) - products(best), quantising(best, plain)
        change = (plain["step ms"] / best["step ms"] - 1) * 100
        verdict = ""
        if on_gpu:
            verdict = "it holds here: FP8 is slower" if change < 0 else "it does not hold here: FP8 is faster"
            verdict = f"; {verdict}"
            if FIVE in sides:
                own = plain["step ms"] / sides[FIVE]["step ms"]
                verdict += f" (bf16 by the decoding loop's own kernels gives {own:.2f}x the tokens/s)"
        spent = f" {two_digits(cost)} us spent on quantising activations," if on_gpu else ""
        said.append(
            f"- {cell['shape']}, batch 1: `{name}` against bf16: {two_digits(gained)} us a layer gained in products,"
            f"{spent} {two_digits(change)}% tokens/s in the whole step{verdict}."
        )
    paper = (
        "The paper (SmolVLM-256M, H100, vLLM): products 1.39 us faster, quantising 5.50 us slower, "
        f"{(PAPER - 1) * 100:.1f}% tokens/s."
    )
    if not on_gpu:
        paper += (
            " That is FP8 on a GPU and is not measured here. On a CPU weights alone are int8: no activations are "
            "quantised. `widened` is torchao's own product, which makes floats of the weights at every call; a prompt "
            "goes that way."
        )
    return "\n".join([paper, "", *said])


def draw(axes, cell: dict) -> None:
    parts = {name: grouped(side["us a layer"]) for name, side in sides_of(cell).items()}
    bars = [(name, {g: p[g] for g in GROUPS if g in p}) for name, p in parts.items() if p]
    stacked_bars(axes, bars, f"us a layer, {cell['shape']}, batch 1")
    axes.get_legend().remove()
    axes.legend(fontsize=8, ncols=5, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)


def run(report: Report, keys=None, rows=None, scenes: int = 0) -> None:
    """Measures shapes by numbers of rows, batch 1 first, and argus-nano's scores on `scenes` scenes (0: none)."""
    args, on_gpu = report.args, torch.device(report.args.device).type == "cuda"
    keys = list(args.shapes if keys is None else keys)
    cells = []
    for count in rows or (TINY_ROWS if args.tiny else ROWS):
        for key in keys:
            cell = report.attempt(f"{key}: {count} rows", measure, report, key, count)
            cells += [cell] if cell else []
            if on_gpu:
                torch.cuda.empty_cache()
    for cell in sorted(cells, key=lambda c: (keys.index(c["cell"].split(":")[0]), c["rows"])):
        report.always(f"{cell['cell']}, table", table, report, cell)
    if scenes:
        report.attempt("argus-nano", quantization_quality.run, report, scenes)
    write(report, cells)
    first = next((c for c in cells if c["rows"] == 1), None)
    if first:
        size = (9, 1.6 + 0.45 * len(sides_of(first)))
        report.always("plot", lambda: report.plot(lambda axes: draw(axes, first), size=size))
        write(report, cells)


def write(report: Report, cells: list[dict]) -> None:
    """The tables so far and what they say."""
    args, on_gpu = report.args, torch.device(report.args.device).type == "cuda"
    said = report.always("finding", finding, cells, on_gpu) or ""
    what = "FP8 weights and activations" if on_gpu else "int8 weights"
    note = f"bf16 against {what}; context {40 if args.tiny else CONTEXT}, no biases. " + said
    report.write("Quantisation, operation by operation (Section 3.1, Figure 4)", note)


def main(arguments=None) -> int:
    parser = build_parser(__doc__.splitlines()[0], shapes=list(KEYS))
    parser.add_argument(
        "--rows", type=at_least(1), nargs="+", metavar="N", help="tokens at once (more than 64: a prompt)"
    )
    parser.add_argument(
        "--scenes", type=at_least(0), metavar="N", help="for argus-nano's scores (default: 64, 2 with --tiny)"
    )
    args = parser.parse_args(arguments)
    if unknown := sorted(set(args.shapes) - set(KEYS)):
        parser.error(f"--shapes {' '.join(unknown)}: of these {', '.join(KEYS)} are measured here.")
    if args.dtype != "bfloat16":
        parser.error(f"--dtype {args.dtype}: bfloat16 is what FP8 and int8 are held against.")
    set_up(args)
    report = Report("quantization", args, arguments)
    scenes = (2 if args.tiny else 64) if args.scenes is None else args.scenes
    run(report, rows=args.rows, scenes=scenes)
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
