"""What can be said about a rendered scene: captions, questions with answers, boxes to find, dense captions.

A deterministic grammar over the scene's ground truth; only the choice of what to ask is random. An `Example` is one
user turn (after the image) and the assistant's answer, in the project's formats: the task prompts of TASK_PROMPTS and
regions as `<loc_y1><loc_x1><loc_y2><loc_x2>caption`. Regions stand in reading order: by top edge, then by left edge.
"""

from dataclasses import dataclass, field

import numpy as np

from modeling_argus.tasks_argus import TASK_PROMPTS
from processing_argus.locations_argus import LocationVocabulary

from .scenes import BACKGROUNDS, COLOURS, SHAPES, Scene, atlas_info

TASKS = ("dense_caption", "detect", "caption", "answer")
NUMBERS = ("zero", "one", "two", "three", "four", "five")
QUESTION_SHARES = (0.11, 0.2, 0.07, 0.26, 0.26, 0.1)
QUESTION_KINDS = ("what", "how_many", "colour", "yes_no", "where", "background")
PLURALS = {"fish": "fish", "butterfly": "butterflies", "strawberry": "strawberries", "bus": "buses", "cactus": "cacti"}
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")


@dataclass(frozen=True)
class Example:
    """One exchange about an image: the task ("answer:yes_no" for a question), what the user writes, the answer."""

    task: str
    prompt: str
    answer: str
    phrases: tuple[str, ...] = field(default=())


def with_article(label: str) -> str:
    """ "apple" -> "an apple"."""
    return f"{'an' if label[0] in 'aeiou' else 'a'} {label}"


def plural(label: str) -> str:
    """ "red circle" -> "red circles", "bus" -> "buses"."""
    head, _, last = label.rpartition(" ")
    return f"{head} {PLURALS.get(last, last + 's')}".strip()


def caption(scene: Scene) -> str:
    """ "A cat, two apples and a red circle." In reading order of each kind's first object."""
    counts = _counts(scene)
    parts = [with_article(name) if n == 1 else f"{NUMBERS[n]} {plural(name)}" for name, n in counts.items()]
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return text[0].upper() + text[1:] + "."


def dense_caption(scene: Scene, bins: int) -> str:
    """Every object as a region: its box in location tokens, then "a cat"."""
    return _regions(scene, scene.objects, [with_article(o.label) for o in scene.objects], bins)


def detection(scene: Scene, phrases, bins: int) -> str:
    """The objects that one of `phrases` names ("cat" or "a cat"), as regions with the phrase; none: an empty answer."""
    names = {label: phrase for phrase in phrases for label in (phrase, phrase.removeprefix("an ").removeprefix("a "))}
    found = [o for o in scene.objects if o.label in names]
    return _regions(scene, found, [names[o.label] for o in found], bins)


def where(box, height: int, width: int) -> str:
    """The cell of a 3 x 3 grid that holds the box's centre: "top left", "middle", "bottom", ..."""
    row = ROWS[min(2, int((box[1] + box[3]) / 2 / height * 3))]
    column = COLUMNS[min(2, int((box[0] + box[2]) / 2 / width * 3))]
    if row == "middle":
        return column
    return row if column == "middle" else f"{row} {column}"


def make_example(scene: Scene, rng: np.random.Generator, task: str, bins: int, kind: str | None = None) -> Example:
    """One exchange of the given task about the scene; questions of a random (or the given) kind.

    Raises ValueError for an unknown task.
    """
    if task == "caption":
        return Example(task, TASK_PROMPTS[task], caption(scene))
    if task == "dense_caption":
        return Example(task, TASK_PROMPTS[task], dense_caption(scene, bins))
    if task == "detect":
        phrases = _phrases(scene, rng)
        if rng.random() < 0.35:
            phrases = [with_article(phrase) for phrase in phrases]
        prompt = TASK_PROMPTS[task].format(phrases=", ".join(phrases))
        return Example(task, prompt, detection(scene, phrases, bins), tuple(phrases))
    if task == "answer":
        for _ in range(20):
            chosen = kind or QUESTION_KINDS[int(rng.choice(len(QUESTION_KINDS), p=QUESTION_SHARES))]
            asked = _question(scene, rng, chosen)
            if asked is not None:
                return Example(f"answer:{chosen}", *asked)
        return Example("answer:yes_no", *_question(scene, rng, "yes_no"))
    raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")


def all_labels() -> list[str]:
    """Every label an object can have: the pictograms and each shape in each colour."""
    return atlas_info()["classes"] + [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]


def _regions(scene: Scene, objects, captions, bins: int) -> str:
    return LocationVocabulary(bins).encode_regions([o.box for o in objects], captions, scene.size)


def _counts(scene: Scene) -> dict[str, int]:
    counts: dict[str, int] = {}
    for o in scene.objects:
        counts[o.label] = counts.get(o.label, 0) + 1
    return counts


def _absent(scene: Scene, rng: np.random.Generator) -> str:
    """A label that is not in the scene; half the time one that differs from an object only in colour or shape."""
    present = {o.label for o in scene.objects}
    labels = all_labels() if rng.random() < 0.3 else atlas_info()["classes"]
    near = [o for o in scene.objects if o.colour]
    if near and rng.random() < 0.5:
        o = near[int(rng.integers(len(near)))]
        labels = [f"{o.colour} {shape}" for shape in SHAPES] + [f"{colour} {o.name}" for colour in COLOURS]
    labels = [name for name in labels if name not in present]
    return labels[int(rng.integers(len(labels)))]


def _phrases(scene: Scene, rng: np.random.Generator) -> list[str]:
    """One to three different phrases to detect; about one in six is not in the scene."""
    present = list(_counts(scene))
    wanted = int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))
    order = [present[i] for i in rng.permutation(len(present))]
    phrases: list[str] = []
    for _ in range(wanted):
        phrase = _absent(scene, rng) if not order or rng.random() < 0.15 else order.pop()
        if phrase not in phrases:
            phrases.append(phrase)
    return phrases


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _question(scene: Scene, rng: np.random.Generator, kind: str) -> tuple[str, str] | None:
    """(question, answer) of a kind, or None where the scene has nothing to ask that has one right answer."""
    counts = _counts(scene)
    single = [o for o in scene.objects if counts[o.label] == 1]
    if kind == "what":
        if len(scene.objects) == 1 and rng.random() < 0.5:
            return "What is this?", _sentence(with_article(scene.objects[0].label))
        cells = [where(o.box, *scene.size) for o in scene.objects]
        lone = [i for i, cell in enumerate(cells) if cells.count(cell) == 1]
        if not lone:
            return None
        i = lone[int(rng.integers(len(lone)))]
        return f"What is {_at(cells[i])}?", _sentence(with_article(scene.objects[i].label))
    if kind == "how_many":
        draw = rng.random()
        if draw < 0.35:
            return "How many objects are there?", _sentence(NUMBERS[len(scene.objects)])
        label = _absent(scene, rng) if draw < 0.5 else list(counts)[int(rng.integers(len(counts)))]
        return f"How many {plural(label)} are there?", _sentence(NUMBERS[counts.get(label, 0)])
    if kind == "colour":
        names = [o.name for o in scene.objects if o.colour]
        lone = [o for o in scene.objects if o.colour and names.count(o.name) == 1]
        if not lone:
            return None
        o = lone[int(rng.integers(len(lone)))]
        word = "colour" if rng.random() < 0.5 else "color"
        return f"What {word} is the {o.name}?", _sentence(o.colour)
    if kind == "yes_no":
        if rng.random() < 0.5:
            return f"Is there {with_article(list(counts)[int(rng.integers(len(counts)))])}?", "Yes."
        return f"Is there {with_article(_absent(scene, rng))}?", "No."
    if kind == "where":
        if not single:
            return None
        o = single[int(rng.integers(len(single)))]
        return f"Where is the {o.label}?", _sentence(_at(where(o.box, *scene.size)))
    if kind == "background":
        return "What is the background like?", _sentence(
            {"stripes": "striped", "noise": "noisy"}.get(scene.background, scene.background)
        )
    raise ValueError(f"unknown question kind {kind!r}; the kinds are {', '.join(QUESTION_KINDS)}")


def _at(cell: str) -> str:
    return f"{'in' if cell == 'middle' else 'at' if ' ' in cell or cell in ROWS else 'on'} the {cell}"


def vocabulary_text() -> list[str]:
    """Every word form of the grammar in its surroundings, to train the tokenizer on."""
    lines = [
        TASK_PROMPTS["caption"],
        TASK_PROMPTS["dense_caption"],
        "What is this?",
        "Yes.",
        "No.",
        "How many objects are there?",
    ]
    for label in all_labels():
        a, many = with_article(label), plural(label)
        lines += [label, a, f"{_sentence(a)} and {a}, {label}.", f"Detect: {label}, {label}.", f"Where is the {label}?"]
        lines += [f"Is there {a}?", f"How many {many} are there?", f"Two {many}, two {many} and {many}."]
    for number in NUMBERS:
        lines += [_sentence(number), f"{_sentence(number)[:-1]} cats and {number} dogs."]
    for colour in COLOURS:
        lines += [_sentence(colour), f"What colour is the {colour} circle?", f"What color is the {colour} square?"]
    for row in ROWS:
        for column in COLUMNS:
            cell = where((COLUMNS.index(column) * 2, ROWS.index(row) * 2) * 2, 6, 6)
            lines += [f"What is {_at(cell)}?", _sentence(_at(cell))]
    lines.append("What is the background like?")
    lines += [_sentence(b) for b in (*BACKGROUNDS, "striped", "noisy")]
    return [*lines, "User:", "Assistant:", "\nAssistant: ", "User: "]
