"""convert(): there and back bit for bit, sharded or not, every other layout of the same keys, and every refusal."""

import json

import pytest
import torch
import transformers
from reference_checkpoints import make_source
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoProcessor

from argus_tools.convert import ConvertError, convert
from argus_tools.convert.checkpoint import INDEX
from argus_tools.paths import card_path
from modeling_argus import ArgusForConditionalGeneration

BACK = {"smolvlm": "smolvlm", "idefics3": "idefics3", "internvl": "internvl", "internvl-long": "internvl"}


def all_tensors(folder):
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors.update(load_file(file))
    return tensors


def same_bits(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def edit(folder, file, **changes):
    raw = json.loads((folder / file).read_text())
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(raw.get(name), dict):
            raw[name] = {**raw[name], **value}
        else:
            raw[name] = value
    (folder / file).write_text(json.dumps(raw))


@pytest.fixture
def smolvlm(tmp_path):
    return make_source("smolvlm", tmp_path / "smolvlm").folder


@pytest.fixture
def internvl(tmp_path):
    return make_source("internvl", tmp_path / "internvl").folder


@pytest.fixture
def chat(tmp_path):
    return make_source("internvl_chat", tmp_path / "chat").folder


def test_round_trip(source, converted, tmp_path):
    to = BACK.get(source.name, "internvl")
    result = convert(converted, tmp_path / "back", to=to)
    back = all_tensors(tmp_path / "back")
    if source.name == "internvl_chat":  # comes back in the -hf layout: compare with the model that it was made from
        expected = {name.replace("model.", "", 1): value for name, value in source.model.state_dict().items()}
        expected = {
            ("language_model.model." + name.removeprefix("language_model."))
            if name.startswith("language_model.")
            else name: v
            for name, v in expected.items()
        }
        expected["language_model.lm_head.weight"] = expected.pop("lm_head.weight")
        assert same_bits(back, expected)
    else:
        assert same_bits(back, all_tensors(source.folder))
    assert result.num_tensors == len(back)
    config = AutoConfig.from_pretrained(tmp_path / "back")
    kind = {"smolvlm": "SmolVLM", "idefics3": "Idefics3", "internvl": "InternVL"}[to]
    model, info = getattr(transformers, f"{kind}ForConditionalGeneration").from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert config.model_type == to and not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=ids).logits, source.model(input_ids=ids).logits)
    text, before = config.get_text_config(), source.model.config.get_text_config()
    for name in ("rms_norm_eps", "max_position_embeddings", "num_key_value_heads", "vocab_size", "tie_word_embeddings"):
        assert getattr(text, name) == getattr(before, name), name


def test_processor_comes_back(source, converted, tmp_path):
    to = BACK.get(source.name, "internvl")
    if to == "smolvlm":
        from transformers.models.smolvlm import processing_smolvlm

        if hasattr(processing_smolvlm, "num2words"):  # 4.57 wants it, for videos alone
            processing_smolvlm.num2words = processing_smolvlm.num2words or str
    convert(converted, tmp_path / "back", to=to)
    processor = AutoProcessor.from_pretrained(tmp_path / "back")
    assert type(processor).__name__ == {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}.get(to, "InternVL") + "Processor"
    if source.name != "internvl_chat":
        before = AutoProcessor.from_pretrained(source.folder)
        assert processor.chat_template == before.chat_template
        for name in ("size", "max_image_size", "min_patches", "max_patches", "image_mean", "image_std", "resample"):
            one, other = (getattr(p.image_processor, name, None) for p in (processor, before))
            assert dict(one) == dict(other) if isinstance(one, dict) else one == other, name
    assert (
        processor.tokenizer("What <image>")["input_ids"]
        == AutoProcessor.from_pretrained(converted).tokenizer("What <image>")["input_ids"]
    )


def test_sharded_in_and_out(smolvlm, tmp_path):
    tensors = load_file(smolvlm / "model.safetensors")
    convert(smolvlm, tmp_path / "whole")
    names = sorted(tensors)
    (smolvlm / "model.safetensors").unlink()
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, smolvlm / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    (smolvlm / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    seen = []
    convert(smolvlm, tmp_path / "out", max_shard_bytes=20_000, progress=lambda *step: seen.append(step))
    shards = sorted(tmp_path.glob("out/model-*.safetensors"))
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert len(shards) > 3 and not (tmp_path / "out" / "model.safetensors").exists()
    assert set(index["weight_map"]) == set(all_tensors(tmp_path / "out"))
    assert same_bits(all_tensors(tmp_path / "out"), all_tensors(tmp_path / "whole"))
    assert [done for done, _, _ in seen] == list(range(1, len(index["weight_map"]) + 1))
    assert {total for _, total, _ in seen} == {len(index["weight_map"])}
    ArgusForConditionalGeneration.from_pretrained(tmp_path / "out")


def test_keys_as_they_are_in_memory(internvl, tmp_path):
    """A state dict that was saved without save_pretrained has the keys of 5.x's modules."""
    convert(internvl, tmp_path / "one")
    tensors = load_file(internvl / "model.safetensors")
    renamed = {
        "model." + name.replace("language_model.model.", "language_model."): value for name, value in tensors.items()
    }
    save_file({name.replace("model.language_model.lm_head", "lm_head"): value for name, value in renamed.items()},
              internvl / "model.safetensors")  # fmt: skip
    convert(internvl, tmp_path / "two")
    assert same_bits(all_tensors(tmp_path / "one"), all_tensors(tmp_path / "two"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype(smolvlm, tmp_path, dtype):
    result = convert(smolvlm, tmp_path / "out", dtype=dtype)
    assert result.dtype == dtype
    assert {str(t.dtype) for t in all_tensors(tmp_path / "out").values()} == {f"torch.{dtype}"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    assert str(ArgusForConditionalGeneration.from_pretrained(tmp_path / "out", dtype="auto").dtype) == f"torch.{dtype}"


def test_saved_by_either_major(source, tmp_path):
    """What save_pretrained of the processor and the model write here, 5.x's nested processor files included."""
    if source.name == "internvl_chat":
        pytest.skip("no class of transformers writes this layout")
    folder = tmp_path / "saved"
    source.model.save_pretrained(folder)
    from test_processor_parity import with_num2words

    with_num2words({"smolvlm": "SmolVLMProcessor"}.get(source.name))
    AutoProcessor.from_pretrained(source.folder).save_pretrained(folder)
    convert(folder, tmp_path / "one")
    convert(source.folder, tmp_path / "two")
    one, two = (json.loads((tmp_path / name / "preprocessor_config.json").read_text()) for name in ("one", "two"))
    assert {**one, "rescale_factor": 0} == {**two, "rescale_factor": 0}
    processors = [AutoProcessor.from_pretrained(tmp_path / name) for name in ("one", "two")]
    assert processors[0].chat_template == processors[1].chat_template
    text = "User: what<end_of_utterance><|im_end|><image> is it?"
    assert processors[0].tokenizer(text)["input_ids"] == processors[1].tokenizer(text)["input_ids"]
    settings = json.loads((tmp_path / "one" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] != "TokenizersBackend"
    assert not isinstance(settings.get("extra_special_tokens"), list)


def test_defaults_are_those_of_transformers():
    """Saved configs leave out what equals their class's defaults, so ours must be the same on both majors."""
    from argus_tools.convert import source_configs as ours

    for config, defaults in (
        (transformers.LlamaConfig(), ours.LLAMA_DEFAULTS),
        (transformers.Qwen2Config(), ours.QWEN2_DEFAULTS),
        (transformers.SmolVLMConfig().vision_config, ours.SIGLIP_DEFAULTS),
        (transformers.Idefics3Config().vision_config, ours.SIGLIP_DEFAULTS),
        (transformers.InternVLConfig().vision_config, ours.INTERNVIT_DEFAULTS),
    ):
        for name, value in defaults.items():
            if name == "rope_theta":
                theirs = getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]
            else:
                theirs = getattr(config, name, None)
            if name in ("head_dim", "num_key_value_heads") and value is None:
                continue  # the class fills it in from the others, as the reader does
            assert (list(theirs) == [value] * 2) if isinstance(theirs, (list, tuple)) else theirs == value, name
    smolvlm = ours.read_smolvlm({"text_config": {"model_type": "llama"}, "vision_config": {}})[0]
    assert smolvlm["text_config"]["num_key_value_heads"] == transformers.LlamaConfig().num_key_value_heads
    assert smolvlm["pixel_unshuffle_factor"] == transformers.SmolVLMConfig().scale_factor


def test_published_configs():
    """Fields that the repositories' own config.json have and transformers' classes do not write."""
    from argus_tools.convert import source_configs as ours

    smolvlm2 = {
        "image_token_id": 49190,
        "pad_token_id": 128002,
        "scale_factor": 4,
        "tie_word_embeddings": False,
        "vocab_size": 49280,
        "text_config": {
            "architectures": ["VLlama3ForCausalLM"], "head_dim": 64, "hidden_size": 960, "intermediate_size": 2560,
            "is_llama_config": True, "max_position_embeddings": 8192, "model_type": "llama", "neftune_noise_alpha": 0.0,
            "num_attention_heads": 15, "num_hidden_layers": 32, "num_key_value_heads": 5, "pad_token_id": 2,
            "pixel_shuffle_factor": 4, "qk_layer_norms": False, "rms_norm_eps": 1e-05, "rope_interleaved": False,
            "rope_theta": 100000, "torch_dtype": "bfloat16", "use_resampler": False, "vocab_size": 49280,
        },
        "vision_config": {
            "hidden_size": 768, "image_size": 512, "max_image_size": {"longest_edge": 512},
            "model_type": "smolvlm_vision", "num_attention_heads": 12, "patch_size": 16,
            "size": {"longest_edge": 2048}, "tie_word_embeddings": False, "use_base_siglip": False,
        },
    }  # fmt: skip
    fields, tied = ours.read_smolvlm(smolvlm2)
    card = json.loads((card_path("argus-500m") / "config.json").read_text())
    assert tied is False and fields["image_token_id"] == 49190
    for part in ("vision_config", "text_config"):
        for name, value in fields[part].items():
            if name not in ("vocab_size", "rope_theta", "rope_scaling"):
                assert card[part][name] == value, name
    assert fields["text_config"]["rope_theta"] == card["text_config"]["rope_parameters"]["rope_theta"]
    ids = ours.read_token_ids(smolvlm2["text_config"], {"eos_token_id": 49279}, 49280)
    assert ids == {"pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 49279}


def test_slow_tokenizer_files(chat, tmp_path, monkeypatch):
    """The original repositories have vocab.json and merges.txt alone; what leaves has tokenizer.json."""
    raw = json.loads((chat / "tokenizer.json").read_text())
    (chat / "vocab.json").write_text(json.dumps(raw["model"]["vocab"]))
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in raw["model"]["merges"]]
    (chat / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    added = {token["content"]: token["id"] for token in raw["added_tokens"]}
    (chat / "added_tokens.json").write_text(json.dumps(added))
    before = convert(chat, tmp_path / "fast")
    (chat / "tokenizer.json").unlink()
    # Code that the source brings is neither run nor asked about.
    (chat / "configuration_theirs.py").write_text("raise SystemExit('code of the source was run')\n")
    edit(chat, "config.json", auto_map={"AutoConfig": "configuration_theirs.TheirConfig"})
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked about the source's code"))
    decoder = {str(number): {"content": token, "special": True, "normalized": False, "lstrip": False, "rstrip": False,
                             "single_word": False} for token, number in added.items()}  # fmt: skip
    edit(chat, "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer", added_tokens_decoder=decoder)
    after = convert(chat, tmp_path / "slow")
    text = "User: <img>What is the dog doing?</img>\n<|im_end|>"
    one, two = (AutoProcessor.from_pretrained(result.path).tokenizer for result in (before, after))
    assert (tmp_path / "slow" / "tokenizer.json").is_file()
    assert one(text)["input_ids"] == two(text)["input_ids"]


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("internvl", {"vision_config": {"use_qk_norm": True}}, "use_qk_norm is True"),
        ("internvl", {"vision_config": {"norm_type": "rms_norm"}}, "norm_type is 'rms_norm'"),
        ("internvl", {"vision_config": {"image_size": [32, 48]}}, "image_size is \\[32, 48\\]"),
        ("internvl", {"vision_feature_layer": -2}, "vision_feature_layer is -2"),
        ("internvl", {"vision_feature_select_strategy": "full"}, "'full'"),
        ("internvl", {"downsample_ratio": 0.4}, "downsample_ratio is 0.4"),
        (
            "internvl",
            {"text_config": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}},
            "sliding_window 16",
        ),
        ("internvl", {"text_config": {"layer_types": ["full_attention", "sliding_attention"]}}, "sliding_attention"),
        ("internvl", {"text_config": {"model_type": "internlm2"}}, "model_type is 'internlm2'"),
        ("smolvlm", {"text_config": {"mlp_bias": True}}, "mlp_bias is True"),
        ("smolvlm", {"text_config": {"attention_bias": True}}, "attention_bias is True"),
        ("smolvlm", {"text_config": {"qk_layer_norms": True}}, "qk_layer_norms is True"),
        ("smolvlm", {"use_resampler": True}, "use_resampler is True"),
        ("smolvlm", {"text_config": {"rope_interleaved": True}}, "rope_interleaved is True"),
        ("smolvlm", {"text_config": {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}}, "rope type 'yarn'"),
        ("smolvlm", {"text_config": {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}}, "low_freq_factor"),
        ("smolvlm", {"scale_factor": 3}, "pixel_unshuffle_factor 3"),
        ("smolvlm", {"model_type": "llava"}, "model_type 'llava'"),
        ("internvl_chat", {"ps_version": "v1"}, "ps_version is 'v1'"),
        ("internvl_chat", {"select_layer": -4}, "select_layer is -4"),
        ("internvl_chat", {"vision_config": {"qk_normalization": True}}, "qk_normalization is True"),
        ("internvl_chat", {"vision_config": {"norm_type": "rms_norm"}}, "norm_type is 'rms_norm'"),
        ("internvl_chat", {"force_image_size": 64}, "force_image_size is 64"),
        ("internvl_chat", {"template": "Hermes-2"}, "template is 'Hermes-2'"),
        ("internvl_chat", {"pad2square": True}, "pad2square is True"),
    ],
)
def test_what_argus_cannot_represent(name, changes, says, tmp_path):
    folder = make_source(name, tmp_path / "source").folder
    edit(folder, "config.json", **changes)
    with pytest.raises(ConvertError, match=says):
        convert(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"do_normalize": False}, "do_normalize is False"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"max_image_size": {"longest_edge": 64}}, "image_size is 32"),
        ({"size": {"height": 64, "width": 64}}, "longest_edge"),
    ],
)
def test_image_settings_that_do_not_fit(smolvlm, tmp_path, changes, says):
    raw = json.loads((smolvlm / "preprocessor_config.json").read_text())
    (smolvlm / "preprocessor_config.json").write_text(json.dumps({**raw, **changes}))
    with pytest.raises(ConvertError, match=says):
        convert(smolvlm, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_that_do_not_fit(smolvlm, tmp_path):
    file = smolvlm / "model.safetensors"
    whole = load_file(file)
    missing = "model.text_model.layers.1.self_attn.k_proj.weight"
    save_file({name: value for name, value in whole.items() if name != missing}, file)
    with pytest.raises(ConvertError, match=f"missing: {missing}"):
        convert(smolvlm, tmp_path / "out")
    save_file({**whole, "model.connector.perceiver_resampler.latents": torch.ones(3)}, file)
    with pytest.raises(ConvertError, match=r"not expected: model\.connector\.perceiver_resampler\.latents"):
        convert(smolvlm, tmp_path / "out")
    save_file({**whole, missing: torch.ones(4, 4)}, file)
    with pytest.raises(ConvertError, match=r"k_proj\.weight is \[4, 4\], config\.json says \[16, 48\]"):
        convert(smolvlm, tmp_path / "out")
    save_file({**whole, missing: whole[missing].half()}, file)
    with pytest.raises(ConvertError, match="different dtypes"):
        convert(smolvlm, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["smolvlm"]
    save_file({**whole, "model.text_model.rotary_emb.inv_freq": torch.ones(4)}, file)  # holds nothing learned
    convert(smolvlm, tmp_path / "out")


def test_head_that_contradicts_its_tie(internvl, tmp_path):
    file = internvl / "model.safetensors"
    whole = load_file(file)
    head = "language_model.lm_head.weight"
    edit(internvl, "config.json", tie_word_embeddings=True, text_config={"tie_word_embeddings": True})
    save_file({**whole, head: torch.zeros_like(whole["language_model.model.embed_tokens.weight"])}, file)
    with pytest.raises(ConvertError, match="ties the output head"):
        convert(internvl, tmp_path / "out")
    edit(internvl, "config.json", text_config={"tie_word_embeddings": False})  # the flags disagree: the tensors decide
    convert(internvl, tmp_path / "untied")
    assert "lm_head.weight" in all_tensors(tmp_path / "untied")
    save_file({**whole, head: whole["language_model.model.embed_tokens.weight"].clone()}, file)
    convert(internvl, tmp_path / "tied")
    assert "lm_head.weight" not in all_tensors(tmp_path / "tied")


def test_sources_that_are_no_checkpoint(smolvlm, tmp_path):
    with pytest.raises(ConvertError, match="does not exist"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ConvertError, match="is a file"):
        convert(smolvlm / "config.json", tmp_path / "out")
    with pytest.raises(ConvertError, match=r"no config\.json"):
        convert(tmp_path, tmp_path / "out")
    weights = smolvlm / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConvertError, match="not a whole safetensors file"):
        convert(smolvlm, tmp_path / "out")
    weights.rename(smolvlm / "pytorch_model.bin")
    with pytest.raises(ConvertError, match=r"pytorch_model\.bin only\. Pickled weights can run code"):
        convert(smolvlm, tmp_path / "out")
    (smolvlm / "pytorch_model.bin").unlink()
    with pytest.raises(ConvertError, match=r"neither model\.safetensors nor"):
        convert(smolvlm, tmp_path / "out")
    (smolvlm / INDEX).write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(ConvertError, match=r"names files that are not there: gone\.safetensors"):
        convert(smolvlm, tmp_path / "out")
    (smolvlm / "config.json").write_text("{")
    with pytest.raises(ConvertError, match="cannot be read as JSON"):
        convert(smolvlm, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["smolvlm"]


def test_output_folder(smolvlm, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ConvertError, match="already exists and is not empty"):
        convert(smolvlm, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    convert(smolvlm, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()
    convert(smolvlm, tmp_path / "new" / "deep")
    assert (tmp_path / "new" / "deep" / "config.json").is_file()


def test_nothing_half_written(smolvlm, tmp_path):
    def fail(done, total, name):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(smolvlm, tmp_path / "out", progress=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["smolvlm"]


def test_full_disk(smolvlm, tmp_path, monkeypatch):
    from argus_tools.convert import checkpoint

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ConvertError, match=r"could not be written: .*No space left"):
        convert(smolvlm, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["smolvlm"]


def test_folder_brings_its_code(converted):
    """As the README's snippet loads it: with trust_remote_code, for which the code must be in the folder."""
    settings = {"trust_remote_code": True}
    model = transformers.AutoModelForImageTextToText.from_pretrained(converted, **settings)
    processor = AutoProcessor.from_pretrained(converted, **settings)
    assert type(model).__name__ == "ArgusForConditionalGeneration" and type(processor).__name__ == "ArgusProcessor"
    named = {value.split(".")[0] for value in model.config.auto_map.values()}
    assert all((converted / f"{name}.py").is_file() for name in named)


def test_targets_that_do_not_fit(smolvlm, internvl, tmp_path):
    convert(smolvlm, tmp_path / "one")
    convert(internvl, tmp_path / "two")
    with pytest.raises(ConvertError, match="connector_type is 'linear', which InternVL cannot represent"):
        convert(tmp_path / "one", tmp_path / "out", to="internvl")
    with pytest.raises(ConvertError, match="connector_type is 'mlp', which SmolVLM cannot represent"):
        convert(tmp_path / "two", tmp_path / "out", to="smolvlm")
    with pytest.raises(ConvertError, match="to='llava' is unknown"):
        convert(tmp_path / "one", tmp_path / "out", to="llava")
    with pytest.raises(ConvertError, match="is an Argus checkpoint already"):
        convert(tmp_path / "one", tmp_path / "out")
    with pytest.raises(ConvertError, match="to='smolvlm' converts Argus checkpoints"):
        convert(smolvlm, tmp_path / "out", to="smolvlm")
    with pytest.raises(ConvertError, match="dtype='int8' is unknown"):
        convert(smolvlm, tmp_path / "out", dtype="int8")
    edit(tmp_path / "one", "preprocessor_config.json", tiling="aspect_ratio")
    with pytest.raises(ConvertError, match="tiling is 'aspect_ratio'"):
        convert(tmp_path / "one", tmp_path / "out", to="smolvlm")
    assert not (tmp_path / "out").exists()


def test_without_tokenizer(smolvlm, tmp_path):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (smolvlm / file).unlink()
    result = convert(smolvlm, tmp_path / "out")
    assert "no tokenizer" in result.notes[0]
    assert not (tmp_path / "out" / "processor_config.json").exists()
    ArgusForConditionalGeneration.from_pretrained(tmp_path / "out")


def test_hub_name(smolvlm, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(smolvlm))
    convert("someone/SmolVLM", tmp_path / "out")
    assert asked == ["someone/SmolVLM"] and (tmp_path / "out" / "config.json").is_file()

    def offline(name, **_):
        raise OSError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ConvertError, match=r"could not be downloaded: no network$"):
        convert("someone/SmolVLM", tmp_path / "other")


def test_generation_settings_are_kept(smolvlm, tmp_path):
    edit(smolvlm, "generation_config.json", temperature=0.3, do_sample=True, pad_token_id=128002)
    convert(smolvlm, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    before = json.loads((smolvlm / "generation_config.json").read_text())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    # 4.57 writes the out-of-vocabulary 128002 of SmolVLM configs here; the text config's own is put in its place.
    assert written == {**before, "pad_token_id": config["pad_token_id"]}
    assert config["pad_token_id"] < config["text_config"]["vocab_size"]
