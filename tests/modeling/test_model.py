"""The model as a citizen of transformers: attention backends, caches, losses, saving, loading, compiling."""

import contextlib
import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_inputs, tiny_model
from transformers.cache_utils import StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_argus import ArgusForConditionalGeneration, ArgusModel, ArgusTextModel, ArgusVisionModel
from modeling_argus.base_argus import _require_grads

EXACT = {"rtol": 0, "atol": 0}
FP32 = {"rtol": 1e-4, "atol": 1e-5}


@contextlib.contextmanager
def attention(model, implementation):
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield model
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
@torch.compiler.set_stance("force_eager")  # transformers compiles flex attention: a minute of C++ on a CPU
def test_attention_backends_agree_with_eager(model, implementation):
    inputs = tiny_inputs(model)
    with attention(model, "eager"):
        expected = model(**inputs).logits
        assert model.model.vision_model.config._attn_implementation == "eager"
    with attention(model, implementation):
        assert model.model.text_model.config._attn_implementation == implementation
        logits = model(**inputs).logits
    real = inputs["attention_mask"].bool()  # padding positions attend to nothing: their values are arbitrary
    torch.testing.assert_close(logits[real], expected[real], **FP32)


@torch.no_grad()
def test_flash_attention_2_is_called_as_it_expects(model, monkeypatch):
    """Its kernels need a GPU; here a stand-in records the calls and answers with sdpa."""
    calls = []

    def stand_in(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, **kwargs):
        causal = module.is_causal if is_causal is None else is_causal
        calls.append((causal, attention_mask, query.shape, key.shape, scaling, kwargs))
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scaling)
        return out.transpose(1, 2), None

    inputs = tiny_inputs(model, tiles_per_row=(2,))
    expected = model(**inputs).logits
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "flash_attention_2", stand_in)
    parts = (model.config, model.model.text_model.config, model.model.vision_model.config)
    before = [part._attn_implementation for part in parts]
    try:
        for part in parts:
            part._attn_implementation_internal = "flash_attention_2"
        logits = model(**inputs).logits
    finally:
        for part, old in zip(parts, before):
            part._attn_implementation_internal = old
    torch.testing.assert_close(logits, expected, **FP32)
    vision, text = (
        calls[: model.config.vision_config.num_hidden_layers],
        calls[model.config.vision_config.num_hidden_layers :],
    )
    assert len(text) == model.config.text_config.num_hidden_layers
    assert all(causal is False and mask is None for causal, mask, *_ in vision)
    assert all(causal is True and mask is None for causal, mask, *_ in text)  # nothing is padded: no mask object
    heads, key_heads = model.config.text_config.num_attention_heads, model.config.text_config.num_key_value_heads
    assert all(q[1] == heads and k[1] == key_heads for _, _, q, k, *_ in text)  # grouped heads are not repeated


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_cached_steps_equal_one_pass(model, cache):
    inputs = tiny_inputs(model, tiles_per_row=(1,))
    T = inputs["input_ids"].shape[1]
    expected = model(**inputs).logits
    past = StaticCache(config=model.config.text_config, max_cache_len=T + 4) if cache == "static" else None
    first = model(
        input_ids=inputs["input_ids"][:, : T - 2],
        pixel_values=inputs["pixel_values"],
        past_key_values=past,
        use_cache=True,
    )
    logits = [first.logits]
    for position in (T - 2, T - 1):
        step = model(
            input_ids=inputs["input_ids"][:, position : position + 1],
            past_key_values=first.past_key_values,
            cache_position=torch.tensor([position]),
            position_ids=torch.tensor([[position]]),
        )
        logits.append(step.logits)
    torch.testing.assert_close(torch.cat(logits, 1), expected, **FP32)


@torch.no_grad()
def test_left_padding_changes_nothing(model):
    alone = tiny_inputs(model, tiles_per_row=(1,), seed=3)
    padded = {
        "input_ids": torch.nn.functional.pad(alone["input_ids"], (5, 0)),
        "attention_mask": torch.nn.functional.pad(alone["attention_mask"], (5, 0)),
        "pixel_values": alone["pixel_values"],
    }
    one = model.generate(**alone, max_new_tokens=8, do_sample=False)
    other = model.generate(**padded, max_new_tokens=8, do_sample=False)
    assert one[0, -8:].tolist() == other[0, -8:].tolist()


@torch.no_grad()
@pytest.mark.parametrize("tiles_per_row", [(2, 1), (1, 3), (0, 2)])
def test_sequences_and_beams_of_rows_with_several_tiles(model, tiles_per_row):
    """Flat tiles stay with their row: each row of a batch answers as it does alone."""
    batch = tiny_inputs(model, tiles_per_row=tiles_per_row)
    many = model.generate(**batch, max_new_tokens=6, do_sample=False, num_beams=3, num_return_sequences=2)
    first_tile = 0
    for row, tiles in enumerate(tiles_per_row):
        alone = {key: batch[key][row : row + 1] for key in ("input_ids", "attention_mask")}
        if tiles:
            alone["pixel_values"] = batch["pixel_values"][first_tile : first_tile + tiles]
        first_tile += tiles
        expected = model.generate(**alone, max_new_tokens=6, do_sample=False, num_beams=3, num_return_sequences=2)
        assert many[2 * row : 2 * row + 2].tolist() == expected.tolist()


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{"cache_implementation": "static"}, {"use_cache": False}, {"assistant_model": True}]
)
def test_every_way_of_decoding_says_the_same(model, options, monkeypatch):
    inputs = tiny_inputs(model, tiles_per_row=(2,))
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    seen = []
    original = model.model.vision_model._embed
    monkeypatch.setattr(model.model.vision_model, "_embed", lambda pixels: seen.append(len(pixels)) or original(pixels))
    if "assistant_model" in options:
        options = {"assistant_model": model}
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False, **options)
    assert ids.tolist() == expected.tolist()
    # images are encoded with the prompt alone: once, by the assistant too, or at each step where nothing is cached
    assert seen == [2] * {"cache_implementation": 1, "use_cache": 6, "assistant_model": 2}[next(iter(options))]


@torch.no_grad()
def test_a_second_turn_continues_from_the_cache(model):
    first = tiny_inputs(model, tiles_per_row=(1,))
    turn = model.generate(**first, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    ids = torch.cat((turn.sequences, torch.tensor([[20, 21, 22]])), 1)
    mask = torch.ones_like(ids)
    expected = model.generate(
        input_ids=ids, attention_mask=mask, pixel_values=first["pixel_values"], max_new_tokens=5, do_sample=False
    )
    continued = model.generate(
        input_ids=ids, attention_mask=mask, past_key_values=turn.past_key_values, max_new_tokens=5, do_sample=False
    )
    assert continued.tolist() == expected.tolist()


@torch.no_grad()
def test_a_second_turn_may_bring_an_image(model):
    """With the first turn in the cache, only the new image's tiles are passed; without them nothing is answered."""
    first = tiny_inputs(model, tiles_per_row=(1,))
    turn = model.generate(**first, max_new_tokens=4, min_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    more = tiny_inputs(model, tiles_per_row=(2,))
    ids = torch.cat((turn.sequences, more["input_ids"]), 1)
    mask = torch.ones_like(ids)
    tiles = torch.cat((first["pixel_values"], more["pixel_values"]))
    options = {"attention_mask": mask, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    expected = model.generate(ids, pixel_values=tiles, **options)
    past = turn.past_key_values
    continued = model.generate(ids, pixel_values=more["pixel_values"], past_key_values=copy.deepcopy(past), **options)
    assert continued.tolist() == expected.tolist()
    for wrong in ({}, {"pixel_values": tiles}):
        with pytest.raises(ValueError, match="image tokens and tiles do not match"):
            model.generate(ids, past_key_values=copy.deepcopy(past), **wrong, **options)


@torch.no_grad()
def test_candidates_may_be_image_tokens(model, monkeypatch):
    """Prompt lookup proposes what followed the same words before: here that is an image."""
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

    inputs = tiny_inputs(model, tiles_per_row=(1,))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    expected = model.generate(**inputs, **options)
    proposed = []

    def propose(generator, input_ids, *args, **kwargs):
        image = torch.full((1, 2), model.config.image_token_id)
        proposed.append(1)
        return torch.cat((input_ids, image), 1), None

    monkeypatch.setattr(PromptLookupCandidateGenerator, "get_candidates", propose)
    assert torch.equal(model.generate(**inputs, prompt_lookup_num_tokens=2, **options), expected)
    assert len(proposed) > 1


@torch.no_grad()
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 3, "num_beams": 3}])
def test_tiles_of_beams_are_encoded_once(siglip_llama, options):
    """Rows with other numbers of tiles; each must keep its own, and no tile may go through the tower twice."""
    inputs = tiny_inputs(siglip_llama, tiles_per_row=(3, 1))
    encoded = []
    hook = siglip_llama.model.connector.register_forward_hook(lambda *call: encoded.append(call[-1].shape[0]))
    try:
        together = siglip_llama.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, **options)
    finally:
        hook.remove()
    assert encoded == [4]
    per_prompt = options.get("num_return_sequences", 1)
    for row, tiles in enumerate((slice(0, 3), slice(3, 4))):
        first = int(inputs["attention_mask"][row].argmax())
        alone = siglip_llama.generate(
            input_ids=inputs["input_ids"][row : row + 1, first:],
            pixel_values=inputs["pixel_values"][tiles],
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            **options,
        )
        assert torch.equal(together[row * per_prompt : (row + 1) * per_prompt, -4:], alone[:, -4:])


@torch.no_grad()
def test_generation_from_embeddings(model):
    inputs = tiny_inputs(model, tiles_per_row=(1,))
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    ids = model.generate(
        inputs_embeds=embeds,
        attention_mask=inputs["attention_mask"],
        pixel_values=inputs["pixel_values"],
        max_new_tokens=6,
        do_sample=False,
    )
    assert ids[0].tolist() == expected[0, -6:].tolist()


@torch.no_grad()
def test_beams_from_embeddings_keep_tiles_with_their_rows(model):
    inputs = tiny_inputs(model, tiles_per_row=(2, 1))
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False, num_beams=2)
    ids = inputs.pop("input_ids")
    got = model.generate(
        **inputs, inputs_embeds=model.get_input_embeddings()(ids), max_new_tokens=4, do_sample=False, num_beams=2
    )
    assert got.tolist() == expected[:, ids.shape[1] :].tolist()


@torch.no_grad()
def test_logits_to_keep_is_the_end_of_all_logits(model):
    inputs = tiny_inputs(model)
    logits = model(**inputs).logits
    torch.testing.assert_close(model(**inputs, logits_to_keep=1).logits, logits[:, -1:], **FP32)
    torch.testing.assert_close(model(**inputs, logits_to_keep=torch.tensor([0, 3])).logits, logits[:, [0, 3]], **FP32)


def test_loss_is_the_mean_over_the_assistants_tokens(model):
    inputs = tiny_inputs(model)
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    labels[1, -1] = -100
    output = model(**inputs, labels=labels)
    log_probs = output.logits[:, :-1].log_softmax(-1)
    kept = [(b, t) for b in range(2) for t in range(labels.shape[1] - 1) if labels[b, t + 1] != -100]
    expected = -torch.stack([log_probs[b, t, labels[b, t + 1]] for b, t in kept]).mean()
    torch.testing.assert_close(output.loss, expected, **FP32)
    divided = model(**inputs, labels=labels, num_items_in_batch=torch.tensor(50)).loss
    torch.testing.assert_close(divided, expected * len(kept) / 50, **FP32)
    # one batch of several, as gradient accumulation has it, may hold nothing to learn
    assert model(**inputs, labels=torch.full_like(labels, -100), num_items_in_batch=torch.tensor(50)).loss == 0


def test_gradients_reach_every_parameter_with_and_without_checkpointing():
    model = tiny_model().train()
    inputs = tiny_inputs(model)
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -100)
    model(**inputs, labels=labels).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert all(grad.abs().sum() > 0 for name, grad in expected.items() if "qkv_proj.bias" not in name)
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model(**inputs, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], **FP32)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_normalisation_equals_normalised_pixels(model, dtype):
    """fp32: to rounding. bf16: no further from the float64 answer than bf16 pixels are, within a quarter."""
    vision = model.model.vision_model
    pixels = torch.randint(0, 256, (3, 3, vision.config.image_size, vision.config.image_size), dtype=torch.uint8)
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1)
        for v in (vision.config.image_mean, vision.config.image_std)
    )
    normalised = (pixels.double() / 255 - mean) / std
    conv = vision.patch_embedding
    expected = torch.nn.functional.conv2d(normalised, conv.weight.double(), conv.bias.double(), stride=conv.stride)
    expected = expected.flatten(2).transpose(1, 2)
    try:
        model.to(dtype)
        folded = vision._embed(pixels).double()
        plain = vision._embed(normalised.to(dtype)).double()
    finally:
        model.to(torch.float32)
    error, plain_error = ((x - expected).norm() / expected.norm() for x in (folded, plain))
    if dtype == torch.float32:
        assert error < 1e-6
        torch.testing.assert_close(vision(pixels)[0], vision(normalised.float())[0], **FP32)
    else:
        assert error < 1.25 * plain_error


def test_floats_that_are_not_normalised_pixels_are_refused(model):
    S = model.config.vision_config.image_size
    pixels = torch.randint(0, 256, (1, 3, S, S), dtype=torch.uint8)
    for wrong in (pixels.float(), pixels.bfloat16(), torch.full((1, 3, S, S), float("nan"))):
        with pytest.raises(ValueError, match="normalised pixels"):
            model.get_image_features(wrong)
    with pytest.raises(ValueError, match="uint8 or floating point"):
        model.get_image_features(pixels.int())
    with pytest.raises(ValueError, match=r"\[1, 2, 3,"):
        model.get_image_features(pixels[:, None].expand(1, 2, 3, S, S))


def test_images_and_tokens_that_do_not_match_are_refused(model):
    inputs = tiny_inputs(model)
    with pytest.raises(ValueError, match="do not match"):
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])  # tokens without tiles
    with pytest.raises(ValueError, match="2 tiles"):
        model(**{**inputs, "pixel_values": inputs["pixel_values"][:2]})
    cut = inputs["input_ids"].clone()
    cut[0, (cut[0] == 7).nonzero()[0]] = 9  # as many tokens as tiles need in all, but not in each row
    cut[1, -1] = 7
    with pytest.raises(ValueError, match="do not match"):
        model(**{**inputs, "input_ids": cut})


def test_other_bad_inputs_are_refused(model):
    inputs = tiny_inputs(model)
    with pytest.raises(ValueError, match="exactly one"):
        model(pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="attention_mask is"):
        model(**{**inputs, "attention_mask": inputs["attention_mask"][:, 1:]})
    with pytest.raises(ValueError, match="no token to learn"):
        model(**inputs, labels=torch.full_like(inputs["input_ids"], -100))
    with pytest.raises(ValueError, match="labels are"):
        model(**inputs, labels=inputs["input_ids"][:, 1:])
    with pytest.raises(ValueError, match="eager"):
        model(**inputs, output_attentions=True)
    right = torch.flip(inputs["attention_mask"], (1,))
    with pytest.raises(ValueError, match="pad on the left"):
        model.generate(**{**inputs, "attention_mask": right}, max_new_tokens=2)
    training = tiny_model().train()
    training.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(ValueError, match=r"call model\.eval"):
        training.generate(**tiny_inputs(training), max_new_tokens=2)


@torch.no_grad()
def test_hidden_states_and_attentions(model):
    inputs = tiny_inputs(model)
    with attention(model, "eager"):
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
    layers = model.config.text_config.num_hidden_layers
    assert len(output.hidden_states) == layers + 1 and len(output.attentions) == layers
    T = inputs["input_ids"].shape[1]
    assert output.attentions[0].shape == (2, model.config.text_config.num_attention_heads, T, T)
    assert output.image_hidden_states.shape[:2] == (3, model.config.image_seq_length)
    assert isinstance(model(**inputs, return_dict=False), tuple)


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same_model(model, tmp_path):
    inputs = tiny_inputs(model)
    model.save_pretrained(tmp_path)
    again, info = ArgusForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, **EXACT)
    base = ArgusModel.from_pretrained(tmp_path)
    torch.testing.assert_close(base(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state, **EXACT)
    mapped = ArgusForConditionalGeneration.from_pretrained(tmp_path, device_map="cpu", dtype=torch.bfloat16)
    assert mapped.dtype == torch.bfloat16 and mapped.generate(**inputs, max_new_tokens=2).shape[0] == 2


@torch.no_grad()
def test_split_over_devices_by_accelerate_hooks(model, tmp_path):
    """A device map in pieces puts a hook on each part, and weights kept on disk are brought in by the hook."""
    inputs = tiny_inputs(model)
    model.save_pretrained(tmp_path / "model")
    device_map = {
        "model.vision_model": "disk",
        "model.connector": "cpu",
        "model.text_model": "cpu",
        "lm_head": "cpu",
    }
    split = ArgusForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=str(tmp_path / "offload")
    )
    torch.testing.assert_close(split(**inputs).logits, model(**inputs).logits, **FP32)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[
        "model.connector.proj.weight" if "model.connector.proj.weight" in weights else "model.connector.linear_1.bias"
    ]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors .*model\.connector"):
        ArgusForConditionalGeneration.from_pretrained(tmp_path)


def test_built_on_the_meta_device(model):
    with torch.device("meta"):
        skeleton = ArgusForConditionalGeneration(model.config)
    names = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert {name: tuple(p.shape) for name, p in skeleton.named_parameters()} == names
    assert not list(skeleton.buffers()), "a buffer that no checkpoint fills would hold garbage in transformers 5"


def test_embeddings_grow_and_stay_tied():
    model = tiny_model()
    old = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(320)
    assert model.config.text_config.vocab_size == 320
    assert model.lm_head.weight.shape[0] == model.get_input_embeddings().weight.shape[0] == 320
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    torch.testing.assert_close(model.get_input_embeddings().weight[:300], old, **EXACT)
    assert model(**tiny_inputs(model)).logits.shape[-1] == 320


def test_untied_weights_stay_apart(tmp_path):
    model = tiny_model("internvit_qwen")
    assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()
    model.save_pretrained(tmp_path)
    again = ArgusForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(again.lm_head.weight, model.lm_head.weight, **EXACT)


@torch.no_grad()
def test_compiles_without_a_graph_break(model):
    assert model._can_compile_fullgraph
    inputs = tiny_inputs(model, tiles_per_row=(1,))
    past = StaticCache(config=model.config.text_config, max_cache_len=32)
    prompt = {"input_ids": inputs["input_ids"], "pixel_values": inputs["pixel_values"]}
    T = inputs["input_ids"].shape[1]
    model(**prompt, past_key_values=past)
    token = torch.tensor([[11]])
    step = {"position_ids": torch.tensor([[T]]), "cache_position": torch.tensor([T])}
    expected = model(torch.cat((inputs["input_ids"], token), 1), pixel_values=inputs["pixel_values"]).logits[:, -1]
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    got = compiled(input_ids=token, past_key_values=past, **step).logits[:, -1]
    torch.testing.assert_close(got, expected, **FP32)
    whole = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(**prompt, use_cache=False).logits, model(**prompt).logits, **FP32)
    with pytest.raises(RuntimeError, match="do not match"):  # no silent wrong answer from inside a graph either
        whole(**{**prompt, "pixel_values": prompt["pixel_values"].repeat(2, 1, 1, 1)}, use_cache=False)


def test_dynamic_rotary_scaling_starts_past_the_trained_length():
    from modeling_argus.text_argus import rotary_frequencies

    config = tiny_config("internvit_qwen").text_config
    short, long = (rotary_frequencies(config, torch.arange(n)[None]) for n in (config.max_position_embeddings, 4096))
    plain = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    torch.testing.assert_close(short, plain, **EXACT)
    assert (long[1:] < short[1:]).all()


@torch.no_grad()
def test_padding_does_not_move_dynamic_rotary_scaling():
    """The base grows with the positions that are used, as in transformers, and not with the padded length."""
    model = tiny_model("internvit_qwen", text_config={"max_position_embeddings": 8})
    ids = torch.arange(20, 32)[None]
    padded = torch.nn.functional.pad(ids, (7, 0))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (7, 0))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 7:]
    torch.testing.assert_close(logits, model(input_ids=ids).logits, **FP32)


def test_the_towers_alone_refuse_a_checkpoint_that_is_not_theirs(model, tmp_path):
    model.save_pretrained(tmp_path)
    for tower, config in ((ArgusVisionModel, model.config.vision_config), (ArgusTextModel, model.config.text_config)):
        with pytest.raises(ValueError, match=r"lacks .* tensors"):
            tower.from_pretrained(tmp_path, config=config)
    model.model.vision_model.save_pretrained(tmp_path / "vision")
    again = ArgusVisionModel.from_pretrained(tmp_path / "vision")
    pixels = tiny_inputs(model)["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(again(pixels)[0], model.model.vision_model(pixels)[0], **EXACT)


@pytest.mark.parametrize("reentrant", [True, False])
def test_adapters_of_the_vision_tower_learn_under_checkpointing(reentrant):
    peft = pytest.importorskip("peft")
    model = tiny_model()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["qkv_proj", "fc1"])).train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    inputs = tiny_inputs(model)
    adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
    grads = {name: p.grad for name, p in adapted.named_parameters() if "lora_B" in name}
    assert any("vision_model" in name for name in grads)
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads.values())
    model.disable_input_require_grads()
    assert _require_grads not in model.model.vision_model.patch_embedding._forward_hooks.values()


@torch.no_grad()
def test_an_adapter_on_the_position_table_counts():
    peft = pytest.importorskip("peft")
    model = tiny_model()
    inputs = tiny_inputs(model)
    before = model(**inputs).logits
    config = peft.LoraConfig(r=2, target_modules=["position_embedding"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    during = adapted(**inputs).logits
    assert not torch.allclose(during, before, atol=1e-3)
    torch.testing.assert_close(adapted.merge_and_unload()(**inputs).logits, during, **FP32)


def test_names_that_lora_targets_fit():
    peft = pytest.importorskip("peft")
    model = tiny_model()
    inputs = tiny_inputs(model)
    before = model(**inputs).logits
    config = peft.LoraConfig(
        r=2,
        target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "patch_embedding"],
        init_lora_weights=False,
    )
    adapted = peft.get_peft_model(model, config)
    wrapped = [name for name, module in adapted.named_modules() if hasattr(module, "lora_A") and "." in name]
    assert any("text_model.layers.0.self_attn.qkv_proj" in name for name in wrapped)
    assert any("vision_model.patch_embedding" in name for name in wrapped)  # no longer a plain convolution: not folded
    after = adapted(**inputs).logits
    assert torch.isfinite(after).all() and not torch.allclose(after, before, atol=1e-3)
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(**inputs).logits, before, **FP32)
