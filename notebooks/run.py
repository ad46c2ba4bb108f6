"""Executes the notebooks and stores what they print and draw: one command makes all committed outputs again.

    python notebooks/run.py                    # all five, on this machine
    python notebooks/run.py quickstart         # those whose names hold the word
    python notebooks/run.py --fast             # a few steps of each, nothing stored: do they run here?

What is the same in every notebook, its Colab badge and its first cell, is written here and stamped into each. A
notebook is stored only if it ran to its end and `problems` finds nothing; what libraries say on stderr (progress bars,
deprecations) is left out. Needs the extra `test`: nbclient, ipykernel, matplotlib.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
# Where the notebooks are fetched from by Colab: change it here alone, and run this file.
REPOSITORY = "YOUR_NAME/argusvlm"  # no account can be called so: until it is changed, nobody's code is fetched
FAST = "ARGUS_NOTEBOOKS_FAST"
MOST_BYTES = 500_000
_PATH = re.compile(r"(?<![\w.:/])/(?:root|home|tmp|work|usr|content|Users|var)/[\w./-]*|site-packages")

SETUP = f'''\
# On Colab this fetches and installs the project and takes a published checkpoint, where the notebook has a use for one.
# Elsewhere it finds the checkout that the notebook lies in and takes argus-nano, which is part of it.
import os
import subprocess
import sys
import tempfile
from pathlib import Path

COLAB = "google.colab" in sys.modules
if COLAB:  # not run here
    if not Path("argusvlm").exists():
        subprocess.run("git clone -q --depth 1 https://github.com/{REPOSITORY} argusvlm".split(), check=True)
    wanted = ["./argusvlm[train,bench,eval]", "torchao>=0.18"]  # quick where they are installed already
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *wanted], check=True)
places = [Path("argusvlm").resolve()] if COLAB else [Path.cwd(), *Path.cwd().parents]
ROOT = next(folder for folder in places if (folder / "hub_cards").is_dir())
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

CHECKPOINT = "HuggingFaceTB/SmolVLM-256M-Instruct" if COLAB else "argus-nano"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cuda":  # not run here; bfloat16 from Ampere on, a T4 has float16 alone
    DTYPE = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
else:
    DTYPE = torch.float32
FAST = bool(os.environ.get("{FAST}"))  # the tests' setting: fewer steps and repeats, the same code
WORK = Path(tempfile.mkdtemp(prefix="argus-"))

print(f"{{DEVICE}}; torch {{torch.__version__}}, transformers {{transformers.__version__}}")'''


def paths(words: list[str] | None = None) -> list[Path]:
    """The notebooks in order, those alone whose names hold one of `words` if there are any.

    Raises ValueError where a word fits none.
    """
    found = sorted(HERE.glob("*.ipynb"))
    for word in words or []:
        if not any(word in path.stem for path in found):
            raise ValueError(f"no notebook's name holds {word!r}; there are {', '.join(p.stem for p in found)}")
    return [path for path in found if not words or any(word in path.stem for word in words)]


def badge(path: Path) -> str:
    """The line of Markdown that opens this notebook in Colab."""
    link = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{path.name}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook with the badge on top and the first cell as they are said here."""
    notebook = nbformat.read(path, as_version=4)
    first, text = notebook.cells[0], notebook.cells[0].source.split("\n")
    first.source = "\n".join([badge(path), *text[text[0].startswith("[![Open in Colab]") :]])
    next(cell for cell in notebook.cells if cell.cell_type == "code").source = SETUP
    return notebook


def execute(notebook: nbformat.NotebookNode, fast: bool = False, timeout: int = 1200) -> nbformat.NotebookNode:
    """Runs every cell in a fresh kernel of this very interpreter, in this folder, and keeps what they put out.

    Raises nbclient's CellExecutionError where a cell fails.
    """
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as scratch:
        environment = {name: value for name, value in os.environ.items() if name != FAST}
        # Code of hub folders, tables of training data and IPython's history of a run stay with it.
        environment |= {name: f"{scratch}/{name}" for name in ("HF_MODULES_CACHE", "HF_DATASETS_CACHE", "IPYTHONDIR")}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "PYDEVD_DISABLE_FILE_VALIDATION": "1", "TMPDIR": scratch}
        environment |= {FAST: "1"} if fast else {}
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            resources={"metadata": {"path": str(HERE)}},
            record_timing=False,
        )
        client.execute(env=environment)
    return notebook


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what libraries wrote to stderr, and without what differs from editor to editor."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "colab": {"provenance": []},
        "accelerator": "GPU",
    }
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            kept = [each for each in cell.outputs if each.get("name") != "stderr"]
            for each in kept:
                each.pop("metadata", None) if each.output_type == "stream" else each.update(metadata={})
            cell.outputs = kept
    return notebook


def problems(notebook: nbformat.NotebookNode) -> list[str]:
    """What no stored notebook may have: errors, cells without output, a machine's paths, warnings, too many bytes."""
    found = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        where = f"cell {number}"
        if not cell.outputs or cell.execution_count is None:
            found.append(f"{where} has no output")
        for each in cell.outputs:
            if each.output_type == "error" or each.get("name") == "stderr":
                found.append(f"{where} holds an error or what went to stderr")
            shown = {kind: text for kind, text in each.get("data", {}).items() if not kind.startswith("image/")}
            text = each.get("text", "") + json.dumps(shown)
            if hit := _PATH.search(text):
                found.append(f"{where} shows a path of a machine, {hit[0]}")
            if hit := re.search(r"\w*Warning\b|\bdeprecated\b|Traceback", text):
                found.append(f"{where} shows {hit[0]!r}")
    size = len(nbformat.writes(notebook).encode())
    if size > MOST_BYTES:
        found.append(f"it has {size} bytes, more than {MOST_BYTES}")
    return found


def store(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Whole or not at all."""
    work = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        work.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf-8")
        os.replace(work, path)
    finally:
        work.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a notebook's name (default: all)")
    parser.add_argument("--fast", action="store_true", help="few steps and repeats, as the tests do; stores nothing")
    options = parser.parse_args(arguments)
    try:
        chosen = paths(options.names)
    except ValueError as error:
        parser.error(str(error))
    failed = 0
    for path in chosen:
        start = time.monotonic()
        try:
            notebook = tidy(execute(read(path), options.fast))
            found = problems(notebook)
        except Exception as error:  # the other notebooks are still worth having
            found = [str(error)]
        for problem in found:
            print(f"{path.name}: {problem}", file=sys.stderr)
        failed += bool(found)
        if not found and not options.fast:
            store(notebook, path)
        print(f"{path.name}: {'NOT stored' if found or options.fast else 'stored'}, {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
