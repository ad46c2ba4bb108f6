"""generate() with every Triton kernel in its place, prefill and loop, against generate() with none."""

import copy

import pytest
import torch
from kernel_checks import DEVICE
from tiny import tiny_inputs, tiny_model

pytest.importorskip("triton")
from modeling_argus import decode_state_argus, kernels_triton_decode_argus, text_argus
from modeling_argus.kernels_argus import TORCH, TRITON


@pytest.mark.parametrize("shape", ["siglip_llama", "internvit_qwen"])
def test_generate_gives_the_same_tokens(shape, monkeypatch):
    """A left-padded batch in fp32: the norms, rotary and SwiGLU of the prompt, then every kernel of the step."""
    tile = {"ROWS": 32, "BLOCK_K": 64, "num_warps": 4}  # few programs: each costs the interpreter a millisecond
    monkeypatch.setattr(kernels_triton_decode_argus, "tile_of", lambda *args, **kwargs: tile)
    model = copy.deepcopy(tiny_model(shape)).to(DEVICE)
    inputs = {name: value.to(DEVICE) for name, value in tiny_inputs(model).items()}
    answers, used = {}, []
    for table in (TORCH, TRITON):
        for module in (text_argus, decode_state_argus):
            monkeypatch.setattr(module, "choose", lambda *args, table=table, **kwargs: used.append(table) or table)
        answers[table.name] = model.generate(
            **inputs,
            max_new_tokens=3,
            min_new_tokens=3,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert used.count(TRITON) >= 2  # the prompt's choice and the loop's
    expected, actual = answers["torch"], answers["triton"]
    assert torch.equal(actual.sequences, expected.sequences)
    for a, b in zip(actual.logits, expected.logits):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
