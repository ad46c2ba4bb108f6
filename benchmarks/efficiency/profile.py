"""Where the time goes, on both sides (Section 3.1): flame graphs of the CPU and a timeline of torch's operators.

    python -m benchmarks.efficiency.profile --shapes 256m

The CPU is sampled by austin (extra `bench`), which attaches to a process of its own; where it is missing or may not
trace, a thread samples the Python stack and the result says so. `inputs` is bytes of a JPEG to ready inputs, `request`
goes on to the first token. Timelines are chrome traces (chrome://tracing, Perfetto); they stay out of git.
"""

import gzip
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from . import flame, pictures
from .common import ROOT, Report, build_parser, set_up, shape_of
from .measuring import shown, synchronise
from .sides import OURS, TORCHVISION, Side, build_sides

SIDES = {"argus": OURS, "transformers": TORCHVISION}
WORKLOADS = ("inputs", "request")
INTERVAL_US = {"inputs": 500, "request": 2000}  # austin needs a core while it looks


def one_side(args, key: str, name: str, models: bool) -> Side:
    dtype = getattr(torch, args.dtype)
    return build_sides(shape_of(args, key), args.device, dtype, args.reference_attention, models=models)[SIDES[name]]


def profiled_requests(side: Side, images: list[bytes], workload: str, seconds: float) -> int:
    """The workload, again and again for `seconds`; the number of requests. Flame graphs show what is below it."""
    end, done = time.monotonic() + seconds, 0
    while done == 0 or time.monotonic() < end:
        inputs = side.request(images[done % len(images)])
        if workload == "request":
            side.generate(inputs, 1)
        synchronise(side.device)
        done += 1
    return done


def workload_command(args, key: str, name: str, workload: str) -> list[str]:
    """This script as the child that austin samples."""
    options = ["--workload", f"{name}:{workload}", "--seconds", str(args.seconds), "--shapes", key]
    options += ["--device", args.device, "--dtype", args.dtype, "--reference-attention", args.reference_attention]
    options += ["--tiny"] if args.tiny else []
    options += ["--threads", str(args.threads)] if args.threads else []
    options += ["--images", str(args.images.resolve())] if args.images else []
    return [sys.executable, "-m", "benchmarks.efficiency.profile", *options]


def flame_graph(report: Report, key: str, name: str, workload: str, images: list[bytes]):
    """One flame graph: collapsed stacks and a picture. Returns (stacks, how they were taken)."""
    args = report.args
    binary, why = None if args.sampler == "thread" else flame.austin(), "asked for"
    stacks, how = None, ""
    if binary:
        with tempfile.TemporaryDirectory() as folder:
            command = workload_command(args, key, name, workload)
            stacks, why = flame.run_austin(
                binary, command, Path(folder) / "austin", 120 + 10 * args.seconds, ROOT, INTERVAL_US[workload]
            )
        how = "austin"
    elif args.sampler != "thread":
        why = "austin is not installed or does not run here"
    kept = flame.collapse(stacks) if stacks else None
    if not kept:
        side = one_side(args, key, name, models=workload == "request")
        profiled_requests(side, images, workload, 0)  # warm-up
        kept = flame.collapse(flame.sampled(lambda: profiled_requests(side, images, workload, args.seconds)))
        how = f"sampling thread ({why})"
    file = f"profile_{key}_{name}_{workload}"
    flame.write_collapsed(kept, report.out / f"{file}.collapsed.txt")
    title = f"{shape_of(args, key).name}, {SIDES[name]}, {workload}, by {how.split(' (')[0]}"
    report.plot(lambda axes: flame.draw(axes, kept, title), size=(14, 6), name=file)
    report.cell(f"{key}: flame graph, {name}, {workload}", by=how, samples=sum(kept.values()))
    return kept, how


def hottest(stacks, count: int = 8) -> list[tuple[str, float]]:
    """The functions with the largest share of samples in themselves: (frame, share)."""
    own: dict[str, int] = {}
    for frames, samples in stacks.items():
        own[frames[-1]] = own.get(frames[-1], 0) + samples
    total = sum(own.values()) or 1
    return [(frame, own[frame] / total) for frame in sorted(own, key=own.get, reverse=True)[:count]]


def timeline(report: Report, key: str, name: str, side: Side, images: list[bytes], count: int = 10) -> list[list]:
    """A chrome trace of one request, and its `count` most costly operators as rows."""
    on_gpu = side.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    profiled_requests(side, images, "request", 0)
    with torch.profiler.profile(activities=activities) as profiler:
        profiled_requests(side, images, "request", 0)
    traces = report.out / "traces"
    traces.mkdir(exist_ok=True)
    path = traces / f"{key}_{name}.json"
    profiler.export_chrome_trace(str(path))
    with path.open("rb") as source, gzip.open(f"{path}.gz", "wb") as target:
        shutil.copyfileobj(source, target)
    path.unlink()
    events = profiler.key_averages()

    def own(event):
        return event.self_device_time_total if on_gpu else event.self_cpu_time_total

    total = sum(own(event) for event in events) or 1
    top = sorted(events, key=own, reverse=True)[:count]
    rows = [[e.key[:60], e.count, shown(own(e) / 1000, 2), f"{100 * own(e) / total:.1f}%"] for e in top]
    values = {e.key[:60]: {"calls": e.count, "ms": round(own(e) / 1000, 3)} for e in top}
    report.cell(f"{key}: operators, {name}", total_ms=round(total / 1000, 2), operators=values)
    return rows


def run(report: Report, keys=None, workloads=WORKLOADS) -> None:
    args = report.args
    images = pictures.same_size(pictures.load(args.images, 2 if args.tiny else 5)[0])
    for key in keys or [key for key in args.shapes if key != "qwen3-vl-2b"]:
        for workload in workloads:
            for name in SIDES:
                cell = f"{key}: flame graph, {name}, {workload}"
                found = report.attempt(cell, flame_graph, report, key, name, workload, images)
                if found:
                    rows = [[frame, f"{100 * share:.1f}%"] for frame, share in hottest(found[0])]
                    title = f"{shape_of(args, key).name}, {SIDES[name]}, {workload}: hottest functions"
                    report.table(title, ["function", "own samples"], rows, f"Sampled by {found[1]}.")
        if "request" not in workloads:
            continue
        for name in SIDES:
            side = report.attempt(f"{key}: building {name}", one_side, args, key, name, True)
            cell = f"{key}: operators, {name}"
            rows = report.attempt(cell, timeline, report, key, name, side, images) if side else None
            if rows:
                title = f"{shape_of(args, key).name}, {SIDES[name]}: operators of one request"
                report.table(title, ["operator", "calls", "own ms", "share"], rows)
            del side
    report.write("Where the time goes", f"{args.dtype} on {args.device}; one request is one 640x480 JPEG, 13 tiles.")


def main(arguments=None) -> int:
    parser = build_parser(__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a workload is sampled")
    parser.add_argument("--sampler", choices=("austin", "thread"), default="austin", help="what takes the stacks")
    parser.add_argument("--workload", metavar="SIDE:WORKLOAD", help="only run this, for a profiler of your own")
    args = parser.parse_args(arguments)
    set_up(args)
    if args.workload:
        name, _, workload = args.workload.partition(":")
        if name not in SIDES or workload not in WORKLOADS:
            parser.error(f"--workload {args.workload!r} is unknown: SIDE is one of {', '.join(SIDES)}, WORKLOAD one of "
                         f"{', '.join(WORKLOADS)}.")  # fmt: skip
        images = pictures.same_size(pictures.load(args.images, 2 if args.tiny else 5)[0])
        side = one_side(args, args.shapes[0], name, models=workload == "request")
        side.request(images[0])  # warm-up
        print(profiled_requests(side, images, workload, args.seconds), "requests")
        return 0
    report = Report("profile", args, arguments)
    run(report)
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
