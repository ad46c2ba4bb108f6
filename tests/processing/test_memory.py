"""The processor's true peak: the pages of a child process, torch's and numpy's alike, as the kernel counts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CHILD = """
import ctypes, io, json, sys
import numpy as np, torch
from PIL import Image
from processing_argus.image_processing_argus import ArgusImageProcessor

libc = ctypes.CDLL(None)

def field(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

def picture(height, width):
    y, x = np.mgrid[:height, :width].astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(np.stack([x % 251, y % 241, (x + y) % 239], -1).astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()

torch.set_num_threads(2)
results = []
for tiling, resample, sizes in json.loads(sys.argv[1]):
    files = [picture(*size) for size in sizes]
    processor = ArgusImageProcessor(tiling=tiling, resample=resample)
    processor([picture(64, 64)], return_tensors="pt")  # imports, threads, the decoder's check
    libc.malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = field("VmRSS")
    output = processor(files, return_tensors="pt")["pixel_values"]
    results.append([field("VmHWM") - before, output.numel(), sum(h * w * 3 for h, w in sizes)])
    del output
print(json.dumps(results))
"""

CASES = {
    "photo": ("longest_edge", 1, [(480, 640)]),
    "photo, one resize": ("aspect_ratio", 3, [(480, 640)]),
    "12 Mpx": ("longest_edge", 1, [(3000, 4000)]),
    "12 Mpx, one resize": ("aspect_ratio", 3, [(3000, 4000)]),
    "batch": ("longest_edge", 1, [(480, 640), (640, 480), (1200, 900)]),
    "batch, one resize": ("aspect_ratio", 3, [(480, 640), (640, 480), (1200, 900)]),
}
SLACK = 1 << 20  # the allocator's and the stacks of threads


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel's peak counter is Linux's")
def test_the_peak_is_at_most_twice_the_output_and_the_decoded_images():
    command = [sys.executable, "-c", CHILD, json.dumps(list(CASES.values()))]
    at_once = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }  # what is freed leaves the process, and the peak is true
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=at_once)
    assert result.returncode == 0, result.stderr
    for name, (peak, output, decoded) in zip(CASES, json.loads(result.stdout)):
        print(f"{name}: peak {peak / 1e6:.1f} MB, {(peak - decoded) / output:.2f}x the output plus the decoded images")
        assert peak >= output, f"{name}: the counter did not see {peak} bytes"
        assert peak <= 2.1 * output + decoded + SLACK, name
