"""Rendered scenes with exact ground truth: what argus-nano is trained and scored on.

`atlas.py` holds what can be drawn, `backgrounds.py` what it stands on, `render.py` draws a scene; `words.py` is the
language, `questions.py` asks, and `text.py` says all that can be said about a scene.
"""

from .atlas import COLOURS, DIGITS, SHAPES, WORDS, all_labels, atlas_info, class_names, pictograms
from .backgrounds import BACKGROUNDS
from .questions import QUESTION_KINDS
from .render import SCENES_VERSION, SPLITS, Scene, SceneObject, render_scene
from .text import (
    TASKS,
    Exchange,
    ask,
    caption,
    caption_labels,
    vocabulary_text,
)
from .words import NUMBERS, plural, where, with_article, without_article

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "DIGITS",
    "NUMBERS",
    "QUESTION_KINDS",
    "SCENES_VERSION",
    "SHAPES",
    "SPLITS",
    "TASKS",
    "WORDS",
    "Exchange",
    "Scene",
    "SceneObject",
    "all_labels",
    "ask",
    "atlas_info",
    "caption",
    "caption_labels",
    "class_names",
    "pictograms",
    "plural",
    "render_scene",
    "vocabulary_text",
    "where",
    "with_article",
    "without_article",
]
