"""What can be said about a rendered scene: captions, questions with answers, boxes to find, dense captions.

A deterministic grammar over the scene's ground truth; only the choice of what to ask is random. Half of all yes/no
questions and of all phrases to detect are of things that are not there, of the same kinds and as often near misses as
what is there, so that nothing but the image tells. Regions stand in reading order: by top edge, then by left edge.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from modeling_argus.tasks_argus import TASK_PROMPTS
from processing_argus.locations_argus import LocationVocabulary

from .atlas import COLOURS, DIGITS, SHAPES, WORDS, all_labels, atlas_info
from .render import BACKGROUNDS, Scene, SceneObject

TASKS = ("dense_caption", "detect", "caption", "answer")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
QUESTION_SHARES = (0.15, 0.2, 0.07, 0.26, 0.24, 0.08)
QUESTION_KINDS = ("what", "how_many", "colour", "yes_no", "where", "background")
IRREGULAR_PLURALS = {
    "cactus": "cacti",
    "deer": "deer",
    "die": "dice",
    "fish": "fish",
    "pufferfish": "pufferfish",
    "snowman": "snowmen",
    "wolf": "wolves",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "mouse": "mice",
    "scarf": "scarves",
    "sheep": "sheep",
    "shrimp": "shrimp",
    "squid": "squid",
    "tooth": "teeth",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "tornado": "tornadoes",
    "volcano": "volcanoes",
}
BACKGROUND_WORDS = {"stripes": "striped", "noise": "noisy"}
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
# A near miss among the pictograms is at most so many places away in the atlas, whose order is by theme.
NEAR = 10


@dataclass(frozen=True)
class Exchange:
    """One exchange about an image: the task ("answer:yes_no" for a question), what the user writes, what the
    assistant answers, in words or as (box in pixels, caption) pairs, and the phrases that a detection asks for."""

    task: str
    prompt: str
    answer: str | tuple[tuple[tuple[float, float, float, float], str], ...]
    phrases: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Example:
    """An exchange whose answer is text: regions are written in location tokens."""

    task: str
    prompt: str
    answer: str
    phrases: tuple[str, ...] = field(default=())


def with_article(label: str) -> str:
    """ "apple" -> "an apple", "word stop" -> "the word stop"."""
    if label.startswith(("digit ", "word ")):
        return f"the {label}"
    spoken_vowel = label.startswith("hourglass") or (label[0] in "aeiou" and not label.startswith(("ufo", "unicorn")))
    return f"{'an' if spoken_vowel else 'a'} {label}"


def without_article(phrase: str) -> str:
    """ "an apple" -> "apple", "the word stop" -> "word stop"; what has no article stays."""
    head, _, rest = phrase.partition(" ")
    return rest if rest and head in ("a", "an", "the") else phrase


def plural(label: str) -> str:
    """ "red circle" -> "red circles", "bus" -> "buses", "cherry" -> "cherries"."""
    head, _, last = label.rpartition(" ")
    if last in IRREGULAR_PLURALS:
        many = IRREGULAR_PLURALS[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        many = f"{last}es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        many = f"{last[:-1]}ies"
    else:
        many = f"{last}s"
    return f"{head} {many}".strip()


def caption(scene: Scene) -> str:
    """ "A cat, two apples and the word stop." In reading order of each kind's first object."""
    parts = [with_article(name) if n == 1 else f"{NUMBERS[n]} {plural(name)}" for name, n in _counts(scene).items()]
    return _sentence(parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1])


def caption_labels(text: str) -> Counter:
    """What a caption of this grammar says, as label -> count: the inverse of `caption`. Words that name nothing that a
    scene can hold are left out, whatever the text is."""
    names = {label: label for label in all_labels()}
    many = {plural(label): label for label in names}
    found: Counter = Counter()
    for part in text.strip().rstrip(".").lower().replace(" and ", ", ").split(", "):
        head, _, name = part.strip().partition(" ")
        if head in ("a", "an", "the", "one") and name in names:
            found[name] += 1
        elif head in NUMBERS[2:] and name in many:
            found[many[name]] += NUMBERS.index(head)
    return found


def dense_caption(scene: Scene, bins: int) -> str:
    """Every object as a region: its box in location tokens, then "a cat"."""
    return _written(_all_regions(scene), bins, scene.size)


def detection(scene: Scene, phrases, bins: int) -> str:
    """The objects that one of `phrases` names ("cat" or "a cat"), as regions with the phrase; none: an empty answer."""
    return _written(_found(scene, phrases), bins, scene.size)


def where(box, height: int, width: int) -> str:
    """The cell of a 3 x 3 grid that holds the box's centre: "top left", "middle", "bottom", ..."""
    row = ROWS[min(2, int((box[1] + box[3]) / 2 / height * 3))]
    column = COLUMNS[min(2, int((box[0] + box[2]) / 2 / width * 3))]
    if row == "middle":
        return column
    return row if column == "middle" else f"{row} {column}"


def ask(scene: Scene, rng: np.random.Generator, task: str, kind: str | None = None) -> Exchange:
    """One exchange of the given task about the scene; questions of a random (or the given) kind, or of yes and no
    where the scene has nothing of that kind to ask.

    Raises ValueError for an unknown task or kind.
    """
    if task == "caption":
        return Exchange(task, TASK_PROMPTS[task], caption(scene))
    if task == "dense_caption":
        return Exchange(task, TASK_PROMPTS[task], _all_regions(scene))
    if task == "detect":
        phrases = _phrases(scene, rng)
        if rng.random() < 0.35:
            phrases = [with_article(phrase) for phrase in phrases]
        return Exchange(
            task, TASK_PROMPTS[task].format(phrases=", ".join(phrases)), _found(scene, phrases), tuple(phrases)
        )
    if task != "answer":
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    if kind is not None and kind not in QUESTION_KINDS:
        raise ValueError(f"unknown question kind {kind!r}; the kinds are {', '.join(QUESTION_KINDS)}")
    for _ in range(20):
        chosen = kind or QUESTION_KINDS[int(np.searchsorted(_QUESTION_STEPS, rng.random()))]
        asked = _QUESTIONS[chosen](scene, rng)
        if asked is not None:
            return Exchange(f"answer:{chosen}", *asked)
    return Exchange("answer:yes_no", *_yes_no(scene, rng))


def make_example(scene: Scene, rng: np.random.Generator, task: str, bins: int, kind: str | None = None) -> Example:
    """`ask` with the answer as text, regions in location tokens of `bins` bins."""
    asked = ask(scene, rng, task, kind)
    answer = asked.answer if isinstance(asked.answer, str) else _written(asked.answer, bins, scene.size)
    return Example(asked.task, asked.prompt, answer, asked.phrases)


def _written(regions, bins: int, size) -> str:
    return LocationVocabulary(bins).encode_regions([box for box, _ in regions], [text for _, text in regions], size)


def _all_regions(scene: Scene):
    return tuple((o.box, with_article(o.label)) for o in scene.objects)


def _found(scene: Scene, phrases):
    names = {without_article(phrase): phrase for phrase in phrases}
    return tuple((o.box, names[o.label]) for o in scene.objects if o.label in names)


def _counts(scene: Scene) -> dict[str, int]:
    counts: dict[str, int] = {}
    for o in scene.objects:
        counts[o.label] = counts.get(o.label, 0) + 1
    return counts


def _pick(rng, items):
    return items[int(rng.integers(len(items)))]


def _absent(scene: Scene, rng: np.random.Generator) -> str:
    """A label that is not in the scene, of the kind of one that is; half the time a near miss of it: another colour
    or shape, a pictogram of the same theme."""
    present, model, near = {o.label for o in scene.objects}, _pick(rng, scene.objects), rng.random() < 0.5
    labels = _near(model) if near else _alike(model)
    return _pick(rng, [name for name in labels if name not in present])


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


def _phrases(scene: Scene, rng: np.random.Generator) -> list[str]:
    """One to three different phrases to detect; each with even chances of being in the scene."""
    present = list(_counts(scene))
    order = [present[i] for i in rng.permutation(len(present))]
    phrases: list[str] = []
    draw = rng.random()
    for _ in range(1 if draw < 0.6 else 2 if draw < 0.9 else 3):
        phrase = order.pop() if order and rng.random() < 0.5 else _absent(scene, rng)
        if phrase not in phrases:
            phrases.append(phrase)
    return phrases


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _at(cell: str) -> str:
    return f"{'in' if cell == 'middle' else 'at' if ' ' in cell or cell in ROWS else 'on'} the {cell}"


# Each gives (question, answer), or None where the scene has nothing to ask that has one right answer.


def _what(scene, rng):
    draw = rng.random()
    if draw < 0.4:
        for kind, question in (("digit ", "Which digit is there?"), ("word ", "Which word is there?")):
            read = [o.label for o in scene.objects if o.name.startswith(kind)]
            if len(read) == 1:
                return question, _sentence(with_article(read[0]))
    if len(scene.objects) == 1 and draw < 0.7:
        return "What is this?", _sentence(with_article(scene.objects[0].label))
    cells = [where(o.box, *scene.size) for o in scene.objects]
    lone = [i for i, cell in enumerate(cells) if cells.count(cell) == 1]
    if not lone:
        return None
    i = _pick(rng, lone)
    return f"What is {_at(cells[i])}?", _sentence(with_article(scene.objects[i].label))


def _how_many(scene, rng):
    counts, draw = _counts(scene), rng.random()
    if draw < 0.35:
        return "How many objects are there?", _sentence(NUMBERS[len(scene.objects)])
    countable = [o.label for o in scene.objects if not o.is_text]
    if not countable:
        return None
    # By objects, not by labels: "one" is not the answer to most questions where there is more than one of something.
    label = _pick(rng, countable)
    if draw < 0.5:
        label = _absent(Scene(scene.image, [o for o in scene.objects if not o.is_text], scene.background), rng)
    return f"How many {plural(label)} are there?", _sentence(NUMBERS[counts.get(label, 0)])


def _colour(scene, rng):
    names = [o.name for o in scene.objects if o.colour]
    lone = [o for o in scene.objects if o.colour and names.count(o.name) == 1]
    if not lone:
        return None
    o, word = _pick(rng, lone), "colour" if rng.random() < 0.5 else "color"
    return f"What {word} is the {o.name}?", _sentence(o.colour)


def _yes_no(scene, rng):
    there = rng.random() < 0.5
    label = _pick(rng, list(_counts(scene))) if there else _absent(scene, rng)
    a = with_article(label)
    question = f"Is {a} there?" if a.startswith("the ") else f"Is there {a}?"
    return question, "Yes." if there else "No."


def _where(scene, rng):
    counts = _counts(scene)
    single = [o for o in scene.objects if counts[o.label] == 1]
    if not single:
        return None
    o = _pick(rng, single)
    return f"Where is the {o.label}?", _sentence(_at(where(o.box, *scene.size)))


def _background(scene, rng):
    if scene.background_colour and rng.random() < 0.5:
        word = "colour" if rng.random() < 0.5 else "color"
        return f"What {word} is the background?", _sentence(scene.background_colour)
    return "What is the background like?", _sentence(BACKGROUND_WORDS.get(scene.background, scene.background))


_QUESTIONS = dict(zip(QUESTION_KINDS, (_what, _how_many, _colour, _yes_no, _where, _background), strict=True))
_QUESTION_STEPS = np.cumsum(QUESTION_SHARES)
_QUESTION_STEPS[-1] = 1.0


def vocabulary_text() -> list[str]:
    """Every word form of the grammar in its surroundings, to train the tokenizer on."""
    lines = [TASK_PROMPTS["caption"], TASK_PROMPTS["dense_caption"], "What is this?", "Yes.", "No."]
    lines += ["How many objects are there?", "Which digit is there?", "Which word is there?"]
    for label in all_labels():
        a, text = with_article(label), label.startswith(("digit ", "word "))
        lines += [label, a, f"{_sentence(a)} and {a}, {label}.", f"Detect: {label}, {label}.", f"Where is the {label}?"]
        lines.append(f"Is {a} there?" if text else f"Is there {a}?")
        if not text:
            many = plural(label)
            lines += [f"How many {many} are there?", f"Two {many}, two {many} and {many}."]
    for number in NUMBERS:
        lines += [_sentence(number), f"{_sentence(number)[:-1]} cats and {number} dogs."]
    for colour in COLOURS:
        lines += [_sentence(colour), f"What colour is the {colour} circle?", f"What color is the {colour} square?"]
    for row in ROWS:
        for column in COLUMNS:
            cell = where((COLUMNS.index(column) * 2, ROWS.index(row) * 2) * 2, 6, 6)
            lines += [f"What is {_at(cell)}?", _sentence(_at(cell))]
    lines += ["What is the background like?", "What colour is the background?", "What color is the background?"]
    lines += [_sentence(BACKGROUND_WORDS.get(b, b)) for b in BACKGROUNDS]
    return [*lines, "User:", "Assistant:", "\nAssistant: ", "User: "]
