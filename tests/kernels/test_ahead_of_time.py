"""Every Triton kernel compiles for an H100 at the family's shapes: the compiler needs no GPU, and sees what the
interpreter does not: types, layouts, registers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """What compile_ahead.py reports, from a process in which Triton compiles instead of interpreting."""
    try:
        from triton.backends.compiler import GPUTarget  # noqa: F401
        from triton.compiler import ASTSource  # noqa: F401
    except ImportError:
        pytest.skip(f"triton {triton.__version__} has another interface for compiling ahead of time")
    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas").exists():
        pytest.skip("this Triton comes without ptxas")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    script = Path(__file__).with_name("compile_ahead.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])["kernels"]


def test_all_kernels_are_compiled(kernels):
    import modeling_argus.kernels_triton_argus as sequence
    import modeling_argus.kernels_triton_attention_argus as attention
    import modeling_argus.kernels_triton_decode_argus as decode

    ours = {name for module in (sequence, attention, decode) for name in vars(module) if name.endswith("_kernel")}
    assert {report["kernel"] for report in kernels} == ours


def test_nothing_is_spilled_and_shared_memory_stays_small(kernels):
    for report in kernels:
        assert report["shared"] <= 48 * 1024, report
        assert report.get("stack", 0) == report.get("local", 0) == 0, report


def test_weights_are_read_16_bytes_at_a_time(kernels):
    """At least one wide load a row of W, x and, where there is one, the norm's weight."""
    products = [report for report in kernels if "BLOCK_K" in report["constants"]]
    assert products
    for report in products:
        constants = report["constants"]
        pairs = 2 if report["kernel"] != "_linear_kernel" else 1
        assert report["wide"] >= constants["B"] * (pairs * constants["ROWS"] + 1 + constants.get("NORM", True)), report
