"""Samples that cannot be used: a run goes past them, the same way however it is cut up, and says what it met."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import NANO, Squares

from argus_tools.cli import main
from argus_tools.train import batches as module
from argus_tools.train.batches import BadSamples, Batches
from argus_tools.train.collate import Collator
from argus_tools.train.config import parse_config
from argus_tools.train.mixture import Mixture
from argus_tools.train.run import run_config

COUNT, STEPS, BATCH, SEED = 16, 4, 4, 3
REASONS = {3: "cannot be used", 6: "there is no image", 9: "no word of the assistant", 12: "tokens of image"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Sixteen lines of chat: the image of one is truncated, of another missing, two are too long."""
    pytest.importorskip("datasets", reason="readers keep their records in Arrow files of `datasets`")
    folder = tmp_path_factory.mktemp("source")
    lines = []
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        file = folder / f"{number}.jpg"
        Image.fromarray(pixels).save(file)
        words = "Describe the image. " * (100 if "word" in REASONS.get(number, "") else 1)
        images = [file.name] * (30 if "tokens" in REASONS.get(number, "") else 1)
        if number == 3:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        if number == 6:
            file.unlink()
        messages = [{"role": "user", "content": words}, {"role": "assistant", "content": f"Number {number}."}]
        lines.append(json.dumps({"images": images, "messages": messages}) + "\n")
    (folder / "data.jsonl").write_text("".join(lines))
    return folder


def config(source, out, bad_samples="skip", **changes):
    chat = {"reader": "chat", "name": "shelf", "weight": 1, "path": "data.jsonl", "cache_dir": str(source / "arrow")}
    stage = {"name": "all", "steps": STEPS, "batch_size": BATCH, "learning_rate": {"text": 1e-2, "connector": 1e-2}}
    raw = {
        "output_dir": str(out),
        "nano": NANO,
        "data": {"root": str(source), "max_length": 100, "bad_samples": bad_samples, "sources": [chat]},
        "stages": [stage],
        "seed": SEED,
        "save_every": 1,
        "log_every": 1,
        "loader_processes": 0,
        "tensorboard": False,
    }
    return parse_config({**raw, **changes})


def left_by(out):
    """(lines of bad samples, lines of the log, weights) of a run."""
    bad, log = (
        [json.loads(line) for line in (out / "all" / name).read_text().splitlines()]
        for name in ("bad_samples.jsonl", "log.jsonl")
    )
    return bad, log, load_file(out / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    with contextlib.redirect_stderr(io.StringIO()) as said:
        run_config(config(source, out, save_every=STEPS), progress=False)
    return *left_by(out), said.getvalue()


def test_a_run_goes_past_them_and_says_so(whole):
    mixture = Mixture([range(COUNT)], [1], STEPS * BATCH, 1000 * SEED)
    expected = []
    for number in range(len(mixture)):
        tried = 0
        while (item := mixture.locate(number, tried)[1]) in REASONS:
            expected.append((1 + number // BATCH, number, item))
            tried += 1
    bad, log, _, said = whole
    assert [(each["step"], each["sample"], each["item"]) for each in bad] == expected
    assert {item for _, _, item in expected} == set(REASONS)  # each kind was met
    for each in bad:
        assert each["source"] == "shelf" and REASONS[each["item"]] in each["reason"]
    counts = [line["bad_samples"] for line in log if "loss" in line]
    assert counts == [sum(each["step"] <= step for each in bad) for step in range(1, STEPS + 1)]
    assert f"stage 'all': {len(expected)} items could not be used, and others stood in for them; " in said


def test_an_interrupted_run_goes_on_bitwise(source, whole, tmp_path):
    """In worker processes, and with the lines that steps behind the checkpoint had left."""
    settings = config(source, tmp_path / "run", loader_processes=1)
    assert run_config(settings, minutes=1e-9, progress=False) is None
    file = tmp_path / "run" / "all" / "bad_samples.jsonl"
    assert {each["step"] for each in whole[0]} >= {1, 2}  # before the interruption and after it
    with open(file, "a") as lines:
        lines.write('{"step": 2, "sample": 5, "source": "shelf", "item": 3, "reason": "was met"}\n{"step": 3, "sam')
    run_config(settings, progress=False)
    bad, log, weights = left_by(tmp_path / "run")
    assert bad == whole[0]
    losses = [[line.get("answer_loss") for line in each if "loss" in line] for each in (log, whole[1])]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS
    assert all(torch.equal(weights[name], value) for name, value in whole[2].items())


@pytest.mark.parametrize("workers", [0, 1])
def test_stop_stops_and_skip_goes_on_from_there(source, whole, tmp_path, workers):
    settings = config(source, tmp_path / "run", "stop", loader_processes=workers)
    with pytest.raises(ValueError) as caught:
        run_config(settings, progress=False)
    first = whole[0][0]
    assert str(caught.value) == f"{first['reason']} (data.bad_samples: skip goes past such samples.)"
    data = dataclasses.replace(settings.data, bad_samples="skip")
    run_config(dataclasses.replace(settings, data=data), progress=False)
    bad, _, weights = left_by(tmp_path / "run")
    assert bad == whole[0] and all(torch.equal(weights[name], value) for name, value in whole[2].items())


def test_too_many_stop_the_run(source, whole, tmp_path, monkeypatch, capsys):
    import yaml

    monkeypatch.setattr(module, "AT_LEAST", 2)
    third = whole[0][2]
    settings = tmp_path / "run.yaml"
    settings.write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(config(source, tmp_path / "run"))))))
    assert main(["train", str(settings)]) == 2
    said = capsys.readouterr().err
    assert "more than 2 and than 5 in 100" in said and "bad_samples.jsonl" in said and "Traceback" not in said
    file = tmp_path / "run" / "all" / "bad_samples.jsonl"
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert written == [each for each in whole[0] if each["step"] <= third["step"]]


def test_a_source_of_which_nothing_can_be_used_stops_at_once(source, tmp_path):
    settings = config(source, tmp_path / "run")
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, max_length=3))
    with pytest.raises(ValueError, match="'shelf', 20 items in a row cannot be used; the last: "):
        run_config(settings, progress=False)


def test_how_many_are_too_many(tmp_path):
    def met(count):
        return [{"sample": i, "source": "shelf", "item": i, "reason": "torn"} for i in reversed(range(count))]

    bad = BadSamples(tmp_path / "bad.jsonl", step=0, batch_size=100)
    bad.add(met(20), 1)
    with pytest.raises(ValueError, match=r"^21 items could not be used for the first 100 .*: torn"):
        bad.add(met(1), 1)
    bad = BadSamples(tmp_path / "bad.jsonl", step=1, batch_size=100)
    assert bad.count == 21
    bad.add(met(29), 10)  # five in a hundred
    with pytest.raises(ValueError, match=r"^51 items could not be used for the first 1000 "):
        bad.add(met(1), 10)
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [line["sample"] for line in lines] == [*range(20), 0, *range(29), 0]
    other = BadSamples(tmp_path / "bad.jsonl", step=1, batch_size=100, writes=False)
    assert other.count == 21 and len((tmp_path / "bad.jsonl").read_text().splitlines()) == 51


def test_batches(processor):
    collator = Collator(processor)
    mixture = Mixture([Squares(8), Squares(8, broken_every=2)], [1, 1], 64, seed=1)
    make = Batches(mixture, collator, ["good", "half"])
    whole = [n for n in range(64) if mixture.locate(n)[0] == 0]
    good = make(whole[:3])
    expected = collator([mixture[n] for n in whole[:3]])
    assert good.keys() == expected.keys() and all(torch.equal(good[name], expected[name]) for name in good)
    broken = next(n for n in range(64) if mixture.locate(n)[0] == 1 and mixture.locate(n)[1] % 2 == 0)
    mended = make([whole[0], broken])
    assert mended["input_ids"].shape[0] == 2
    assert {each["source"] for each in mended["bad_samples"]} == {"half"}
    assert mended["bad_samples"][0]["item"] == mixture.locate(broken)[1]
    pad_token = processor.tokenizer.pad_token
    try:
        processor.tokenizer.pad_token = None  # no sample's fault
        assert "pad token" in make(whole[:2])["failed"]
    finally:
        processor.tokenizer.pad_token = pad_token
