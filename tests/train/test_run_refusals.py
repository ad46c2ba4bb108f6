"""What `argus train` refuses before it writes or deletes anything, and what of an earlier run it goes on with."""

import dataclasses
import json
import os
import shutil

import pytest
import torch
import yaml
from test_run import config
from tiny_runs import NANO

from argus_tools.cli import main
from argus_tools.train import run
from argus_tools.train.config import load_config
from argus_tools.train.run import run_config, training_arguments
from argus_tools.train.run_folder import check_run, fingerprints, open_run
from argus_tools.train.trainer import OwnIntervals

PRINTS = {"model": "m", "sources": [[64, None]]}


def opened(out, stages, begun=(), done=()):
    """The folder of a run whose stages stand there as if they had been begun, or done."""
    settings = config(out, stages)
    open_run(settings, out, PRINTS)
    for name in (*begun, *done):
        (out / name / ("last" if name in done else "checkpoint-1")).mkdir(parents=True)
    return settings


def named(*names, **same):
    return [{"name": name, **same} for name in names]


@pytest.mark.parametrize(
    "names", [["new", "a", "b"], ["b"], ["b", "a"], ["a", "new", "b"], ["a"], ["a", "c", "b"]], ids="-".join
)
def test_stages_up_to_the_last_one_begun_stay(tmp_path, names):
    opened(tmp_path / "run", named("a", "b", "c"), done=["a"], begun=["b"])
    with pytest.raises(ValueError, match="stages differ"):
        check_run(config(tmp_path / "run", named(*names)), tmp_path / "run", PRINTS)


def test_stages_behind_the_last_one_begun_are_free_and_a_constant_one_may_be_longer(tmp_path):
    same = {"schedule": "constant"}
    opened(tmp_path / "run", named("a", "b", "c", **same), done=["a"], begun=["b"])
    for names in (["a", "b"], ["a", "b", "new", "c"]):
        check_run(config(tmp_path / "run", named(*names, **same)), tmp_path / "run", PRINTS)
    longer = named("a", "b", "c", **same)
    longer[1]["steps"] = 60
    check_run(config(tmp_path / "run", longer), tmp_path / "run", PRINTS)
    longer[0]["steps"] = 60  # done
    with pytest.raises(ValueError, match="stages differ"):
        check_run(config(tmp_path / "run", longer), tmp_path / "run", PRINTS)


def test_restart_deletes_every_stage_and_nothing_else(tmp_path):
    out = tmp_path / "run"
    opened(out, named("a"), done=["a", "older"], begun=["oldest"])
    for name in ("start", "model", "logged/x", "notes", "board/tensorboard"):
        (out / name).mkdir(parents=True)
    (out / "logged" / "log.jsonl").write_text("")
    (out / "notes" / "thesis.txt").write_text("mine")
    open_run(config(out, named("a")), out, PRINTS, restart=True)
    assert sorted(path.name for path in out.iterdir()) == ["notes", "run.json"]


def test_other_data_or_another_start_is_noticed(tmp_path, tiny_nano):
    out = tmp_path / "run"
    settings = opened(out, named("a"), begun=["a"])
    check_run(settings, out, PRINTS)
    with pytest.raises(ValueError, match="the data of source 'squares' differ"):
        check_run(settings, out, {**PRINTS, "sources": [[65, None]]})
    with pytest.raises(ValueError, match="the files of nano differ"):
        check_run(settings, out, {**PRINTS, "model": "n"})
    raw = json.loads((out / "run.json").read_text())
    del raw["fingerprints"]  # of before they were kept
    (out / "run.json").write_text(json.dumps(raw))
    check_run(settings, out, {**PRINTS, "model": "n"})

    shutil.copytree(tiny_nano, tmp_path / "model")
    settings = dataclasses.replace(settings, model=str(tmp_path / "model"))
    before = fingerprints(settings, [range(3)], None)
    assert before == fingerprints(settings, [range(3)], None) != fingerprints(settings, [range(4)], None)
    os.utime(tmp_path / "model" / "model.safetensors", (1, 1))
    assert before["model"] != fingerprints(settings, [range(3)], None)["model"]
    assert fingerprints(settings, [range(3)], "a1b2")["model"] == "a1b2"


REFUSED = {
    "data.box_format=foo": "data.box_format is 'foo'; it can be location_tokens, plain_text",
    "attention=foo": "attention is 'foo'; it can be eager, sdpa",
    "data.max_length=3": "of source 'scenes', 20 items in a row cannot be used; the last: max_length=3",
    "nano.vision=5": "nano.vision must hold keys and values, got 5",
    "nano.vision.hidden_size=x": "nano.vision.hidden_size must be of type int, got 'x'",
    "nano.vision.hiden=3": "nano.vision has an unknown key 'hiden'; it can have hidden_size",
    "nano.text.hidden_act=foo": "nano: no model can be made of",
    "nano.foo=1": "nano has an unknown key 'foo'; it can have vision, text, num_location_bins, box_format, max_tiles",
    "nano.seed=3": "nano has an unknown key 'seed'",
    "nano.num_location_bins=x": "nano.num_location_bins must be of type int, got 'x'",
    "nano.num_location_bins=0": "nano.num_location_bins must be at least 1, got 0",
    "nano.box_format=foo": "nano.box_format is 'foo'; it can be location_tokens",
    "data.sources.0.options.height=abc": "scenes: height must be of type int, got 'abc'",
    "data.sources.0.options.width=0": "scenes: width must be at least 16, got 0",
    "data.sources.0.options.count=abc": "scenes: count must be of type int, got 'abc'",
    "data.sources.0.options.styles=noto": "scenes: styles must be a list, got 'noto'",
    "data.sources.0.options.conversations=answer": "scenes: conversations must be a list, got 'answer'",
    "model=/nonexist": "model: '/nonexist' cannot be loaded; it can be nano, a checkpoint's folder or",
}


def test_a_finished_model_outlives_every_mistake(tmp_path, capsys):
    scenes = {"count": 100, "height": 32, "width": 32, "conversations": ["answer"]}
    data = {"sources": [{"reader": "scenes", "weight": 1, "options": scenes}]}
    settings = opened(tmp_path / "run", [{"steps": 1}], done=["all"])
    settings = dataclasses.asdict(config(tmp_path / "run", [{"steps": 1}], data=data, nano=NANO))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(settings))))
    (tmp_path / "run" / "model").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for change, message in REFUSED.items():
        assert main(["train", str(tmp_path / "run.yaml"), "--restart", "--set", change]) == 2, change
        assert message in capsys.readouterr().err, change
        assert sorted(tmp_path.rglob("*")) == before, change


def test_flex_attention_needs_a_gpu(tmp_path, squares, monkeypatch):
    """torch runs it on a CPU, but has no backward there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"attention: 'flex_attention' cannot be used here: .*; take sdpa or eager"):
        run_config(config(tmp_path / "run", attention="flex_attention"), progress=False)
    assert not (tmp_path / "run").exists()


def test_the_processes_must_see_the_same_folder(tmp_path, squares, monkeypatch):
    monkeypatch.setattr(run, "gather_object", lambda seen: [*seen, None])
    with pytest.raises(ValueError, match="output_dir must be a folder that all machines share"):
        run_config(config(tmp_path / "run", [{"steps": 1}]), progress=False)
    assert not (tmp_path / "run" / "all").exists()


def test_a_process_has_one_gpu(tmp_path, training_model):
    settings = config(tmp_path / "run")
    arguments = training_arguments(settings, settings.stages[0], tmp_path, False)
    assert arguments.device.type in ("cpu", "cuda")
    arguments._n_gpu = 2
    assert arguments.n_gpu == 1 and arguments.train_batch_size == 4
    training_model._is_replica = True  # as DataParallel marks its copies
    with pytest.raises(ValueError, match="accelerate launch"):
        training_model(torch.zeros(1, 4, dtype=torch.long))


def test_intervals_are_this_commands_and_not_the_checkpoints(tmp_path, squares):
    settings = config(tmp_path / "run", [{"steps": 4}], save_every=100, log_every=100)
    assert run_config(settings, minutes=1e-9, progress=False) is None  # a checkpoint that says 100
    seen = []

    def look(self, args, state, control, **kwargs):
        told(self, args, state, control, **kwargs)
        seen.append((state.global_step, state.save_steps, state.logging_steps))

    told, OwnIntervals.on_train_begin = OwnIntervals.on_train_begin, look
    try:
        run_config(dataclasses.replace(settings, save_every=2, log_every=1), progress=False)
    finally:
        OwnIntervals.on_train_begin = told
    assert seen == [(1, 2, 1)]
    lines = [json.loads(line) for line in (tmp_path / "run" / "all" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_paths_of_the_command_line_are_of_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "here" / "weights").mkdir(parents=True)
    (tmp_path / "there" / "weights").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    chat = {"reader": "chat", "weight": 1, "path": "a.jsonl"}
    raw = dataclasses.asdict(config("out", data={"root": "data", "sources": [chat, chat]}))
    file = tmp_path / "there" / "run.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps({**raw, "model": "weights"}))))
    plain = load_config(file)
    assert plain.model == str(tmp_path / "there" / "weights") and plain.data.root == str(tmp_path / "there" / "data")
    changes = {
        "model": "weights",
        "data.root": "mine",
        "data.sources.0.options.path": "b.jsonl",
        "data.sources.1": {"reader": "chat", "weight": 1, "images": "pictures", "path": "/c.jsonl"},
    }
    changed = load_config(file, changes)
    here = tmp_path / "here"
    assert changed.model == str(here / "weights") and changed.data.root == str(here / "mine")
    assert changed.data.sources[0].options == {"path": str(here / "b.jsonl")}
    assert changed.data.sources[1].options == {"images": str(here / "pictures"), "path": "/c.jsonl"}
