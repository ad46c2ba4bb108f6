"""`argus train`: a configuration, its stages one after the other, checkpoints in between, a model folder at the end.

    OUT/run.json                 the configuration
    OUT/start/                   the fresh model, where one is made
    OUT/STAGE/checkpoint-N/      transformers' own checkpoints; the same command goes on from the newest
    OUT/STAGE/last/, log.jsonl   a stage that is done: its weights, its losses
    OUT/model/                   the trained model, for `from_pretrained` and `argus export`

Under `accelerate launch` the processes share each step's batch. Optimizer states are torch files, which transformers
reads with `weights_only`; the weights are safetensors.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from processing_argus import ArgusProcessor

from .augment import Augmentation
from .collate import Collator
from .config import StageConfig, TrainConfig
from .mixture import Mixture, RegionOptions
from .nano import make_nano
from .readers import open_reader
from .saving import save_checkpoint, whole_weights, write_json
from .trainer import ArgusTrainer, StopAfter, freeze
from .training_model import ArgusForTraining

# What may differ between a run and the command that goes on with it.
FREE = ("save_every", "log_every", "keep", "loader_processes", "tensorboard", "output_dir")


def run_config(
    config: TrainConfig, *, minutes: float | None = None, progress: bool = True, restart: bool = False
) -> Path | None:
    """Train, or go on training, and return the model's folder; None where `minutes` were over before.

    restart: delete what an earlier run left in `output_dir` (of this project's own files) and begin anew.

    Raises:
        ValueError: a configuration that does not fit the data, the model or an earlier run in the same folder.
    """
    out, state = Path(config.output_dir), PartialState(cpu=not torch.cuda.is_available())
    with state.main_process_first():  # the others find what the first has cached
        readers = [open_reader(each.reader, root=config.data.root, **each.options) for each in config.data.sources]
        folder = out / "start" if config.model == "nano" else Path(config.model)
        processor = None if config.model == "nano" else ArgusProcessor.from_pretrained(folder)
        if state.is_main_process:  # nothing is written before all of this is known to be there
            _open_run(config, out, restart)
            if config.model == "nano" and not folder.is_dir():
                make_nano(folder, seed=config.seed, **config.nano)
    processor = processor or ArgusProcessor.from_pretrained(folder)
    if config.data.box_format is not None:
        processor.box_format = config.data.box_format
    stop = None if minutes is None else StopAfter(minutes * 60)
    for number, stage in enumerate(config.stages):
        done = out / stage.name / "last"
        if not done.is_dir():
            finished = _run_stage(config, number, stage, folder, processor, readers, stop, progress)
            if not finished:
                return None
            if state.is_main_process:
                shutil.rmtree(out / "model", ignore_errors=True)  # of fewer stages
        folder = done
    with state.main_process_first():
        if state.is_main_process and not (out / "model").is_dir():
            save_checkpoint(_load(config, folder), processor, out / "model")
    return out / "model"


def _open_run(config: TrainConfig, out: Path, restart: bool) -> None:
    """Make the run's folder, or see that the one that is there is this run's."""
    file, raw = out / "run.json", json.loads(json.dumps(dataclasses.asdict(config)))
    if restart and file.is_file():
        for name in ("start", "model", *(stage["name"] for stage in json.loads(file.read_text())["stages"])):
            shutil.rmtree(out / name, ignore_errors=True)
    elif file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        begun = [stage.name for stage in config.stages if (out / stage.name).is_dir()]
        for one in (before, raw):
            for name in FREE:
                one.pop(name, None)
        same = [[_fixed(stage, out) for stage in one["stages"] if stage["name"] in begun] for one in (before, raw)]
        rest = [{key: value for key, value in one.items() if key != "stages"} for one in (before, raw)]
        if same[0] != same[1] or rest[0] != rest[1]:
            names = [key for key in rest[1] if rest[0].get(key) != rest[1][key]] or ["stages"]
            raise ValueError(
                f"{out} holds a run with other settings ({', '.join(names)} differ): give another output_dir, or "
                "--restart to delete it."
            )
        raw = json.loads(json.dumps(dataclasses.asdict(config)))
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no run of argus train: give another output_dir.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, raw)


def _fixed(stage: dict, out: Path) -> dict:
    """What must stay of a stage that has begun: all, but for the length of one whose rate does not depend on it."""
    free = stage["schedule"] == "constant" and not (out / stage["name"] / "last").is_dir()
    return {name: value for name, value in stage.items() if not (free and name == "steps")}


def _load(config: TrainConfig, folder: Path) -> ArgusForTraining:
    options = {} if config.attention is None else {"attn_implementation": config.attention}
    return ArgusForTraining.from_pretrained(folder, dtype=torch.float32, **options)


def _run_stage(config, number, stage: StageConfig, folder, processor, readers, stop, progress) -> bool:
    """Train one stage from the weights in `folder`; whether it came to its end."""
    out = Path(config.output_dir) / stage.name
    data = config.data
    arguments = training_arguments(config, stage, out, progress)
    model = _load(config, folder)
    model.answer_weight, model.naming_weight = stage.answer_weight, stage.naming_weight
    freeze(model, stage)
    collator = Collator(
        processor,
        max_length=data.max_length,
        max_tiles=data.max_tiles,
        pad_to_multiple_of=data.pad_to_multiple_of,
        answer_weighting=data.answer_weighting,
        naming=stage.naming_weight > 0,
        branches=model.config.text_config._attn_implementation in (None, "eager", "sdpa"),
    )
    samples = Mixture(
        readers,
        [source.weight for source in data.sources],
        stage.steps * stage.batch_size,
        config.seed * 1000 + number,
        RegionOptions(data.region_order, data.max_regions, data.max_conversations),
        Augmentation.parse(data.augmentation),
        stage.batch_size if data.batches == "by_source" else 1,
    )
    trainer = ArgusTrainer(
        model=model,
        args=arguments,
        train_dataset=samples,
        data_collator=collator,
        callbacks=[stop] if stop else None,
        stage=stage,
    )
    checkpoint = get_last_checkpoint(out) if out.is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step < stage.steps:
        return False
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = whole_weights(model)
    if trainer.is_world_process_zero():
        lines = [json.dumps({"stage": stage.name, **line}) + "\n" for line in trainer.state.log_history]
        (out / "log.jsonl").write_text("".join(lines), encoding="utf-8")
        save_checkpoint(model, processor, out / "last", weights=weights)
        for old in out.glob("checkpoint-*"):
            shutil.rmtree(old)
    trainer.accelerator.wait_for_everyone()
    return True


def training_arguments(config: TrainConfig, stage: StageConfig, out: Path, progress: bool) -> TrainingArguments:
    """transformers' settings of a stage. Raises ValueError where its batch does not divide among the processes."""
    on_gpu = torch.cuda.is_available()
    state = PartialState(cpu=not on_gpu)
    parts = state.num_processes * stage.accumulation
    if stage.batch_size % parts:
        raise ValueError(
            f"stage {stage.name!r}: batch_size {stage.batch_size} does not divide into {state.num_processes} processes "
            f"x {stage.accumulation} accumulated batches."
        )
    saving = {}  # 5.x warns of the name even where it is off
    if config.gradient_checkpointing:
        saving = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    if config.tensorboard:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(out / "tensorboard")
    return TrainingArguments(
        output_dir=str(out),
        max_steps=stage.steps,
        per_device_train_batch_size=stage.batch_size // parts,
        gradient_accumulation_steps=stage.accumulation,
        learning_rate=max(stage.learning_rate.values()),
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_betas[0],
        adam_beta2=config.adam_betas[1],
        max_grad_norm=config.max_grad_norm,
        bf16=config.bf16,
        use_cpu=not on_gpu,
        optim="adamw_torch_fused",
        **saving,
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=config.keep,
        logging_steps=config.log_every,
        report_to=["tensorboard"] if config.tensorboard else [],
        disable_tqdm=not progress,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=config.loader_processes,
        dataloader_prefetch_factor=4 if config.loader_processes else None,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=not stage.answer_weight,
    )
