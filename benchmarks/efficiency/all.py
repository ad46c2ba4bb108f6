"""All of benchmarks/efficiency in one call, the most important cells first, each written as soon as it is measured.

    python -m benchmarks.efficiency.all --budget-minutes 8

Meant for a GPU machine that is lent for minutes; on a CPU it does the same with fewer repeats. A cell that fails is
recorded and the next one goes on. A part starts no cell after its share of what is left, so the last ones get their
turn; what a part leaves over goes to those after it, and what it overruns is taken from them.
"""

import argparse
import gc
import json
import subprocess
import sys
import time

import torch

from . import decode, images, profile, quantization, recipes, reuse, ttft, upscale
from .common import ROOT, Report, build_parser, set_up, shape_of
from .measuring import Budget
from .sides import OURS, TORCHVISION, build_sides

# Of the budget, in order of importance; they add up to one.
SHARES = {
    "ttft": 0.22,
    "decode": 0.33,
    "recipes": 0.15,
    "quantization": 0.12,
    "images": 0.05,
    "figure6": 0.04,
    "fidelity": 0.03,
    "reuse": 0.01,
    "upscale": 0.02,
    "profile": 0.03,
}


def turn_of(name: str, names: list[str], budget: Budget) -> Budget:
    """The budget of a part: its share of what is left, against the parts of `names` from it on."""
    if budget.minutes is None:
        return budget
    waiting = sum(SHARES[each] for each in names[names.index(name) :])
    return Budget(max(budget.left(), 0) / 60 * SHARES[name] / waiting, budget.clock)


def seconds_for(budget: Budget, whole: Budget) -> float:
    """Of a part that cannot stop by itself: its share, a minute at least and five at most, within the whole budget."""
    return min(max(min(budget.left(), 300), 60), whole.left())


def parts(args, whole: Budget) -> dict[str, object]:
    """name -> function of a Budget, in order of importance; each writes its own files."""
    on_gpu = torch.device(args.device).type == "cuda"
    kept: dict[str, dict] = {}  # models are built once and go round

    def sides(key):
        if key not in kept:
            dtype = getattr(torch, args.dtype)
            kept[key] = build_sides(shape_of(args, key), args.device, dtype, args.reference_attention)
        return kept[key]

    def forget():
        kept.clear()
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()

    def report(name, budget, **changes):
        changed = argparse.Namespace(**{**vars(args), "run_by": "all", **changes})
        return Report(name, changed, args.arguments, budget)

    def first_token(budget):
        written = report("ttft", budget)
        ttft.run(written, shapes, sides)
        return written

    def tokens_a_second(budget):
        written = report("decode", budget)
        decode.run(written, [*shapes, *(["500m", "qwen3-vl-2b"] if on_gpu else [])], two_models)
        return written

    def two_models(key):
        if key not in shapes:
            return decode.build(args, key)
        both = sides(key)
        return both[TORCHVISION].model, both[OURS].model

    def quantised(budget):
        forget()
        written = report("quantization", budget)
        quantization.run(written, ["256m", "500m", "2b"] if on_gpu else ["256m"])
        return written

    def one_by_one(budget):
        written = report("recipes", budget)
        recipes.run(written, shapes, sides)
        return written

    def throughput(budget):
        written = report("images", budget, device="cpu")
        images.run(written)
        return written

    def others(budget):
        forget()
        written = report("figure6", budget)
        ttft.run(written, ["qwen3-vl-2b", "500m"])
        return written

    def fewer(budget):
        forget()
        written = report("upscale", budget)
        upscale.run(written, 2 if args.tiny else 64, ["256m"])
        return written

    def again(budget):
        written = report("reuse", budget)
        reuse.run(written, ["256m"] if on_gpu else [])
        return written

    def where(budget):
        forget()
        written = report("profile", budget, seconds=0.5 if args.tiny else 4.0)
        profile.run(written, ["256m"])
        return written

    def fidelity(budget):
        command = [sys.executable, "-m", "benchmarks.efficiency.fidelity", "--device", args.device]
        command += ["--out", str(args.out.resolve()), *(["--tiny"] if args.tiny else [])]
        seconds = seconds_for(budget, whole)
        try:
            done = subprocess.run(command, cwd=ROOT, timeout=seconds)
        except subprocess.TimeoutExpired:  # its own words would name a path
            raise RuntimeError(f"benchmarks.efficiency.fidelity took longer than {seconds:.0f} s") from None
        if done.returncode:
            raise RuntimeError(f"benchmarks.efficiency.fidelity ended with exit status {done.returncode}")
        return None

    # Two 2B models in bf16 are 9 GB, and minutes a request on a CPU: there they are asked for by name.
    shapes = ["256m", "2b"] if on_gpu else [key for key in args.shapes if key in ("256m", "2b")]
    functions = (first_token, tokens_a_second, one_by_one, quantised, throughput, others, fidelity, again, fewer, where)
    chosen = dict(zip(SHARES, functions, strict=True))
    if not on_gpu and "qwen3-vl-2b" not in args.shapes:
        del chosen["figure6"]
    return chosen


def main(arguments=None) -> int:
    parser = build_parser(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="PART", help="run these parts alone, for example: ttft recipes")
    parser.add_argument("--sampler", choices=("austin", "thread"), default="austin", help="of profile")
    args = parser.parse_args(arguments)
    args.arguments = sys.argv[1:] if arguments is None else arguments
    set_up(args)
    args.out.mkdir(parents=True, exist_ok=True)
    budget, failed, log = Budget(args.budget_minutes), 0, []
    chosen = parts(args, budget)
    if unknown := sorted(set(args.only or ()) - set(chosen)):
        parser.error(f"--only {' '.join(unknown)}: the parts are {', '.join(chosen)}.")
    names = [name for name in chosen if not args.only or name in args.only]

    def keep(entry):
        log.append(entry)
        print(json.dumps(entry), flush=True)
        (args.out / "all.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")

    for name in names:
        if budget.left() <= 0:
            keep({"part": name, "skipped": "the budget was spent"})
            continue
        start, entry = time.monotonic(), {"part": name}
        try:
            report = chosen[name](turn_of(name, names, budget))
            if report:
                entry |= {"failed cells": report.failed, "skipped cells": report.skipped}
        except Exception as error:  # the other parts are still worth having
            entry["error"] = f"{type(error).__name__}: {error}"
        failed += bool(entry.get("error") or entry.get("failed cells"))
        keep({**entry, "seconds": round(time.monotonic() - start, 1)})
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
