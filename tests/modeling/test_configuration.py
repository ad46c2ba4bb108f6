"""Configurations: round trips, equality, derived values, refusals."""

import json

import pytest
from tiny import SHAPES, tiny_config

from modeling_argus import ArgusConfig, ArgusTextConfig, ArgusVisionConfig


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_round_trip_keeps_every_value(shape, tmp_path):
    config = tiny_config(shape)
    config.save_pretrained(tmp_path)
    again = ArgusConfig.from_pretrained(tmp_path)
    assert again == config
    assert again.text_config.rope_parameters == config.text_config.rope_parameters
    assert again.tie_word_embeddings == config.tie_word_embeddings == again.text_config.tie_word_embeddings


def test_configs_that_differ_are_not_equal():
    assert tiny_config() != tiny_config(pixel_unshuffle_factor=1)
    assert ArgusTextConfig(hidden_size=576) != ArgusTextConfig(hidden_size=1152)


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5e5}},
    ],
)
def test_both_spellings_of_the_rotary_scaling_mean_the_same(spelling, tmp_path):
    config = ArgusTextConfig(**spelling)
    assert config.rope_parameters == {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5e5}
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rope_parameters"]["rope_theta"] == 5e5
    assert ArgusTextConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters


def test_the_callers_own_parts_stay_as_they_are():
    text = ArgusTextConfig(tie_word_embeddings=True)
    config = ArgusConfig(text_config=text)
    assert config.tie_word_embeddings and config.text_config.tie_word_embeddings
    assert not ArgusConfig(text_config=text, tie_word_embeddings=False).text_config.tie_word_embeddings
    assert text.tie_word_embeddings and config.text_config is not text


def test_tokens_per_tile():
    assert ArgusConfig().image_seq_length == 64  # 512 px, patches of 16, r = 4
    internvl = ArgusConfig(vision_config={"image_size": 448, "patch_size": 14}, pixel_unshuffle_factor=2)
    assert internvl.image_seq_length == 256


@pytest.mark.parametrize(
    ("config_class", "values", "words"),
    [
        (ArgusVisionConfig, {"hidden_size": 100, "num_attention_heads": 3}, ("100", "3")),
        (ArgusVisionConfig, {"image_std": [0.5, 0.0, 0.5]}, ("0.0",)),
        (ArgusVisionConfig, {"image_mean": [0.5]}, ("3 values",)),
        (ArgusVisionConfig, {"num_hidden_layers": 10**12}, ("1000000000000",)),
        (ArgusTextConfig, {"num_hidden_layers": "3"}, ("'3'",)),
        (ArgusTextConfig, {"num_attention_heads": 9, "num_key_value_heads": 4}, ("9", "4")),
        (ArgusTextConfig, {"rope_scaling": {"rope_type": "yarn", "factor": 2}}, ("yarn",)),
        (ArgusTextConfig, {"rope_scaling": {"rope_type": "llama3", "factor": 2}}, ("low_freq_factor",)),
        (ArgusConfig, {"pixel_unshuffle_factor": 3}, ("3", "32 x 32")),
        (ArgusConfig, {"image_token_id": 99999}, ("99999", "49280")),
        (ArgusConfig, {"connector_type": "perceiver"}, ("perceiver",)),
    ],
)
def test_impossible_values_are_refused_with_the_values(config_class, values, words):
    with pytest.raises(ValueError) as error:
        config_class(**values)
    for word in words:
        assert word in str(error.value)
