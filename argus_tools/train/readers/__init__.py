"""Readers: one for each data set in its original format, and rendered scenes; each a map-style data set of `Sample`s.

`READERS` has them by name; `open_reader` opens one with its options. Adding one is a class with six short methods, see
`reading.Reader`.
"""

import inspect
import os
from pathlib import Path
from typing import Any

from .chat import Chat
from .coco import COCOCaptions, COCOInstances, Objects365
from .llava import MGMInstruct, ShareGPT4V, VisionFlan
from .reading import Reader
from .scenes import ScenesReader
from .scienceqa import ScienceQA
from .visual_genome import VisualGenome
from .wit import WiT

READERS: dict[str, type] = {
    reader.NAME: reader
    for reader in (
        ShareGPT4V,
        COCOCaptions,
        COCOInstances,
        Objects365,
        VisualGenome,
        WiT,
        VisionFlan,
        ScienceQA,
        MGMInstruct,
        Chat,
        ScenesReader,
    )
}


def open_reader(name: str, *, root: str | os.PathLike | None = None, **options: Any):
    """The reader of that name. Paths among its options are relative to `root`.

    Raises ValueError for a name or an option that is not known (with those that are), and what the reader raises.
    """
    if name not in READERS:
        raise ValueError(f"there is no reader {name!r}; the readers are {', '.join(READERS)}.")
    reader = READERS[name]
    parameters = inspect.signature(reader).parameters
    if unknown := [option for option in options if option not in parameters]:
        raise ValueError(f"reader {name!r} has no option {unknown[0]!r}; it has {', '.join(parameters)}.")
    needed = [each.name for each in parameters.values() if each.default is inspect.Parameter.empty]
    if lacking := [option for option in needed if option not in options]:
        raise ValueError(f"reader {name!r} needs {', '.join(lacking)}.")
    if root is not None:
        paths = [option for option in getattr(reader, "PATHS", ()) if isinstance(options.get(option), str)]
        options |= {option: Path(root) / options[option] for option in paths}
    return reader(**options)


__all__ = ["READERS", "Reader", "open_reader"]
