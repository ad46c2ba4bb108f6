"""How a CPU encodes tiles: a few at a time, and 16-bit attention two heads at a time."""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_inputs

from modeling_argus import vision_argus
from modeling_argus.text_argus import padded_causal_mask


def error(out, exact):
    return (out.double() - exact).abs().mean()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 17, 8), (1, 4, 64, 16), (3, 1, 5, 4)])  # odd numbers of heads and patches
@pytest.mark.parametrize("sharpness", [1.0, 8.0])  # near-uniform attention, and attention to one patch
def test_attention_by_heads_is_as_exact_as_eager(dtype, shape, sharpness):
    B, H, N, D = shape
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, B, N, H, D, generator=generator).to(dtype).transpose(2, 3)  # strided, as the layer's
    q = q * sharpness
    out = vision_argus.attention_by_heads(q, k, v, D**-0.5)
    assert out.shape == (B, N, H, D) and out.dtype == dtype and out.is_contiguous()
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double()).transpose(1, 2)
    eager, _ = vision_argus.eager_attention(torch.nn.Identity(), q, k, v, None, D**-0.5)
    assert error(out, exact) <= 1.3 * error(eager, exact) + 1e-6


@torch.no_grad()
def test_16_bit_towers_agree_with_fp32(model):
    """Every attention of a 16-bit tower is equally far from the fp32 tower."""
    tower = model.model.vision_model
    pixels = tiny_inputs(model, tiles_per_row=(3,))["pixel_values"]
    exact = tower(pixels).last_hidden_state
    errors = {}
    tower = type(tower)._from_config(tower.config).eval()
    tower.load_state_dict(model.model.vision_model.state_dict())
    tower.to(torch.bfloat16)
    for implementation in ("sdpa", "eager"):
        tower.set_attn_implementation(implementation)
        errors[implementation] = error(tower(pixels).last_hidden_state, exact.double())
    assert 0 < errors["sdpa"] <= 1.5 * errors["eager"]


def test_gradients_and_fp32_take_torchs_own_attention(model, monkeypatch):
    monkeypatch.setattr(vision_argus, "attention_by_heads", lambda *args: pytest.fail("not here"))
    tower = model.model.vision_model
    pixels = tiny_inputs(model, tiles_per_row=(2,))["pixel_values"]
    with torch.no_grad():
        assert tower(pixels).last_hidden_state.isfinite().all()  # fp32
    half = type(tower)._from_config(tower.config).to(torch.bfloat16)
    assert half(pixels).last_hidden_state.requires_grad


@torch.no_grad()
def test_tiles_go_through_a_few_at_a_time(model, monkeypatch):
    """As many as the caches hold; the same features, and hidden states only all at once."""
    tower = model.model.vision_model
    pixels = tiny_inputs(model, tiles_per_row=(3, 2))["pixel_values"]
    whole = tower(pixels).last_hidden_state
    states = tower(pixels, output_hidden_states=True).hidden_states
    seen = []
    hook = tower.layers[0].register_forward_pre_hook(lambda layer, args: seen.append(args[0].shape[0]))
    try:
        monkeypatch.setattr(vision_argus, "_CACHED_ACTIVATIONS", 2 * tower.config.patches_per_side**2 * 64)
        monkeypatch.setattr(tower.config, "intermediate_size", 64)
        parts = tower(pixels).last_hidden_state
        assert seen == [2, 2, 1]
        seen.clear()
        again = tower(pixels, output_hidden_states=True).hidden_states
        assert seen == [5]
        seen.clear()
        monkeypatch.setattr(vision_argus, "_CACHED_ACTIVATIONS", 1)
        tower(pixels)
        assert seen == [1] * 5  # never none
        seen.clear()
        tower.layers[0]._hf_hook = None  # offloaded weights would come in for each part
        tower(pixels)
        assert seen == [5]
        del tower.layers[0]._hf_hook
    finally:
        hook.remove()
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    for one, other in zip(again, states, strict=True):
        assert torch.equal(one, other)
    seen.clear()
    with torch.enable_grad():
        assert tower(pixels).last_hidden_state.requires_grad


@torch.no_grad()
@pytest.mark.parametrize("past", [0, 3])
def test_padded_causal_mask(past):
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1]])  # left, in the middle, none
    T = mask.shape[1] - past
    seen = padded_causal_mask(mask, T)
    assert seen.shape == (3, 1, T, 6) and seen.dtype == torch.bool
    for row in range(3):
        for query in range(T):
            for key in range(6):
                expected = key == past + query or (key < past + query and bool(mask[row, key]))
                assert bool(seen[row, 0, query, key]) is expected
    added = padded_causal_mask(mask, T, torch.float32)
    assert torch.equal(added == 0, seen) and (added[~seen] == torch.finfo(torch.float32).min).all()


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_mask_of_ones_is_no_mask(model, implementation, monkeypatch):
    """Causal attention without a materialised mask when nothing is padded (Section 5.4)."""
    inputs = tiny_inputs(model, tiles_per_row=(2,))
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    masks = []
    attn = model.model.text_model.layers[0].self_attn
    hook = attn.register_forward_pre_hook(lambda module, args, kwargs: masks.append(args[3]), with_kwargs=True)
    try:
        model(**inputs)
        model.generate(**inputs, max_new_tokens=3, min_new_tokens=3)
        if implementation == "sdpa":
            assert masks == [None] * 4
        masks.clear()
        padded = tiny_inputs(model, tiles_per_row=(2, 1))
        model.generate(**padded, max_new_tokens=2, min_new_tokens=2)
        assert [mask.shape[-2] for mask in masks] == [padded["input_ids"].shape[1], 1]
    finally:
        hook.remove()
        model.set_attn_implementation(before)


@torch.no_grad()
def test_features_in_place_of_pixels(model):
    """transformers 5.18's `mm_encoder_outputs`, on every version; and what does not fit is refused."""
    inputs = tiny_inputs(model, tiles_per_row=(2, 1))
    pixels = inputs.pop("pixel_values")
    features = model.get_image_features(pixels)
    encoded = {"image": features}
    expected = model(**inputs, pixel_values=pixels).logits
    for given in (encoded, {"image": features.pooler_output}, {"image": list(features.pooler_output.split(1))}):
        assert torch.equal(model(**inputs, mm_encoder_outputs=given).logits, expected)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": 2, "num_return_sequences": 2}
    generated = model.generate(**inputs, pixel_values=pixels, **options)
    assert torch.equal(model.generate(**inputs, mm_encoder_outputs=encoded, **options), generated)
    with pytest.raises(ValueError, match="not as both"):
        model(**inputs, pixel_values=pixels, mm_encoder_outputs=encoded)
    with pytest.raises(ValueError, match=r"must hold a pooler_output of \[tiles, .*got \[3,"):
        model(**inputs, mm_encoder_outputs={"image": features.pooler_output[:, :1]})
    with pytest.raises(ValueError, match="do not match"):
        model(**inputs, mm_encoder_outputs={"image": features.pooler_output[:2]})
    with pytest.raises(ValueError, match="do not match"):
        model.generate(**inputs, mm_encoder_outputs={"image": features.pooler_output[:2]}, max_new_tokens=1)
    bare = features.pooler_output
    for wrong in ({"images": features}, {"image": features, "video": features}, bare, features, [features]):
        with pytest.raises(ValueError, match="must be a dict with the one key 'image'"):
            model(**inputs, mm_encoder_outputs=wrong)
    with pytest.raises(ValueError, match="prefill_chunk_size cannot cut a prompt with images"):
        model.generate(**inputs, mm_encoder_outputs=encoded, prefill_chunk_size=4, max_new_tokens=1)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_a_cache_is_repeated_with_its_rows(model, options):
    """Beams over prompts whose beginning is in a cache of one row each."""
    inputs = tiny_inputs(model, tiles_per_row=(2, 2))
    options = {**options, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    expected = model.generate(**inputs, **options)
    T = inputs["input_ids"].shape[1] - 2
    prefix = {"input_ids": inputs["input_ids"][:, :T], "attention_mask": inputs["attention_mask"][:, :T]}
    prefix["position_ids"] = (prefix["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    cache = model(**prefix, pixel_values=inputs["pixel_values"], use_cache=True).past_key_values
    del inputs["pixel_values"]
    assert torch.equal(model.generate(**inputs, past_key_values=cache, **options), expected)
