"""Sources whose files say what cannot be: one ConvertError each, with file, field and value, and nothing is written."""

import json

import pytest
import torch
from reference_checkpoints import make_source
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from argus_tools.convert import ConvertError, convert
from argus_tools.convert.checkpoint import INDEX, SINGLE
from processing_argus import CHAT_TEMPLATE

DYNAMIC = {"rope_type": "dynamic", "factor": -2.0, "rope_theta": 1e4}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    base = tmp_path_factory.mktemp("malformed")
    return {name: make_source(name, base / name).folder for name in ("smolvlm", "internvl", "internvl_chat")}


@pytest.fixture
def broken(sources, tmp_path):
    """Gives a copy of a source in which objects of a JSON file are changed, or a whole file is other bytes."""

    def make(name, file, changes):
        folder = tmp_path / "source"
        folder.mkdir()
        for path in sources[name].iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        if isinstance(changes, bytes):
            (folder / file).write_bytes(changes)
            return folder
        raw = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
        for key, value in changes.items():
            *outer, last = key.split(".")
            place = raw
            for step in outer:
                place = place[step]
            place[last] = value
        (folder / file).write_text(json.dumps(raw))
        return folder

    return make


@pytest.mark.parametrize(
    ("name", "file", "changes", "says"),
    [
        # Another type, or out of range: what would become a model that does not load, or a dead one.
        ("smolvlm", "config", {"text_config.rms_norm_eps": "x"}, r"text_config\.rms_norm_eps of config\.json is 'x'"),
        ("smolvlm", "config", {"text_config.rms_norm_eps": 0}, "rms_norm_eps of config.json is 0"),
        ("smolvlm", "config", {"text_config.rms_norm_eps": float("nan")}, "rms_norm_eps of config.json is nan"),
        ("smolvlm", "config", {"text_config.rope_parameters": None, "text_config.rope_theta": "x"}, "rope_theta.*'x'"),
        ("smolvlm", "config", {"text_config.rope_parameters": DYNAMIC}, r"rope_scaling\.factor of config\.json is -2"),
        ("smolvlm", "config", {"text_config.rope_parameters": "x"}, "rope_parameters of config.json is 'x'"),
        ("smolvlm", "config", {"text_config.num_hidden_layers": "3"}, "num_hidden_layers of config.json is '3'"),
        ("smolvlm", "config", {"text_config.intermediate_size": -5}, "intermediate_size of config.json is -5"),
        ("smolvlm", "config", {"text_config.hidden_act": "bogus"}, "hidden_act of config.json is 'bogus'"),
        ("smolvlm", "config", {"text_config.vocab_size": "x"}, "vocab_size of config.json is 'x'"),
        ("smolvlm", "config", {"text_config.num_attention_heads": 0}, "num_attention_heads of config.json is 0"),
        ("smolvlm", "config", {"text_config.head_dim": 7}, "head_dim of config.json is 7; it must be even"),
        ("smolvlm", "config", {"text_config": "x"}, "text_config of config.json is 'x'"),
        ("smolvlm", "config", {"tie_word_embeddings": "x"}, "tie_word_embeddings is 'x'"),
        ("smolvlm", "config", {"image_token_id": "x"}, "image_token_id of config.json is 'x'"),
        ("smolvlm", "config", {"vision_config": [1]}, r"vision_config of config\.json is \[1\]"),
        ("smolvlm", "config", {"vision_config.image_size": "x"}, "image_size of config.json is 'x'"),
        ("smolvlm", "config", {"vision_config.layer_norm_eps": True}, "layer_norm_eps of config.json is True"),
        ("smolvlm", "config", {"model_type": ["smolvlm"]}, "model_type"),
        ("internvl", "config", {"downsample_ratio": "x"}, "downsample_ratio is 'x'"),
        ("internvl", "config", {"projector_hidden_act": 5}, "connector_hidden_act of config.json is 5"),
        ("internvl", "config", {"text_config.layer_types": 5}, r"config\.json does not have the form"),
        ("internvl", "config", {"vision_config.use_mean_pooling": [1]}, r"use_mean_pooling is \[1\]"),
        ("internvl_chat", "config", {"min_dynamic_patch": 50}, r"config\.json.*min_dynamic_patch=50 is larger"),
        ("internvl_chat", "config", {"use_thumbnail": "x"}, r"config\.json.*use_thumbnail='x'"),
        ("internvl_chat", "config", {"vision_config.qkv_bias": "x"}, "attention_bias of config.json is 'x'"),
        ("internvl_chat", "config", {"llm_config": [1]}, r"llm_config of config\.json is \[1\]"),
        # The processor's files.
        ("smolvlm", "preprocessor_config", {"size.longest_edge": "a"}, r"preprocessor_config\.json.*longest_edge='a'"),
        ("smolvlm", "preprocessor_config", {"size.longest_edge": -5}, r"size\.longest_edge=-5"),
        ("smolvlm", "preprocessor_config", {"resample": 77}, r"preprocessor_config\.json.*resample=77"),
        ("smolvlm", "preprocessor_config", {"rescale_factor": "x"}, "rescale_factor is 'x'"),
        ("smolvlm", "preprocessor_config", {"image_mean": "abc"}, "image_mean='abc'"),
        ("smolvlm", "preprocessor_config", {"max_image_size": [[1]]}, r"preprocessor_config\.json does not have the"),
        ("internvl", "preprocessor_config", {"max_patches": 0}, "max_patches=0"),
        (
            "smolvlm",
            "processor_config",
            {"image_processor": [1]},
            r"image_processor of processor_config\.json is",
        ),
        ("smolvlm", "tokenizer", {"added_tokens": ["x"]}, r"tokenizer\.json does not have the form"),
        ("smolvlm", "tokenizer", {"model": [1]}, "tokenizer.json"),
        ("smolvlm", "tokenizer_config", {"added_tokens_decoder": {"x": 5}}, r"tokenizer_config\.json does not have"),
        ("smolvlm", "chat_template.jinja", b"\xff\xfe{{", r"chat_template\.jinja does not have the form"),
        ("smolvlm", "config.json", b"[]", r"config\.json holds a list"),
        ("smolvlm", INDEX, b'{"weight_map": {"a": 5}}', "gives 5 for a, where the name of a file belongs"),
        ("smolvlm", INDEX, b'{"weight_map": ["x"]}', "has no weight_map"),
    ],
)
def test_files_that_cannot_be(name, file, changes, says, broken, tmp_path):
    folder = broken(name, file if "." in file else f"{file}.json", changes)
    with pytest.raises(ConvertError, match=says):
        convert(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.ones(48, dtype=torch.int32), "norm.weight in .* is torch.int32"),
        (torch.full((48,), float("nan")), "norm.weight in .* NaN or infinite"),
        (torch.full((48,), float("inf")), "norm.weight in .* NaN or infinite"),
    ],
)
def test_weights_that_are_no_numbers(value, says, broken, tmp_path):
    folder = broken("smolvlm", "config.json", {})
    tensors = load_file(folder / SINGLE)
    save_file({**tensors, "model.text_model.norm.weight": value}, folder / SINGLE)
    with pytest.raises(ConvertError, match=says):
        convert(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_weights_too_large_for_the_type(broken, tmp_path):
    folder = broken("smolvlm", "config.json", {})
    tensors = load_file(folder / SINGLE)
    save_file({**tensors, "model.text_model.norm.weight": torch.full((48,), 1e6)}, folder / SINGLE)
    with pytest.raises(ConvertError, match=r"text_model\.norm\.weight has values that float16 cannot hold"):
        convert(folder, tmp_path / "out", dtype="float16")
    convert(folder, tmp_path / "out", dtype="bfloat16")


def test_argus_source_that_cannot_be(sources, tmp_path):
    convert(sources["smolvlm"], tmp_path / "argus")
    for file, change, says in (
        ("config.json", {"text_config": [1]}, "text_config"),
        ("preprocessor_config.json", {"longest_edge": "a"}, r"preprocessor_config\.json.*longest_edge='a'"),
    ):
        before = (tmp_path / "argus" / file).read_text()
        (tmp_path / "argus" / file).write_text(json.dumps({**json.loads(before), **change}))
        with pytest.raises(ConvertError, match=says):
            convert(tmp_path / "argus", tmp_path / "back", to="smolvlm")
        (tmp_path / "argus" / file).write_text(before)
    assert not (tmp_path / "back").exists()


def test_no_chat_template(broken, tmp_path):
    """The note says what happens: Argus' native prompts."""
    folder = broken("smolvlm", "config.json", {})
    (folder / "chat_template.jinja").unlink()
    (note,) = convert(folder, tmp_path / "out").notes
    assert "no chat template" in note and "native prompts" in note
    assert AutoProcessor.from_pretrained(tmp_path / "out").chat_template == CHAT_TEMPLATE
