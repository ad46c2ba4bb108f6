"""The folder of a run: whose it is, what may be gone on with, what may be deleted."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from .config import TAKEN, TrainConfig, is_stage_name, parse_config
from .saving import write_json

FILE = "run.json"
# What may differ between a run and the command that goes on with it.
FREE = ("save_every", "log_every", "keep", "loader_processes", "tensorboard", "output_dir")


def check_run(config: TrainConfig, out: Path, prints: dict, restart: bool = False) -> None:
    """Raises ValueError for a folder that is not this run's: another's, or (not with `restart`) another run's.

    prints: what the model and the data are known by, see `fingerprints`.
    """
    before = _read(out / FILE) if (out / FILE).is_file() else None
    if before is None and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no run of argus train: give another output_dir.")
    if before is not None and not restart:
        _compare(before, json.loads(json.dumps(asdict(config))), json.loads(json.dumps(prints)), out)


def open_run(config: TrainConfig, out: Path, prints: dict, restart: bool = False) -> None:
    """Make the folder of a run that `check_run` has passed. restart: delete an earlier run in it first."""
    if restart and (out / FILE).is_file():
        named = [stage["name"] for stage in _read(out / FILE)["stages"]]
        for name in {*TAKEN, *named, *(path.name for path in out.iterdir() if _is_stage(path))}:
            shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / FILE, {**asdict(config), "fingerprints": prints})


def fingerprints(config: TrainConfig, readers: list, commit: str | None) -> dict:
    """What tells at little cost whether the model and the data of a run are still the same: sizes and times of files.

    commit: of a model from the hub.
    """
    files = Path(config.model).glob("*") if commit is None and config.model != "nano" else ()
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files) if path.is_file()]
    keys = [[len(reader), reader._key() if hasattr(reader, "_key") else None] for reader in readers]
    return {"model": commit or hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:24], "sources": keys}


def _is_stage(folder: Path) -> bool:
    """Whether a folder is recognisably a stage's, of whatever configuration."""
    return (
        is_stage_name(folder.name)
        and folder.is_dir()
        and not folder.is_symlink()
        and any(any(folder.glob(mark)) for mark in ("last/", "checkpoint-*/", "tensorboard/", "log.jsonl"))
    )


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


def _compare(before: dict, now: dict, prints: dict, out: Path) -> None:
    old = before.pop("fingerprints", None)
    # A run of before a setting was there has its default.
    before, now = (_compared(raw) for raw in (asdict(parse_config(before, str(out / FILE))), now))
    lists = [one["stages"] for one in (before, now)]
    # One stage starts from the last: up to the last that has begun, all must be the same ones in the same places.
    begun = max((n for each in lists for n, s in enumerate(each, 1) if (out / s["name"]).is_dir()), default=0)
    same = [[_fixed(stage, out) for stage in each[:begun]] for each in lists]
    differ = [key for key in now if key not in (*FREE, "stages") and before.get(key) != now[key]]
    if same[0] != same[1]:
        differ.append("stages")
    if old is not None and not differ:  # a run of before they were kept goes on
        if old["model"] != prints["model"]:
            differ.append(f"the files of {now['model']}")
        for source, *pair in zip(now["data"]["sources"], old["sources"], prints["sources"]):
            if pair[0] != pair[1]:
                differ.append(f"the data of source {source['name'] or source['reader']!r}")
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
