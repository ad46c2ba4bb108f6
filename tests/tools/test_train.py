"""The training of argus-nano in small: what is learnt from, that it learns, and that it goes on where it stopped."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

from argus_tools.evaluate.models import ArgusAnswerer
from argus_tools.evaluate.scenes import score_scenes
from argus_tools.scenes import Scene, SceneObject, make_example, render_scene
from argus_tools.train.batches import (
    IGNORED,
    BatchPlan,
    attention_pattern,
    cell_labels,
    encode_exchange,
    encode_prefix,
    make_batch,
    scene_tiles,
)
from argus_tools.train.curve import draw_curve
from argus_tools.train.nano import build_nano, nano_config
from argus_tools.train.publish import publish
from argus_tools.train.tokenizer import BOS, EOS, PAD, save_tokenizer, train_tokenizer
from argus_tools.train.train import (
    CHECKPOINT,
    TrainState,
    batch_losses,
    cell_weight_at,
    learning_rate_at,
    make_optimizer,
    train,
    train_step,
)
from modeling_argus import ArgusConfig
from processing_argus import ArgusImageProcessor, ArgusProcessor

PLAN = BatchPlan(scenes=4, tile_size=32, tokens_per_tile=4, bins=64)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


@pytest.fixture(scope="module")
def config(tokenizer):
    small = nano_config(tokenizer).to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return ArgusConfig(
        vision_config={**vision, "image_size": 32, "patch_size": 8},
        text_config={**text, "num_key_value_heads": 1, "vocab_size": tokenizer.get_vocab_size(), "rope_theta": 10000.0},
        image_token_id=small["image_token_id"],
        pixel_unshuffle_factor=2,
        tie_word_embeddings=True,
        **{name: small[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
    )


@pytest.fixture(scope="module")
def processor(tokenizer):
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    images = ArgusImageProcessor(tile_size=32, max_tiles=1, resample=3)
    return ArgusProcessor(images, fast, image_seq_length=4, prompt_layout="native", num_location_bins=64)


def test_nano_keeps_its_promises(tokenizer):
    model = build_nano(tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters <= 7_000_000 and parameters * 2 < 15_000_000
    assert tokenizer.get_vocab_size() - 64 <= 4000
    assert len(tokenizer.encode("<loc_0><loc_63>").ids) == 2
    text = "Zoë's 3 cats – 猫\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_training_reads_what_the_processor_writes(tokenizer, processor):
    """The ids and labels of each branch are those of the processor's chat template, and the tiles are its tiles."""
    scene = render_scene(3, height=32, width=32)
    rng = np.random.default_rng(1)
    for task in ("caption", "detect", "dense_caption", "answer"):
        first, second = make_example(scene, rng, task, 64), make_example(scene, rng, "answer", 64)
        ids, labels = encode_exchange(tokenizer, [first, second])
        chat = []
        for example, content in ((first, [{"type": "image", "image": scene.image}]), (second, [])):
            chat.append({"role": "user", "content": [*content, {"type": "text", "text": example.prompt}]})
            chat.append({"role": "assistant", "content": [{"type": "text", "text": example.answer}]})
        inputs = processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
        )
        prefix = encode_prefix(tokenizer, 1, 4)
        whole = inputs["input_ids"][0].tolist()
        assert whole[: len(prefix + ids)] == prefix + ids
        assert tokenizer.decode(whole[len(prefix + ids) :]) == "\n"
        mask = inputs["assistant_masks"][0].tolist()[len(prefix) : len(prefix + ids)]
        assert [int(label != IGNORED) for label in labels] == mask
        assert [label for label in labels if label != IGNORED] == [i for i, m in zip(ids, mask) if m]
        assert np.array_equal(inputs["pixel_values"].numpy(), scene_tiles(scene, 1, 1, 32))


def test_several_tiles_are_the_processors_tiles(processor):
    scene = render_scene(5, height=64, width=96)
    tiles = scene_tiles(scene, 2, 3, 32)
    theirs = processor.image_processor(scene.image, max_tiles=6, return_tensors="pt")["pixel_values"].numpy()
    assert tiles.shape == theirs.shape == (7, 3, 32, 32)
    assert np.array_equal(tiles[:6], theirs[:6])
    assert np.abs(tiles[6].astype(int) - theirs[6].astype(int)).max() <= 2


def test_batches_are_pure_functions_and_hold_several_tiles_when_asked(tokenizer):
    for plan in (PLAN, dataclasses.replace(PLAN, multi_tile_every=1, scenes=8)):
        one, two = make_batch(plan, tokenizer, 11), make_batch(plan, tokenizer, 11)
        assert all(torch.equal(one[name], two[name]) for name in one)
        other = make_batch(plan, tokenizer, 12)
        assert one["pixel_values"].shape != other["pixel_values"].shape or not torch.equal(
            one["pixel_values"], other["pixel_values"]
        )
        image_tokens = (one["input_ids"] == tokenizer.token_to_id("<image>")).sum()
        assert one["pixel_values"].dtype == torch.uint8
        assert image_tokens == one["pixel_values"].shape[0] * plan.tokens_per_tile
    assert one["pixel_values"].shape[0] > one["input_ids"].shape[0]


def test_a_branch_is_worth_the_same_alone(tokenizer, config):
    """The loss of a packed row is that of its branches, each as a prompt of its own."""
    model = build_nano(tokenizer, config).eval()
    batch = make_batch(dataclasses.replace(PLAN, scenes=1), tokenizer, 0)
    segments, labels = batch["segments"][0], batch["labels"][0]
    packed = batch_losses(model, batch, {"labels": 1, "weights": 1, "cells": 1})["loss"].item()
    apart = 0.0
    for number in range(1, int(segments.max()) + 1):
        keep = (segments == 0) | (segments == number)
        row = model(input_ids=batch["input_ids"][:, keep], pixel_values=batch["pixel_values"]).logits[0]
        wanted = labels[keep] != IGNORED
        wanted &= segments[keep] == number
        apart += torch.nn.functional.cross_entropy(row[wanted], labels[keep][wanted], reduction="sum").item()
    assert packed == pytest.approx(apart, rel=1e-4)
    assert attention_pattern(batch["segments"]).any(-1).all()


def test_an_answer_counts_by_the_root_of_its_length(tokenizer):
    batch = make_batch(PLAN, tokenizer, 0)
    labels, segments, weights = (batch[name][0] for name in ("labels", "segments", "weights"))
    assert ((weights > 0) == (labels != IGNORED)).all()
    for number in range(1, int(segments.max()) + 1):
        length = int(((segments == number) & (labels != IGNORED)).sum())
        assert weights[segments == number].sum().item() == pytest.approx(length**0.5, rel=1e-5)


def test_visual_tokens_are_named_by_what_lies_there(tokenizer):
    objects = [SceneObject("cat", None, (0, 0, 50, 100)), SceneObject("star", "red", (50, 50, 100, 100))]
    scene = Scene(np.zeros((100, 100, 3), np.uint8), objects, "plain", "black")
    names = [tokenizer.id_to_token(i).removeprefix("Ġ") for i in cell_labels(tokenizer, scene, 16)]
    assert names == ["cat", "cat", ".", "."] * 2 + ["cat", "cat", "red", "star", "cat", "cat", "star", "red"]
    batch = make_batch(PLAN, tokenizer, 0)
    assert torch.equal(batch["cells"] != IGNORED, batch["input_ids"] == tokenizer.token_to_id("<image>"))
    assert (batch["labels"][batch["cells"] != IGNORED] == IGNORED).all()
    assert cell_weight_at(0.0) == 1.0 and cell_weight_at(0.6) == cell_weight_at(1.0) == 0.0


def test_naming_visual_tokens_reaches_the_weights_by_its_weight(tokenizer, config):
    batch = make_batch(PLAN, tokenizer, 0)
    results = []
    for weight in (0.0, 1.0):
        model = build_nano(tokenizer, config).train()
        results.append(train_step(model, make_optimizer(model), batch, 0.0, bf16=False, cell_weight=weight))
    assert results[0]["loss"] == results[1]["loss"] and results[0]["cell_loss"] == results[1]["cell_loss"]
    assert results[0]["grad_norm"] < results[1]["grad_norm"]
    assert results[0]["cell_loss"] == pytest.approx(np.log(tokenizer.get_vocab_size()), rel=0.1)  # knows nothing yet


def test_training_reduces_the_loss(tokenizer, config):
    torch.manual_seed(0)
    model = build_nano(tokenizer, config).train()
    optimizer = make_optimizer(model)
    batch = make_batch(PLAN, tokenizer, 0)
    losses = [train_step(model, optimizer, batch, 1e-2, bf16=False)["loss"] for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]


def test_threads_give_the_gradients_of_one(tokenizer, config):
    from concurrent.futures import ThreadPoolExecutor

    batch = make_batch(PLAN, tokenizer, 1)
    results = []
    for workers in (1, 2):
        model = build_nano(tokenizer, config).train()
        with ThreadPoolExecutor(workers) as pool:
            results.append(train_step(model, make_optimizer(model), batch, 0.0, pool=pool, workers=workers, bf16=False))
    assert results[0] == pytest.approx(results[1], rel=1e-4)


def test_a_run_goes_on_where_it_stopped(tmp_path, config):
    """Three steps and three more from the checkpoint give the weights of six steps."""
    options = {
        "plan": PLAN,
        "config": config,
        "warmup": 2,
        "workers": 1,
        "bf16": False,
        "loader_processes": 0,
        "log_every": 1,
    }
    # The budget, and with it the learning rates, must be the same: the first part is stopped by its batches.
    whole = train(tmp_path / "whole", max_steps=6, **options)
    part = train(tmp_path / "part", max_steps=6, stop_after=3, **options)
    assert (whole.step, part.step) == (6, 3)
    assert train(tmp_path / "part", max_steps=6, **options).step == 6
    one, two = (load_file(tmp_path / name / CHECKPOINT) for name in ("whole", "part"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert any(name.startswith("optimizer.") for name in one)
    log = [json.loads(line) for line in (tmp_path / "part" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]


def test_a_run_needs_a_budget(tmp_path):
    with pytest.raises(ValueError, match="how long"):
        train(tmp_path)


def test_the_learning_rate_warms_up_and_falls():
    rates = [learning_rate_at(step / 100, step, 1e-3, 10) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4, rel=0.01) and max(rates) < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] == pytest.approx(2e-5)


def test_a_run_is_published_as_a_folder_that_loads(tmp_path, config):
    run, out = tmp_path / "run", tmp_path / "hub"
    state = train(run, max_steps=1, plan=PLAN, config=config, workers=1, loader_processes=0)
    assert state == dataclasses.replace(
        TrainState(), step=1, scenes=4, exchanges=state.exchanges, seconds=state.seconds
    )
    publish(run, out)
    model = AutoModelForImageTextToText.from_pretrained(out, dtype="auto")
    processor = AutoProcessor.from_pretrained(out)
    assert model.dtype == torch.bfloat16 and processor.num_location_bins == 64
    assert json.loads((out / "training" / "config.json").read_text())["state"]["step"] == 1
    scenes = [render_scene(i, "val", height=32, width=32) for i in range(2)]
    scores = score_scenes(ArgusAnswerer(model.float().eval(), processor, max_new_tokens=32), scenes)
    assert scores["scenes"] == 2 and set(scores) >= {"caption", "answer", "detect", "dense_caption"}
    assert 0.0 <= scores["dense_caption"]["f1_50"] <= 1.0


def test_the_tokenizer_files_load(tmp_path, tokenizer):
    from transformers import AutoTokenizer

    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (BOS, EOS, PAD)
    assert loaded.padding_side == "left" and len(loaded) == tokenizer.get_vocab_size()
    assert loaded("<image>User: a cat")["input_ids"] == tokenizer.encode("<image>User: a cat").ids


def test_a_curve_needs_two_points(tmp_path):
    line = {"scenes": 10, "loss": 2.0}
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match="needs two"):
        draw_curve(log, tmp_path / "curve.png")
    log.write_text("".join(json.dumps({**line, "scenes": n, "cell_loss": 1.0}) + "\n" for n in range(1, 30)))
    draw_curve(log, tmp_path / "curve.png")
    colours = {colour for _, colour in Image.open(tmp_path / "curve.png").convert("RGB").getcolors(1 << 20)}
    assert {(30, 90, 200), (220, 120, 30)} <= colours
