"""The quantisation study: its layer computes what the model does, its FP8 kernels what their formulas say."""

import json
import os

import pytest
import torch

from benchmarks.efficiency import quantization
from benchmarks.efficiency import quantization_kernels as fp8
from benchmarks.efficiency.quantization_layer import (
    Dims,
    buffers,
    five_kernels,
    int8_rows,
    make_layers,
    operations,
    variants,
    widened,
)
from benchmarks.efficiency.shapes import TINY
from modeling_argus.kernels_argus import TORCH, linear

LIKE = {"dtype": torch.bfloat16, "device": torch.device("cpu")}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(
    fp8.triton is None or (DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1"),
    reason="triton runs here neither compiled nor interpreted",
)
needs_fp8 = pytest.mark.skipif(not hasattr(torch, "_scaled_mm"), reason="this torch has no FP8 product")


def difference(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def a_layer(variant, rows, seed=0):
    """What a tiny layer of this variant makes of `rows` tokens, residual included."""
    torch.manual_seed(seed)
    dims, capacity = Dims.of(TINY["256m"].config["text_config"]), 128
    first = {name: torch.randn(*nk).to(torch.bfloat16) / nk[1] ** 0.5 for name, nk in dims.weight_shapes().items()}
    b = buffers(dims, rows, 40, capacity, LIKE)
    layer = make_layers(variant, dims, first, rows, capacity, LIKE)[0]
    for operation in operations(variant, TORCH, dims, rows).values():
        operation(layer, b)
    return b["x"] + b["residual"], layer, b


@pytest.mark.parametrize("rows", [1, 5, 70])
def test_every_variant_of_the_layer_gives_bf16s_answer_but_for_rounding(rows):
    plain, *int8 = variants(torch.device("cpu"), TORCH, rows)
    expected = a_layer(plain, rows)[0]
    for variant in int8:
        assert 0 < difference(a_layer(variant, rows)[0], expected) < 0.02, variant.name
    apart = [v for v in variants(torch.device("cuda"), TORCH, rows) if v.quantise and not v.fused]
    assert len(apart) == 2
    for variant in apart:
        assert 0 < difference(a_layer(variant, rows)[0], expected) < 0.1, variant.name


def test_the_layers_operations_are_the_loops_five_in_pieces():
    plain = variants(torch.device("cpu"), TORCH, 3)[0]
    torch.manual_seed(1)
    dims = Dims.of(TINY["500m"].config["text_config"])
    first = {name: torch.randn(*nk).to(torch.bfloat16) / nk[1] ** 0.5 for name, nk in dims.weight_shapes().items()}
    b = buffers(dims, 3, 40, 64, LIKE)
    b["residual"].zero_()
    layers = make_layers(plain, dims, first, 3, 64, LIKE)
    by_five = five_kernels(TORCH, dims, layers, b)()
    for layer in layers:
        for operation in operations(plain, TORCH, dims, 3).values():
            operation(layer, b)
    assert difference(b["x"] + b["residual"], by_five) < 0.01


def test_int8_rows_are_near_the_weights_and_both_products_agree():
    torch.manual_seed(0)
    weight, x = torch.randn(33, 48).to(torch.bfloat16), torch.randn(3, 48).to(torch.bfloat16)
    rows = int8_rows(weight)
    exact = x.double() @ (rows.values.double() * rows.scales.double()[:, None]).T
    assert difference(rows.values.double() * rows.scales.double()[:, None], weight) < 0.01
    assert difference(linear(x, rows), exact) < 0.004 and difference(widened(x, rows), exact) < 0.006


@needs_fp8
@pytest.mark.parametrize("quantise", [fp8.quantise_rows, fp8.quantise_tensor])
def test_fp8_product_multiplies_what_was_quantised(quantise):
    torch.manual_seed(0)
    x, weight = torch.randn(5, 64, device=DEVICE), torch.randn(48, 64, device=DEVICE)
    x[1] *= 100  # rows of their own scale
    x, weight = x.to(torch.bfloat16), weight.to(torch.bfloat16)
    (a, a_scale), (b, b_scale) = quantise(x), quantise(weight)
    exact = (a.double() * a_scale.double()) @ (b.double() * b_scale.double()).T
    assert difference(fp8.product((a, a_scale), (b, b_scale)), exact) < 0.01
    assert difference(exact, x.double() @ weight.double().T) < 0.1


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [7, 48, 100])
def test_fused_kernels_are_their_formulas(size, dtype):
    torch.manual_seed(size)
    here = {"device": DEVICE}
    x, residual = (torch.randn(3, size, **here).to(dtype) for _ in range(2))
    weight, gate_up = torch.randn(size, **here).to(dtype), torch.randn(3, 2 * size, **here).to(dtype)
    cases = {
        fp8.add_rms_norm_quantise: (x, residual, weight, 1e-5),
        fp8.swiglu_quantise: (gate_up,),
        fp8.quantise_fused: (x,),
    }
    for kernel, arguments in cases.items():
        stored = fp8.FP8 if DEVICE == "cuda" else torch.float32  # the interpreter rounds to FP8 wrongly
        found, expected = kernel(*arguments, dtype=stored), fp8.REFERENCES[kernel](*arguments)
        if kernel is fp8.add_rms_norm_quantise:
            torch.testing.assert_close(found[0], expected[0], rtol=1e-2, atol=1e-2)
            found, expected = found[1], expected[1]
        torch.testing.assert_close(found[1], expected[1], rtol=1e-2, atol=0)
        # One step of FP8 is an eighth of the value; below its normal numbers it is 2^-9.
        torch.testing.assert_close(found[0].to(fp8.FP8).float(), expected[0].float(), rtol=0.126, atol=2**-9)


def test_the_script_writes_a_table_of_operations_and_what_they_add_up_to(tmp_path, capsys):
    arguments = ["--tiny", "--shapes", "256m", "2b", "--rows", "1", "80", "--scenes", "0", "--device", "cpu"]
    assert quantization.main([*arguments, "--repeats", "1", "--out", str(tmp_path)]) == 0
    cells = [json.loads(line) for line in (tmp_path / "quantization.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [cell["cell"] for cell in cells] == ["256m: 1 rows", "2b: 1 rows", "256m: 80 rows", "2b: 80 rows"]
    for cell in cells:
        for side in quantization.sides_of(cell).values():
            assert side["step ms"] > 0 and set(quantization.PRODUCTS) < set(side["us a layer"])
    text = (tmp_path / "quantization.md").read_text(encoding="utf-8")
    assert "SmolVLM-256M: batch 1" in text and "a prompt of 80 tokens" in text and "is not measured here" in text
    assert "tokens/s in the whole step" in text and "| quartiles |" in text and "Not measured" not in text


def cell_of(plain_ms, other_ms):
    parts = {"add + norm 1": 1.0, "SiLU": 1.0, "qkv": 3.0, "o": 3.0, "gate-up": 3.0, "down": 3.0}
    quick = {**parts, "quantise for o": 2.0, "SiLU": 1.5, "qkv": 2.0}
    sides = {"bf16": {"us a layer": parts, "step ms": plain_ms}, "fp8": {"us a layer": quick, "step ms": other_ms}}
    return {"cell": "256m: 1 rows", "shape": "S", "rows": 1, **sides}


@pytest.mark.parametrize("other_ms, words", [(2.2, "it holds here: FP8 is slower"), (1.8, "FP8 is faster")])
def test_the_finding_follows_from_the_numbers(other_ms, words):
    said = quantization.finding([cell_of(2.0, other_ms)], on_gpu=True)
    assert words in said and "+1 us a layer gained" in said and "+2.5 us spent on quantising" in said
    assert f"{(2.0 / other_ms - 1) * 100:+.2g}% tokens/s" in said


def test_two_digits_by_hand():
    assert [quantization.two_digits(v) for v in (145.34, 42.8, -6.4, 0.123, 1234)] == [
        "+150",
        "+43",
        "-6.4",
        "+0.12",
        "+1200",
    ]


def test_bf16_alone_is_still_written(tmp_path, capsys, monkeypatch):
    """Every other variant fails: bf16's numbers and the errors are in the report, in words."""
    usual = quantization.operations

    def broken(variant, *arguments):
        found = usual(variant, *arguments)
        if variant.quantise or variant.name != quantization.PLAIN:
            return {name: lambda layer, b: 1 / 0 for name in found}
        return found

    monkeypatch.setattr(quantization, "operations", broken)
    arguments = ["--tiny", "--shapes", "256m", "--rows", "1", "--scenes", "0", "--device", "cpu", "--repeats", "1"]
    assert quantization.main([*arguments, "--out", str(tmp_path)]) == 1
    text = (tmp_path / "quantization.md").read_text(encoding="utf-8")
    assert "nothing stands beside bf16, as every other variant failed" in text
    assert "| whole step (ms) |" in text and "ZeroDivisionError" in text


@pytest.mark.parametrize(
    "options, words",
    [
        (["--shapes", "qwen3-vl-2b"], "of these 256m, 500m, 2b are measured here"),
        (["--rows", "0"], "'0' is not a whole number of 1 or more"),
        (["--scenes", "-1"], "'-1' is not a whole number of 0 or more"),
        (["--device", "cuda:99"], "finds"),
        (["--device", "gpu"], "is no device"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(options, words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        quantization.main([*options, "--out", str(tmp_path / "none")])
    assert words in capsys.readouterr().err and not (tmp_path / "none").exists()
