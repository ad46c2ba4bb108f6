"""Running a script as a stranger to this project: its packages not importable, fresh caches, a foreign folder."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

# Stands first in the child, so that an editable installation in the same environment is out of reach too.
_BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"modeling_argus", "processing_argus", "argus_tools"}:
            raise ModuleNotFoundError(f"{name} is blocked in this test", name=name)

sys.meta_path.insert(0, Blocker())
sys.modules.update(dict.fromkeys(filter(None, sys.argv.pop(1).split(","))))  # None: as if it were not installed
script = sys.argv.pop(1)
exec(compile(open(script, encoding="utf-8").read(), script, "exec"), {"__name__": "__main__", "__file__": script})
"""


def run_isolated(
    script: str,
    *arguments: object,
    home: Path,
    python: str = sys.executable,
    without: tuple[str, ...] = (),
    timeout: float = 300,
) -> None:
    """Run tests/hub/`script` with `python -I`, its caches and working directory in `home`; fails with its output.

    `without` names installed packages that it is not to find.
    """
    work = home / "elsewhere"
    work.mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_", "TRANSFORMERS_", "ARGUS_"))}
    environment = {
        **kept,
        "HF_HOME": str(home / "huggingface"),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [python, "-I", "-c", _BLOCKER, ",".join(without), str(HERE / script), *map(str, arguments)]
    _run(command, environment, work, timeout)


def run_with_project(script: str, *arguments: object, python: str, timeout: float = 300) -> None:
    """Run tests/hub/`script` with another interpreter that finds this checkout and the test helpers."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(HERE)])}
    _run([python, str(HERE / script), *map(str, arguments)], environment, ROOT, timeout)


def _run(command: list[str], environment: dict, folder: Path, timeout: float) -> None:
    child = subprocess.run(
        command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
    )
    if child.returncode:
        raise AssertionError(
            f"{command[0]} {command[-2:]} ended with {child.returncode}:\n{child.stdout}\n{child.stderr}"
        )
