"""The folder of a run: whose it is, what may be gone on with, what may be deleted."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from .config import TrainConfig, is_stage_name, parse_config
from .saving import write_json

# What may differ between a run and the command that goes on with it.
FREE = ("save_every", "log_every", "keep", "loader_processes", "tensorboard", "output_dir")


def open_run(config: TrainConfig, out: Path, restart: bool = False) -> bool:
    """Make the run's folder, or see that the one that is there is this run's; whether it is new.

    restart: delete an earlier run in it first. Raises ValueError for a folder that is another's.
    """
    file, raw = out / "run.json", json.loads(json.dumps(asdict(config)))
    before = _read(file) if file.is_file() else None
    if before is None and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no run of argus train: give another output_dir.")
    if before is not None and not restart:
        _compare(before, raw, out)
    elif before is not None:
        for name in ("start", "model", *(stage["name"] for stage in before["stages"])):
            shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, raw)
    return before is None or restart


def last_checkpoint(folder: Path) -> str | None:
    """transformers' newest checkpoint that is whole (trainer_state.json is written last); others are deleted."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    whole = []
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            whole.append(path)
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
    return str(whole[-1]) if whole else None


def _read(file: Path) -> dict:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        names = [stage["name"] for stage in raw["stages"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no run of argus train: delete its folder, or give another output_dir.") from error
    if not all(is_stage_name(name) for name in names):
        raise ValueError(f"{file} names stages {names}, which no run has: delete its folder, or give another.")
    return raw


def _compare(before: dict, now: dict, out: Path) -> None:
    # A run of before a setting was there has its default.
    before, now = (_compared(raw) for raw in (asdict(parse_config(before, str(out / "run.json"))), now))
    begun = {stage["name"] for stage in now["stages"] if (out / stage["name"]).is_dir()}
    same = [[_fixed(stage, out) for stage in one["stages"] if stage["name"] in begun] for one in (before, now)]
    differ = [key for key in now if key not in (*FREE, "stages") and before.get(key) != now[key]]
    if same[0] != same[1]:
        differ.append("stages")
    if differ:
        raise ValueError(
            f"{out} holds a run with other settings ({', '.join(differ)} differ): give another output_dir, or "
            "--restart to delete it."
        )


def _compared(raw: dict) -> dict:
    """As JSON has it, without `data.bad_samples`: what one process stops at, the next may go past."""
    raw = json.loads(json.dumps(raw))
    del raw["data"]["bad_samples"]
    return raw


def _fixed(stage: dict, out: Path) -> dict:
    """What must stay of a stage that has begun: all, but for the length of one whose rate does not depend on it."""
    free = stage["schedule"] == "constant" and not (out / stage["name"] / "last").is_dir()
    return {name: value for name, value in stage.items() if not (free and name == "steps")}
