"""Section 4.2 and Table 4 at our scale: location tokens against plain-text coordinates for dense captioning.

    python -m benchmarks.accuracy.boxes

Two model sizes, both formulations, three seeds: twelve runs from nothing on the same rendered scenes with the same
budget of samples, scored on held-out ones. Physics: `<loc_y1><loc_x1><loc_y2><loc_x2>` is 4 tokens a box, where
`[x1, y1, x2, y2] ` is about 13 with a tokenizer that writes a digit a token, as SmolVLM's and nano's do; a decoder step
costs the same for each. Whether 4 tokens of 100 kinds are easier to learn than 8 digits of ten is what is measured.

Then, at the smaller size: location tokens without their ordered start, every seed; and, one seed, 100, 300 and 1000
bins, and the order of a box's four tokens. One run is one process on one thread; a finished run is not done again, an
interrupted one goes on from its newest checkpoint, and the command says so.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.efficiency.common import ROOT, at_least, command_line

from .boxes_report import FORMATS, RESULTS, percent, report_of, score_of, write
from .boxes_run import Plan, held_out, load, stopped_at

BINS = (300, 1000)  # beside the 100 of the twelve runs


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description="Location tokens against plain text, two sizes, three seeds.")
    add = parser.add_argument
    add("--samples", type=at_least(1), default=12_800, metavar="N", help="images a run is trained on (default: 12800)")
    add("--jobs", type=at_least(1), default=2, metavar="N", help="runs at a time, one thread each (default: 2)")
    add("--seeds", type=at_least(1), default=3, metavar="N", help="seeds of each cell (default: 3)")
    add("--scenes", type=at_least(1), default=300, metavar="N", help="held-out scenes to score on (default: 300)")
    add("--timed", type=at_least(2), default=30, metavar="N", help="images to time (default: 30)")
    add("--work", type=Path, default=ROOT / "runs" / "boxes", metavar="DIR", help="where runs are kept to go on with")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="where boxes.json, boxes.md and boxes.png go")
    add("--tiny", action="store_true", help="a toy size: tries the script, measures nothing")
    return parser


def plans_of(args) -> dict[str, list[Plan]]:
    """The "runs" of the comparison, those of "bins_and_order", and the "starts" without waves; small ones first."""
    small, large = ("toy", "toy") if args.tiny else ("small", "large")
    shared = {"samples": args.samples, "scenes": args.scenes, "batch_size": 4 if args.tiny else 32}
    sizes, seeds = dict.fromkeys((small, large)), range(args.seeds)
    return {
        "runs": [Plan(size, name, seed, **shared) for size in sizes for seed in seeds for name in reversed(FORMATS)],
        "bins_and_order": [
            *(Plan(small, bins=bins, **shared) for bins in BINS),
            Plan(small, order="column-row", **shared),
        ],
        "starts": [Plan(small, seed=seed, waves=False, **shared) for seed in seeds],
    }


def run_apart(plan: Plan, work: Path) -> dict:
    """One run in a process of its own; its result, or {"run", "error"} where it failed."""
    folder = work / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE"), "1")
    # With these glibc keeps freed tensors: on one machine, a tenth to a quarter of a run's time had gone into zeroing
    # pages. Elsewhere it may be less, or nothing.
    malloc = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
    environment = {**os.environ, **single, **malloc, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "benchmarks.accuracy.boxes_run", json.dumps(dataclasses.asdict(plan)), str(folder)]
    began, stopped = time.monotonic(), stopped_at(folder)
    if stopped:
        print(f"boxes: {plan.name}: goes on from step {stopped}", flush=True)
    with open(folder / "output.txt", "a", encoding="utf-8") as output:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=output, check=False).returncode
    if code:
        lines = (folder / "output.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        result = {"run": plan.name, "error": lines[-1] if lines else f"exit status {code}"}
    else:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    said = result.get("error") or f"mAP {percent(score_of(result)):.2f}"
    print(f"boxes: {plan.name}: {said} ({(time.monotonic() - began) / 60:.1f} min)", flush=True)
    return result


def latency(sides: dict[str, tuple], images, repeats: int, max_new_tokens: int) -> dict[str, dict]:
    """Milliseconds of `dense_caption` for one image, greedy, of each (model, processor), in turn on the same images."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    regions = dict.fromkeys(sides, 0)
    for number, image in enumerate(images[: repeats + 2]):
        for name, (model, processor) in sides.items():
            began = time.perf_counter()
            (found,) = model.dense_caption([image], processor=processor, do_sample=False, max_new_tokens=max_new_tokens)
            if number >= 2:  # the first two warm up
                times[name].append((time.perf_counter() - began) * 1000)
                regions[name] += len(found["boxes"])
    return {
        name: {
            "ms": statistics.median(taken),
            "quartiles": statistics.quantiles(taken, n=4)[::2],
            "images": len(taken),
            "regions_an_image": regions[name] / len(taken),
            "ms_a_region": sum(taken) / max(1, regions[name]),
        }
        for name, taken in times.items()
    }


def time_formats(plans: list[Plan], done: set[str], work: Path, repeats: int) -> dict[str, dict]:
    """{size: {format: latency}} of the first seed's models, the two formats in turn, when all runs are over."""
    timed = {}
    for size in dict.fromkeys(plan.size for plan in plans):
        pair = [plan for plan in plans if plan.size == size and plan.seed == 0 and plan.name in done]
        if len(pair) == len(FORMATS):
            sides = {plan.box_format: load(work / plan.name / "training" / "model") for plan in pair}
            images = [scene.image for scene in held_out(dataclasses.replace(pair[0], scenes=repeats + 2))]
            timed[size] = latency(sides, images, repeats, pair[0].max_new_tokens)
    return timed


def main(arguments: list[str] | None = None) -> int:
    """Everything; 1 where a run failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = build_parser().parse_args(arguments)
    torch.set_num_threads(1)
    args.work = args.work.absolute()
    parts = plans_of(args)
    plans = [plan for part in parts.values() for plan in part]
    command = command_line("benchmarks.accuracy.boxes", arguments)
    found: dict[str, dict] = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        for result in pool.map(lambda plan: run_apart(plan, args.work), plans):
            found[result["run"]] = result
            write(report_of(args, parts["runs"], _of(parts, found), {}, command), args.out)
    done = {name for name, result in found.items() if "error" not in result}
    timed = time_formats(parts["runs"], done, args.work, args.timed)
    report = report_of(args, parts["runs"], _of(parts, found), timed, command)
    write(report, args.out)
    print(json.dumps({"benchmark": "boxes", "runs": len(done), "findings": report["findings"]}))
    return int(len(done) < len(plans))


def _of(parts: dict[str, list[Plan]], found: dict[str, dict]) -> dict[str, list[dict]]:
    return {part: [found[plan.name] for plan in plans if plan.name in found] for part, plans in parts.items()}


if __name__ == "__main__":
    sys.exit(main())
