"""TRL's SFTTrainer on an exported folder, by path: what it learns from, saving, LoRA; as a stranger to this project."""

import json

import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image

pytest.importorskip("trl", reason="TRL is not installed")
pytest.importorskip("peft", reason="LoRA is PEFT's")
pytest.importorskip("datasets", reason="TRL takes data sets of `datasets`")

import datasets
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

from argus_tools.export import export
from argus_tools.train.collate import Collator
from argus_tools.train.lora import add_lora, lora_config
from argus_tools.train.samples import Sample, Turn

BOXED = "<loc_3><loc_4><loc_30><loc_40>a red block"
NEEDS_5_18 = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="TRL takes assistant_only_loss with images from transformers 5.18 on",
)


@pytest.fixture(scope="module")
def hub(tiny_nano, tmp_path_factory):
    """An exported folder with its code."""
    return export(tiny_nano, tmp_path_factory.mktemp("hub") / "argus-tiny")


def picture(colour):
    return Image.new("RGB", (40, 32), colour)


def rows(kind: str) -> datasets.Dataset:
    """One image and one turn; two images and two turns; text alone. As messages or as prompt and completion."""
    conversations = [
        ([picture("red")], ["Describe and locate every object.", BOXED]),
        ([picture("red"), picture("blue")], ["Compare.", "They differ.", "In what?", "Colour."]),
        ([], ["Say hello.", "Hello."]),
        ([picture("green")], ["What color is it?", "Green."]),
    ]
    result = []
    for images, texts in conversations:
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        parts = {"messages": messages} if kind == "messages" else {"prompt": messages[:-1], "completion": messages[-1:]}
        result.append({"images": images, **parts})
    return datasets.Dataset.from_list(result)


def make_trainer(model, kind: str, folder, steps: int = 4, **options) -> SFTTrainer:
    settings = {"max_length": None, "learning_rate": 1e-2, **options}
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        report_to="none",
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        trust_remote_code=True,
        **settings,
    )
    processor = None if isinstance(model, str) else AutoProcessor.from_pretrained(model.name_or_path)
    return SFTTrainer(model=model, args=arguments, train_dataset=rows(kind), processing_class=processor)


def losses(trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def learnt(batch, tokenizer) -> list[str]:
    """What each row's labels say."""
    return [tokenizer.decode(row[row != -100], skip_special_tokens=True).strip() for row in batch["labels"]]


def test_trains_and_saves_from_the_path_alone(hub, tmp_path):
    trainer = make_trainer(str(hub), "prompt", tmp_path, gradient_checkpointing=True)
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    tokenizer = trainer.processing_class.tokenizer
    assert learnt(batch, tokenizer) == [BOXED, "Colour.", "Hello.", "Green."]
    assert not (batch["labels"] == trainer.processing_class.image_token_id).any()

    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.5
    assert trainer.state.log_history[0]["mean_token_accuracy"] <= 1
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved", trust_remote_code=True).eval()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, trainer.model.eval()(**inputs).logits)
    assert export(tmp_path / "saved", tmp_path / "exported").is_dir()


@NEEDS_5_18
def test_assistant_only_loss_learns_what_our_collator_learns(hub, tmp_path):
    trainer = make_trainer(str(hub), "messages", tmp_path, assistant_only_loss=True)
    processor = trainer.processing_class
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    labels = [row[row != -100].tolist() for row in batch["labels"]]
    samples = [
        Sample((picture("red"),), ((Turn("Describe and locate every object.", BOXED),),)),
        Sample((picture("red"), picture("blue")), ((Turn("Compare.", "They differ."), Turn("In what?", "Colour.")),)),
        Sample((), ((Turn("Say hello.", "Hello."),),)),
        Sample((picture("green"),), ((Turn("What color is it?", "Green."),),)),
    ]
    ours = Collator(processor)(samples)["labels"]
    assert labels == [row[row != -100].tolist() for row in ours]
    assert all(row[-1] == processor.tokenizer.eos_token_id for row in labels)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.5


def test_first_loss_is_the_models_own(hub, tmp_path):
    """TRL's chunked output head over the whole batch, against the model's forward with labels."""
    trainer = make_trainer(str(hub), "prompt", tmp_path, steps=1)
    model = AutoModelForImageTextToText.from_pretrained(hub, trust_remote_code=True).eval()
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    with torch.no_grad():
        expected = model(**batch).loss.item()
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", ["prompt", "messages"])
def test_image_tokens_are_never_cut_silently(kind, hub, tmp_path):
    trainer = make_trainer(str(hub), kind, tmp_path, max_length=8)
    with pytest.raises(ValueError, match=r"image tokens and tiles do not match|max_length=8 would cut into"):
        trainer.train()


def by_hand(model, processor):
    """As README shows it, without this project's own code."""
    ids = [token_id for token, token_id in processor.tokenizer.get_vocab().items() if token.startswith("<loc_")]
    config = LoraConfig(
        r=4,
        target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
        trainable_token_indices={"embed_tokens": sorted(ids)},
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    model.get_output_embeddings().bias = None  # TRL asks for it, PEFT's wrapper of a tied head has none
    return model


def by_us(model, processor):
    return add_lora(model, lora_config(model, processor, rank=4, dropout=0.0))


@pytest.mark.parametrize("adapt", [by_us, by_hand])
def test_lora_with_location_tokens(adapt, hub, tmp_path):
    """Adapters and the location tokens' rows learn, nothing else; what is saved gives the same logits again."""
    processor = AutoProcessor.from_pretrained(hub, trust_remote_code=True)
    base = AutoModelForImageTextToText.from_pretrained(hub, trust_remote_code=True)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = adapt(base, processor)
    trainer = make_trainer(model, "prompt", tmp_path, learning_rate=3e-2)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.3
    after = {name.replace(".base_layer", "").replace(".token_adapter", ""): v for name, v in base.state_dict().items()}
    assert not [name for name, value in before.items() if not torch.equal(value, after[name])]
    delta = next(value for name, value in model.named_parameters() if "trainable_tokens_delta" in name)
    original = next(value for name, value in model.named_buffers() if "trainable_tokens_original" in name)
    moved = (delta != original).any(1).nonzero().flatten().tolist()
    assert set(moved) >= {3, 4, 30, 40}  # the tokens that were shown; all others by the softmax

    trainer.save_model(str(tmp_path / "adapter"))
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4
    fresh = AutoModelForImageTextToText.from_pretrained(hub, trust_remote_code=True)
    again = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    del batch["labels"]
    with torch.no_grad():
        logits = model.eval()(**batch).logits
        torch.testing.assert_close(again(**batch).logits, logits)
        torch.testing.assert_close(again.merge_and_unload()(**batch).logits, logits, atol=1e-4, rtol=1e-4)
