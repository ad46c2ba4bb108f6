"""Sampled call stacks: taking them (austin, or a thread where it cannot run), shortening, and drawing them.

Collapsed stacks are lines `outer;inner;innermost count`, what flame graph tools read. Only what runs below `MARK` is
kept, so start-up and model building are in no picture. File names are cut to what follows the installation's folder.
"""

import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

MARK = "profiled_requests"  # the function under which the workload runs
COLOURS = {
    "processing_argus": "#4c9be8",
    "modeling_argus": "#2e6fb7",
    "transformers": "#f2a33a",
    "torch": "#d9583b",
    "torchvision": "#e58b6f",
    "PIL": "#62a85b",
    "tokenizers": "#a07cc5",
    "benchmarks": "#b9b9b9",
}


def shorten(frame: str) -> str:
    """`.../site-packages/torch/nn/functional.py:silu:2370` -> `torch/nn/functional.py:silu`."""
    file, _, rest = frame.partition(".py:")
    if not rest:
        return re.sub(r":\d+$", "", frame)
    name = re.sub(r":\d+$", "", rest).rsplit(".", 1)[-1]
    file = file.replace("\\", "/")
    for marker in ("/site-packages/", "/dist-packages/"):
        if marker in file:
            return f"{file.rsplit(marker, 1)[1]}.py:{name}"
    for package in ("processing_argus", "modeling_argus", "argus_tools", "benchmarks"):
        if f"/{package}/" in file:
            return f"{package}/{file.rsplit(f'/{package}/', 1)[1]}.py:{name}"
    return f"{file.rsplit('/', 1)[-1]}.py:{name}"


def collapse(stacks: Counter) -> Counter:
    """Stacks (tuples of frames, outermost first) -> the part below MARK, shortened."""
    kept: Counter = Counter()
    for frames, count in stacks.items():
        short = [shorten(frame) for frame in frames]
        at = [i for i, frame in enumerate(short) if frame.endswith(f":{MARK}")]
        if at:
            kept[tuple(short[at[0] :])] += count
    return kept


def read_austin(text: str, interval_us: int = 500) -> Counter:
    """austin's own lines, `P1;T0:1;frame;frame 1230`, as stacks; it counts microseconds, here they are samples."""
    stacks: Counter = Counter()
    for line in text.splitlines():
        frames, _, count = line.rpartition(" ")
        if line.startswith("P") and ";" in frames and count.isdigit():
            kept = tuple(frame for frame in frames.split(";")[1:] if not re.match(r"T\w*:?\d", frame))
            stacks[kept] += max(round(int(count) / interval_us), 1)
    return stacks


def austin() -> str | None:
    """The austin binary of this environment or of the PATH, if it runs here."""
    beside = Path(sys.executable).with_name("austin")
    path = str(beside) if beside.exists() else shutil.which("austin")
    if path is None:
        return None
    try:
        works = subprocess.run([path, "--version"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return None
    return path if works else None


def run_austin(
    binary: str, command: list[str], output: Path, timeout: float, folder: Path, interval_us: int
) -> tuple[Counter, str]:
    """Runs a command in `folder` under austin. (stacks, "" or what went wrong)."""
    try:
        done = subprocess.run(
            [binary, "-i", f"{interval_us}us", "-o", str(output), *command],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=folder,
        )
    except subprocess.SubprocessError as error:
        return Counter(), f"austin was stopped: {type(error).__name__}"
    text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    stacks = read_austin(text, interval_us)
    output.unlink(missing_ok=True)
    if not stacks:
        return stacks, f"austin gave no samples (exit status {done.returncode}); it may not be allowed to trace here"
    return stacks, ""


class Sampler:
    """A thread that notes the calling thread's Python stack every `interval` seconds, inside `with`.

    Slower than austin, and blind while a C call holds the interpreter lock; torch's kernels release it.
    """

    def __init__(self, interval: float = 0.001):
        self.interval, self.stacks = interval, Counter()
        self._thread = threading.Thread(target=self._sample, args=(threading.get_ident(),), daemon=True)
        self._done = threading.Event()

    def _sample(self, ident: int) -> None:
        while not self._done.wait(self.interval):
            frame, frames = sys._current_frames().get(ident), []
            while frame is not None:
                frames.append(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")
                frame = frame.f_back
            self.stacks[tuple(reversed(frames))] += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._done.set()
        self._thread.join()


def sampled(function: Callable) -> Counter:
    """Stacks of one call by the sampling thread."""
    with Sampler() as sampler:
        function()
    return sampler.stacks


def write_collapsed(stacks: Counter, path: Path) -> None:
    lines = [f"{';'.join(frames)} {count}" for frames, count in sorted(stacks.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def rectangles(stacks: Counter) -> list[tuple[int, float, float, str]]:
    """(depth, start, width, frame) of every box, in shares of all samples, the root first."""
    boxes, total = [], sum(stacks.values()) or 1

    def place(items: list[tuple[tuple[str, ...], int]], depth: int, start: float) -> None:
        groups: dict[str, list] = {}
        for frames, count in items:
            if len(frames) > depth:
                groups.setdefault(frames[depth], []).append((frames, count))
        for frame in sorted(groups):
            share = sum(count for _, count in groups[frame]) / total
            boxes.append((depth, start, share, frame))
            place(groups[frame], depth + 1, start)
            start += share

    place(list(stacks.items()), 0, 0.0)
    return boxes


def draw(axes, stacks: Counter, title: str, smallest: float = 0.002) -> None:
    """An icicle: callers above, callees below, width is the share of samples."""
    boxes = [box for box in rectangles(stacks) if box[2] >= smallest]
    seen = {}
    for depth, start, width, frame in boxes:
        package = re.split(r"[/:]", frame)[0]
        colour = COLOURS.get(package, "#dedede")
        if package in COLOURS:
            seen[package] = colour
        axes.add_patch(_patch(start, depth, width, colour))
        room = int(width * 165)
        if room >= 4:
            label = frame.rsplit("/", 1)[-1].replace(".py:", ": ")
            short = label if len(label) <= room else label.rsplit(": ", 1)[-1]
            text = short if len(short) <= room else short[: room - 1] + "…"
            axes.text(start + width / 2, depth + 0.5, text, ha="center", va="center", fontsize=5.5, clip_on=True)
    deepest = max((box[0] for box in boxes), default=0) + 1
    axes.set_xlim(0, 1)
    axes.set_ylim(deepest, 0)
    axes.set_yticks([])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"], fontsize=7)
    axes.set_title(f"{title} ({sum(stacks.values())} samples)", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    handles = [_patch(0, 0, 1, colour, label=package) for package, colour in seen.items()]
    if handles:
        axes.legend(handles=handles, fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.04), ncols=len(handles))


def _patch(x, y, width, colour, **more):
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, 0.94, facecolor=colour, edgecolor="white", linewidth=0.3, **more)
