"""What `argus train` reads: one YAML file, every key typed, none unknown, all wrong values named with their place.

`model` and `data.root` are relative to the file, paths of the data to `data.root`, `output_dir` and all paths that the
command line gives to the working folder. `stages` run one after the other, each on samples of its own; a part of the
model (vision, connector, text) that a stage gives no learning rate is frozen in it.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from processing_argus.locations_argus import BOX_FORMATS

from .typed import at_least, build, one_of

PARTS = ("vision", "connector", "text")
TAKEN = ("start", "model")  # folders of a run that are no stages
SCHEDULES = ("constant", "cosine", "linear", "decay")
ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")


@dataclass(frozen=True)
class SourceConfig:
    """One source of samples: a reader of `argus_tools.train.readers` with its options, and its share of the mixture.

    stated: how many samples the source is said to have, for the record (Section 5 counts so); it is not checked.
    """

    reader: str
    weight: float
    name: str = ""
    stated: Optional[int] = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    """The mixture and how its samples become rows.

    root: the folder that sources' `path` and `images` are relative to.
    batches: "mixed", or "by_source": all samples of a step are of one source, where sources differ in tiles and lengths
        and rows would be padded to the longest.
    region_order: "reading" (by top edge, then left edge), "random", "area" (large first) or "source".
    max_regions, max_conversations: of a sample at most; more are left out at random.
    max_length: tokens of a conversation at most, image tokens included, which are never cut; answers are, at their end.
    max_tiles: the processor's tile budget, if not its own. box_format: overrides the processor's (Section 4.2).
    pad_to_multiple_of: rows' lengths.
    bad_samples: what is done about one that cannot be used (its image is broken or not there, or no answer lies within
        max_length): "skip" takes another item of the same source, notes it in OUT/STAGE/bad_samples.jsonl, and stops
        where they are too many (`batches.py`); "stop" stops at the first.
    answer_weighting: "tokens" as in Equation 1, or "root": an answer of n tokens counts as sqrt(n), so that a yes or
        no is not lost beside a list of boxes.
    """

    sources: tuple[SourceConfig, ...]
    root: str = "."
    batches: str = "mixed"
    region_order: str = "source"
    max_regions: Optional[int] = None
    max_conversations: Optional[int] = None
    augmentation: dict[str, Any] = field(default_factory=dict)
    max_length: Optional[int] = None
    max_tiles: Optional[int] = None
    box_format: Optional[str] = None
    pad_to_multiple_of: int = 8
    bad_samples: str = "skip"
    answer_weighting: str = "tokens"


@dataclass(frozen=True)
class StageConfig:
    """One stage: `steps` optimizer steps of `batch_size` samples (over all processes and accumulation).

    learning_rate: the peak for each part that learns, {"connector": 1e-3}; parts not named are frozen.
    schedule: after a linear warm-up over `warmup` steps: "constant", "cosine" or "linear" down to `final` times the
        peak at the end, or "decay": constant until the last `decay_share` of the steps, then linear.
    naming_weight: of a second loss that asks each visual token for the name of what lies there (needs samples whose
        `objects` are known); 0 leaves it out.
    answer_weight: of Equation 1; 0 leaves the decoder out altogether, and a stage of naming alone is twice as fast.
    """

    name: str
    steps: int
    batch_size: int
    learning_rate: dict[str, float]
    warmup: int = 0
    schedule: str = "cosine"
    final: float = 0.02
    decay_share: float = 0.2
    naming_weight: float = 0.0
    answer_weight: float = 1.0
    accumulation: int = 1


@dataclass(frozen=True)
class TrainConfig:
    """A whole run.

    model: a checkpoint folder or hub name; or "nano", a fresh model of the embedded shape with `nano` as its options.
    bf16: arithmetic under autocast; the weights that are trained are float32 in any case.
    attention: the implementation, if not transformers' choice.
    optimizer: "adamw", or "muon" for the matrices of the layers and AdamW for the rest, at the same rates: at nano's
        size half the steps to the same loss, at twice the rates. It takes whole matrices: DDP, and not FSDP.
    save_every, log_every, keep: steps between checkpoints and log lines, checkpoints kept.
    loader_processes: of each process, that read and make batches ahead.
    """

    output_dir: str
    data: DataConfig
    stages: tuple[StageConfig, ...]
    model: str = "nano"
    nano: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    bf16: bool = False
    attention: Optional[str] = None
    gradient_checkpointing: bool = False
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    adam_betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    save_every: int = 500
    log_every: int = 20
    keep: int = 2
    loader_processes: int = 1
    tensorboard: bool = True


def load_config(path: str | Path, changes: dict[str, Any] | None = None) -> TrainConfig:
    """Read a YAML file. `changes` maps dotted names to values that replace the file's: {"stages.0.steps": 10}; paths
    among them are relative to the working folder.

    `model`, `output_dir` and `data.root` come back as absolute paths; a `model` that is no folder beside the file stays
    as it is, a hub name. Raises ValueError for what does not fit, with its place.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file: name a training configuration (argus_tools/train/configs has some).")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold keys and values, got {type(raw).__name__}.")
    for name, value in (changes or {}).items():
        _change(raw, name, _from_here(name, value), path)
    config = parse_config(raw, str(path))
    beside = path.resolve().parent
    own = (Path.cwd() if "model" in (changes or {}) else beside) / config.model
    return dataclasses.replace(
        config,
        model=str(own) if config.model != "nano" and own.is_dir() else config.model,
        output_dir=str(Path.cwd() / config.output_dir),
        data=dataclasses.replace(config.data, root=str(beside / config.data.root)),
    )


def parse_config(raw: dict[str, Any], where: str = "config") -> TrainConfig:
    """The same from a dictionary, paths left as they are."""
    raw = dict(raw)
    data = raw.get("data")
    if isinstance(data, dict) and isinstance(data.get("sources"), list):
        raw["data"] = {**data, "sources": [_source(source) for source in data["sources"]]}
    config = build(TrainConfig, raw, where)
    if not config.stages or not config.data.sources:
        raise ValueError(f"{where}: a run needs at least one stage and one data source.")
    names = [stage.name for stage in config.stages]
    if len(set(names)) < len(names) or not all(is_stage_name(name) for name in names):
        raise ValueError(
            f"{where}: stages need different names of letters, digits, - and _, not {' or '.join(TAKEN)}; got {names}."
        )
    for owner, name, low in (
        *((config, name, 1) for name in ("save_every", "log_every", "keep")),
        *((config, name, 0) for name in ("seed", "loader_processes", "weight_decay", "max_grad_norm")),
        *((config.data, name, 1) for name in ("max_length", "max_tiles", "pad_to_multiple_of")),
    ):
        at_least(getattr(owner, name), low, f"{where}: {name}")
    if not all(0 <= beta < 1 for beta in config.adam_betas):
        raise ValueError(f"{where}: adam_betas must be at least 0 and below 1, got {list(config.adam_betas)}.")
    for stage in config.stages:
        _check_stage(stage, f"{where}: stage {stage.name!r}")
    for source in config.data.sources:
        if source.weight <= 0:
            raise ValueError(
                f"{where}: source {source.name or source.reader!r} has weight {source.weight}; it must be above 0."
            )
    if config.attention is not None:
        one_of(config.attention, ATTENTION, f"{where}: attention")
    if config.data.box_format is not None:
        one_of(config.data.box_format, BOX_FORMATS, f"{where}: data.box_format")
    one_of(config.optimizer, ("adamw", "muon"), f"{where}: optimizer")
    one_of(config.data.batches, ("mixed", "by_source"), f"{where}: data.batches")
    one_of(config.data.bad_samples, ("skip", "stop"), f"{where}: data.bad_samples")
    one_of(config.data.answer_weighting, ("tokens", "root"), f"{where}: data.answer_weighting")
    return config


def _source(raw: Any) -> Any:
    """What is no field of SourceConfig is an option of the reader."""
    if not isinstance(raw, dict) or "options" in raw:
        return raw
    own = {each.name for each in dataclasses.fields(SourceConfig)}
    named = {key: value for key, value in raw.items() if key in own}
    return {**named, "options": {key: value for key, value in raw.items() if key not in own}}


def _check_stage(stage: StageConfig, where: str) -> None:
    unknown = set(stage.learning_rate) - set(PARTS)
    if unknown or not stage.learning_rate:
        raise ValueError(
            f"{where}: learning_rate gives a number to some of {', '.join(PARTS)}, got {stage.learning_rate}."
        )
    one_of(stage.schedule, SCHEDULES, f"{where}: schedule")
    for name in ("steps", "batch_size", "accumulation"):
        at_least(getattr(stage, name), 1, f"{where}: {name}")
    for name, value in (("warmup", stage.warmup), *stage.learning_rate.items()):
        at_least(value, 0, f"{where}: {name}")
    for name in ("final", "decay_share"):
        if not 0 <= getattr(stage, name) <= 1:
            raise ValueError(f"{where}: {name} must be from 0 to 1, got {getattr(stage, name)}.")
    if stage.naming_weight < 0 or stage.answer_weight < 0 or stage.naming_weight + stage.answer_weight == 0:
        raise ValueError(
            f"{where}: naming_weight {stage.naming_weight} and answer_weight {stage.answer_weight} must be 0 or more, "
            "and one of them above 0."
        )
    if stage.batch_size % stage.accumulation:
        raise ValueError(f"{where}: batch_size {stage.batch_size} does not divide into {stage.accumulation} parts.")


def is_stage_name(name: Any) -> bool:
    """Whether a stage may have this name: it names a folder beside others of the run."""
    return isinstance(name, str) and name.replace("-", "").replace("_", "").isalnum() and name not in TAKEN


def _from_here(name: str, value: Any) -> Any:
    """A value of that dotted name with the paths of the data in it made absolute."""
    from .readers import READERS

    if isinstance(value, (dict, list)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        made = {key: _from_here(f"{name}.{key}", each) for key, each in pairs}
        return made if isinstance(value, dict) else list(made.values())
    options = {option for reader in READERS.values() for option in getattr(reader, "PATHS", ())}
    wanted = rf"data\.(root|sources\.\d+\.(options\.)?({'|'.join(options)}))"
    return str(Path.cwd() / value) if isinstance(value, str) and re.fullmatch(wanted, name) else value


def _change(raw: dict[str, Any], name: str, value: Any, path: Path) -> None:
    """Set a dotted name in place; numbers name places in lists."""
    *parents, last = name.split(".")
    place: Any = raw
    for part in parents:
        if isinstance(place, list) and part.isdigit() and int(part) < len(place):
            place = place[int(part)]
        elif isinstance(place, dict):
            place = place.setdefault(part, {})
        else:
            raise ValueError(f"{path} has no {name!r} to change.")
    if isinstance(place, list) and last.isdigit() and int(last) < len(place):
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ValueError(f"{path} has no {name!r} to change.")
