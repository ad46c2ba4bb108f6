"""All of benchmarks/efficiency in one call, the most important cells first, each written as soon as it is measured.

    python -m benchmarks.efficiency.all --budget-minutes 8

Meant for a GPU machine that is lent for minutes; on a CPU it does the same with fewer repeats. A cell that fails is
recorded and the next one goes on. No part takes more than its share of the budget, so the last ones get their turn.
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


def parts(args) -> list[tuple[str, float, object]]:
    """(name, share of the budget, function of a Budget) in order of importance; each writes its own files."""
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
        seconds = max(min(budget.left(), 300), 60)
        try:
            done = subprocess.run(command, cwd=ROOT, timeout=seconds)
        except subprocess.TimeoutExpired:  # its own words would name a path
            raise RuntimeError(f"benchmarks.efficiency.fidelity took longer than {seconds:.0f} s") from None
        if done.returncode:
            raise RuntimeError(f"benchmarks.efficiency.fidelity ended with exit status {done.returncode}")
        return None

    # Two 2B models in bf16 are 9 GB, and minutes a request on a CPU: there they are asked for by name.
    shapes = ["256m", "2b"] if on_gpu else [key for key in args.shapes if key in ("256m", "2b")]
    chosen = [("ttft", 0.3, first_token), ("decode", 0.4, tokens_a_second), ("recipes", 0.3, one_by_one)]
    chosen += [("images", 0.15, throughput), ("quantization", 0.2, quantised)]
    if on_gpu or "qwen3-vl-2b" in args.shapes:
        chosen.append(("figure6", 0.2, others))
    return [
        *chosen,
        ("fidelity", 0.15, fidelity),
        ("reuse", 0.1, again),
        ("upscale", 0.2, fewer),
        ("profile", 0.3, where),
    ]


def main(arguments=None) -> int:
    parser = build_parser(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="PART", help="run these parts alone, for example: ttft recipes")
    parser.add_argument("--sampler", choices=("austin", "thread"), default="austin", help="of profile")
    args = parser.parse_args(arguments)
    args.arguments = sys.argv[1:] if arguments is None else arguments
    set_up(args)
    args.out.mkdir(parents=True, exist_ok=True)
    budget, failed, log = Budget(args.budget_minutes), 0, []
    chosen = parts(args)
    unknown = sorted(set(args.only or ()) - {name for name, *_ in chosen})
    if unknown:
        parser.error(f"--only {' '.join(unknown)}: the parts are {', '.join(name for name, *_ in chosen)}.")

    def keep(entry):
        log.append(entry)
        print(json.dumps(entry), flush=True)
        (args.out / "all.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")

    for name, share, function in chosen:
        if args.only and name not in args.only:
            continue
        if budget.left() <= 0:
            keep({"part": name, "skipped": "the budget was spent"})
            continue
        start, entry = time.monotonic(), {"part": name}
        try:
            report = function(budget.part(share))
            if report:
                entry |= {"failed cells": report.failed, "skipped cells": report.skipped}
        except Exception as error:  # the other parts are still worth having
            entry["error"] = f"{type(error).__name__}: {error}"
        failed += bool(entry.get("error") or entry.get("failed cells"))
        keep({**entry, "seconds": round(time.monotonic() - start, 1)})
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
