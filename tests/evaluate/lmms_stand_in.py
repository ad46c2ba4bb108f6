"""What of LMMs-Eval 0.7 the plugin touches, word for word in its behaviour: base class, manifest, requests.

The tests use lmms-eval itself where it is installed, and this where it is not.
"""

import abc
import sys
import types
from dataclasses import dataclass, field


class CacheHook:
    def __init__(self, cachinglm=None):
        pass

    def add_partial(self, attr, req, res):
        pass


class lmms(abc.ABC):
    is_simple = True

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.cache_hook = CacheHook(None)
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    @classmethod
    def create_from_arg_string(cls, arg_string, additional_config=None):
        values = dict(pair.split("=", 1) for pair in arg_string.split(",") if pair)
        values = {k: int(v) if v.isdigit() else {"True": True, "False": False}.get(v, v) for k, v in values.items()}
        return cls(**values, **{k: v for k, v in (additional_config or {}).items() if v is not None})

    @property
    def rank(self):
        return self._rank

    @property
    def world_size(self):
        return self._world_size


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple = ()

    def __post_init__(self):
        if self.simple_class_path is None and self.chat_class_path is None:
            raise ValueError(f"ModelManifest('{self.model_id}') requires at least one class path")


@dataclass
class Instance:
    request_type: str
    arguments: tuple
    idx: int
    metadata: dict = field(default_factory=dict)

    @property
    def args(self):
        return self.arguments if isinstance(self.arguments, tuple) else (self.arguments,)


def modules() -> dict:
    """sys.modules entries under lmms-eval's names."""
    found = {}
    for name, things in {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": lmms, "CacheHook": CacheHook},
        "lmms_eval.api.instance": {"Instance": Instance},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }.items():
        found[name] = types.ModuleType(name)
        vars(found[name]).update(things)
    return {name: module for name, module in found.items() if name not in sys.modules}
