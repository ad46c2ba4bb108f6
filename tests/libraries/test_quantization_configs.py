"""Quantisation said in `from_pretrained`: torchao's int8 weights are decoded by the model's own loop, bitsandbytes'
layers by transformers'.

bitsandbytes' 8 and 4 bits run here on a CPU, which its version 0.50 serves; on a GPU they have not been run.
"""

import copy
import logging

import pytest
import torch
from tiny import tiny_model
from torch import nn

from modeling_argus import ArgusForConditionalGeneration

LOOPS = {True: "by the model's own loop", False: "by transformers' own loop"}


@pytest.fixture
def own_loop(caplog):
    """own_loop(generate): what it returned, and whether the model's own loop decoded it, as it says at debug level."""
    import transformers

    logger = transformers.logging.get_logger("transformers")
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = True

    def run(generate):
        caplog.clear()
        result = generate()
        said = [own for own, words in LOOPS.items() if any(words in record.getMessage() for record in caplog.records)]
        assert len(said) == 1, "the loop is told at debug level"
        return result, said[0]

    yield run
    logger.setLevel(level)
    logger.propagate = propagates


def quantised(model) -> set[str]:
    return {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and type(m.weight.data) is not torch.Tensor}


# --- torchao ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def int8():
    torchao = pytest.importorskip("torchao.quantization")
    return torchao.Int8WeightOnlyConfig()


def test_torchao_quantises_all_but_the_head(load, generated, own_loop, int8):
    """... as `quantize_` does after loading; the tokens are the same, and the model's own loop decodes them."""
    from torchao.quantization import quantize_
    from transformers import TorchAoConfig

    model = load(dtype=torch.bfloat16, quantization_config=TorchAoConfig(int8))
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert quantised(model) == linear - {"lm_head"}
    ids, own = own_loop(lambda: generated(model))
    assert own

    other = load(dtype=torch.bfloat16)
    quantize_(other, int8, filter_fn=lambda module, name: isinstance(module, nn.Linear) and name != "lm_head")
    assert torch.equal(generated(other), ids)


def test_torchao_on_the_decoder_alone(load, generated, own_loop, int8):
    """The parts that are named by their whole path stay as they are, on both majors."""
    from transformers import TorchAoConfig

    kept = ["model.vision_model", "model.connector", "lm_head"]
    model = load(dtype=torch.bfloat16, quantization_config=TorchAoConfig(int8, modules_to_not_convert=kept))
    assert quantised(model) and all(name.startswith("model.text_model.") for name in quantised(model))
    assert own_loop(lambda: generated(model))[1]


def test_torchao_in_float32_is_left_to_transformers(load, generated, own_loop, int8):
    from transformers import TorchAoConfig

    model = load(quantization_config=TorchAoConfig(int8))
    ids, own = own_loop(lambda: generated(model))
    assert not own and ids.shape[1] > 0


# --- bitsandbytes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny model of widths that 4 bits' blocks of 64 divide, as those of 256m, 500m and 2b."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    model = tiny_model(vision_config=shape, text_config={**shape, "num_key_value_heads": 2})
    folder = tmp_path_factory.mktemp("bitsandbytes")
    model.save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize("bits", [8, 4])
def test_bitsandbytes_replaces_all_but_the_head(checkpoint, own_loop, bits):
    bitsandbytes = pytest.importorskip("bitsandbytes", minversion="0.46")
    from transformers import BitsAndBytesConfig

    folder, whole = checkpoint
    config = BitsAndBytesConfig(
        **{f"load_in_{bits}bit": True}, **({"bnb_4bit_compute_dtype": torch.float32} if bits == 4 else {})
    )
    model = ArgusForConditionalGeneration.from_pretrained(
        folder, quantization_config=config, device_map="cpu", dtype=torch.float32
    ).eval()
    kind = {8: bitsandbytes.nn.Linear8bitLt, 4: bitsandbytes.nn.Linear4bit}[bits]
    replaced = {name for name, module in model.named_modules() if isinstance(module, kind)}
    assert replaced == {n for n, m in whole.named_modules() if isinstance(m, nn.Linear)} - {"lm_head"}

    side, tokens = whole.config.vision_config.image_size, whole.config.image_seq_length
    ids = torch.tensor([[1, *[whole.config.image_token_id] * tokens, 11, 12]])
    pixels = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    right = copy.deepcopy(whole)  # with the weights that 4 bits can hold; 8 bits round the activations too
    if bits == 4:
        for name in replaced:
            weight = model.get_submodule(name).weight
            exact = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            right.get_submodule(name).weight.data = exact.float()
    with torch.no_grad():
        got = model(input_ids=ids, pixel_values=pixels).logits.float()
        logits = right(input_ids=ids, pixel_values=pixels).logits
    error = (got - logits).norm() / logits.norm()
    assert 0 < error < 0.2, f"relative error {error:.3f}"
    new, own = own_loop(lambda: model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=4, min_new_tokens=4))
    assert not own and new.shape[1] == ids.shape[1] + 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: bitsandbytes on one is not run here")
def test_bitsandbytes_on_a_gpu(load, generated):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    model = load(quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map={"": 0}, dtype=torch.float16)
    assert model.device.type == "cuda" and any("Linear8bit" in type(m).__name__ for m in model.modules())
