"""Checkpoints in and out of Argus: `convert` for whole models, `bootstrap` for the starting points of Section 5.

`key_tables` says which tensors are which, `source_configs` and `target_configs` which settings; `checkpoint` reads and
writes safetensors, and nothing appears on disk before it is whole.
"""

from .bootstrapping import bootstrap
from .converting import ConvertResult, convert
from .errors import ConvertError

__all__ = ["ConvertError", "ConvertResult", "bootstrap", "convert"]
