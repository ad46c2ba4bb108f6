"""What a source's files say, held against what Argus can be made of: types, ranges, and files of another form.

The table of types is the signature of each Argus config class, so a new field is checked without a word here.
"""

import contextlib
import inspect
import math
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import ConvertError

ABOVE_ZERO = ("layer_norm_eps", "rms_norm_eps", "connector_layer_norm_eps", "rope_theta")
ROPE_NUMBERS = ("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """The last net: what a file of another form makes Python raise becomes a ConvertError that names the file."""
    try:
        yield
    except ConvertError:
        raise
    except MALFORMED as error:
        raise ConvertError(f"{path} does not have the form that it should: {type(error).__name__}: {error}.") from error


def section(raw: dict[str, Any], name: str, file: str = "config.json") -> dict[str, Any]:
    """An object inside a JSON object, {} where it is absent or null."""
    value = raw.get(name)
    if value is not None and not isinstance(value, dict):
        raise ConvertError(f"{name} of {file} is {value!r}, where a JSON object belongs.")
    return value or {}


def is_number(value: Any) -> bool:
    """A finite number and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_fields(fields: dict[str, Any], config_class: type, where: str = "", file: str = "config.json") -> None:
    """Holds an Argus config's fields, by name, against the types of its class and against the ranges of numbers.

    Counts and sizes are at least 1, ids and other numbers at least 0, epsilons and the rotary base above 0. The
    fields of vision_config and text_config are checked too where they are dicts.

    Raises:
        ConvertError: with file, field, value and what belongs there.
    """
    for name, parameter in inspect.signature(config_class).parameters.items():
        if name not in fields or parameter.annotation is parameter.empty:
            continue
        value = fields[name]
        if isinstance(value, dict) and name in getattr(config_class, "sub_configs", {}):
            check_fields(value, config_class.sub_configs[name], f"{where}{name}.", file)
        elif not _fits(value, parameter.annotation):
            _refuse(file, f"{where}{name}", value, _in_words(parameter.annotation))
        elif isinstance(value, str) and name.endswith("hidden_act"):
            _check_activation(file, f"{where}{name}", value)
        elif is_number(value):
            least = 1 if isinstance(value, int) and parameter.annotation is not float and "token_id" not in name else 0
            if value < least or (name in ABOVE_ZERO and not value):
                _refuse(file, f"{where}{name}", value, "more than 0" if name in ABOVE_ZERO else f"at least {least}")
    for rope in ("rope_scaling", "rope_parameters"):
        for name in ROPE_NUMBERS:
            value = section(fields, rope, file).get(name)
            if value is not None and not (is_number(value) and value > 0):
                _refuse(file, f"{where}{rope}.{name}", value, "a number above 0")
    if isinstance(fields.get("head_dim"), int) and fields["head_dim"] % 2:
        _refuse(file, f"{where}head_dim", fields["head_dim"], "even: rotary positions turn pairs of channels")


def _refuse(file: str, name: str, value: Any, meant: str) -> None:
    raise ConvertError(f"{name} of {file} is {value!r}; it must be {meant}.")


def _check_activation(file: str, name: str, value: str) -> None:
    from transformers.activations import ACT2FN

    if value not in ACT2FN:
        _refuse(file, name, value, f"an activation that transformers has: {', '.join(sorted(ACT2FN))}")


def _fits(value: Any, annotation: Any) -> bool:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return any(_fits(value, one) for one in typing.get_args(annotation))
    if annotation is None or annotation is type(None):
        return value is None
    if typing.get_origin(annotation) is list:
        return isinstance(value, (list, tuple)) and all(_fits(one, *typing.get_args(annotation)) for one in value)
    if annotation is float:
        return is_number(value)
    return isinstance(value, annotation) and (annotation is bool or not isinstance(value, bool))


def _in_words(annotation: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", dict: "an object"}
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return " or ".join(
        "null" if kind is type(None) else names.get(kind) or ("a list of numbers" if typing.get_origin(kind) else "")
        for kind in kinds
        if typing.get_origin(kind) or kind in (*names, type(None))
    )
