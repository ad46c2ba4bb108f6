"""Shared by all tests: no network, few threads, session-scoped tiny models that no test may change."""

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The code of hub folders: this process's own, till its end.
os.environ["HF_MODULES_CACHE"] = (MODULES := tempfile.TemporaryDirectory(prefix="argus-modules-")).name

import pytest
import torch

if not torch.cuda.is_available():  # Triton's kernels are interpreted then; it asks when they are defined, below
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tiny import SHAPES, tiny_model

# Files that take minutes go first, so that two processes end at about the same time.
LONG = """test_tiny_run test_distributed test_annotate_ray test_notebooks test_annotate_killed test_space_page
test_benchmark_scripts test_docs_snippets test_full_size test_hub_folder""".split()


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # two processes share two cores


@pytest.fixture(scope="session", params=sorted(SHAPES))
def model(request):
    """Each tiny shape in turn; read-only."""
    return tiny_model(request.param)


@pytest.fixture(scope="session")
def siglip_llama():
    """The SigLIP + Llama shape alone; read-only."""
    return tiny_model("siglip_llama")
