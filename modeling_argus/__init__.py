"""ArgusVLM's model, as a package: importing it registers the classes with transformers' Auto classes.

A hub repository holds this folder's other files, flat; there `auto_map` does what the registrations do here.
`AutoModelForVision2Seq` works on both majors, for scripts written against the name that transformers 5 dropped.
"""

import transformers
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from .base_argus import ArgusPreTrainedModel
from .configuration_argus import ArgusConfig, ArgusTextConfig, ArgusVisionConfig
from .connector_argus import ArgusConnector
from .encoded_argus import EncodedImage, EncodedImages
from .modeling_argus import ArgusForConditionalGeneration, ArgusModel
from .text_argus import ArgusTextModel
from .vision_argus import ArgusVisionModel

for _config, _model in (
    (ArgusConfig, ArgusModel),
    (ArgusVisionConfig, ArgusVisionModel),
    (ArgusTextConfig, ArgusTextModel),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)

AutoModelForVision2Seq = getattr(transformers, "AutoModelForVision2Seq", AutoModelForImageTextToText)
for _name in ("AutoModelForImageTextToText", "AutoModelForVision2Seq", "AutoModelForMultimodalLM"):
    if hasattr(transformers, _name):
        getattr(transformers, _name).register(ArgusConfig, ArgusForConditionalGeneration, exist_ok=True)

__all__ = [
    "ArgusConfig",
    "ArgusConnector",
    "ArgusForConditionalGeneration",
    "ArgusModel",
    "ArgusPreTrainedModel",
    "ArgusTextConfig",
    "ArgusTextModel",
    "ArgusVisionConfig",
    "ArgusVisionModel",
    "AutoModelForVision2Seq",
    "EncodedImage",
    "EncodedImages",
]
