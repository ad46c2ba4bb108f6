"""Killed half-way by SIGKILL and run again: nothing lost, nothing doubled. On 40 images; on as many as it is told by

    ARGUS_KILLED_IMAGES=2000 pytest -s tests/annotate/test_annotate_killed.py -k half_way

with the model that ships with argus, and the lines that both runs say.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from argus_tools.annotate.shards import part_files, rows_of
from argus_tools.scenes import render_scene

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SIZES = ((96, 96), (96, 160), (160, 96), (200, 200))


def render(folder, count):
    """Rendered scenes of four sizes, every 50th of them cut off."""
    folder.mkdir()
    for number in range(count):
        height, width = SIZES[number % 4]
        path = folder / f"{number:05d}.jpg"
        Image.fromarray(render_scene(number, "test", height=height, width=width).image).save(path)
        if number % 50 == 7:
            path.write_bytes(path.read_bytes()[:300])
    return {f"scenes/{number:05d}.jpg" for number in range(count)}


def start(folder, *words):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1"}
    argv = [sys.executable, str(HERE / "annotate_and_tell.py"), "annotate", *words]
    return subprocess.Popen(argv, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def ids_on_disk(out):
    """(ids in finished files, ids in the journal): of the journal whole lines only."""
    finished = [row["id"] for path in part_files(out) for row in rows_of(path)]
    journal = next(iter(out.glob("journal-*")), None)
    lines = journal.read_bytes().split(b"\n")[:-1] if journal else []
    return finished, [json.loads(line)["id"] for line in lines]


def test_killed_half_way_and_resumed(tmp_path, rows_in, tiny_folder):
    count = int(os.environ.get("ARGUS_KILLED_IMAGES", "40"))
    names = render(tmp_path / "scenes", count)
    words = ["scenes", "--task", "dense-caption", "--out", "out", "--max-new-tokens", "8", "--workers", "2"]
    words += ["--rows-per-file", str(count // 5), "--device", "cpu"]
    # So few tiles wait for the model that, of few images too, some are not decoded yet when the process dies.
    words += ["--batch-size", "32"] if count > 100 else ["--batch-size", "4", "--batch-tiles", "8"]
    words += ["--model", tiny_folder] if count < 100 else []
    with start(tmp_path, *words, f"--dies-with={count // 2}") as process:
        told = process.stdout.read()  # to its end, which comes when the workers, who hold it too, have ended
    assert process.returncode == -9 and told.splitlines()[-1] == "workers 2"
    finished, journal = ids_on_disk(tmp_path / "out")
    kept = set(finished) | set(journal)
    assert count // 2 <= len(kept) < count and len(finished) >= 2 * (count // 5) and journal

    with start(tmp_path, *words) as process:
        told = process.stdout.read()
    assert process.returncode == 0
    rows = rows_in(tmp_path / "out")
    assert set(rows) == names
    failed = sum(row["error"] is not None for row in rows.values())
    assert failed == len(range(7, count, 50))
    new = int(next(line for line in told.splitlines() if line.startswith("rows")).split()[1])
    assert new > len(kept)  # it went on where it was
    assert not list((tmp_path / "out").glob("journal-*"))
    print(f"\n{count} images: killed with {len(kept)} rows on the disk ({len(finished)} in finished files)")
    print("\n".join(line for line in told.splitlines() if not line.startswith("rows")))
    print(f"after the second run: {len(rows)} rows, {len(set(rows))} ids, 0 lost, 0 doubled, {failed} with an error")


def test_killed_while_a_file_is_moved(tmp_path, rows_in, tiny_folder):
    names = render(tmp_path / "scenes", 12)
    words = ["scenes", "--task", "caption", "--out", "out", "--max-new-tokens", "2", "--workers", "1"]
    words += ["--rows-per-file", "8", "--batch-size", "4", "--model", tiny_folder, "--device", "cpu"]
    with start(tmp_path, *words, "--dies-when-moved") as process:
        process.stdout.read()
    assert process.returncode == -9
    finished, journal = ids_on_disk(tmp_path / "out")
    assert finished and set(finished) <= set(journal)  # in both: they must count once
    with start(tmp_path, *words) as process:
        process.stdout.read()
    assert process.returncode == 0 and set(rows_in(tmp_path / "out")) == names
