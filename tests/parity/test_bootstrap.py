"""bootstrap(): what is kept, what is new, and that the result runs; tiny parts of every kind it takes."""

import json

import pytest
import torch
import transformers
from PIL import Image
from reference_checkpoints import TILE, VISION, make_source, randomise
from safetensors.torch import load_file, save_file
from tiny_text import build_tokenizer
from transformers import AutoProcessor

from argus_tools.convert import ConvertError, bootstrap, convert
from modeling_argus import ArgusForConditionalGeneration

BINS = 50
EMBEDDINGS = "model.text_model.embed_tokens.weight"
SETTINGS = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}


def tensors(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory):
    return make_source("smolvlm", tmp_path_factory.mktemp("bootstrap") / "smolvlm").folder


@pytest.fixture(scope="module")
def from_smolvlm(smolvlm, tmp_path_factory):
    out = tmp_path_factory.mktemp("bootstrap") / "argus"
    bootstrap(None, out, smolvlm=smolvlm, num_location_bins=BINS)
    return out


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A Qwen2 as published: tied, its vocabulary padded beyond the tokenizer's, no bos_token, no image tokens."""
    folder = tmp_path_factory.mktemp("bootstrap") / "qwen"
    tokenizer = build_tokenizer("internvl")
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer) + 13, hidden_size=48, intermediate_size=72, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=512,
    )  # fmt: skip
    randomise(transformers.Qwen2ForCausalLM(config)).save_pretrained(folder)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|endoftext|>"}
    settings |= {"pad_token": "<|endoftext|>", "chat_template": "never this one"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def vision_checkpoint(kind, folder):
    """InternViT alone or inside an InternVL, in either layout, or SigLIP."""
    if kind == "siglip":
        config = transformers.SiglipVisionConfig(**VISION)
        randomise(transformers.SiglipVisionModel(config)).save_pretrained(folder)
        return folder
    if kind == "whole_siglip":
        text = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3}
        config = transformers.SiglipConfig(vision_config=VISION, text_config={**text, "vocab_size": 50})
        randomise(transformers.SiglipModel(config)).save_pretrained(folder)
        return folder
    source = make_source("internvl_chat" if "chat" in kind else "internvl", folder)
    prefix = {"internvl_vision": "vision_tower.", "intern_vit_chat": "vision_model."}.get(kind)
    if prefix:
        part = {k.removeprefix(prefix): v for k, v in tensors(folder).items() if k.startswith(prefix)}
        save_file(part, folder / "model.safetensors")
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw["vision_config"]))
    return source.folder


def run(folder):
    """Loads the result with the Auto classes and asks it about an image."""
    processor = AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    image = Image.new("RGB", (3 * TILE, 2 * TILE), (200, 30, 90))
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Describe the image."}]
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **SETTINGS)
    assert int(inputs["num_patches"][0]) == 7
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 7 * model.config.image_seq_length
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    tokenizer = processor.tokenizer
    assert text.startswith(f"{tokenizer.bos_token}User:<image_start><image>")
    assert text.endswith(f"<image_end>Describe the image.{tokenizer.eos_token}\nAssistant:")
    written = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert written.shape[1] > inputs["input_ids"].shape[1]
    return processor, model


def test_smolvlm_keeps_its_weights(smolvlm, from_smolvlm, tmp_path):
    convert(smolvlm, tmp_path / "converted")
    before, after = tensors(tmp_path / "converted"), tensors(from_smolvlm)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if name not in (EMBEDDINGS, "lm_head.weight"):  # test_new_rows looks at those
            assert torch.equal(after[name], tensor), name


def test_new_rows(smolvlm, from_smolvlm):
    processor, model = run(from_smolvlm)
    old = vocabulary_size_of(smolvlm)
    assert len(processor.tokenizer) == old + 2 + BINS
    assert model.config.text_config.vocab_size >= len(processor.tokenizer)
    ids = processor.tokenizer.convert_tokens_to_ids
    places = [ids(f"<loc_{i}>") for i in range(BINS)]
    assert places == list(range(places[0], places[0] + BINS)) and places[0] >= old
    fake = ids("<fake_token_around_image>")
    for name in (EMBEDDINGS, "lm_head.weight"):
        before = tensors_of_smolvlm(smolvlm)[name][:old]
        rows = tensors(from_smolvlm)[name]
        assert torch.equal(rows[:old], before)
        fresh, mean = rows[places], before.mean(0)
        assert len(fresh.unique(dim=0)) == BINS
        assert (fresh - mean).abs().max() < 6 * 0.1 * before.std(0).max()
        for edge in ("<image_start>", "<image_end>"):
            assert torch.equal(rows[ids(edge)], rows[fake])


def tensors_of_smolvlm(folder):
    raw = tensors(folder)
    return {EMBEDDINGS: raw[EMBEDDINGS], "lm_head.weight": raw["lm_head.weight"]}


def vocabulary_size_of(folder):
    raw = json.loads((folder / "tokenizer.json").read_text())
    return len(raw["model"]["vocab"].keys() | {token["content"] for token in raw["added_tokens"]})


def test_location_tokens_in_use(from_smolvlm):
    processor, model = run(from_smolvlm)
    assert processor.num_location_bins == BINS and processor.box_format == "location_tokens"
    ids = processor.tokenizer("<loc_1><loc_2><loc_30><loc_40>a cat", return_tensors="pt")["input_ids"]
    assert (ids[0, :4] >= len(processor.tokenizer) - BINS).all()
    answer = processor.post_process_dense_captioning(ids, torch.tensor([[100, 200]]))[0]
    assert answer["captions"] == ["a cat"]
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id == model.config.eos_token_id
    assert processor.image_processor.tiling == "aspect_ratio"


def test_seeded(smolvlm, from_smolvlm, tmp_path):
    bootstrap(None, tmp_path / "same", smolvlm=smolvlm, num_location_bins=BINS)
    bootstrap(None, tmp_path / "other", smolvlm=smolvlm, num_location_bins=BINS, seed=1)
    same, other, first = (
        tensors(folder)[EMBEDDINGS] for folder in (tmp_path / "same", tmp_path / "other", from_smolvlm)
    )
    assert torch.equal(same, first) and not torch.equal(other, first)


def test_from_a_converted_smolvlm(smolvlm, from_smolvlm, tmp_path):
    convert(smolvlm, tmp_path / "converted", dtype="bfloat16")
    result = bootstrap(None, tmp_path / "out", smolvlm=tmp_path / "converted", num_location_bins=BINS)
    after, before = tensors(tmp_path / "out"), tensors(tmp_path / "converted")
    assert result.dtype == "bfloat16" and {t.dtype for t in after.values()} == {torch.bfloat16}
    known = vocabulary_size_of(smolvlm)
    for name, tensor in before.items():
        rows = slice(known) if name in (EMBEDDINGS, "lm_head.weight") else slice(None)
        assert torch.equal(after[name][rows], tensor[rows]), name
    files = {"tokenizer.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"}
    for file in files | {"chat_template.jinja", "generation_config.json"}:
        assert json_or_text(tmp_path / "out" / file) == json_or_text(from_smolvlm / file), file
    run(tmp_path / "out")


def json_or_text(path):
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else text


@pytest.mark.parametrize(
    "kind", ["internvl", "internvl_vision", "internvl_chat", "intern_vit_chat", "siglip", "whole_siglip"]
)
def test_assembled(kind, qwen, tmp_path):
    vision = vision_checkpoint(kind, tmp_path / "vision")
    factor = {"pixel_unshuffle_factor": 2} if "siglip" in kind else {}
    result = bootstrap(None, tmp_path / "out", vision=vision, text=qwen, num_location_bins=BINS, **factor)
    processor, model = run(tmp_path / "out")
    assert "connector" in result.notes[0]
    assert model.config.connector_type == "linear" and model.config.tie_word_embeddings
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert processor.tokenizer.bos_token == "<|im_start|>" and processor.tokenizer.eos_token == "<|im_end|>"
    # Each part computes what it did where it came from.
    tiles = 2 * torch.rand(2, 3, TILE, TILE, generator=torch.Generator().manual_seed(0)) - 1
    reference = reference_tower(kind, vision, tmp_path)
    with torch.no_grad():
        expected = reference(tiles)
        hidden = model.model.vision_model(tiles).last_hidden_state[:, -expected.shape[1] :]
        language = transformers.Qwen2ForCausalLM.from_pretrained(qwen).eval()
        ids = torch.randint(0, 300, (1, 20), generator=torch.Generator().manual_seed(0))
        logits, whole = language(input_ids=ids).logits, model(input_ids=ids).logits
    assert (hidden - expected).abs().max() <= 1e-4
    known = vocabulary_size_of(qwen)
    assert (whole[..., :known] - logits[..., :known]).abs().max() <= 1e-4
    assert model.config.vision_config.image_mean == ([0.5] * 3 if "siglip" in kind else [0.485, 0.456, 0.406])


def reference_tower(kind, folder, tmp_path):
    """transformers' own tower with the same weights, without its class token."""
    if "siglip" in kind:
        model = transformers.SiglipVisionModel.from_pretrained(folder).eval()
        return lambda tiles: model(tiles).last_hidden_state
    model = make_source("internvl", tmp_path / "twin").model  # the same seed, so the same weights
    return lambda tiles: model.model.vision_tower(tiles).last_hidden_state[:, 1:]


def test_padded_vocabulary_is_filled(qwen, tmp_path):
    vision = vision_checkpoint("internvl_vision", tmp_path / "vision")
    bootstrap(None, tmp_path / "out", vision=vision, text=qwen, num_location_bins=3)
    rows = tensors(tmp_path / "out")[EMBEDDINGS]
    before = tensors(qwen)["model.embed_tokens.weight"]
    known = vocabulary_size_of(qwen)
    assert len(rows) == len(before)  # the 13 rows of padding were room enough for six new tokens
    assert torch.equal(rows[:known], before[:known])
    assert not torch.isclose(rows[known:], before[known:]).all(dim=1).any()


def test_same_parts_as_the_cards():
    """Each size's published parts have the shape of its card, as far as is known without a download."""
    from argus_tools.convert.bootstrapping import PUBLISHED, _card

    for size, parts in PUBLISHED.items():
        assert _card(size)["model_type"] == "argus"
        assert set(parts) == ({"vision", "text"} if size == "2b" else {"smolvlm"})


def test_refusals(smolvlm, qwen, tmp_path):
    vision = vision_checkpoint("internvl_vision", tmp_path / "vision")
    out = tmp_path / "out"
    with pytest.raises(ConvertError, match="size='7b' is unknown"):
        bootstrap("7b", out)
    with pytest.raises(ConvertError, match="either smolvlm=, or both"):
        bootstrap(None, out)
    with pytest.raises(ConvertError, match="either smolvlm=, or both"):
        bootstrap(None, out, vision=vision)
    with pytest.raises(ConvertError, match="either smolvlm=, or both"):
        bootstrap(None, out, smolvlm=smolvlm, text=qwen)
    with pytest.raises(ConvertError, match="num_location_bins=1 must be"):
        bootstrap(None, out, smolvlm=smolvlm, num_location_bins=1)
    with pytest.raises(ConvertError, match="pixel_unshuffle_factor=3 is for a model assembled"):
        bootstrap(None, out, smolvlm=smolvlm, pixel_unshuffle_factor=3)
    with pytest.raises(ConvertError, match=r"pixel_unshuffle_factor of config\.json is 0"):
        bootstrap(None, out, vision=vision, text=qwen, pixel_unshuffle_factor=0)
    for seed in (2**64, -(2**63) - 1, "x"):
        with pytest.raises(ConvertError, match="must be a whole number of 64 bits"):
            bootstrap(None, out, smolvlm=smolvlm, seed=seed)
    with pytest.raises(ConvertError, match=r"size='256m' has vision_config\.hidden_size 768, but the parts have 24"):
        bootstrap("256m", out, smolvlm=smolvlm)
    with pytest.raises(ConvertError, match="model_type 'qwen2'; smolvlm= takes"):
        bootstrap(None, out, smolvlm=qwen)
    with pytest.raises(ConvertError, match="model_type 'qwen2'; vision= takes"):
        bootstrap(None, out, vision=qwen, text=qwen)
    with pytest.raises(ConvertError, match=r"config\.model_type is 'internvl_vision'"):
        bootstrap(None, out, vision=vision, text=vision)
    with pytest.raises(ConvertError, match="does not exist"):
        bootstrap(None, out, smolvlm=tmp_path / "nowhere")
    convert(make_source("internvl", tmp_path / "mlp").folder, tmp_path / "mlp_argus")
    with pytest.raises(ConvertError, match="connector of type 'mlp'"):
        bootstrap(None, out, smolvlm=tmp_path / "mlp_argus")
    assert not out.exists()
    (tmp_path / "bare").mkdir()
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / file).write_bytes((smolvlm / file).read_bytes())
    with pytest.raises(ConvertError, match="has no tokenizer"):
        bootstrap(None, out, smolvlm=tmp_path / "bare")
    assert not out.exists() and not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_cannot_go_back(from_smolvlm, tmp_path):
    with pytest.raises(ConvertError, match="tiling is 'aspect_ratio'"):
        convert(from_smolvlm, tmp_path / "out", to="smolvlm")


def test_state_dict_is_complete(from_smolvlm):
    model, info = ArgusForConditionalGeneration.from_pretrained(from_smolvlm, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.text_config.vocab_size == model.lm_head.weight.shape[0]
