"""One checker for what is read from files: a form says what a value must be, and one line says where it is not.

A form is a name of KINDS ("text", "number", ...), a list of one form (a list of such values), or a dict of forms (an
object with these keys; one that ends with "?" may be absent; others are of no concern). {"*": form} holds for every
value of an object.
"""

import json
import math

from ..cli_support import CommandError, printable


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -math.inf < value < math.inf


def _numbers(value, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(_number(each) for each in value)


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


KINDS = {
    "text": (lambda v: isinstance(v, str), "a text"),
    "number": (_number, "a finite number"),
    "id": (lambda v: _whole(v) or isinstance(v, str), "an id (a whole number or a text)"),
    "image number": (lambda v: (_whole(v) and v >= 0) or (isinstance(v, str) and v.isdecimal()), "a whole number"),
    "size": (lambda v: v is None or (_whole(v) and v > 0), "a whole number above 0"),
    "flag": (lambda v: _whole(v) or isinstance(v, bool), "0 or 1"),
    "corners": (lambda v: _numbers(v, 4), "the four finite numbers x1, y1, x2, y2"),
    "sides": (lambda v: _numbers(v, 4) and min(v[2:]) >= 0, "the finite numbers x, y, width, height"),
}
REGIONS = {"boxes": ["corners"], "scores": ["number"]}


def check(path, value, form, where: str = "") -> None:
    """Raises CommandError where `value` is not of `form`: the file, the place in it and what was expected."""
    wrong = _problem(value, form)
    if wrong is not None:
        place = (where + wrong[0]).lstrip(".")
        raise CommandError(f"{path}: {place or 'it'} {wrong[1]}")


def check_regions(path, value: dict, words: str, where: str) -> None:
    """Predicted regions: {"boxes", `words`, "scores"} of one length."""
    check(path, value, {**REGIONS, words: ["text"]}, where)
    lengths = {key: len(value[key]) for key in ("boxes", words, "scores")}
    if len(set(lengths.values())) != 1:
        counts = ", ".join(f"{number} {key}" for key, number in lengths.items())
        raise CommandError(f"{path}: {where} has {counts}: one for each is needed")


def _problem(value, form) -> tuple[str, str] | None:
    """(place, what is wrong there)."""
    if isinstance(form, str):
        holds, what = KINDS[form]
        return None if holds(value) else ("", f"is {_shown(value)}, not {what}")
    if isinstance(form, list):
        if not isinstance(value, list):
            return "", f"is {_shown(value)}, not a list"
        items = ((f"[{number}]", each, form[0]) for number, each in enumerate(value))
    else:
        if not isinstance(value, dict):
            keys = ", ".join(key for key in form if not key.endswith("?") and key != "*")
            return "", f"is {_shown(value)}, not an object" + (f" with {keys}" if keys else "")
        if "*" in form:
            items = ((f".{key}", each, form["*"]) for key, each in value.items())
        else:
            missing = [key for key in form if not key.endswith("?") and key not in value]
            if missing:
                return "", f"has no {missing[0]!r}"
            names = [(key.removesuffix("?"), part) for key, part in form.items()]
            items = ((f".{key}", value[key], part) for key, part in names if key in value)
    for place, each, part in items:
        wrong = _problem(each, part)
        if wrong is not None:
            return place + wrong[0], wrong[1]
    return None


def _shown(value) -> str:
    text = printable(json.dumps(value, default=str))
    return text if len(text) <= 60 else f"{text[:57]}..."
