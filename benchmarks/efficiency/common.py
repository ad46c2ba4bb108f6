"""What every script shares: arguments, the line that says where it ran, and its output.

A script writes one JSON line a cell to `<out>/<script>.jsonl` as soon as the cell is measured, and at its end a table
`<script>.md` and a plot `<script>.png`. Nothing written names a path or a host.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import transformers

from .measuring import Bar, Budget
from .shapes import SHAPES, TINY, Shape

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
_PRIVATE = ("--out", "--images", "--work")  # options whose values are paths


def a_device(text: str) -> str:
    """The name of a device that is there."""
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no device: cuda, cuda:1 or cpu.") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise argparse.ArgumentTypeError(f"{text!r}: torch {torch.__version__} finds {count} CUDA devices here.")
    return text


def at_least(lowest: int):
    """The type of an option: a whole number that is no smaller."""

    def number(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {lowest} or more.")
        return int(text)

    return number


def build_parser(description: str, **defaults) -> argparse.ArgumentParser:
    """The options that all scripts have."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="where table, plot and JSON lines go")
    add("--images", type=Path, metavar="DIR", help="a folder of JPEGs, COCO's val2017 for one (default: generated)")
    add("--num-images", type=at_least(1), default=50, metavar="N", help="images to go round (default: 50)")
    add("--shapes", nargs="+", choices=sorted(SHAPES), default=["256m"], help="models to measure")
    add("--device", type=a_device, default="cuda" if torch.cuda.is_available() else "cpu", help="cuda, cuda:1, cpu")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of the models")
    add("--threads", type=at_least(1), metavar="N", help="threads of torch (default: its own choice)")
    add("--repeats", type=at_least(1), metavar="N", help="timed rounds a cell (default: by device)")
    add("--budget-minutes", type=float, metavar="M", help="start nothing new after this time")
    add("--reference-attention", choices=("sdpa", "eager"), default="sdpa", help="attention of transformers' models")
    add("--tiny", action="store_true", help="tiny shapes and images: tries the script, measures nothing")
    parser.set_defaults(**defaults)
    return parser


def shape_of(args, key: str) -> Shape:
    return (TINY if args.tiny else SHAPES)[key]


def repeats_of(args, on_gpu: int, on_cpu: int) -> int:
    """`--repeats`, else what suits the device; 2 for tiny shapes."""
    if args.repeats:
        return args.repeats
    return 2 if args.tiny else on_gpu if torch.device(args.device).type == "cuda" else on_cpu


def _read(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def hardware(device) -> dict:
    """Where and with what a number was measured."""
    device = torch.device(device)
    try:
        import torchvision

        vision = torchvision.__version__
    except ImportError:
        vision = None
    commit = _read(["git", "rev-parse", "--short", "HEAD"])
    if commit and _read(["git", "status", "--porcelain", "--untracked-files=no"]):
        commit += " and uncommitted changes"
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": vision,
        "transformers": transformers.__version__,
        "commit": commit or None,
    }


def command_line(module: str, arguments: list[str]) -> str:
    """The command as a reader would repeat it, without the values of path options."""
    shown, hide = [], False
    for argument in arguments:
        name = argument.split("=", 1)[0]
        shown.append("DIR" if hide else f"{name}=DIR" if name in _PRIVATE and "=" in argument else argument)
        hide = argument in _PRIVATE
    return " ".join(["python -m", module, *shown])


def markdown(header: list[str], rows: list[list]) -> str:
    """A Markdown table; the first column is aligned to the left, the rest to the right."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join(["---", *["---:"] * (len(header) - 1)]) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])


class Report:
    """Everything that a script writes: cells at once, text, verdicts and plot at its end."""

    def __init__(self, name: str, args, arguments: list[str] | None = None, budget: Budget | None = None):
        self.name, self.args, self.out = name, args, Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.hardware = hardware(args.device)
        module = f"benchmarks.efficiency.{getattr(args, 'run_by', name)}"  # `all` runs the others
        self.command = command_line(module, sys.argv[1:] if arguments is None else arguments)
        self.budget = budget or Budget(args.budget_minutes)
        self.cells: list[dict] = []
        self.parts = []
        self.failed = self.skipped = 0
        self.lines = self.out / f"{name}.jsonl"
        self.lines.write_text("", encoding="utf-8")

    def cell(self, cell: str, **values) -> dict:
        """Writes one measured cell as a JSON line, and returns it."""
        entry = {"benchmark": self.name, "cell": cell, **values, "command": self.command, **self.hardware}
        with self.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self.cells.append(entry)
        print(f"{self.name}: {cell}: {json.dumps(values)}", flush=True)
        return entry

    def attempt(self, cell: str, function: Callable, *args, **kwargs):
        """Runs one cell. Past the budget it is skipped, an error is recorded, and the next cell goes on."""
        if self.budget.left() <= 0:
            self.skipped += 1
            self.cell(cell, skipped="the budget was spent")
            return None
        return self.always(cell, function, *args, **kwargs)

    def always(self, cell: str, function: Callable, *args, **kwargs):
        """`attempt` whatever the budget: for short checks that numbers already taken depend on."""
        try:
            return function(*args, **kwargs)
        except Exception as error:  # whatever it was, the other cells are still worth having
            self.failed += 1
            traceback.print_exc()
            self.cell(cell, error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            return None

    def table(self, title: str, header: list[str], rows: list[list], note: str = "") -> None:
        text = "\n\n".join(part for part in (f"## {title}", note, markdown(header, rows)) if part)
        print(f"\n{text}\n", flush=True)
        self.parts.append(text)

    def verdicts(self, bars: list[Bar]) -> None:
        """The bars as a table, and as a cell. Tiny shapes pass nothing and miss nothing."""
        if self.args.tiny:
            bars = [replace(bar, value=None, note="tiny shapes") for bar in bars]
        self.table("Bars", ["bar", "limit", "measured", "verdict", "note"], [bar.row() for bar in bars])
        self.cell("bars", bars={bar.name: {"value": bar.value, "limit": bar.limit, "is": bar.verdict} for bar in bars})

    def write(self, title: str, note: str = "") -> Path:
        """The Markdown file of all tables so far."""
        where = ", ".join(f"{name} {value}" for name, value in self.hardware.items() if value is not None)
        tiny = "Tiny shapes: this run shows that the script works; its numbers mean nothing." if self.args.tiny else ""
        failed = [
            f"- {c['cell']}: {c.get('error') or c['skipped']}" for c in self.cells if "error" in c or "skipped" in c
        ]
        text = [f"# {title}", tiny, note, f"`{self.command}`", f"Measured with: {where}.", *self.parts]
        text += ["## Not measured\n\n" + "\n".join(failed)] if failed else []
        path = self.out / f"{self.name}.md"
        path.write_text("\n\n".join(part for part in text if part) + "\n", encoding="utf-8")
        return path

    def plot(self, draw: Callable, size=(9, 5), name: str | None = None) -> Path | None:
        """Calls draw(axes) and writes the PNG; without matplotlib it says so and returns None."""
        try:
            import matplotlib
        except ImportError:
            print(f"{self.name}: no plot, because matplotlib is not installed (pip install matplotlib)")
            return None
        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=size, layout="constrained")
        draw(axes)
        path = self.out / f"{name or self.name}.png"
        figure.savefig(path, dpi=130, metadata={"Software": None})
        pyplot.close(figure)
        return path


def set_up(args) -> None:
    """Threads as asked for, and no message of transformers between the numbers."""
    if args.threads:
        torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def stacked_bars(axes, rows: list[tuple[str, dict[str, float]]], unit: str = "ms") -> None:
    """Horizontal bars, one a row, made of named parts."""
    names = list(dict.fromkeys(name for _, parts in rows for name in parts))
    start = [0.0] * len(rows)
    for name in names:
        widths = [parts.get(name, 0.0) for _, parts in rows]
        axes.barh(range(len(rows)), widths, left=start, label=name)
        start = [a + b for a, b in zip(start, widths)]
    for i, end in enumerate(start):
        axes.text(end, i, f" {end:,.0f}" if end >= 100 else f" {end:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_xlim(0, max([*start, 1e-9]) * 1.12)
    axes.legend(fontsize=8, ncols=len(names), loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
