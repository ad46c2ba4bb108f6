"""transformers' Trainer with what a run of ours needs: parts that learn at their own rates or not at all, samples in
the mixture's order, the schedules of a stage, and both losses in the log."""

import math
import time
from itertools import islice
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from argus_tools.cli_support import CommandError

from .batches import BadSamples
from .collate import IGNORED
from .config import PARTS, StageConfig
from .muon import MuonAdamW

PREFIXES = {"vision": "model.vision_model.", "connector": "model.connector.", "text": ("model.text_model.", "lm_head.")}


class Arguments(TrainingArguments):
    """transformers' settings, but that a process has one device: several GPUs are for `accelerate launch` or torchrun.

    Left alone, a Trainer on two GPUs splits a batch by its first dimension, where tiles are not rows' (DataParallel).
    """

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)

    @property
    def device(self) -> torch.device:
        device = super().device
        # A CPU is called so in every process: gloo's "cpu:0" is no place to 4.57's loading of optimizers.
        return torch.device("cpu") if device.type == "cpu" else device


def part_of(name: str) -> str:
    """Which part of the model a parameter belongs to, by its name. Raises ValueError for a foreign one."""
    for part in PARTS:
        if name.startswith(PREFIXES[part]):
            return part
    raise ValueError(f"the parameter {name} belongs to none of {', '.join(PARTS)}.")


def freeze(model: torch.nn.Module, stage: StageConfig) -> None:
    """Let learn what the stage gives a learning rate, and nothing else."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in stage.learning_rate)


def rate_at(stage: StageConfig, step: int) -> float:
    """The share of the peak learning rate at a step from 0."""
    warm = min(1.0, (step + 1) / (stage.warmup + 1)) if stage.warmup else 1.0
    progress = min(1.0, max(0, step - stage.warmup) / max(1, stage.steps - stage.warmup))
    if stage.schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * progress))
    elif stage.schedule == "linear":
        share = 1 - progress
    elif stage.schedule == "decay":
        share = min(1.0, (1 - step / stage.steps) / stage.decay_share) if stage.decay_share > 0 else 1.0
    else:
        share = 1.0
    return warm * (stage.final + (1 - stage.final) * share)


class ArgusTrainer(Trainer):
    """A Trainer of one stage. `model` is an ArgusForTraining, `train_dataset` in the order that it is to be seen in.

    bad_samples: is told what `Batches`, the collate function, could not use.
    muon: step the layers' matrices by Muon, all else by AdamW. ValueError under FSDP, which shards them.
    """

    def __init__(self, *args: Any, stage: StageConfig, bad_samples: BadSamples, muon: bool = False, **kwargs: Any):
        self.stage, self.bad_samples, self.muon = stage, bad_samples, muon
        self._seen: dict[str, list[torch.Tensor]] = {}
        self._num_names: torch.Tensor | None = None
        super().__init__(*args, **kwargs)
        self.add_callback(OwnIntervals)
        self.remove_callback(PrinterCallback)  # stdout is for results
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(LossOnTheBar)

    def train(self, *args: Any, **kwargs: Any):
        """As the Trainer does; where it ends in an error, that stands on a line of its own and not on the bar's."""
        try:
            return super().train(*args, **kwargs)
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, LossOnTheBar) and callback.training_bar is not None:
                    callback.training_bar.close()

    def _get_train_sampler(self, *args):
        return SequentialSampler(self.train_dataset)  # the mixture is shuffled; what is done is skipped by number

    def create_optimizer(self, *args):
        """A group for each part and for what is not decayed (vectors) or, with Muon, stepped by it (inner matrices)."""
        if self.optimizer is None:
            model = args[0] if args and args[0] is not None else self.model
            inner = matrices_of_layers(model) if self.muon else set()
            groups = []
            for part, rate in self.stage.learning_rate.items():
                own = [
                    p for name, p in model.named_parameters() if part_of(_plain_name(name)) == part and p.requires_grad
                ]
                decayed = {"lr": rate, "weight_decay": self.args.weight_decay}
                groups.append({"params": [p for p in own if p.ndim >= 2 and id(p) not in inner], **decayed})
                groups.append({"params": [p for p in own if p.ndim < 2], "lr": rate, "weight_decay": 0.0})
                groups.append({"params": [p for p in own if id(p) in inner], **decayed, "muon": True})
            groups = [group for group in groups if group["params"]]
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = (MuonAdamW if self.muon else optimizer_class)(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: rate_at(self.stage, step))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_batch_samples(self, epoch_iterator, num_batches, *args):
        """Batches of a step, and what their losses are divided by: over all of them, in every process.

        Raises ValueError, in every process, where one could make no batch or too many samples cannot be used.
        """
        batches = list(islice(epoch_iterator, num_batches))  # the Trainer's own method would count the labels, too
        failed = [b["failed"] for b in batches if "failed" in b]
        met = [each for b in batches for each in b.pop("bad_samples", ())]
        batches = [b for b in batches if "failed" not in b]
        labels = [b["label_weights"].sum() if "label_weights" in b else (b["labels"] != IGNORED).sum() for b in batches]
        names = [(b["names"] != IGNORED).sum() for b in batches if "names" in b]
        counts = (sum(labels), sum(names), len(failed) + len(met))
        totals = torch.stack([torch.as_tensor(count).float().cpu() for count in counts])
        totals = self.accelerator.gather(totals.to(self.args.device).unsqueeze(0)).sum(0)
        if totals[2]:
            self.bad_samples.add(gather_object(met), self.state.global_step + 1)
            if failed := gather_object(failed):
                raise ValueError(failed[0])
        self._num_names = totals[1].clamp(min=1)
        if not self.stage.answer_weight and not totals[1]:
            raise ValueError(
                f"stage {self.stage.name!r} learns to name what lies where, and no object of a step's samples is "
                "known: give it a source of images with boxes, or an answer_weight above 0."
            )
        return batches, totals[0]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None, **kwargs):
        inputs = {**inputs, "num_names_in_batch": self._num_names}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch=num_items_in_batch, **kwargs)
        for name in ("answer_loss", "naming_loss"):
            value = outputs.get(name) if hasattr(outputs, "get") else None
            if value is not None:
                self._seen.setdefault(name, []).append(value)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's line, the mean of each loss since the last one (of this process's batches), `bad_samples`.

        A run that was killed goes on from a checkpoint: its next line is of the steps since that, though the line
        before may be of earlier ones, where save_every is no multiple of log_every.

        Raises CommandError, in every process, where the loss or the gradient's norm is not finite.
        """
        if "loss" in logs:
            for name in ("loss", "grad_norm"):
                if not math.isfinite(logs.get(name, 0.0)):
                    raise self._diverged(f"{name} is {logs[name]}")
            logs |= {name: torch.stack(values).mean().item() for name, values in self._seen.items()}
            logs["bad_samples"] = self.bad_samples.count
            self._seen = {}
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model, *args: Any, **kwargs: Any) -> None:
        """The Trainer's, also at a stage's end. CommandError, in all processes, where a weight is not finite."""
        own = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]  # FSDP's share of each
        finite = torch.stack([p.isfinite().all() for p in own]).all()
        if not self.accelerator.gather(finite.float().to(self.args.device).unsqueeze(0)).all():
            raise self._diverged("weights are NaN or infinite")
        super()._save_checkpoint(model, *args, **kwargs)

    def _diverged(self, what: str) -> CommandError:
        stage, out = self.stage, self.args.output_dir
        rates = ", ".join(f"{part} {rate:g}" for part, rate in stage.learning_rate.items())
        saved = get_last_checkpoint(out)
        kept = f" {saved} stays, but the same command would go on from it to the same step." if saved else ""
        return CommandError(
            f"stage {stage.name!r} has diverged: at step {self.state.global_step} {what}. Lower its learning_rate "
            f"({rates}) or raise its warmup ({stage.warmup}), and delete {out}: the stage begins anew, behind those "
            f"that are done. Other changes, such as bf16: false or a lower max_grad_norm, need --restart.{kept}"
        )


def matrices_of_layers(model: torch.nn.Module) -> set[int]:
    """The ids of the weights of linear layers, without the output head. Raises ValueError where FSDP shards them."""
    outer = model.get_output_embeddings().weight
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear) and m.weight is not outer]
    if any(hasattr(weight, "full_tensor") for weight in weights):
        raise ValueError("optimizer: muon needs whole matrices, which FSDP shards: train with DDP, or with adamw.")
    return {id(weight) for weight in weights}


def _plain_name(name: str) -> str:
    """A parameter's name without what wrappers put into it."""
    for prefix in ("module.", "_fsdp_wrapped_module.", "_orig_mod."):
        name = name.replace(prefix, "")
    return name


class OwnIntervals(TrainerCallback):
    """Saves and logs as often as this run is told to: from a checkpoint come the intervals of the run before."""

    def on_train_begin(self, args, state, control, **kwargs):
        state.save_steps, state.logging_steps = args.save_steps, args.logging_steps


class LossOnTheBar(ProgressCallback):
    """transformers' progress bar, with the losses on it and not between its lines."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and logs:
            shown = {name: f"{logs[name]:.3f}" for name in ("answer_loss", "naming_loss") if name in logs}
            if shown:
                self.training_bar.set_postfix(shown)


class StopAfter(TrainerCallback):
    """Ends a run after a wall-clock time, with a checkpoint: started again, it goes on."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def on_step_end(self, args, state, control, **kwargs):
        over = [time.monotonic() >= self.end]
        if args.world_size > 1:  # one clock for all, or one would save while another steps on
            broadcast_object_list(over)
        if over[0] and state.global_step < state.max_steps:
            # Logged as well: the first line behind the checkpoint is of the steps since it.
            control.should_log = control.should_save = control.should_training_stop = True
        return control
