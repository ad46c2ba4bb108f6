"""A converted model against the transformers class that wrote the checkpoint: features, logits, greedy tokens."""

import pytest
import torch
from reference_checkpoints import (
    exact_positions,
    forget_long_prompts,
    randomise,
    reference_config,
    reference_inputs,
    reference_model,
)
from tiny import tiny_inputs

from argus_tools.convert import convert
from modeling_argus import ArgusForConditionalGeneration

LIMIT = 1e-4
TOKENS = 256  # that answers are held to be the same for


@pytest.fixture(scope="module")
def pair(source, converted):
    return source, ArgusForConditionalGeneration.from_pretrained(converted).eval()


def reference_features(source, pixel_values):
    """(tower's output without the class token, visual tokens) of transformers' model for float tiles [N, 3, S, S]."""
    model = source.model.model
    if source.is_smolvlm:
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        mask = torch.ones(len(pixel_values), side, side, dtype=torch.bool)
        hidden = model.vision_model(pixel_values=pixel_values, patch_attention_mask=mask).last_hidden_state
        return hidden, model.connector(hidden)
    hidden = model.vision_tower(pixel_values).last_hidden_state[:, 1:]
    features = model.get_image_features(pixel_values=pixel_values)
    return hidden, getattr(features, "pooler_output", features)


@torch.no_grad()
def test_vision_features(pair, record_difference):
    source, ours = pair
    inputs = tiny_inputs(ours, tiles_per_row=(3,))
    pixels = reference_inputs("internvl", inputs, ours.config)["pixel_values"]
    hidden, visual = reference_features(source, pixels)
    for given, kind in ((inputs["pixel_values"], "uint8"), (pixels, "float")):
        features = ours.model.get_image_features(pixel_values=given)
        difference = (features.pooler_output - visual.reshape(features.pooler_output.shape)).abs().max()
        record_difference(f"visual tokens from {kind} tiles", source.name, difference, "1e-4")
        assert difference <= LIMIT
        tower = ours.model.vision_model(given).last_hidden_state[:, -hidden.shape[1] :]
        record_difference(f"vision tower from {kind} tiles", source.name, (tower - hidden).abs().max(), "1e-4")
        assert (tower - hidden).abs().max() <= LIMIT


@torch.no_grad()
@pytest.mark.parametrize("tiles", [(5,), (3, 1), (0,)], ids=["several", "left_padded_batch", "text_only"])
def test_logits(pair, tiles, record_difference):
    source, ours = pair
    inputs = tiny_inputs(ours, tiles_per_row=tiles, text_length=40)
    forget_long_prompts(source.model)
    expected = source.model(**reference_inputs(source.layout, inputs, ours.config)).logits
    seen = inputs["attention_mask"].bool()
    difference = (ours(**inputs).logits - expected)[seen].abs().max()
    record_difference("logits of whole prompts", source.name, difference, "1e-4")
    assert expected[seen].std() > 0.1
    assert difference <= LIMIT


@torch.no_grad()
@pytest.mark.parametrize("tiles", [(3,), (2, 1)], ids=["one", "left_padded_batch"])
def test_greedy_tokens(pair, tiles, record_difference):
    source, ours = pair
    inputs = tiny_inputs(ours, tiles_per_row=tiles, text_length=12)
    settings = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    forget_long_prompts(source.model)
    reference = source.model.generate(
        **reference_inputs(source.layout, inputs, ours.config),
        **settings,
        output_logits=True,
        return_dict_in_generate=True,
    )
    written = ours.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    expected = reference.sequences[:, inputs["input_ids"].shape[1] :]
    assert written.shape == expected.shape == (len(tiles), TOKENS)
    assert len(expected.unique()) > 2
    different = 0
    for row in range(len(tiles)):
        differ = (written[row] != expected[row]).nonzero()
        different += len(differ)
        if len(differ):
            best, second = reference.logits[int(differ[0])][row].topk(2).values
            assert best - second < 1e-4, f"token {int(differ[0])} of row {row} differs, the gap is {best - second}"
    record_difference(f"greedy tokens that differ, of {TOKENS} a row", source.name, different, "ties")


@torch.no_grad()
def test_tiles_that_patches_do_not_fill(tmp_path, record_difference):
    """SmolVLM-2.2B has 384 pixels in patches of 14: the last 6 pixels of a tile are never looked at."""
    config = reference_config("smolvlm", 301, 7)
    config.vision_config.image_size, config.vision_config.patch_size = 30, 7
    reference = randomise(reference_model(config))
    reference.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "argus")
    ours = ArgusForConditionalGeneration.from_pretrained(tmp_path / "argus").eval()
    inputs = tiny_inputs(ours, tiles_per_row=(2,))
    expected = exact_positions(reference)(**reference_inputs("smolvlm", inputs, ours.config)).logits
    difference = (ours(**inputs).logits - expected).abs().max()
    record_difference("logits, tiles larger than their patches", "smolvlm", difference, "1e-4")
    assert difference <= LIMIT
