"""A run that diverges stops and says so; nothing that is not finite is saved or exported."""

import dataclasses
import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_run import config, weights

from argus_tools.cli import main
from argus_tools.cli_support import CommandError
from argus_tools.train.run import run_config
from argus_tools.train.saving import save_checkpoint

HUGE = {"vision": 1e30, "connector": 1e30, "text": 1e30}
STAGES = [{"name": "first", "steps": 1}, {"name": "second", "steps": 6, "warmup": 0, "learning_rate": HUGE}]


def test_the_command_says_what_diverged_and_what_to_do(tmp_path, squares, capsys):
    settings = config(tmp_path / "run", STAGES, save_every=1)
    file, out = tmp_path / "run.yaml", tmp_path / "run" / "second"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(settings)))))
    assert main(["train", str(file)]) == 2
    said = capsys.readouterr().err
    assert (
        "\nargus: error: stage 'second' has diverged: at step 2 loss is nan. Lower its learning_rate (connector 1e+30, "
        in said
    )
    assert f"{out / 'checkpoint-1'} stays, but the same command" in said and "Traceback" not in said
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-1"]
    assert all(value.isfinite().all() for value in weights(out / "checkpoint-1").values())
    assert not (out / "last").exists() and not (tmp_path / "run" / "model").exists()

    # As it says: without the stage's folder another rate is taken, after the stage that is done.
    before = weights(tmp_path / "run" / "first" / "last")
    shutil.rmtree(out)
    assert main(["train", str(file), "--set", "stages.1.learning_rate={text: 1.0e-3}"]) == 0
    after = weights(tmp_path / "run" / "model")
    assert all(value.isfinite().all() for value in after.values())
    vision = [name for name in before if ".vision_model." in name]
    assert vision and all(torch.equal(before[name], after[name]) for name in vision)


@pytest.mark.parametrize("save_every", [2, 100], ids=["at a checkpoint", "at the stage's end"])
def test_weights_are_looked_at_where_no_loss_is_logged(tmp_path, squares, save_every):
    settings = config(tmp_path / "run", STAGES[1:], save_every=save_every, log_every=100)
    with pytest.raises(CommandError, match=rf"at step {min(6, save_every)} weights are NaN or infinite"):
        run_config(settings, progress=False)
    assert not list((tmp_path / "run").rglob("checkpoint-*")) and not list((tmp_path / "run").rglob("last"))


def test_what_another_process_holds_counts_here_too(tmp_path, squares, monkeypatch):
    """All processes stop, or one would wait for the others for ever."""
    monkeypatch.setattr("accelerate.Accelerator.gather", lambda self, mine: torch.cat([mine, torch.zeros_like(mine)]))
    with pytest.raises(CommandError, match="weights are NaN or infinite"):
        run_config(config(tmp_path / "run"), progress=False)
    assert not list((tmp_path / "run").rglob("checkpoint-*"))


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path, squares, monkeypatch):
    monkeypatch.setattr(
        "accelerate.Accelerator.clip_grad_norm_", lambda self, parameters, *_: torch.tensor(float("inf"))
    )
    with pytest.raises(CommandError, match=r"at step 1 grad_norm is inf\."):
        run_config(config(tmp_path / "run"), progress=False)


def test_a_model_that_is_not_finite_is_not_saved(tmp_path, training_model, processor):
    out = save_checkpoint(training_model, processor, tmp_path / "model")
    before = (out / "model.safetensors").read_bytes()
    with torch.no_grad():
        next(training_model.parameters()).view(-1)[3] = float("inf")
    with pytest.raises(ValueError, match=r"in the model for .*model holds values that are NaN or infinite\."):
        save_checkpoint(training_model, processor, out)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (out / "model.safetensors").read_bytes() == before


def test_a_model_that_is_not_finite_is_not_exported(tmp_path, tiny_nano, capsys):
    model = shutil.copytree(tiny_nano, tmp_path / "model")
    tensors = {name: value.bfloat16() for name, value in load_file(model / "model.safetensors").items()}
    name = min(tensors)
    tensors[name].view(-1)[-1] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert main(["export", "--model", str(model), "--out", str(tmp_path / "hub")]) == 2
    assert f"{name} in {model / 'model.safetensors'} holds values that are NaN or infinite." in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
