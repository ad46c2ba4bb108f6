"""Questions about a rendered scene, each with one right answer, and what is not in it to ask for."""

import numpy as np

from .atlas import COLOURS, DIGITS, SHAPES, WORDS, atlas_info
from .render import Scene, SceneObject
from .words import BACKGROUND_WORDS, KINDS, NUMBERS, at, plural, sentence, where, with_article

QUESTION_SHARES = (0.15, 0.2, 0.07, 0.26, 0.24, 0.08)
QUESTION_KINDS = ("what", "how_many", "colour", "yes_no", "where", "background")
# A near miss among the pictograms is at most so many places away in the atlas, whose order is by theme.
NEAR = 10


def question(scene: Scene, rng: np.random.Generator, kind: str | None = None) -> tuple[str, str, str]:
    """(kind, question, answer), of a random (or the given) kind; where the scene has nothing of that kind to ask, of
    yes and no, and where nothing is absent either, of the background.

    Raises ValueError for an unknown kind.
    """
    if kind is not None and kind not in QUESTION_KINDS:
        raise ValueError(f"unknown question kind {kind!r}; the kinds are {', '.join(QUESTION_KINDS)}")
    for _ in range(20):
        chosen = kind or QUESTION_KINDS[int(np.searchsorted(_QUESTION_STEPS, rng.random()))]
        asked = _QUESTIONS[chosen](scene, rng)
        if asked is not None:
            return chosen, *asked
    asked = _yes_no(scene, rng)
    return ("yes_no", *asked) if asked else ("background", *_background(scene, rng))


def label_counts(scene: Scene) -> dict[str, int]:
    """How many there are of each label, in reading order of each one's first object."""
    counts: dict[str, int] = {}
    for o in scene.objects:
        counts[o.label] = counts.get(o.label, 0) + 1
    return counts


def clear_labels(scene: Scene) -> list[str]:
    """The labels in the scene that name nothing else there: not "bird" beside a dove, which is a bird too."""
    counts = label_counts(scene)
    return [label for label in counts if not any(special in counts for special in KINDS.get(label, ()))]


def absent_label(scene: Scene, rng: np.random.Generator) -> str | None:
    """A label that names nothing in the scene, of the kind of one that is there; half the time a near miss of it:
    another colour or shape, a pictogram of the same theme. None where nothing of that kind is left."""
    present, model, near = {o.label for o in scene.objects}, _pick(rng, scene.objects), rng.random() < 0.5
    for names in (_near(model), _alike(model)) if near else (_alike(model),):
        labels = [name for name in names if name not in present and present.isdisjoint(KINDS.get(name, ()))]
        if labels:
            return _pick(rng, labels)
    return None


def _alike(model: SceneObject) -> tuple[str, ...] | list[str]:
    if model.is_text:
        return DIGITS if model.name in DIGITS else WORDS
    if model.colour:
        return [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
    return atlas_info()["classes"]


def _near(model: SceneObject) -> tuple[str, ...] | list[str]:
    if model.is_text:
        return _alike(model)
    if model.colour:
        return [f"{model.colour} {shape}" for shape in SHAPES] + [f"{colour} {model.name}" for colour in COLOURS]
    classes = atlas_info()["classes"]
    at = classes.index(model.name)
    return classes[max(0, at - NEAR) : at + NEAR + 1]


def _pick(rng, items):
    return items[int(rng.integers(len(items)))]


# Each gives (question, answer), or None where the scene has nothing to ask that has one right answer.


def _what(scene, rng):
    draw = rng.random()
    if draw < 0.4:
        for kind, question in (("digit ", "Which digit is there?"), ("word ", "Which word is there?")):
            read = [o.label for o in scene.objects if o.name.startswith(kind)]
            if len(read) == 1:
                return question, sentence(with_article(read[0]))
    if len(scene.objects) == 1 and draw < 0.7:
        return "What is this?", sentence(with_article(scene.objects[0].label))
    cells = [where(o.box, *scene.size) for o in scene.objects]
    # "At the top" is taken to mean the whole side: it is asked where nothing else is at the top left or right.
    lone = [i for i, cell in enumerate(cells) if sum(cell in (other, *other.split()) for other in cells) == 1]
    if not lone:
        return None
    i = _pick(rng, lone)
    return f"What is {at(cells[i])}?", sentence(with_article(scene.objects[i].label))


def _how_many(scene, rng):
    counts, draw = label_counts(scene), rng.random()
    if draw < 0.35:
        return "How many objects are there?", sentence(NUMBERS[len(scene.objects)])
    clear = clear_labels(scene)
    countable = [o.label for o in scene.objects if not o.is_text and o.label in clear]
    if not countable:
        return None
    # By objects, not by labels: "one" is not the answer to most questions where there is more than one of something.
    label = _pick(rng, countable)
    if draw < 0.5:
        label = absent_label(Scene(scene.image, [o for o in scene.objects if not o.is_text], scene.background), rng)
    return f"How many {plural(label)} are there?", sentence(NUMBERS[counts.get(label, 0)])


def _colour(scene, rng):
    names = [o.name for o in scene.objects if o.colour]
    lone = [o for o in scene.objects if o.colour and names.count(o.name) == 1]
    if not lone:
        return None
    o, word = _pick(rng, lone), "colour" if rng.random() < 0.5 else "color"
    return f"What {word} is the {o.name}?", sentence(o.colour)


def _yes_no(scene, rng):
    there, absent = rng.random() < 0.5, absent_label(scene, rng)
    if absent is None:
        return None
    a = with_article(_pick(rng, list(label_counts(scene))) if there else absent)
    question = f"Is {a} there?" if a.startswith("the ") else f"Is there {a}?"
    return question, "Yes." if there else "No."


def _where(scene, rng):
    counts, clear = label_counts(scene), clear_labels(scene)
    single = [o for o in scene.objects if counts[o.label] == 1 and o.label in clear]
    if not single:
        return None
    o = _pick(rng, single)
    return f"Where is the {o.label}?", sentence(at(where(o.box, *scene.size)))


def _background(scene, rng):
    if scene.background_colour and rng.random() < 0.5:
        word = "colour" if rng.random() < 0.5 else "color"
        return f"What {word} is the background?", sentence(scene.background_colour)
    return "What is the background like?", sentence(BACKGROUND_WORDS.get(scene.background, scene.background))


_QUESTIONS = dict(zip(QUESTION_KINDS, (_what, _how_many, _colour, _yes_no, _where, _background), strict=True))
_QUESTION_STEPS = np.cumsum(QUESTION_SHARES)
_QUESTION_STEPS[-1] = 1.0
