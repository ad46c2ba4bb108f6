"""Peak memory of the image processors, in a process of its own in which what is freed is gone at once.

glibc keeps freed pages for the next allocation, and they count as the process' still. With MALLOC_MMAP_THRESHOLD_
every larger allocation has its own pages, so the kernel's high-water mark is that of what is held, without leftovers.
That makes every call slower, so nothing is timed here. images.py starts it as `python -m benchmarks.efficiency.memory`.
"""

import json
import os
import subprocess
import sys
import tempfile

from .common import ROOT

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def peaks(arguments: list[str], seconds: float) -> dict[tuple[str, str], int]:
    """(cell, side) -> bytes of a child process with images.py's arguments; those that it got to in `seconds`."""
    command = [sys.executable, "-m", "benchmarks.efficiency.memory", *arguments]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        try:
            done = subprocess.run(command, stdout=file, cwd=ROOT, env={**os.environ, **ALLOCATOR}, timeout=seconds)
            status = done.returncode
        except subprocess.TimeoutExpired:
            status = 0  # what is missing is said to be missing
        file.seek(0)
        lines = [json.loads(line) for line in file if line.startswith("{") and line.endswith("}\n")]
    if status:
        raise RuntimeError(f"benchmarks.efficiency.memory ended with exit status {status}")
    return {(line["cell"], line["side"]): line["peak"] for line in lines}


def main(arguments=None) -> int:
    """Prints one JSON line a cell and side, Argus' sides first."""
    from . import images, pictures
    from .common import build_parser, set_up
    from .measuring import peak_bytes

    args = build_parser(__doc__.splitlines()[0], device="cpu").parse_args(arguments)
    set_up(args)
    warm_up = [pictures.encode(pictures.photo(64, 64))]
    for name, side in images.all_sides(args).items():
        images.process(side, warm_up)  # imports, threads, the decoder's check of itself
        for cell in images.cells(args):
            batch = cell.make()
            peak = peak_bytes(lambda s=side, b=batch: images.process(s, b))
            print(json.dumps({"cell": cell.name, "side": name, "peak": peak}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
