"""Tables, plot and findings of `boxes.py`, whichever way the comparison came out."""

import json
import statistics
from pathlib import Path

from benchmarks.efficiency.common import hardware, markdown

from .boxes_run import CLASSES, PATCH, TILE, Plan

RESULTS = Path(__file__).parent / "results"
FORMATS = {"plain_text": "plain text", "location_tokens": "location tokens"}
# (model, format): mAP in % of Table 4.
PAPER = {
    ("ArgusVLM-256M", "plain_text"): 1.89,
    ("ArgusVLM-256M", "location_tokens"): 1.98,
    ("ArgusVLM-500M", "plain_text"): 2.18,
    ("ArgusVLM-500M", "location_tokens"): 3.21,
}


def score_of(result: dict, mode: str = "clean") -> float:
    """Dense-captioning mAP in 0..1, by METEOR 1.5 where it ran, else by meteor-lite."""
    maps = result["map"]
    return maps["METEOR 1.5" if "METEOR 1.5" in maps else next(iter(maps))][mode]


def percent(value: float) -> float:
    return 100 * value


def cells_of(results: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """(size, format) -> the results of its seeds, in order of seeds."""
    cells: dict[tuple[str, str], list[dict]] = {}
    for result in sorted((r for r in results if "error" not in r), key=lambda r: r["seed"]):
        cells.setdefault((result["size"], result["box_format"]), []).append(result)
    sizes, formats = list(dict.fromkeys(r["size"] for r in results if "error" not in r)), list(FORMATS)
    return dict(sorted(cells.items(), key=lambda cell: (sizes.index(cell[0][0]), formats.index(cell[0][1]))))


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{statistics.mean(values):.2f}" + (f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def comparison_table(cells, timed: dict) -> str:
    header = ["model", "boxes as", "mAP (%)", "each seed", "reference mode", "boxes alone", "F1 at IoU 0.5 (%)"]
    header += ["tokens a region", "of them the box", "ms an image", "ms a region"]
    rows = []
    for (size, name), results in cells.items():
        values = [percent(score_of(r)) for r in results]
        time_taken = timed.get(size, {}).get(name)
        rows.append(
            [
                f"{size}, {results[0]['parameters'] / 1e6:.1f}M",
                FORMATS[name],
                spread(values),
                ", ".join(f"{v:.2f}" for v in values),
                spread([percent(score_of(r, "reference")) for r in results]),
                spread([percent(r["localisation_map"]) for r in results]),
                spread([percent(r["f1_50"]) for r in results]),
                f"{results[0]['tokens']['region']:.1f}",
                f"{results[0]['tokens']['box']:.1f}",
                f"{time_taken['ms']:.0f}" if time_taken else "-",
                f"{time_taken['ms_a_region']:.0f}" if time_taken else "-",
            ]
        )
    return markdown(header, rows)


def variants_table(results: list[dict]) -> str:
    rows = [
        [
            f"{r['bins']} bins, {r['order']}",
            f"{percent(score_of(r)):.2f}",
            f"{percent(r['localisation_map']):.2f}",
            f"{percent(r['f1_50']):.2f}",
            f"{r['mean_iou_of_right']:.3f}",
            f"{r['parameters'] / 1e6:.2f}M",
        ]
        for r in results
    ]
    return markdown(["location tokens", "mAP (%)", "boxes alone", "F1 (%)", "IoU of what is right", "parameters"], rows)


def findings(cells) -> list[str]:
    """What the comparison says, whichever way it came out: one sentence for each size."""
    sentences = []
    for size in dict.fromkeys(size for size, _ in cells):
        sides = [cells.get((size, name)) for name in ("location_tokens", "plain_text")]
        if not all(sides):
            continue
        by_seed = [{r["seed"]: percent(score_of(r)) for r in side} for side in sides]
        gains = [by_seed[0][seed] - by_seed[1][seed] for seed in by_seed[0] if seed in by_seed[1]]
        if not gains:
            continue
        mean = statistics.mean(gains)
        if all(gain > 0 for gain in gains):
            verdict = "location tokens are better with every seed, as the paper finds"
        elif all(gain < 0 for gain in gains):
            verdict = "plain text is better with every seed, against what the paper finds"
        else:
            verdict = "the seeds disagree: no difference is shown"
        each = ", ".join(f"{gain:+.2f}" for gain in gains)
        sentences.append(f"{size}: location tokens minus plain text {mean:+.2f} points of mAP ({each}); {verdict}.")
    return sentences


def draw(cells, variants: list[dict], path: Path) -> Path | None:
    """The plot: every seed a dot, their mean a bar. None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("boxes: no plot, because matplotlib is not installed (pip install matplotlib)")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained", width_ratios=(3, 2))
    sizes, colours = list(dict.fromkeys(size for size, _ in cells)), {"plain_text": "C1", "location_tokens": "C0"}
    for number, name in enumerate(FORMATS):
        for place, size in enumerate(sizes):
            values = [percent(score_of(r)) for r in cells.get((size, name), [])]
            if values:
                x = place + 0.36 * (number - 0.5)
                label = FORMATS[name] if place == 0 else None
                left.bar(x, statistics.mean(values), 0.32, color=colours[name], alpha=0.55, label=label)
                left.scatter([x] * len(values), values, color=colours[name], edgecolor="black", s=22, zorder=3)
    left.set_xticks(range(len(sizes)), [f"{s} ({_millions(cells, s)})" for s in sizes])
    left.set_ylabel("dense-captioning mAP (%), clean mode")
    left.set_title("formulations, each seed a dot", fontsize=10)
    left.legend(frameon=False, fontsize=9)
    names = [f"{r['bins']} bins" + ("" if r["order"] == "row-column" else f"\n{r['order']}") for r in variants]
    right.bar(range(len(variants)), [percent(score_of(r)) for r in variants], color="C0", alpha=0.55)
    right.set_xticks(range(len(variants)), names, fontsize=8)
    right.set_title("location tokens, smaller size, one seed", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    pyplot.close(figure)
    return path


def _millions(cells, size: str) -> str:
    found = next(results for (each, _), results in cells.items() if each == size)
    return f"{found[0]['parameters'] / 1e6:.1f}M"


def write(args, plans: list[Plan], results: list[dict], others: list[dict], timed: dict, command: str) -> Path:
    """boxes.json, boxes.md and boxes.png of what there is; whole files only."""
    where, cells = hardware("cpu") | {"threads": 1}, cells_of(results)
    base = [r for r in results if "error" not in r and r["size"] == plans[0].size and r["seed"] == 0]
    variants = [r for r in base if r["box_format"] == "location_tokens"] + [r for r in others if "error" not in r]
    failed = [f"- {r['run']}: {r['error']}" for r in [*results, *others] if "error" in r]
    meteor = next((("METEOR 1.5" if "METEOR 1.5" in r["map"] else next(iter(r["map"]))) for r in base), "none")
    plan = plans[0]
    setting = (
        f"Every run: from nothing, {plan.samples} images, each seen once, of {TILE} x {TILE} pixels in patches of "
        f"{PATCH}, one to {plan.max_objects} objects of {len(CLASSES)} classes; dense captions alone, with a second "
        f"loss that names what lies at each visual token and knows no boxes; batches of {plan.batch_size}, Muon and "
        f"AdamW with a cosine schedule, float32, one thread. Scored on {plan.scenes} held-out scenes; mAP by Section "
        f"5.2's protocol in the clean mode unless it says otherwise, captions by {meteor}; a region's score is the "
        "geometric mean of its tokens' probabilities. The spread is the standard deviation over seeds, which draw "
        "weights and scenes anew."
    )
    paper = [[model, FORMATS[name], f"{value:.2f}"] for (model, name), value in PAPER.items()]
    parts = ["# Location tokens against plain text (Table 4 at our scale)"]
    parts += ["A toy size: this run shows that the script works; its numbers mean nothing."] if args.tiny else []
    parts += [setting, f"`{command}`"]
    parts += ["Measured with: " + ", ".join(f"{k} {v}" for k, v in where.items() if v is not None) + "."]
    sentences = findings(cells)
    if cells:
        done = f"{sum(len(found) for found in cells.values())} of {len(plans)} runs."
        parts += [f"## Two sizes, two formulations\n\n{done}", comparison_table(cells, timed), "\n".join(sentences)]
        parts += ["ms: median of one image at a time, of the first seed's models in turn." if timed else ""]
    parts += ["## What the paper has\n\nThe paper's values, on Visual Genome; not comparable with those above."]
    parts += [markdown(["model", "boxes as", "mAP (%), the paper's"], paper)]
    if variants:
        parts += [
            "## Bins and order\n\nThe smaller size, ONE seed: differences of less than the spread above are none."
        ]
        parts += [variants_table(variants)]
    parts += ["## Failed\n\n" + "\n".join(failed)] if failed else []
    report = {
        "benchmark": "boxes",
        "command": command,
        **where,
        "paper": {f"{m}, {n}": v for (m, n), v in PAPER.items()},
    }
    report |= {"findings": sentences, "latency": timed, "runs": results, "bins_and_order": others}
    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("boxes.json", json.dumps(report, indent=1)),
        ("boxes.md", "\n\n".join(part for part in parts if part)),
    ):
        work = args.out / f".{name}.tmp"
        work.write_text(text + "\n", encoding="utf-8")
        work.replace(args.out / name)
    if cells:
        draw(cells, variants, args.out / "boxes.png")
    return args.out / "boxes.md"
