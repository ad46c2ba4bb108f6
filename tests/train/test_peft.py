"""LoRA by PEFT: what it adapts, location tokens and tied embeddings, saving, loading, merging; the example script."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import tiny_model
from tiny_text import build_processor

pytest.importorskip("peft", reason="LoRA is PEFT's")

from peft import PeftModel
from safetensors.torch import load_file

from argus_tools.train.lora import add_lora, lora_config
from modeling_argus import ArgusForConditionalGeneration
from processing_argus import ArgusProcessor
from processing_argus.locations_argus import location_token_ids

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tiny_processor():
    return build_processor()


def make(processor, tied: bool = True) -> ArgusForConditionalGeneration:
    tokenizer = processor.tokenizer
    return tiny_model(
        image_token_id=tokenizer.convert_tokens_to_ids(processor.image_token),
        text_config={"vocab_size": len(tokenizer), "max_position_embeddings": 2048},
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def make_batch(processor):
    image = Image.new("RGB", (70, 40), (200, 30, 40))
    messages = [
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Where is it?"}]},
        {"role": "assistant", "content": "<loc_1><loc_2><loc_30><loc_40>a cat"},
    ]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    mask = inputs.pop("assistant_masks")
    return dict(inputs), inputs["input_ids"].masked_fill(mask == 0, -100)


def trained(model, batch, labels, steps: int = 7):
    """Logits after some steps, in evaluation mode; the loss must fall."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    model.eval()
    with torch.no_grad():
        return model(**batch).logits


def test_adapts_the_decoder_and_the_location_tokens_alone(tiny_processor):
    model = add_lora(make(tiny_processor), lora_config(make(tiny_processor), tiny_processor, rank=4))
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("text_model." in name for name in names)
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names if ".lora_" in name}
    assert adapted == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    (tokens,) = [name for name in names if ".lora_" not in name]
    assert tokens.endswith("embed_tokens.token_adapter.trainable_tokens_delta.default")
    bins = tiny_processor.num_location_bins
    assert dict(model.named_parameters())[tokens].shape == (bins, model.config.text_config.hidden_size)

    both = add_lora(make(tiny_processor), lora_config(make(tiny_processor), tiny_processor, rank=4, vision=True))
    seen = {name for name, p in both.named_parameters() if p.requires_grad and "vision_model." in name}
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in seen} == {"qkv_proj", "out_proj", "fc1", "fc2"}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_adapters_save_load_and_merge(tied, tiny_processor, tmp_path):
    batch, labels = make_batch(tiny_processor)
    base = make(tiny_processor, tied)
    with torch.no_grad():
        fresh = base(**batch).logits
    config = lora_config(base, tiny_processor, rank=4, dropout=0.0)
    model = add_lora(base, config)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, fresh)
    before = base.get_output_embeddings().weight.detach().clone()
    logits = trained(model, batch, labels)
    assert (logits - fresh).abs().max() > 0.1

    # Of the embeddings, the location tokens' rows moved and no other; tied, input and output have the same ones.
    moved = (base.get_output_embeddings().weight != before).any(1).nonzero().flatten().tolist()
    assert moved and set(moved) <= set(location_token_ids(tiny_processor.tokenizer, tiny_processor.num_location_bins))
    same = torch.equal(base.get_input_embeddings().weight, base.get_output_embeddings().weight)
    assert same == tied

    model.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum("trainable_tokens_delta" in name for name in saved) == (1 if tied else 2)
    assert not any("base_layer" in name for name in saved)
    again = PeftModel.from_pretrained(make(tiny_processor, tied), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, logits)
    written = again.generate(**batch, max_new_tokens=6, do_sample=False)

    merged = again.merge_and_unload()
    assert type(merged) is ArgusForConditionalGeneration
    assert (merged.lm_head.weight is merged.get_input_embeddings().weight) == tied
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(merged.generate(**batch, max_new_tokens=6, do_sample=False), written)
    merged.save_pretrained(tmp_path / "merged")
    names = set(load_file(tmp_path / "merged" / "model.safetensors"))
    assert ("lm_head.weight" in names) != tied and not any("lora" in name or "token_adapter" in name for name in names)
    with torch.no_grad():
        loaded = ArgusForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(loaded(**batch).logits, logits, atol=1e-4, rtol=1e-4)


def test_model_without_location_tokens_has_none_to_train():
    processor = build_processor(num_location_bins=None)
    assert lora_config(make(processor), processor).trainable_token_indices is None
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        lora_config(make(processor), processor, rank=0)


@pytest.fixture
def example(tiny_nano, tmp_path, monkeypatch):
    """Runs examples/finetune_lora.py as a command, with more options, on two lines of chat."""
    datasets = pytest.importorskip("datasets", reason="readers keep their records in Arrow files of `datasets`")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    Image.new("RGB", (64, 48), (200, 30, 40)).save(tmp_path / "a.png")
    asked = {"role": "user", "content": "Describe and locate every object."}
    told = {"role": "assistant", "content": [{"box": [10, 20, 40, 44], "caption": "a red cup"}]}
    lines = [json.dumps({"images": [name], "messages": [asked, told]}) + "\n" for name in ("a.png", "b.png")]
    (tmp_path / "data.jsonl").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())

    def run(*options):
        fixed = {"--model": tiny_nano, "--out": tmp_path / "adapter", "--batch-size": 2, "--rank": 4, "--steps": 2}
        fixed = [str(each) for pair in fixed.items() for each in pair]
        monkeypatch.setattr("sys.argv", ["finetune_lora.py", str(tmp_path / "data.jsonl"), *fixed, "--cpu", *options])
        return runpy.run_path(str(ROOT / "examples" / "finetune_lora.py"), run_name="__main__")

    return run


def test_example_makes_an_adapter_and_a_merged_model(example, tiny_nano, tmp_path):
    """Chat lines with boxes in; the adapter and the merged checkpoint give equal logits."""
    from argus_tools.export import export

    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    losses = example("--merged", str(merged), "--steps", "8", "--learning-rate", "3e-2")["losses"]
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.5

    processor = ArgusProcessor.from_pretrained(adapter)
    batch, _ = make_batch(processor)
    plain = ArgusForConditionalGeneration.from_pretrained(tiny_nano, dtype=torch.float32).eval()
    with_adapter = PeftModel.from_pretrained(plain, adapter).eval()
    export(merged, tmp_path / "hub")
    whole = ArgusForConditionalGeneration.from_pretrained(tmp_path / "hub", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(whole(**batch).logits, with_adapter(**batch).logits, atol=1e-4, rtol=1e-4)


def test_example_goes_past_a_broken_image_and_says_so(example, tmp_path, capsys):
    (tmp_path / "b.png").write_text("no image")
    assert len(example()["losses"]) == 2
    assert "left out: " in (said := capsys.readouterr().err) and "b.png" in said
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--steps", "0"], "--steps must be at least 1, got 0."),
        (["--batch-size", "-1"], "--batch-size must be at least 1, got -1."),
        (["--rank", "0"], "--rank must be at least 1, got 0."),
        (["--images", "nowhere"], "there is no folder of images nowhere."),
        (["--model", "nowhere"], "--model nowhere: no such folder"),
        (["--learning-rate", "1e30"], "the training has diverged: its last loss is nan; lower --learning-rate."),
        ([], "20 items in a row cannot be used; the last: "),
        (None, "reader chat: there is no "),
    ],
    ids=str,
)
def test_example_says_what_does_not_fit_in_one_sentence(options, message, example, tmp_path, capsys):
    if options == []:
        for name in ("a.png", "b.png"):
            (tmp_path / name).unlink()
    if options is None:
        (tmp_path / "data.jsonl").unlink()
    with pytest.raises(SystemExit) as ended:
        example(*options or ())
    last = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and last.startswith("finetune_lora: ") and message in last
    assert not (tmp_path / "adapter" / "adapter_model.safetensors").exists()
