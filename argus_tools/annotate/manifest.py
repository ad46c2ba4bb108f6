"""Whose rows a folder holds: the command is written down with the first run and compared by all later ones.

What changes rows is compared (inputs, task, words, model, options, format, number of shards); what only changes how
fast they come (batches, workers, device, engine) is not.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ..cli_support import CommandError
from .schema import TASKS
from .shards import own_files, write_whole

FORMAT = 1
NAME = "manifest.json"


@contextlib.contextmanager
def lock(folder: Path, name: str, wait: float = 0.0) -> Iterator[None]:
    """Nobody else holds this lock meanwhile; it goes with the process, however that ends. The folder is made.

    Raises:
        CommandError: somebody does, or the folder cannot be written.
    """
    file = FileLock(folder / f".{name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.acquire(timeout=wait)
    except Timeout as error:
        raise CommandError(f"another process writes {name} of {folder}; wait until it is done") from error
    except OSError as error:
        raise CommandError(f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        file.release()


def claim(folder: Path, command: dict, restart: bool = False, holding: str | None = None) -> None:
    """Writes the command down in its folder, which is made, or checks that it is the one that stands there.

    Args:
        command: plain values, see the top.
        restart: removes what an earlier run left, whatever its command was.
        holding: the lock of its shard, which the caller holds: nobody of the same shard is at work then.

    Raises:
        CommandError: the folder holds rows of another command, one that is restarted is being written, or it cannot be.
    """
    command = json.loads(json.dumps({"argus_annotate": FORMAT, **command}))
    path = folder / NAME
    try:
        with lock(folder, "manifest", wait=60.0):
            for leftover in folder.glob(f".{path.stem}.*{path.suffix}"):
                leftover.unlink()  # whoever was writing it was killed: this lock was free
            if restart:
                for name in {file.name[1 : -len(".lock")] for file in folder.glob(".shard-*.lock")} - {holding}:
                    with lock(folder, name):
                        pass  # who takes it from now on finds the other manifest
                for file in own_files(folder):
                    file.unlink()
            rows = [file for file in own_files(folder) if file.name != NAME]
            alone = not rows and command["num_shards"] == 1  # a run that failed before its first row claims nothing
            if path.exists() and not (alone and read(folder)["num_shards"] == 1):
                _check_same(read(folder), command, folder)
                return
            if left := rows:
                raise CommandError(f"{folder} holds {left[0].name} but no {NAME}: name another folder, or --restart")
            write_whole(path, lambda file: file.write_text(json.dumps(command, indent=2) + "\n", encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"{folder} cannot be written: {error.strerror or error}") from error


def read(folder: Path) -> dict:
    """The command of a folder. Raises CommandError where it has none."""
    path = folder / NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"{folder} holds no annotations: there is no {NAME} in it") from error
    except ValueError as error:
        raise CommandError(f"{path} is damaged: --restart begins anew") from error
    if not isinstance(found, dict) or found.get("argus_annotate") != FORMAT:
        raise CommandError(f"{path} is not of `argus annotate` in its format {FORMAT}: name another folder")
    if found.get("task") not in TASKS or type(found.get("num_shards")) is not int:
        raise CommandError(f"{path} is damaged: --restart begins anew")
    return found


def located(inputs: list[str]) -> list[str]:
    """Where inputs lie, URLs as they are: the same words typed in another folder mean other images."""
    return [each if each.startswith(("http://", "https://")) else os.path.abspath(each) for each in inputs]


def _check_same(found: dict, wanted: dict, folder: Path) -> None:
    for name in wanted:
        there, here = found.get(name), wanted[name]
        if isinstance(there, dict) and isinstance(here, dict):
            name, there, here = next(
                (
                    (f"{name} {key}", there.get(key), here.get(key))
                    for key in {**here, **there}
                    if there.get(key) != here.get(key)
                ),
                (name, None, None),
            )
        if there != here:
            raise CommandError(
                f"{folder} was begun by another command: {name} is {there!r} there and {here!r} here; give the same "
                "command to go on, name another folder, or begin anew with --restart"
            )
