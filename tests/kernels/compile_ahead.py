"""Compiles every Triton kernel for an H100 as the family's real shapes launch it, without a GPU; prints JSON.

The operations are called with tensors on the meta device and their launches are recorded, so what is compiled has the
very constants, warps and alignments that a GPU would see. A script, because Triton decides when kernels are defined
whether they are interpreted: run it with TRITON_INTERPRET unset.

    python tests/kernels/compile_ahead.py
"""

import json
import re
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

# The package alone, without its __init__: that imports transformers, which takes seconds.
sys.modules["modeling_argus"] = types.ModuleType("modeling_argus")
sys.modules["modeling_argus"].__path__ = [str(Path(__file__).parents[2] / "modeling_argus")]
from modeling_argus.kernels_argus import TRITON  # noqa: E402

# hidden, intermediate, query heads, key heads, head size, vocabulary, bias of q|k|v
SHAPES = {
    "256m": (576, 1536, 9, 3, 64, 49280, False),
    "2b": (1536, 8960, 12, 2, 128, 151674, True),
}
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64"}
LAUNCHES = []


def _record(kernel, *args, grid, warmup, num_warps, **constants):
    """In place of JITFunction.run: what it would compile. Tensors are taken as aligned, as torch allocates them."""
    values = dict(zip(kernel.arg_names, args)) | constants
    signature, folded, aligned = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = values[name]
        if isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
        elif kernel.params[i].is_constexpr or (type(value) is int and value == 1):
            signature[name], folded[name] = "constexpr", value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, torch.Tensor) or (signature[name] == "i32" and value % 16 == 0):
            aligned[(i,)] = [["tt.divisibility", 16]]
    LAUNCHES.append((kernel, signature, folded, aligned, num_warps))


def record(hidden, intermediate, query_heads, key_heads, size, vocabulary, bias, batch, capacity, tokens=880) -> None:
    """One layer's decoding step, the head, and one layer's prefill."""

    def e(*shape):
        return torch.empty(*shape, dtype=torch.bfloat16, device="meta")

    k, rows, norm = TRITON, (query_heads + 2 * key_heads) * size, e(hidden)
    slot, keys = torch.empty(1, dtype=torch.int64, device="meta"), e(batch, key_heads, capacity, size)
    added, angles, x = e(rows) if bias else None, e(batch, size), e(batch, hidden)
    q = k.norm_qkv_rotary(x, norm, 1e-5, e(rows, hidden), added, angles, angles, keys, keys, slot)
    out = k.decode_attention(q, keys, keys, e(batch, capacity), slot, capacity)
    x = k.linear_add(out, e(hidden, query_heads * size), x)
    x = k.linear_add(k.norm_gate_up(x, norm, 1e-5, e(2 * intermediate, hidden)), e(hidden, intermediate), x)
    k.norm_linear(x, norm, 1e-5, e(vocabulary, hidden))
    if batch > 1:
        return
    x, angles = e(1, tokens, hidden), e(1, 1, tokens, size)
    k.rms_norm(x, norm, 1e-5)
    k.add_rms_norm(x, x, norm, 1e-5)
    k.rotary(e(1, tokens, rows).view(1, tokens, -1, size).transpose(1, 2)[:, :-key_heads], angles, angles)
    k.swiglu(e(1, tokens, 2 * intermediate))


def resources(cubin: bytes) -> dict:
    """Registers, stack and local memory a thread, as cuobjdump tells them; empty where Triton does not bring it."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    return {name.lower(): int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", told)}


def main() -> None:
    JITFunction.run = _record
    for shape in SHAPES.values():
        record(*shape, batch=1, capacity=1024)
    record(*SHAPES["2b"], batch=4, capacity=32)  # several rows; a span of one tile
    record(*SHAPES["256m"], batch=8, capacity=1024)  # more rows than the products of these kernels take
    done, report = set(), []
    for kernel, signature, folded, aligned, warps in LAUNCHES:
        key = (kernel.__name__, str(signature), str(folded), str(aligned), warps)
        if key in done:
            continue
        done.add(key)
        source = ASTSource(fn=kernel, signature=signature, constexprs=folded, attrs=aligned)
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
        wide = len(re.findall(r"ld\.global\S*\.v4", built.asm["ptx"]))
        report.append(
            {
                "kernel": kernel.__name__,
                "warps": warps,
                "shared": built.metadata.shared,
                "wide": wide,
                "constants": folded,
            }
            | resources(built.asm["cubin"])
        )
    print(json.dumps({"triton": triton.__version__, "kernels": report}))


if __name__ == "__main__":
    main()
