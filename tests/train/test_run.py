"""Runs: stages, frozen parts, what they leave behind, and that an interrupted one goes on as if it never was."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import NANO, square_sample
from transformers import AutoModelForImageTextToText, AutoProcessor

from argus_tools.cli import main
from argus_tools.export import export
from argus_tools.train import run, saving
from argus_tools.train.config import StageConfig, parse_config
from argus_tools.train.run import run_config
from argus_tools.train.trainer import rate_at


def config(out, stages=None, **changes):
    stage = {"name": "all", "steps": 6, "batch_size": 4, "warmup": 2}
    stage["learning_rate"] = {"vision": 1e-2, "connector": 1e-2, "text": 1e-2}
    raw = {
        "output_dir": str(out),
        "nano": NANO,
        "data": {"region_order": "random", "sources": [{"reader": "squares", "weight": 1}]},
        "stages": [{**stage, **change} for change in (stages or [{}])],
        "save_every": 2,
        "log_every": 1,
        "loader_processes": 0,
        "tensorboard": False,
    }
    return parse_config({**raw, **changes})


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("settings", [{}, {"bf16": True}, {"optimizer": "muon"}], ids=str)
def test_a_run_goes_on_bitwise(tmp_path, squares, settings):
    """Six steps, and one step that stops and goes on: the same weights and the same losses, bit for bit."""
    whole = run_config(config(tmp_path / "whole", **settings), progress=False)
    part = config(tmp_path / "part", **settings)
    assert run_config(part, minutes=1e-9, progress=False) is None  # stops after its first step
    assert [p.name for p in (tmp_path / "part" / "all").glob("checkpoint-*")] == ["checkpoint-1"]
    parted = run_config(part, progress=False)
    one, two = weights(whole), weights(parted)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    logs = [(tmp_path / name / "all" / "log.jsonl").read_text().splitlines() for name in ("whole", "part")]
    losses = [[json.loads(line).get("answer_loss") for line in log] for log in logs]
    assert losses[0] == losses[1] and len([loss for loss in losses[0] if loss]) == 6
    assert run_config(part, progress=False) == parted  # done: nothing is trained again


def test_stages_freeze_what_has_no_learning_rate(tmp_path, squares):
    stages = [
        {"name": "connector", "steps": 2, "learning_rate": {"connector": 1e-2}},
        {"name": "text", "steps": 2, "learning_rate": {"text": 1e-2, "connector": 0.0}},
    ]
    folder = run_config(config(tmp_path / "run", stages), progress=False)
    start, first, last = (weights(tmp_path / "run" / name) for name in ("start", "connector/last", "text/last"))
    for name in start:
        part = "connector" if ".connector." in name else "vision" if ".vision_model." in name else "text"
        assert torch.equal(start[name], first[name]) == (part != "connector"), name
        assert torch.equal(first[name], last[name]) == (part != "text"), name
    assert all(torch.equal(value, weights(folder)[name]) for name, value in last.items())


def test_what_a_run_leaves_loads_and_exports(tmp_path, squares):
    folder = run_config(config(tmp_path / "run", tensorboard=True), progress=False)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["all", "model", "run.json", "start"]
    assert not list((tmp_path / "run" / "all").glob("checkpoint-*"))
    assert list((tmp_path / "run" / "all").rglob("events.out.tfevents*"))
    raw = json.loads((folder / "config.json").read_text())
    assert raw["architectures"] == ["ArgusForConditionalGeneration"] and "transformers_version" not in raw
    export(folder, tmp_path / "hub")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    regions = model.dense_caption([torch.zeros(3, 32, 32, dtype=torch.uint8)], processor=processor, max_new_tokens=8)
    assert set(regions[0]) == {"boxes", "captions", "scores", "unparsed"}


def test_another_run_in_the_same_folder_is_refused(tmp_path, squares):
    first = config(tmp_path / "run", [{"steps": 1}])
    run_config(first, progress=False)
    run_config(dataclasses.replace(first, log_every=3), progress=False)  # what changes no weights may differ
    with pytest.raises(ValueError, match=r"other settings \(seed differ\)"):
        run_config(dataclasses.replace(first, seed=1), progress=False)
    with pytest.raises(ValueError, match="stages differ"):
        run_config(config(tmp_path / "run", [{"steps": 2}]), progress=False)
    longer = dataclasses.replace(first, stages=(*first.stages, dataclasses.replace(first.stages[0], name="more")))
    before = weights(tmp_path / "run" / "model")
    after = weights(run_config(longer, progress=False))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    run_config(config(tmp_path / "run", [{"steps": 2}]), progress=False, restart=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no run of argus train"):
        run_config(config(tmp_path / "other"), progress=False)
    with pytest.raises(ValueError, match="holds no run of argus train"):
        run_config(config(tmp_path / "other"), progress=False, restart=True)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


def test_a_checkpoint_that_was_not_written_to_its_end_is_left(tmp_path, squares):
    """As after a kill in the middle: trainer_state.json comes last. The run goes on from the one before."""
    whole = run_config(config(tmp_path / "whole"), progress=False)
    settings = config(tmp_path / "part", save_every=1)
    assert run_config(settings, minutes=1e-9, progress=False) is None
    broken = tmp_path / "part" / "all" / "checkpoint-2"
    shutil.copytree(tmp_path / "part" / "all" / "checkpoint-1", broken)
    (broken / "trainer_state.json").write_text('{"best_')
    parted = run_config(settings, progress=False)
    one, two = weights(whole), weights(parted)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("moment", ["while the old model goes", "at the end of the second stage"])
def test_a_kill_leaves_no_model_of_fewer_stages(tmp_path, squares, monkeypatch, moment):
    one = config(tmp_path / "run", [{"steps": 1}])
    run_config(one, progress=False)
    two = dataclasses.replace(one, stages=(*one.stages, dataclasses.replace(one.stages[0], name="more")))
    remove, run_stage = shutil.rmtree, run._run_stage

    def killed_in_between(path, *arguments, **options):
        if Path(path).is_dir() and "model" in Path(path).name and Path(path).parent == tmp_path / "run":
            (Path(path) / "config.json").unlink()
            raise KeyboardInterrupt
        remove(path, *arguments, **options)

    def killed_after(*arguments):
        assert run_stage(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment.startswith("while"):
            patch.setattr(run.shutil, "rmtree", killed_in_between)
        else:
            patch.setattr(run, "_run_stage", killed_after)
        with pytest.raises(KeyboardInterrupt):
            run_config(two, progress=False)
    model, stage = weights(run_config(two, progress=False)), weights(tmp_path / "run" / "more" / "last")
    assert all(torch.equal(value, model[name]) for name, value in stage.items())
    AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "model")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["all", "model", "more", "run.json", "start"]


def test_a_start_that_was_not_copied_to_its_end_is_made_again(tmp_path, squares, monkeypatch):
    def killed(source, target):
        Path(target).mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run.shutil, "copytree", killed)
        run_config(config(tmp_path / "run", [{"steps": 1}]), progress=False)
    assert run_config(config(tmp_path / "run", [{"steps": 1}]), progress=False).is_dir()


def test_what_a_run_is_stays_known_while_it_is_written_again(tmp_path, monkeypatch):
    file = tmp_path / "run.json"
    saving.write_json(file, {"seed": 1})
    write = Path.write_text

    def killed(self, text, **how):
        write(self, text[: len(text) // 2], **how)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        saving.write_json(file, {"seed": 2})
    assert json.loads(file.read_text()) == {"seed": 1} and list(tmp_path.iterdir()) == [file]


def test_weights_are_on_the_disk_before_the_checkpoints_go(tmp_path, squares, monkeypatch):
    flushed, remove, flush = set(), shutil.rmtree, os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.add(os.fstat(handle).st_ino) or flush(handle))
    seen = []

    def look(path, *arguments, **options):
        if Path(path).name.startswith("checkpoint-"):
            last = Path(path).parent / "last"
            seen.extend(each.stat().st_ino in flushed for each in (*last.rglob("*"), last, last.parent))
        remove(path, *arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", look)
    run_config(config(tmp_path / "run", [{"steps": 2}]), progress=False)
    assert len(seen) > 5 and all(seen)


def test_nothing_is_written_or_deleted_before_all_is_known_to_fit(tmp_path, squares):
    good = config(tmp_path / "run", [{"steps": 1}])
    for change in (
        {"data": dataclasses.replace(good.data, region_order="readin")},
        {"data": dataclasses.replace(good.data, augmentation={"flipp": 1})},
        {"nano": {**NANO, "vission": {}}},
        {"nano": {**NANO, "vision": {**NANO["vision"], "hiden": 3}}},
        {"nano": {**NANO, "num_location_bins": 0}},
    ):
        with pytest.raises((ValueError, TypeError)):
            run_config(dataclasses.replace(good, **change), progress=False)
        assert not (tmp_path / "run").exists()
    folder = run_config(good, progress=False)
    before = weights(folder)
    with pytest.raises(ValueError, match="readin"):
        bad = dataclasses.replace(good, data=dataclasses.replace(good.data, region_order="readin"))
        run_config(bad, progress=False, restart=True)
    assert all(torch.equal(value, weights(folder)[name]) for name, value in before.items())

    precious = tmp_path / "precious"
    precious.mkdir()
    raw = json.loads((tmp_path / "run" / "run.json").read_text())
    raw["stages"][0]["name"] = "../precious"
    (tmp_path / "run" / "run.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="which no run has"):
        run_config(good, progress=False, restart=True)
    assert precious.is_dir()


@pytest.mark.parametrize("weighting", ["tokens", "root"])
def test_the_loss_does_not_depend_on_accumulation(tmp_path, squares, weighting):
    """fp32: two steps of four samples, at once and one by one; both losses, weighted and not."""
    logs = []
    for parts in (1, 4):
        stage = {"steps": 2, "accumulation": parts, "naming_weight": 0.5}
        settings = config(tmp_path / str(parts), [stage])
        settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, answer_weighting=weighting))
        run_config(settings, progress=False)
        lines = [json.loads(line) for line in (tmp_path / str(parts) / "all" / "log.jsonl").read_text().splitlines()]
        logs.append([(line["loss"], line["grad_norm"]) for line in lines if "loss" in line])
    assert logs[0] == [pytest.approx(pair, rel=1e-3) for pair in logs[1]] and len(logs[0]) == 2


def test_naming_alone_needs_objects(tmp_path, squares, monkeypatch):
    monkeypatch.setattr(
        "tiny_runs.Squares.__getitem__", lambda self, i: dataclasses.replace(square_sample(i), objects=())
    )
    stage = {"steps": 1, "answer_weight": 0.0, "naming_weight": 1.0}
    with pytest.raises(ValueError, match="no object of a step's samples is known"):
        run_config(config(tmp_path / "run", [stage]), progress=False)


def test_parts_learn_at_their_own_rates_and_vectors_do_not_decay(tmp_path, squares, monkeypatch):
    seen = []
    monkeypatch.setattr(run.ArgusTrainer, "train", lambda self, **_: seen.append(self.create_optimizer()) or stop())

    def stop():
        raise KeyboardInterrupt

    stages = [{"learning_rate": {"vision": 1e-3, "text": 1e-4}}]
    with pytest.raises(KeyboardInterrupt):
        run_config(config(tmp_path / "run", stages), progress=False)
    groups = [(g["lr"], g["weight_decay"], {p.ndim >= 2 for p in g["params"]}) for g in seen[0].param_groups]
    assert groups == [(1e-3, 0.05, {True}), (1e-3, 0.0, {False}), (1e-4, 0.05, {True}), (1e-4, 0.0, {False})]


def test_muon_steps_the_matrices_of_layers_and_adamw_the_rest(tmp_path, squares, monkeypatch):
    seen = []

    def stop(self, **_):
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        groups = self.create_optimizer().param_groups
        seen.append(
            {muon: {names[p] for g in groups if g["muon"] is muon for p in g["params"]} for muon in (False, True)}
        )
        raise KeyboardInterrupt

    monkeypatch.setattr(run.ArgusTrainer, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        run_config(config(tmp_path / "run", optimizer="muon"), progress=False)
    assert seen[0][True] and all(".layers." in name or "connector" in name for name in seen[0][True])
    assert all(name.endswith("weight") for name in seen[0][True])
    assert {name for name in seen[0][False] if "embed" in name} and not any("proj.weight" in n for n in seen[0][False])


def test_schedules():
    def rates(**settings):
        stage = StageConfig("x", 100, 1, {"text": 1.0}, **settings)
        return [rate_at(stage, step) for step in range(101)]

    cosine = rates(warmup=10, schedule="cosine", final=0.1)
    assert cosine[:10] == sorted(cosine[:10]) and cosine[10] == pytest.approx(1, abs=0.01)
    assert cosine[10:] == sorted(cosine[10:], reverse=True) and cosine[-1] == pytest.approx(0.1)
    assert rates(schedule="linear", final=0.0)[50] == pytest.approx(0.5)
    decay = rates(schedule="decay", decay_share=0.2, final=0.0)
    assert decay[:81] == pytest.approx([1.0] * 81) and decay[90] == pytest.approx(0.5) and decay[-1] == 0.0
    assert set(rates(schedule="constant")) == {1.0}


def test_the_command_line_trains(tmp_path, squares, capsys):
    import yaml

    raw = json.loads(json.dumps(dataclasses.asdict(config(tmp_path / "run"))))
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(raw))
    assert main(["train", str(file), "--set", "stages.0.steps=1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["model"] == str(tmp_path / "run" / "model")
    for arguments, message in (
        (["--set", "stages.0.steps"], "NAME=VALUE"),
        (["--set", "data.sources.0.reader=shelf", "--output-dir", str(tmp_path / "new")], "shelf"),
        (["--set", "stages.0.batch_size=0"], "at least 1"),
        (["--minutes", "0"], "above 0"),
        (["--set", "seed=["], "not valid YAML"),
        (["--set", f"model={tmp_path / 'nowhere'}", "--output-dir", str(tmp_path / "new")], "nowhere"),
    ):
        assert main(["train", str(file), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
