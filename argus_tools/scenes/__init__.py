"""Rendered scenes with exact ground truth: what argus-nano is trained and scored on.

`atlas.py` holds what can be drawn, `render.py` draws a scene, `text.py` says things about it.
"""

from .atlas import COLOURS, DIGITS, SHAPES, WORDS, all_labels, atlas_info, class_names, pictograms
from .render import BACKGROUNDS, SCENES_VERSION, SPLITS, Scene, SceneObject, render_scene
from .text import (
    QUESTION_KINDS,
    TASKS,
    Example,
    Exchange,
    ask,
    caption,
    caption_labels,
    dense_caption,
    detection,
    make_example,
    plural,
    vocabulary_text,
    where,
    with_article,
)

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "DIGITS",
    "QUESTION_KINDS",
    "SCENES_VERSION",
    "SHAPES",
    "SPLITS",
    "TASKS",
    "WORDS",
    "Example",
    "Exchange",
    "Scene",
    "SceneObject",
    "all_labels",
    "ask",
    "atlas_info",
    "caption",
    "caption_labels",
    "class_names",
    "dense_caption",
    "detection",
    "make_example",
    "pictograms",
    "plural",
    "render_scene",
    "vocabulary_text",
    "where",
    "with_article",
]
