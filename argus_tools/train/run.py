"""`argus train`: a configuration, its stages one after the other, checkpoints in between, a model folder at the end.

    OUT/run.json                 the configuration, and what its data and start model are known by
    OUT/start/                   the fresh model, where one is made
    OUT/STAGE/checkpoint-N/      transformers' own checkpoints; the same command goes on from the newest
    OUT/STAGE/last/, log.jsonl   a stage that is done: its weights, its losses
    OUT/STAGE/bad_samples.jsonl  what could not be used, where there is such (`batches.py`)
    OUT/model/                   the trained model, for `from_pretrained` and `argus export`

Under `accelerate launch` the processes share each step's batch. Optimizer states are torch files, which transformers
reads with `weights_only`; the weights are safetensors.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from argus_tools.cli_support import one_line
from processing_argus import ArgusProcessor

from .augment import Augmentation
from .batches import TRIES, BadSamples, Batches
from .collate import Collator
from .config import StageConfig, TrainConfig
from .mixture import Mixture, RegionOptions
from .nano import make_nano, nano_options
from .readers import open_reader
from .run_folder import FILE, check_run, fingerprints, last_checkpoint, open_run
from .saving import save_checkpoint, whole_weights
from .trainer import Arguments, ArgusTrainer, StopAfter, freeze
from .training_model import ArgusForTraining

HUB_NAME = r"[A-Za-z0-9][\w.-]*/[\w.-]+"


def run_config(
    config: TrainConfig, *, minutes: float | None = None, progress: bool = True, restart: bool = False
) -> Path | None:
    """Train, or go on training, and return the model's folder; None where `minutes` were over before.

    restart: delete what an earlier run left in `output_dir` (of this project's own files) and begin anew.

    Raises:
        ValueError: a configuration that does not fit the data, the model or an earlier run in the same folder.
        CommandError: a loss, a gradient or weights that are not finite; of those nothing is saved.
    """
    out, state = Path(config.output_dir), PartialState(cpu=not torch.cuda.is_available())
    fresh = config.model == "nano"
    folder = out / "start" if fresh else Path(config.model)
    # Nothing is written, and nothing deleted, before all of this is known to fit.
    arguments = [training_arguments(config, stage, out / stage.name, progress) for stage in config.stages]
    with state.main_process_first():  # the others find what the first has cached
        mixtures = _mixtures(config)
        if state.is_main_process:
            with tempfile.TemporaryDirectory() as trial:
                new = fresh and (restart or not folder.is_dir())
                made = _made_nano(config, Path(trial) / "start") if new else folder
                commit = _check_model(config, made)
                prints = fingerprints(config, mixtures[0].readers, commit)
                check_run(config, out, prints, restart)
                _check_samples(config, made, mixtures[0])
                open_run(config, out, prints, restart)
                if new:
                    shutil.rmtree(folder.with_name(".start"), ignore_errors=True)  # of a kill while it was copied
                    shutil.copytree(made, folder.with_name(".start"))
                    folder.with_name(".start").rename(folder)
    seen = gather_object([(out / FILE).read_text(encoding="utf-8") if (out / FILE).is_file() else None])
    if len(set(seen)) > 1:
        raise ValueError(f"output_dir must be a folder that all machines share; {out} is not the same on each.")
    processor = _processor(config, folder)
    stop = None if minutes is None else StopAfter(minutes * 60)
    for stage, settings, samples in zip(config.stages, arguments, mixtures):
        done = out / stage.name / "last"
        if not done.is_dir():
            if state.is_main_process:
                _discard(out / "model")  # of fewer stages; before this one's end, lest a kill leaves both
            if not _run_stage(config, stage, settings, folder, processor, samples, stop):
                return None
        folder = done
    with state.main_process_first():
        if state.is_main_process and not (out / "model").is_dir():
            save_checkpoint(_load(config, folder), processor, out / "model")
    return out / "model"


def _discard(folder: Path) -> None:
    """Delete a folder that may be there, in a way that a kill leaves all of it or nothing under its name."""
    old = folder.with_name(f".{folder.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.is_dir():
        folder.rename(old)
        shutil.rmtree(old)


def _mixtures(config: TrainConfig) -> list[Mixture]:
    """The samples of each stage; a stage has its own."""
    data = config.data
    try:
        readers = [open_reader(each.reader, root=data.root, **each.options) for each in data.sources]
    except TypeError as error:  # an option of a wrong type
        raise ValueError(f"a source of the data cannot be opened: {error}") from error
    options = RegionOptions(data.region_order, data.max_regions, data.max_conversations)
    return [
        Mixture(
            readers,
            [source.weight for source in data.sources],
            stage.steps * stage.batch_size,
            config.seed * 1000 + number,
            options,
            Augmentation.parse(data.augmentation),
            stage.batch_size if data.batches == "by_source" else 1,
        )
        for number, stage in enumerate(config.stages)
    ]


def _made_nano(config: TrainConfig, folder: Path) -> Path:
    options = nano_options(config.nano)
    try:
        return make_nano(folder, seed=config.seed, **options)
    except (ArithmeticError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(f"nano: no model can be made of {config.nano}: {one_line(error)}") from error


def _check_model(config: TrainConfig, folder: Path) -> str | None:
    """Make the model without its weights; the commit of one from the hub. Raises ValueError for what is no model."""
    options = {} if config.attention is None else {"attn_implementation": config.attention}
    try:
        shape = ArgusForTraining.config_class.from_pretrained(folder)
        _processor(config, folder)
    except (OSError, ValueError) as error:
        what = one_line(error) if folder.is_dir() or re.fullmatch(HUB_NAME, config.model) else "there is no such folder"
        raise ValueError(
            f"model: {config.model!r} cannot be loaded; it can be nano, a checkpoint's folder or the name of a hub "
            f"repository (owner/name): {what}"
        ) from error
    try:
        with torch.device("meta"):
            ArgusForTraining._from_config(shape, **options)
    except ImportError as error:
        raise ValueError(f"attention: {config.attention!r} cannot be used here: {one_line(error)}") from error
    if config.attention == "flex_attention" and not torch.cuda.is_available():
        raise ValueError(
            "attention: 'flex_attention' cannot be used here: torch trains with it on a GPU alone, and there is none; "
            "take sdpa or eager."
        )
    return getattr(shape, "_commit_hash", None)


def _check_samples(config: TrainConfig, folder: Path, mixture: Mixture) -> None:
    """Make a batch of one sample of each source. Raises ValueError where none of a source's can be used."""
    naming = any(stage.naming_weight > 0 for stage in config.stages)
    collator = _collator(config, _processor(config, folder), naming=naming)
    for source, (each, size) in enumerate(zip(config.data.sources, mixture.sizes)):
        for tried in range(TRIES):  # a bad one here and there is gone past
            try:
                collator([mixture.sample(0, source, tried * size // TRIES)])
                break
            except (ValueError, OSError) as error:
                reason = error
        else:
            raise ValueError(
                f"of source {each.name or each.reader!r}, {TRIES} items in a row cannot be used; the last: {reason}"
            )


def _processor(config: TrainConfig, folder: Path) -> ArgusProcessor:
    processor = ArgusProcessor.from_pretrained(folder)
    if config.data.box_format is not None:
        processor.box_format = config.data.box_format
    return processor


def _collator(config: TrainConfig, processor: ArgusProcessor, **options) -> Collator:
    names = ("max_length", "max_tiles", "pad_to_multiple_of", "answer_weighting")
    return Collator(processor, **{name: getattr(config.data, name) for name in names}, **options)


def _load(config: TrainConfig, folder: Path) -> ArgusForTraining:
    options = {} if config.attention is None else {"attn_implementation": config.attention}
    return ArgusForTraining.from_pretrained(folder, dtype=torch.float32, **options)


def _run_stage(
    config: TrainConfig, stage: StageConfig, arguments: Arguments, folder: Path, processor, samples, stop
) -> bool:
    """Train one stage from the weights in `folder`; whether it came to its end."""
    out, state = Path(config.output_dir) / stage.name, PartialState()
    data = config.data
    with state.main_process_first():
        checkpoint = last_checkpoint(out)
        step = 0 if checkpoint is None else int(checkpoint.rpartition("-")[2])
        bad_samples = BadSamples(out / "bad_samples.jsonl", step, stage.batch_size, state.is_main_process)
    if config.tensorboard:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(out / "tensorboard")
    model = _load(config, folder)
    model.answer_weight, model.naming_weight = stage.answer_weight, stage.naming_weight
    freeze(model, stage)
    collator = _collator(
        config,
        processor,
        naming=stage.naming_weight > 0,
        branches=model.config.text_config._attn_implementation in (None, "eager", "sdpa"),
    )
    trainer = ArgusTrainer(
        model=model,
        args=arguments,
        train_dataset=range(len(samples)),
        data_collator=Batches(samples, collator, [each.name or each.reader for each in data.sources], data.bad_samples),
        callbacks=[stop] if stop else None,
        stage=stage,
        muon=config.optimizer == "muon",
        bad_samples=bad_samples,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    if bad_samples.count and state.is_main_process:
        tqdm.write(
            f"stage {stage.name!r}: {bad_samples.count} items could not be used, and others stood in for them; "
            f"{bad_samples.file} lists them.",
            file=sys.stderr,
        )
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


def training_arguments(config: TrainConfig, stage: StageConfig, out: Path, progress: bool) -> Arguments:
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
    return Arguments(
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
        logging_nan_inf_filter=False,  # else a loss that is NaN is logged as 0
        report_to=["tensorboard"] if config.tensorboard else [],
        disable_tqdm=not progress,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=config.loader_processes,
        dataloader_prefetch_factor=4 if config.loader_processes else None,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=not stage.answer_weight,
    )
