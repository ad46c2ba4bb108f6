"""All that differs between transformers 4.57 and 5.x for the processors (feature detection, no version numbers)."""

import json
import os

from transformers import AutoImageProcessor, AutoProcessor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

# --- image processor ------------------------------------------------------------------------------------------------


class ArgusImageProcessorBase(BaseImageProcessor):
    """BaseImageProcessor of either major: needs no torchvision, writes one and the same preprocessor_config.json."""

    @property
    def is_fast(self) -> bool:
        """True: tensors throughout and `device=`, as in 4.57's fast image processors (5.x has no other kind)."""
        return True

    def to_dict(self) -> dict:
        """The saved settings. 5.x drops what is None; here None can be a setting (`max_tiles=None` is no limit)."""
        output = super().to_dict()
        output.update({name: getattr(self, name) for name in self.saved_settings})
        for name in ("device", "_processor_class", "processor_class"):  # the last two belong to processor_config.json
            output.pop(name, None)
        return output


def register_auto_image_processor(config_class, image_processor_class) -> None:
    """AutoImageProcessor for a config class: 5.x keeps one class per backend, 4.57 a slow and a fast one."""
    try:
        both = {"torchvision": image_processor_class, "pil": image_processor_class}
        AutoImageProcessor.register(config_class, image_processor_classes=both, exist_ok=True)
    except ImportError:  # early 5.x without torchvision: there AutoImageProcessor cannot be used at all
        return
    except TypeError:  # 4.57
        AutoImageProcessor.register(config_class, slow_image_processor_class=image_processor_class, exist_ok=True)


# --- processor ------------------------------------------------------------------------------------------------------


_STANDARD_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


class ProcessorBase(ProcessorMixin):
    """ProcessorMixin of either major, whose saved folders every version can load."""

    # 4.57 is told by class attributes, 5.x reads the signature of __init__ and warns of the attributes.
    if not hasattr(ProcessorMixin, "get_attributes"):
        attributes = ["image_processor", "tokenizer"]
        image_processor_class = "AutoImageProcessor"
        tokenizer_class = "AutoTokenizer"

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """As in transformers, in the layout that 4.57 and 5.x both load: preprocessor_config.json stands alone."""
        self.tokenizer.init_kwargs.pop("dtype", None)  # what 5.x's pipeline(dtype=...) leaves there is no JSON
        written = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        self._make_portable(save_directory)
        return written

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        self._make_portable(working_dir)  # save_pretrained(push_to_hub=True) uploads before it returns
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _make_portable(self, folder) -> None:
        self.image_processor.save_pretrained(folder)
        config = _edit_json(os.path.join(folder, "processor_config.json"), lambda c: c.pop("image_processor", None))
        if config and "auto_map" in config:
            auto_map = config["auto_map"]
            _edit_json(os.path.join(folder, "preprocessor_config.json"), lambda c: c.setdefault("auto_map", auto_map))
        _edit_json(os.path.join(folder, "tokenizer_config.json"), portable_tokenizer_config)


def portable_tokenizer_config(config: dict) -> None:
    """Rewrites a tokenizer_config.json in place so that every version reads it alike: the class's name, the extra
    special tokens and the model's named ones (`start_image_token`) as 4.57 knows them, which 5.x reads too."""
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    # 5.x writes a model's named tokens as plain entries; 5.6 forgets the additional ones beside an empty dict.
    named = dict(config.pop("model_specific_special_tokens", None) or {})
    named.update(config.pop("extra_special_tokens", None) or {})
    for key, value in config.items():
        if key.endswith("_token") and isinstance(value, str) and key not in _STANDARD_TOKENS:
            named[key] = value
    if named:
        config["extra_special_tokens"] = named
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)


def register_auto_processor(config_class, processor_class) -> None:
    """AutoProcessor for a config class."""
    AutoProcessor.register(config_class, processor_class, exist_ok=True)


def _edit_json(path, edit):
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    edit(config)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2, ensure_ascii=False)
        file.write("\n")
    return config
