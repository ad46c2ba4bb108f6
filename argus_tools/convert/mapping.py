"""Applying a key table: every tensor is accounted for, by name and by shape, before a byte is written."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .checkpoint import Checkpoint
from .errors import ConvertError, listed
from .key_tables import KeyTable, Rule

TEXT = "model.text_model."
VISION = "model.vision_model."


@dataclass
class TensorPlan:
    """What will be written: shapes by name, and how to get each tensor."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    loaders: dict[str, Callable[[], torch.Tensor]] = field(default_factory=dict)

    def add(self, name: str, shape, load: Callable[[], torch.Tensor]) -> None:
        self.shapes[name], self.loaders[name] = tuple(shape), load

    def load(self, name: str) -> torch.Tensor:
        return self.loaders[name]()

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


def row_counts(config) -> dict[str, int]:
    """The sizes that the key tables name, from an ArgusConfig."""
    text = config.text_config
    return {
        "text_q": text.num_attention_heads * text.head_dim,
        "text_kv": text.num_key_value_heads * text.head_dim,
        "text_mlp": text.intermediate_size,
        "vision": config.vision_config.hidden_size,
    }


def argus_shapes(config) -> dict[str, tuple[int, ...]]:
    """Every tensor of an Argus checkpoint of this config, from the model itself, built without memory."""
    from modeling_argus import ArgusForConditionalGeneration

    with torch.device("meta"):
        model = ArgusForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def _rules(table: KeyTable, config) -> dict[str, Rule]:
    expanded = table.expand(config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers)
    return {rule.argus: rule for rule in expanded}


def plan_to_argus(
    source: Checkpoint, table: KeyTable, config, part: tuple[str, ...] = ("",), scope: tuple[str, ...] = ("",)
) -> TensorPlan:
    """Plans the Argus tensors of a source checkpoint.

    Args:
        config: the ArgusConfig of the result.
        part: prefixes of the Argus tensors that are wanted; all of them by default.
        scope: prefixes of the (canonical) source keys that must all be used; a part of a model leaves the rest alone.

    Raises:
        ConvertError: tensors that are missing, unexpected, or of another shape or mixed dtypes, listed.
    """
    keys = {table.canonical(key): key for key in source.where}
    if len(keys) != len(source.where):
        twice = sorted(key for key in source.where if key not in keys.values())
        raise ConvertError(f"{source.folder} holds the same tensors under two names: {listed(twice)}.")
    rules, wanted = _rules(table, config), argus_shapes(config)
    wanted = {name: shape for name, shape in wanted.items() if name.startswith(part)}
    counts = row_counts(config)
    plan, missing, wrong = TensorPlan(), [], []
    used = set()
    for name, shape in wanted.items():
        rule = rules.get(name)
        if rule is None:
            raise ConvertError(f"a {table.name} checkpoint has no counterpart of Argus' {name}.")
        used.update(rule.source)
        absent = [key for key in rule.source if key not in keys]
        missing += absent
        if absent:
            continue
        rows = [counts[row] for row in rule.rows] or [shape[0]]
        for key, count in zip(rule.source, rows):
            expected = (1,) * rule.leading_ones + (count, *shape[1:])
            if source.shape(keys[key]) != expected:
                wrong.append(f"{keys[key]} is {list(source.shape(keys[key]))}, config.json says {list(expected)}")
        plan.add(name, shape, _fused(source, [keys[key] for key in rule.source], rule.leading_ones))
    if config.tie_word_embeddings and "lm_head.weight" in rules:
        used.update(rules["lm_head.weight"].source)  # a stored copy of the tied head; the caller has compared it
    unexpected = [
        keys[key]
        for key in keys.keys() - used
        if key.startswith(scope) and not any(re.fullmatch(pattern, key) for pattern in table.ignored)
    ]
    _refuse(source, missing, unexpected, wrong)
    return plan


def _refuse(source: Checkpoint, missing, unexpected, wrong) -> None:
    problems = []
    if missing:
        problems.append(f"tensors are missing: {listed(missing)}")
    if unexpected:
        problems.append(f"tensors are not expected: {listed(unexpected)}")
    if wrong:
        problems.append(f"shapes differ: {'; '.join(sorted(wrong)[:3])}{' ...' if len(wrong) > 3 else ''}")
    if problems:
        raise ConvertError(f"{source.folder} does not fit its config.json: {'; '.join(problems)}.")


def _fused(source: Checkpoint, keys: list[str], leading_ones: int) -> Callable[[], torch.Tensor]:
    def load() -> torch.Tensor:
        tensors = [source.tensor(key) for key in keys]
        if len({tensor.dtype for tensor in tensors}) > 1:
            kinds = ", ".join(f"{key} is {tensor.dtype}" for key, tensor in zip(keys, tensors))
            raise ConvertError(f"tensors that become one have different dtypes: {kinds}; say dtype=.")
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=0)
        return tensor.reshape(tensor.shape[leading_ones:])

    return load


def plan_from_argus(source: Checkpoint, table: KeyTable, config) -> TensorPlan:
    """Plans the tensors of `table`'s format from an Argus checkpoint: `plan_to_argus` read backwards.

    Raises:
        ConvertError: as above, or an Argus tensor that the format has no place for.
    """
    wanted, rules, counts = argus_shapes(config), _rules(table, config), row_counts(config)
    missing = [name for name in wanted if name not in source.where]
    unexpected = [name for name in source.where if name not in wanted]
    wrong = [
        f"{name} is {list(source.shape(name))}, config.json says {list(shape)}"
        for name, shape in wanted.items()
        if name in source.where and source.shape(name) != shape
    ]
    _refuse(source, missing, unexpected, wrong)
    plan = TensorPlan()
    for name, shape in wanted.items():
        rule = rules.get(name)
        if rule is None:
            raise ConvertError(f"{name} has no place in a {table.name} checkpoint.")
        start, ones = 0, (1,) * rule.leading_ones
        for key, count in zip(rule.source, [counts[row] for row in rule.rows] or [shape[0]]):
            plan.add(key, (*ones, count, *shape[1:]), _rows(source, name, start, count, ones))
            start += count
    return plan


def _rows(source: Checkpoint, name: str, start: int, count: int, ones: tuple[int, ...]) -> Callable[[], torch.Tensor]:
    def load() -> torch.Tensor:
        tensor = source.tensor(name)[start : start + count]
        return tensor.reshape(*ones, *tensor.shape).clone()  # a slice of its own: safetensors refuses shared storage

    return load
