"""Values from YAML as the types that are asked for: every wrong one is named with its place and what is allowed."""

import dataclasses
import types
import typing
from collections.abc import Iterable
from typing import Any


def build(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`, a dataclass or a plain type. Raises ValueError with the place of what does not fit."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must hold keys and values, got {value!r}.")
        known = {each.name: each for each in dataclasses.fields(kind)}
        unknown = sorted(str(key) for key in value if key not in known)
        if unknown:
            raise ValueError(f"{where} has an unknown key {unknown[0]!r}; it can have {', '.join(known)}.")
        needed = [
            name
            for name, each in known.items()
            if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING and name not in value
        ]
        if needed:
            raise ValueError(f"{where} lacks {', '.join(needed)}.")
        hints = typing.get_type_hints(kind)
        return kind(**{name: build(hints[name], each, f"{where}: {name}") for name, each in value.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else build(arguments[0], value, where)
    if origin in (tuple, list):
        fixed = origin is tuple and arguments[-1] is not ...
        if not isinstance(value, (list, tuple)) or (fixed and len(value) != len(arguments)):
            wanted = f"a list of {len(arguments)}" if fixed else "a list"
            raise ValueError(f"{where} must be {wanted}, got {value!r}.")
        return origin(build(arguments[0], each, f"{where}[{i}]") for i, each in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must hold keys and values, got {value!r}.")
        return {str(key): build(arguments[1], each, f"{where}: {key}") for key, each in value.items()}
    return _plain(kind, value, where)


def _plain(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, str):  # YAML reads 1e-3, without a point, as text
        try:
            value = float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where} must be of type {kind.__name__}, got {value!r}.")
    if kind is float and not (value == value and abs(value) != float("inf")):
        raise ValueError(f"{where} must be a finite number, got {value!r}.")
    return value


def at_least(value: Any, low: int, where: str) -> None:
    """Raises ValueError for a number below `low`; None is none."""
    if value is not None and value < low:
        raise ValueError(f"{where} must be at least {low}, got {value}.")


def one_of(value: Any, known: Iterable[str], where: str) -> None:
    """Raises ValueError for what is not `known`."""
    if value not in known:
        raise ValueError(f"{where} is {value!r}; it can be {', '.join(known)}.")
