"""One model of real size: SmolVLM-256M's published shape with random weights, converted and compared."""

import shutil

import pytest
import torch
import transformers
from reference_checkpoints import exact_positions, reference_inputs

from argus_tools.convert import convert
from modeling_argus import ArgusForConditionalGeneration

# What the published config.json says, as far as it matters.
SMOLVLM_256M = {
    "image_token_id": 49190,
    "scale_factor": 4,
    "tie_word_embeddings": False,
    "vision_config": {"hidden_size": 768, "image_size": 512, "num_attention_heads": 12, "patch_size": 16},
    "text_config": {
        "model_type": "llama",
        "head_dim": 64,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000,
        "tie_word_embeddings": False,
        "vocab_size": 49280,
    },
}


def random_reference():
    """The reference model with random weights: wide enough for activations of trained ones' size."""
    initialise = transformers.PreTrainedModel._initialize_weights
    transformers.PreTrainedModel._initialize_weights = lambda *args, **kwargs: (
        None
    )  # its own takes longer than the test
    try:
        model = transformers.Idefics3ForConditionalGeneration(transformers.Idefics3Config(**SMOLVLM_256M)).eval()
    finally:
        transformers.PreTrainedModel._initialize_weights = initialise
    generator = torch.Generator().manual_seed(0)
    for parameter in dict.fromkeys(model.parameters()):
        if parameter.dim() > 1:
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
    return model


@torch.no_grad()
@pytest.mark.slow
def test_smolvlm_256m(tmp_path, record_difference):
    reference = random_reference()
    reference.save_pretrained(tmp_path / "source")
    result = convert(tmp_path / "source", tmp_path / "argus")
    shutil.rmtree(tmp_path / "source")
    ours = ArgusForConditionalGeneration.from_pretrained(tmp_path / "argus").eval()
    assert result.num_parameters == sum(p.numel() for p in ours.parameters()) == reference.num_parameters()
    exact_positions(reference)

    generator = torch.Generator().manual_seed(1)
    words = torch.randint(10, 40000, (1, 24), generator=generator)
    image = torch.full((1, ours.config.image_seq_length), 49190)
    inputs = {  # two images of one tile each, apart in the prompt
        "input_ids": torch.cat((words[:, :4], image, words[:, 4:12], image, words[:, 12:]), dim=1),
        "pixel_values": torch.randint(0, 256, (2, 3, 512, 512), generator=generator).to(torch.uint8),
    }
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    visual = []  # the connectors' outputs, caught on the way, as the towers are what takes the time
    for model in (reference, ours):
        model.model.connector.register_forward_hook(lambda module, args, output: visual.append(output))
    theirs = reference_inputs("smolvlm", inputs, ours.config)
    prompt = (reference(**theirs).logits - ours(**inputs).logits).abs().max()
    record_difference("logits of the whole prompt, 256M shape", "idefics3", prompt, "1e-4")
    assert prompt <= 1e-4
    settings = {"max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False, "pad_token_id": 2}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    expected = reference.generate(**theirs, **settings)
    written = ours.generate(**inputs, **settings)

    difference = (visual[0].flatten() - visual[1].flatten()).abs().max()
    record_difference("visual tokens, 256M shape", "idefics3", difference, "1e-4")
    assert len(visual) == 4 and visual[0].shape[0] == 2 and visual[0].std() > 0.1
    assert difference <= 1e-4
    assert expected.logits[0].std() > 0.1
    differ = (written.sequences != expected.sequences)[0, inputs["input_ids"].shape[1] :].nonzero()
    record_difference("greedy tokens that differ of 32, 256M shape", "idefics3", len(differ), "ties")
    if len(differ):
        best, second = expected.logits[int(differ[0])][0].topk(2).values
        assert best - second < 1e-4
