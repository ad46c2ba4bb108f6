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
    """AutoImageProcessor for a config class, under the keyword that this major calls it by."""
    try:
        AutoImageProcessor.register(config_class, slow_image_processor_class=image_processor_class, exist_ok=True)
    except (TypeError, ValueError):  # a later 5.x that drops the old keywords
        AutoImageProcessor.register(config_class, image_processor_class, exist_ok=True)


# --- processor ------------------------------------------------------------------------------------------------------


class ProcessorBase(ProcessorMixin):
    """ProcessorMixin of either major, whose saved folders every version can load."""

    if not hasattr(ProcessorMixin, "get_attributes"):  # 4.57 is told by class attributes, 5.x reads __init__'s signature
        attributes = ["image_processor", "tokenizer"]
        image_processor_class = "AutoImageProcessor"
        tokenizer_class = "AutoTokenizer"

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """As in transformers, in the layout that 4.57 and 5.x both load: preprocessor_config.json stands alone."""
        written = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        self._make_portable(save_directory)
        return written

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        self._make_portable(working_dir)  # save_pretrained(push_to_hub=True) uploads before it returns
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _make_portable(self, folder) -> None:
        self.image_processor.save_pretrained(folder)
        processor_config = _edit_json(os.path.join(folder, "processor_config.json"), _drop_image_processor)
        auto_map = (processor_config or {}).get("auto_map")
        if auto_map:
            _edit_json(os.path.join(folder, "preprocessor_config.json"), lambda config: config.setdefault("auto_map", auto_map))
        _edit_json(os.path.join(folder, "tokenizer_config.json"), portable_tokenizer_config)


def portable_tokenizer_config(config: dict) -> None:
    """Rewrites a tokenizer_config.json of 5.x, in place, so that 4.57 reads it too: the class's old name, and the extra special
    tokens under theirs. What 4.57 writes passes unchanged."""
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    named = config.pop("model_specific_special_tokens", None)
    if named:
        config["extra_special_tokens"] = {**named, **config.get("extra_special_tokens", {})}
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)


def register_auto_processor(config_class, processor_class) -> None:
    """AutoProcessor for a config class."""
    AutoProcessor.register(config_class, processor_class, exist_ok=True)


def _drop_image_processor(config: dict) -> None:
    config.pop("image_processor", None)


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
