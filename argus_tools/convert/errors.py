"""The one exception of this package: a sentence that names the values and says what to do."""


class ConvertError(ValueError):
    """A checkpoint that cannot be converted, and why. Nothing was written."""


def listed(names, most: int = 6) -> str:
    """'a, b, c and 4 more', for messages about many tensors."""
    names = sorted(names)
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
