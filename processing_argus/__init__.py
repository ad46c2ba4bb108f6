"""ArgusVLM's processors: images to tiles, text to ids, generated ids to captions and boxes.

Importing this package registers both processors with transformers' Auto classes, so that a folder in which they were
saved loads without `trust_remote_code`. The folder names them, and transformers finds registered classes by name: the
config class is only the key. That is ArgusConfig if it is registered already (it belongs to the other hub package,
which may not be imported here), else a stand-in; `register_auto_classes(config_class)` may be called again.
"""

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .compat_processing_argus import register_auto_image_processor, register_auto_processor
from .image_loading_argus import ImageInputError, load_image
from .image_processing_argus import ArgusImageProcessor, ArgusImageProcessorKwargs
from .locations_argus import LocationVocabulary, add_location_tokens, location_token, location_tokens
from .processing_argus import CHAT_TEMPLATE, ArgusProcessor, ArgusProcessorKwargs
from .tiling_argus import TileGrid


class _ConfigStandIn(PretrainedConfig):
    model_type = "argus"


def register_auto_classes(config_class=None) -> None:
    """Registers both processors for `config_class`; default: the one registered as "argus", else a stand-in."""
    if config_class is None:
        config_class = CONFIG_MAPPING["argus"] if "argus" in CONFIG_MAPPING else _ConfigStandIn
    register_auto_image_processor(config_class, ArgusImageProcessor)
    register_auto_processor(config_class, ArgusProcessor)


register_auto_classes()

__all__ = [
    "CHAT_TEMPLATE",
    "ArgusImageProcessor",
    "ArgusImageProcessorKwargs",
    "ArgusProcessor",
    "ArgusProcessorKwargs",
    "ImageInputError",
    "LocationVocabulary",
    "TileGrid",
    "add_location_tokens",
    "load_image",
    "location_token",
    "location_tokens",
    "register_auto_classes",
]
