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

def picture(height, width, kind="JPEG", mode="RGB", exif=1, **options):
    y, x = np.mgrid[:height, :width].astype(np.uint16)
    file = io.BytesIO()
    image = Image.fromarray(np.stack([x % 251, y % 241, (x + y) % 239], -1).astype(np.uint8)).convert(mode)
    turned = Image.Exif()
    turned[0x0112] = exif
    image.save(file, kind, compress_level=1, **({"exif": turned} if exif > 1 else {}), **options)
    return file.getvalue()

torch.set_num_threads(2)
results = []
for tiling, resample, sizes, options, max_tiles in json.loads(sys.argv[1]):
    files = [picture(*size, **options) for size in sizes]
    processor = ArgusImageProcessor(tiling=tiling, resample=resample, max_tiles=max_tiles)
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

PHOTO, LARGE = [(480, 640)], [(3000, 4000)]
BATCH = [(480, 640), (640, 480), (1200, 900)]
CASES = {  # name: (tiling, resample, sizes, options of the files, max_tiles, bytes a pixel that a decoder holds too)
    "photo": ("longest_edge", 1, PHOTO, {}, 12, 0),
    "photo, one resize": ("aspect_ratio", 3, PHOTO, {}, 12, 0),
    "12 Mpx": ("longest_edge", 1, LARGE, {}, 12, 0),
    "12 Mpx, one resize": ("aspect_ratio", 3, LARGE, {}, 12, 0),
    "12 Mpx, one tile": ("longest_edge", 1, LARGE, {}, 1, 0),
    "12 Mpx on its side": ("longest_edge", 1, LARGE, {"exif": 6}, 12, 0),
    "12 Mpx upside down, one resize": ("aspect_ratio", 3, LARGE, {"exif": 3}, 12, 0),
    "12 Mpx grey": ("longest_edge", 1, LARGE, {"mode": "L"}, 12, 0),
    "12 Mpx PNG": ("longest_edge", 1, LARGE, {"kind": "PNG"}, 12, 0),
    "12 Mpx transparent": ("longest_edge", 1, LARGE, {"kind": "PNG", "mode": "RGBA"}, 12, 4),  # Pillow's own pixels
    "12 Mpx progressive": ("longest_edge", 1, LARGE, {"progressive": True}, 12, 3),  # libjpeg's coefficients at 4:2:0
    "24 Mpx": ("longest_edge", 1, [(4000, 6000)], {}, 12, 0),
    "batch": ("longest_edge", 1, BATCH, {}, 12, 0),
    "batch, one resize": ("aspect_ratio", 3, BATCH, {}, 12, 0),
}
SLACK = 1 << 20  # the allocator's and the stacks of threads
STRIPS = 4 << 20  # while a decoder holds pixels of its own no output exists, but strips in Pillow's forms do


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel's peak counter is Linux's")
def test_the_peak_is_at_most_twice_the_output_and_the_decoded_images():
    """Decoded images are uint8 RGB. Where a decoder holds more than that, the peak may be there instead, before there
    is any output: that much is not the processor's to save."""
    command = [sys.executable, "-c", CHILD, json.dumps([case[:5] for case in CASES.values()])]
    at_once = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }  # what is freed leaves the process, and the peak is true
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=at_once)
    assert result.returncode == 0, result.stderr
    over = []
    for (name, case), (peak, output, decoded) in zip(CASES.items(), json.loads(result.stdout)):
        limit, beside = 2.1 * output + decoded + SLACK, decoded // 3 * case[5]
        if beside:
            limit = max(limit, decoded + beside + STRIPS)
        line = f"{name}: peak {peak / 1e6:.1f} MB of {limit / 1e6:.1f} MB, output {output / 1e6:.1f}"
        print(line)
        assert peak >= output, f"{name}: the counter did not see {peak} bytes"
        over += [line] if peak > limit else []
    assert not over
