"""The one place that chooses among the kernels, and what it says where a named choice cannot run."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_argus import kernels_argus
from modeling_argus.kernels_argus import FASTEST, LIGER, TORCH, TRITON, choose

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu(monkeypatch):
    """As if Triton's kernels could run, and Liger were installed."""
    monkeypatch.setattr(kernels_argus, "_why_not_triton", lambda device: None)
    monkeypatch.setattr(kernels_argus, "HAS_LIGER", True)


@pytest.mark.parametrize("needs_grad", [True, False])
@pytest.mark.parametrize("device", [CPU, torch.device("meta")])
def test_without_cuda_auto_is_torch_even_in_the_interpreter(device, needs_grad):
    assert choose("auto", device, needs_grad) is TORCH
    assert choose("torch", device, needs_grad) is TORCH


@pytest.mark.parametrize("kernels", ["triton", "liger"])
def test_a_named_choice_that_cannot_run_is_one_clear_error(kernels):
    with pytest.raises(ValueError, match=r"cannot run here: the model is on 'cpu'.*kernels='auto'") as raised:
        choose(kernels, CPU, needs_grad=False)
    assert str(raised.value).startswith(f"kernels='{kernels}'")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="kernels='flash' is not one of 'auto', 'triton', 'liger', 'torch'"):
        choose("flash", CPU, needs_grad=False)


def test_on_cuda_auto_is_triton_without_gradients_and_liger_with_them(gpu, monkeypatch):
    assert choose("auto", CUDA, needs_grad=False) is FASTEST
    assert choose("auto", CUDA, needs_grad=True) is LIGER
    assert choose("torch", CUDA, needs_grad=True) is TORCH
    assert choose("auto", CUDA, needs_grad=False, dtype=torch.float64) is TORCH
    with pytest.raises(ValueError, match="float64"):
        choose("triton", CUDA, needs_grad=False, dtype=torch.float64)
    assert choose("triton", CUDA, needs_grad=False) is TRITON
    assert choose("liger", CUDA, needs_grad=False) is choose("liger", CUDA, needs_grad=True) is LIGER
    with pytest.raises(ValueError, match=r"no backward pass.*torch\.no_grad"):
        choose("triton", CUDA, needs_grad=True)
    monkeypatch.setattr(kernels_argus, "HAS_LIGER", False)
    assert choose("auto", CUDA, needs_grad=True) is TORCH
    with pytest.raises(ValueError, match=r"liger-kernel .* is not installed"):
        choose("liger", CUDA, needs_grad=True)


def test_missing_triton_and_old_cards_are_told_apart(monkeypatch):
    why_not = kernels_argus._why_not_triton.__wrapped__
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(kernels_argus, "HAS_TRITON", True)
    assert "compute capability 8.0" in why_not(CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert why_not(CUDA) is None
    monkeypatch.setattr(kernels_argus, "HAS_TRITON", False)
    assert why_not(CUDA) == "triton is not installed"


def test_no_table_mixes_up_its_functions():
    for table in (TORCH, TRITON, LIGER, FASTEST):
        for name, function in vars(table).items():
            assert name == "name" or function.__name__ == name
    assert LIGER.decode_attention is TRITON.decode_attention  # a decoding step has no gradients
    assert FASTEST.add_rms_norm is TRITON.add_rms_norm
    assert (FASTEST.rms_norm is TORCH.rms_norm) == hasattr(torch.ops.aten, "_fused_rms_norm")


@pytest.mark.parametrize("kernels", ["auto", "triton"])
def test_torch_compile_traces_through_the_choice_and_gets_torch(kernels):
    x, weight = torch.randn(3, 8), torch.rand(8)

    @torch.compile(fullgraph=True, backend="eager")
    def norm(x):
        return choose(kernels, x.device, torch.is_grad_enabled()).rms_norm(x, weight, 1e-5)

    torch.testing.assert_close(norm(x), kernels_argus.rms_norm(x, weight, 1e-5))


def test_everything_imports_where_triton_and_liger_are_missing():
    """In a process of its own, and without the package's __init__, which imports transformers."""
    program = (
        "import sys, types; sys.modules['triton'] = sys.modules['liger_kernel'] = None\n"
        "package = sys.modules['modeling_argus'] = types.ModuleType('modeling_argus')\n"
        "package.__path__ = ['modeling_argus']\n"
        "import torch\n"
        "from modeling_argus.kernels_argus import TORCH, choose, _why_not_triton, HAS_TRITON, HAS_LIGER\n"
        "assert choose('auto', torch.device('cpu'), False) is TORCH\n"
        "assert not HAS_TRITON and not HAS_LIGER\n"
        "assert choose('auto', torch.device('cuda'), False) is TORCH\n"
        "print(_why_not_triton(torch.device('cuda')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "triton is not installed"
