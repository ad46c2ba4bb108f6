"""Tables, plot and findings of `boxes.py`, whichever way the comparison came out.

boxes.md is a function of boxes.json alone (`markdown_of`).
"""

import dataclasses
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
    return result["map"][meteor_of(result)][mode]


def meteor_of(result: dict) -> str:
    """The METEOR that the score is by."""
    return "METEOR 1.5" if "METEOR 1.5" in result["map"] else next(iter(result["map"]))


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


def difference(one: list[dict], other: list[dict], names: tuple[str, str]) -> str:
    """One side's mAP less the other's, as a clause: the mean, each seed's gain, and the verdict.

    The rule: with n seeds, a mean gain of less than twice the standard deviation of the n gains is within the spread of
    seeds, even where all n have one sign. With n = 1 there is no spread, and nothing is shown.
    """
    by_seed = [{r["seed"]: percent(score_of(r)) for r in side} for side in (one, other)]
    gains = [by_seed[0][seed] - by_seed[1][seed] for seed in by_seed[0] if seed in by_seed[1]]
    if not gains:
        return "no seed has both"
    mean, n = statistics.mean(gains), len(gains)
    if n == 1:
        verdict = "one seed has no spread: nothing is shown"
    elif not (all(gain > 0 for gain in gains) or all(gain < 0 for gain in gains)):
        verdict = "the seeds disagree: no difference is shown"
    else:
        deviation = statistics.stdev(gains)
        verdict = f"with every seed {names[0] if mean > 0 else names[1]} better, "
        within = abs(mean) < 2 * deviation
        verdict += "but the gain is within the spread of seeds, less" if within else "by more"
        verdict += f" than twice the standard deviation of the gains ({deviation:.2f}, n = {n})"
    each = ", ".join(f"{gain:+.2f}" for gain in gains)
    return f"{mean:+.2f} points of mAP ({each}); {verdict}"


def findings(cells) -> list[str]:
    """What the comparison says, by the rule of `difference`, whichever way it came out: a sentence for each size."""
    sides = {size: [cells.get((size, name)) for name in ("location_tokens", "plain_text")] for size, _ in cells}
    names = ("location tokens are", "plain text is")
    return [
        f"{size}: location tokens minus plain text {difference(*both, names)}."
        for size, both in sides.items()
        if all(both)
    ]


def starts_part(cells, starts: list[dict]) -> list[str]:
    """The table of location tokens with and without their waves, beside plain text, and what it says."""
    ((size, name), bare), *_ = cells_of(starts).items()
    text_side, waved = cells.get((size, "plain_text"), []), cells.get((size, name), [])
    rows = [("plain text", "drawn", text_side), ("location tokens", "drawn, plus waves of the bin", waved)]
    table = [
        [
            boxes_as,
            start,
            spread([percent(score_of(r)) for r in results]),
            ", ".join(f"{percent(score_of(r)):.2f}" for r in results),
            spread([percent(r["localisation_map"]) for r in results]),
            spread([percent(r["f1_50"]) for r in results]),
        ]
        for boxes_as, start, results in (*rows, ("location tokens", "drawn", bare))
        if results
    ]
    said = []
    if text_side:
        names = ("location tokens are", "plain text is")
        said.append(f"{size}: location tokens without waves minus plain text {difference(bare, text_side, names)}.")
    if waved:
        names = ("location tokens with waves are", "those without are")
        said.append(f"{size}: location tokens with waves minus those without {difference(waved, bare, names)}.")
    text = (
        "In the runs above, location tokens start as any new token does plus sines and cosines of their bin, so that "
        "near bins are alike from the first step on; digits have no such start. Here the same runs of the smaller size "
        "without the waves: nothing but drawn numbers, as every other token has. What the larger size owes to them was "
        "not measured."
    )
    header = ["boxes as", "start of their tokens", "mAP (%)", "each seed", "boxes alone", "F1 at IoU 0.5 (%)"]
    return [f"## Without the ordered start\n\n{text}", markdown(header, table), "\n".join(said)]


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


def setting_of(plan: dict, meteor: str) -> str:
    """What all runs have in common, and what they do not show."""
    steps = max(1, plan["samples"] // plan["batch_size"])
    return (
        f"Every run: from nothing, {plan['samples']} images, each seen once, of {TILE} x {TILE} pixels in patches of "
        f"{PATCH}, one to {plan['max_objects']} objects of {len(CLASSES)} classes; dense captions alone, with a second "
        f"loss that names what lies at each visual token and knows no boxes; {steps} optimizer steps, in batches of "
        f"{plan['batch_size']}, Muon and AdamW with a cosine schedule, float32, one thread. What is compared "
        "is how fast each learns under a small, equal budget, not where it would end. "
        "Both formulations start from the same weights, but these favour one: to what is drawn, location tokens have "
        "sines and cosines of their bin added, as argus-nano's, an order that the digits of plain text are not given "
        f"(without it: a table below). Scored on {plan['scenes']} held-out scenes; mAP by Section 5.2's protocol "
        f"in the clean mode unless it says otherwise, captions by {meteor}; a region's score is the geometric mean of "
        "its tokens' probabilities. The spread is the standard deviation over seeds, which draw weights and scenes "
        "anew."
    )


def variants_part(variants: list[dict]) -> list[str]:
    """The table of bins and order under what may not be read from it."""
    note = "The smaller size, ONE seed: differences of less than the spread above are none."
    bins = sorted({r["bins"] for r in variants})
    if len(bins) > 1:
        # Four tokens a region, of which a scene has (1 + max_objects) / 2 on average.
        tokens = variants[0]["samples"] * 2 * (1 + variants[0]["max_objects"])
        few, many = bins[0], bins[-1]
        note += (
            " These too show how fast is learnt in the budget above, not where it would end: on average a location "
            f"token is seen about {tokens / few:,.0f} times with {few} bins and {tokens / many:,.0f} times with "
            f"{many}, and one that is rarely seen is hardly learned in it."
        )
    return [f"## Bins and order\n\n{note}", variants_table(variants)]


def report_of(args, plans: list[Plan], found: dict[str, list[dict]], timed: dict, command: str) -> dict:
    """boxes.json of what there is. found: results of "runs" (of `plans`), "bins_and_order" and "starts"."""
    return {
        "benchmark": "boxes",
        "command": command,
        "tiny": args.tiny,
        "measured_with": hardware("cpu") | {"threads": 1},
        "plan": dataclasses.asdict(plans[0]),
        "planned": len(plans),
        "paper": {f"{m}, {n}": v for (m, n), v in PAPER.items()},
        "findings": findings(cells_of(found["runs"])),
        "latency": timed,
        **found,
    }


def variants_of(report: dict) -> list[dict]:
    """The runs that bins and order are told by: the comparison's own of the same size and seed, then the others."""
    plan = report["plan"]
    same = {"size": plan["size"], "seed": 0, "box_format": "location_tokens"}
    base = [r for r in report["runs"] if same.items() <= r.items()]
    return [r for r in (*base, *report["bins_and_order"]) if "error" not in r]


def markdown_of(report: dict) -> str:
    """boxes.md, from what boxes.json holds."""
    cells, timed, where = cells_of(report["runs"]), report["latency"], report["measured_with"]
    everything = [*report["runs"], *report["bins_and_order"], *report["starts"]]
    failed = [f"- {r['run']}: {r['error']}" for r in everything if "error" in r]
    meteor = next((meteor_of(r) for r in everything if "map" in r), "none")
    paper = [[model, FORMATS[name], f"{value:.2f}"] for (model, name), value in PAPER.items()]
    parts = ["# Location tokens against plain text (Table 4 at our scale)"]
    parts += ["A toy size: this run shows that the script works; its numbers mean nothing."] if report["tiny"] else []
    parts += [setting_of(report["plan"], meteor), f"`{report['command']}`"]
    parts += ["Measured with: " + ", ".join(f"{k} {v}" for k, v in where.items() if v is not None) + "."]
    if cells:
        done = f"{sum(len(found) for found in cells.values())} of {report['planned']} runs."
        parts += [f"## Two sizes, two formulations\n\n{done}", comparison_table(cells, timed)]
        parts += ["\n".join(report["findings"])]
        parts += ["ms: median of one image at a time, of the first seed's models in turn." if timed else ""]
    if any("error" not in r for r in report["starts"]):
        parts += starts_part(cells, report["starts"])
    parts += ["## What the paper has\n\nThe paper's values, on Visual Genome; not comparable with those above."]
    parts += [markdown(["model", "boxes as", "mAP (%), the paper's"], paper)]
    if variants := variants_of(report):
        parts += variants_part(variants)
    parts += ["## Failed\n\n" + "\n".join(failed)] if failed else []
    return "\n\n".join(part for part in parts if part) + "\n"


def write(report: dict, out: Path) -> None:
    """boxes.json, boxes.md and boxes.png in `out`; whole files only."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("boxes.json", json.dumps(report, indent=1) + "\n"), ("boxes.md", markdown_of(report))):
        work = out / f".{name}.tmp"
        work.write_text(text, encoding="utf-8")
        work.replace(out / name)
    if cells := cells_of(report["runs"]):
        draw(cells, variants_of(report), out / "boxes.png")
