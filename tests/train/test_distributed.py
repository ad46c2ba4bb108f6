"""Two processes over gloo, on the CPU: DDP and FSDP2 lose what one process loses, and save what one saves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import NANO
from transformers import AutoModelForImageTextToText

from argus_tools.train.config import load_config

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "argus_tools" / "train" / "configs"


def settings(out):
    stage = {"batch_size": 2, "learning_rate": {"vision": 1e-3, "connector": 1e-3, "text": 1e-3}}
    return {
        "output_dir": str(out),
        "nano": NANO,
        # Every third item is of text alone, so that a process has batches without an image; every seventh has an image
        # that cannot be read, so that one process goes past it while the other has nothing to go past.
        "data": {
            "answer_weighting": "root",
            "sources": [{"reader": "squares", "weight": 1, "text_every": 3, "broken_every": 7}],
        },
        "stages": [
            {"name": "naming", "steps": 1, "naming_weight": 1.0, "answer_weight": 0.0, **stage},
            {"name": "all", "steps": 3, "naming_weight": 0.5, **stage},
        ],
        "save_every": 2,
        "log_every": 1,
        "loader_processes": 0,
        "tensorboard": False,
    }


def losses(folder):
    text = "".join((folder / stage / "log.jsonl").read_text() for stage in ("naming", "all"))
    return [line["loss"] for line in map(json.loads, text.splitlines()) if "loss" in line]


def bad_samples(folder):
    return (folder / "all" / "bad_samples.jsonl").read_text()


def run(folder, processes, *arguments, fails=None, **changes):
    """The folder of a run; with `fails`, of one that ends with that error."""
    folder.mkdir()
    config = folder / "config.json"
    config.write_text(json.dumps({**settings(folder / "run"), **changes}))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    command = [*launch, str(HERE / "run_processes.py"), str(config), *arguments]
    if processes == 1:
        command = [sys.executable, *command[len(launch) :]]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(HERE.parents[1]),
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=folder)
    assert (done.returncode == 0) == (fails is None) and (fails or "") in done.stderr, done.stderr[-4000:]
    return folder / "run"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("alone") / "one", 1)


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def together(request, tmp_path_factory):
    """The folder that two processes left; "parted" beside it is of the same run with an interruption."""
    arguments = ["fsdp"] if request.param == "fsdp" else []
    return run(tmp_path_factory.mktemp("together") / request.param, 2, "parted", *arguments)


@pytest.mark.slow
def test_two_processes_lose_what_one_loses(alone, together):
    """fp32, sums in other orders: losses within 1e-4; weights within half a step of Adam, where gradients are noise."""
    folder = together
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-4)
    assert bad_samples(folder) == bad_samples(alone) and "cannot be used" in bad_samples(alone)
    one, two = (load_file(path / "model" / "model.safetensors") for path in (alone, folder))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=5e-4, msg=lambda text, name=name: name + text)
    model = AutoModelForImageTextToText.from_pretrained(folder / "model")  # a normal folder, tied head and all
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert not [p.name for p in (folder / "model").iterdir() if p.suffix in {".bin", ".pt", ".distcp"}]


@pytest.mark.slow
def test_two_processes_go_on_bitwise(together):
    """From a checkpoint that FSDP has sharded, as from DDP's: the losses, the weights and the bad samples."""
    parted = together.with_name("parted")
    assert losses(parted) == losses(together) and len(losses(parted)) == 4
    assert bad_samples(parted) == bad_samples(together)
    one, two = (load_file(path / "model" / "model.safetensors") for path in (together, parted))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_save_nothing_that_is_not_finite(kind, tmp_path):
    """Whatever each one's share of the weights is, the run ends at that step and keeps none of them."""
    huge = {"name": "all", "steps": 3, "batch_size": 2, "learning_rate": {"text": 1e30, "connector": 1e30}}
    error = "stage 'all' has diverged: at step 2 weights are NaN or infinite"
    folder = run(tmp_path / kind, 2, kind, fails=error, stages=[huge], log_every=100)
    assert not list(folder.rglob("checkpoint-*")) and not (folder / "model").exists()


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_accelerate_takes_the_configurations(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(CONFIGS / "accelerate" / f"{name}.yaml"))
    assert config.num_processes >= 2
    if name == "fsdp2":
        from modeling_argus.base_argus import ArgusPreTrainedModel

        wrapped = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(",")
        assert wrapped == ArgusPreTrainedModel._no_split_modules and config.fsdp_config["fsdp_version"] == 2


def test_the_batch_must_divide(tmp_path, monkeypatch):
    from argus_tools.train import run as module

    config = settings(tmp_path)
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    loaded = load_config(tmp_path / "c.yaml", {"stages.1.batch_size": 5})

    class Three:
        num_processes = 3

    monkeypatch.setattr(module, "PartialState", lambda cpu: Three)
    with pytest.raises(ValueError, match="does not divide into 3 processes"):
        module.training_arguments(loaded, loaded.stages[1], tmp_path, False)
