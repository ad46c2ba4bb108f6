"""What LMMs-Eval finds by the entry-point group `lmms_eval.models`: where the model "argus" is; nothing is loaded.

    lmms-eval --model argus --model_args pretrained=hub_cards/argus-nano --tasks pope --batch_size 8

pyproject.toml: `[project.entry-points."lmms_eval.models"]`, `argus = "argus_tools.evaluate.lmms_plugin:manifest"`.
"""

CLASS = "argus_tools.evaluate.lmms_model.ArgusLmms"


def manifest():
    """LMMs-Eval's ModelManifest of Argus: a chat model."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="argus", chat_class_path=CLASS)
