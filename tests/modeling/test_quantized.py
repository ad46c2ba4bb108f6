"""Which weights the decoding step multiplies with past nn.Linear, and that int8 rows give torchao's own answer."""

import pytest
import torch
from torch import nn
from transformers import TorchAoConfig

from argus_tools.paths import default_model_path
from argus_tools.scenes import render_scene
from modeling_argus import ArgusForConditionalGeneration, generation_argus
from modeling_argus.kernels_argus import linear
from modeling_argus.quantized_argus import HAS_INT8_PRODUCT, Int8Weight, decode_weight
from processing_argus import ArgusProcessor

needs_int8 = pytest.mark.skipif(not HAS_INT8_PRODUCT, reason="this torch has no int8 product")


def quantised(rows, columns, config=None, dtype=torch.bfloat16, seed=0):
    """(nn.Linear whose weight torchao has quantised, the weight that it had)."""
    quantization = pytest.importorskip("torchao.quantization")
    torch.manual_seed(seed)
    made = nn.Linear(columns, rows, bias=False).to(dtype)
    before = made.weight.detach().clone()
    quantization.quantize_(made, config or quantization.Int8WeightOnlyConfig())
    return made, before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_weight_is_taken_as_it_lies(dtype):
    made = nn.Linear(5, 7).to(dtype)
    weight = decode_weight(made)
    assert weight.data_ptr() == made.weight.data_ptr() and weight.shape == (7, 5) and not weight.requires_grad


def test_whatever_is_not_a_plain_linear_has_to_be_called():
    class Wrapped(nn.Linear):
        """As adapters and other quantisers make them."""

    replaced = nn.Linear(16, 8)
    replaced.forward = lambda x: x
    turned = nn.Linear(16, 8)
    turned.weight = nn.Parameter(torch.randn(16, 8).t())
    whole = nn.Linear(16, 8)
    whole.weight = nn.Parameter(torch.zeros(8, 16, dtype=torch.int8), requires_grad=False)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 8))
    for module in (Wrapped(16, 8), replaced, turned, whole, normed, nn.Identity()):
        assert decode_weight(module) is None, module


@needs_int8
@pytest.mark.parametrize("rows, columns", [(960, 576), (7, 16), (33, 48), (64, 352)])
@pytest.mark.parametrize("tokens", [1, 3, 17])
def test_torchaos_int8_rows_multiply_as_torchao_does(rows, columns, tokens):
    made, before = quantised(rows, columns)
    weight = decode_weight(made)
    assert isinstance(weight, Int8Weight) and weight.values.dtype == torch.int8
    assert weight.scales.shape == (rows,) and weight.scales.dtype == torch.bfloat16
    x = torch.randn(tokens, columns).to(torch.bfloat16)
    exact = x.double() @ (made.weight.qdata.double() * made.weight.scale.double()).T
    size = exact.norm()
    ours, theirs = linear(x, weight).double(), made(x).double()
    assert (ours - exact).norm() / size < 0.005
    assert (ours - exact).norm() <= 1.25 * (theirs - exact).norm()
    # The quantisation itself moves the answer more than either product does.
    assert 0.001 < (exact - x.double() @ before.double().T).norm() / size < 0.02


@needs_int8
def test_the_bias_is_added_behind_an_int8_product():
    made, _ = quantised(32, 48)
    x, bias = torch.randn(2, 48).to(torch.bfloat16), torch.randn(32).to(torch.bfloat16)
    torch.testing.assert_close(linear(x, decode_weight(made), bias), linear(x, decode_weight(made)) + bias)


def other_configs():
    quantization = pytest.importorskip("torchao.quantization")
    granularity = pytest.importorskip("torchao.quantization.granularity")
    return {
        "groups": (32, 64, quantization.Int8WeightOnlyConfig(granularity=granularity.PerGroup(16)), torch.bfloat16),
        "one scale": (32, 64, quantization.Int8WeightOnlyConfig(granularity=granularity.PerTensor()), torch.bfloat16),
        "activations": (32, 64, quantization.Int8DynamicActivationInt8WeightConfig(), torch.bfloat16),
        "fp32": (32, 64, None, torch.float32),
        "fp16": (32, 64, None, torch.float16),
        "columns that the product reads over": (32, 40, None, torch.bfloat16),
    }


@pytest.mark.parametrize(
    "name", ["groups", "one scale", "activations", "fp32", "fp16", "columns that the product reads over"]
)
def test_other_quantisations_have_to_be_called(name):
    made, _ = quantised(*other_configs()[name])
    assert decode_weight(made) is None


@needs_int8
def test_shifted_weights_have_to_be_called_and_misaligned_ones_are_copied():
    made, _ = quantised(32, 48)
    expected = decode_weight(made)
    memory = torch.empty(32 * 48 + 1, dtype=torch.int8)
    made.weight.qdata = memory[1:].view(32, 48).copy_(made.weight.qdata)
    found = decode_weight(made)
    assert found.values.data_ptr() % 64 == 0 and torch.equal(found.values, expected.values)
    made.weight.zero_point = torch.ones_like(made.weight.zero_point)
    assert decode_weight(made) is None


# --- a whole model ----------------------------------------------------------------------------------------------------

VISION = ["model.vision_model", "model.connector"]


def nano(**kwargs):
    return ArgusForConditionalGeneration.from_pretrained(default_model_path(), dtype=torch.bfloat16, **kwargs).eval()


def quantised_in_place():
    quantization = pytest.importorskip("torchao.quantization")
    model = nano()
    quantization.quantize_(model.get_decoder(), quantization.Int8WeightOnlyConfig())
    quantization.quantize_(model.lm_head, quantization.Int8WeightOnlyConfig())
    return model


def quantised_while_loading():
    quantization = pytest.importorskip("torchao.quantization")
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig(), modules_to_not_convert=VISION)
    return nano(quantization_config=config)


@needs_int8
@pytest.mark.parametrize("load", [quantised_in_place, quantised_while_loading])
def test_an_int8_model_is_decoded_by_the_own_loop_as_by_transformers(load, monkeypatch):
    model, served = load(), []
    weights = {name: type(m.weight).__name__ for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert {kind for name, kind in weights.items() if "text_model" in name} == {"Int8Tensor"}
    assert {kind for name, kind in weights.items() if "vision_model" in name or "connector" in name} == {"Parameter"}
    own_loop = generation_argus.decode
    monkeypatch.setattr(
        generation_argus, "decode", lambda *args, **kwargs: served.append(1) or own_loop(*args, **kwargs)
    )
    processor = ArgusProcessor.from_pretrained(default_model_path())
    image = render_scene(3, "val", height=144, width=144).image
    chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Describe it."}]}]
    inputs = processor.apply_chat_template(
        [chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    settings = {"do_sample": False, "max_new_tokens": 24, "return_dict_in_generate": True, "output_logits": True}
    ours, theirs = (model.generate(**inputs, **settings, fast_decode=fast) for fast in (None, False))
    assert served == [1]
    start = inputs["input_ids"].shape[1]
    for step, (a, b) in enumerate(zip(ours.logits, theirs.logits)):
        far = float((a.float() - b.float()).abs().max())
        assert far < 0.05 * float(b.float().abs().max()), step
        chosen = ours.sequences[0, start + step], theirs.sequences[0, start + step]
        if chosen[0] != chosen[1]:  # from here on the two read different texts
            best = b[0].float().topk(2).values
            assert best[0] - best[1] <= 2 * far, step
            break
