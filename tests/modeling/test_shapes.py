"""The shapes of the family (Section 5): parameters of each part, counted on the meta device from the cards' configs."""

import json

import pytest
import torch

from argus_tools.paths import card_path
from modeling_argus import ArgusConfig, ArgusForConditionalGeneration
from processing_argus import ArgusImageProcessor

# Millions of parameters. SigLIP-B/16 at 512 px without its pooling head is 86.4 (the paper's 93 counts the head, which
# SmolVLM's tower lacks). The decoders are the published sizes plus 1,002 or 1,003 new tokens: SmolLM2-135M 134.5,
# SmolLM2-360M 361.8, Qwen2.5-1.5B 1543.7; the heads of 256m and 500m are their own, as SmolVLM's are.
PARTS = {
    "argus-256m": {"vision": 86.4, "connector": 7.08, "text": 135.1, "head": 28.96},
    "argus-500m": {"vision": 86.4, "connector": 11.80, "text": 362.8, "head": 48.27},
    "argus-2b": {"vision": 304.0, "connector": 6.29, "text": 1544.8, "head": 0.0},
}
TOKENS_PER_TILE = {"argus-256m": 64, "argus-500m": 64, "argus-2b": 256}


def build(name: str) -> ArgusForConditionalGeneration:
    config = ArgusConfig.from_pretrained(card_path(name))
    with torch.device("meta"):
        model = ArgusForConditionalGeneration(config)
    model.tie_weights()
    return model


def millions(module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize("name", sorted(PARTS))
def test_parameters_of_each_part(name):
    model = build(name)
    tied = model.config.tie_word_embeddings
    counted = {
        "vision": millions(model.model.vision_model),
        "connector": millions(model.model.connector),
        "text": millions(model.model.text_model),
        "head": 0.0 if tied else millions(model.lm_head),
    }
    for part, expected in PARTS[name].items():
        assert counted[part] == pytest.approx(expected, rel=1e-3, abs=0.01), part
    assert model.config.image_seq_length == TOKENS_PER_TILE[name]


@pytest.mark.parametrize("name", sorted(PARTS))
def test_processor_and_generation_configs_fit_the_model(name):
    config = ArgusConfig.from_pretrained(card_path(name))
    processor = json.loads((card_path(name) / "processor_config.json").read_text())
    generation = json.loads((card_path(name) / "generation_config.json").read_text())
    images = ArgusImageProcessor.from_pretrained(card_path(name))
    assert images.tile_size == config.vision_config.image_size
    assert images.image_mean == config.vision_config.image_mean and images.image_std == config.vision_config.image_std
    assert images.tiling == "aspect_ratio"  # Section 4.1
    assert processor["image_seq_length"] == config.image_seq_length
    assert processor["num_location_bins"] == 1000  # Section 4.2
    assert generation["eos_token_id"] == config.eos_token_id < config.text_config.vocab_size


def test_nano_is_small_enough_to_ship():
    model = build("argus-nano")
    assert 1 < millions(model) <= 7
    weights = card_path("argus-nano") / "model.safetensors"
    assert 2_000_000 < weights.stat().st_size < 15_000_000
