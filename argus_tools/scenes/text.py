"""What can be said about a rendered scene: captions, questions with answers, boxes to find, dense captions.

A deterministic grammar over the scene's ground truth; only the choice of what to ask is random. Half of all yes/no
questions and of all phrases to detect are of things that are not there, of the same kinds and as often near misses as
what is there, so that nothing but the image tells. Regions stand in reading order: by top edge, then by left edge.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from modeling_argus.tasks_argus import TASK_PROMPTS

from .atlas import COLOURS, all_labels
from .backgrounds import BACKGROUNDS
from .questions import absent_label, clear_labels, label_counts, question
from .render import Scene
from .words import BACKGROUND_WORDS, COLUMNS, NUMBERS, ROWS, at, plural, sentence, where, with_article, without_article

TASKS = ("dense_caption", "detect", "caption", "answer")


@dataclass(frozen=True)
class Exchange:
    """One exchange about an image: the task ("answer:yes_no" for a question), what the user writes, what the
    assistant answers, in words or as (box in pixels, caption) pairs, and the phrases that a detection asks for."""

    task: str
    prompt: str
    answer: str | tuple[tuple[tuple[float, float, float, float], str], ...]
    phrases: tuple[str, ...] = field(default=())


def caption(scene: Scene) -> str:
    """ "A cat, two apples and the word stop." In reading order of each kind's first object."""
    parts = [
        with_article(name) if n == 1 else f"{NUMBERS[n]} {plural(name)}" for name, n in label_counts(scene).items()
    ]
    return sentence(parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1])


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


def ask(scene: Scene, rng: np.random.Generator, task: str, kind: str | None = None) -> Exchange:
    """One exchange of the given task about the scene; questions of a random (or the given) kind, or of another where
    the scene has nothing of that kind to ask.

    Raises ValueError for an unknown task or kind.
    """
    if task == "caption":
        return Exchange(task, TASK_PROMPTS[task], caption(scene))
    if task == "dense_caption":
        return Exchange(task, TASK_PROMPTS[task], tuple((o.box, with_article(o.label)) for o in scene.objects))
    if task == "detect":
        phrases = _phrases(scene, rng)
        if rng.random() < 0.35:
            phrases = [with_article(phrase) for phrase in phrases]
        return Exchange(
            task, TASK_PROMPTS[task].format(phrases=", ".join(phrases)), _found(scene, phrases), tuple(phrases)
        )
    if task != "answer":
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    chosen, asked, answer = question(scene, rng, kind)
    return Exchange(f"answer:{chosen}", asked, answer)


def _found(scene: Scene, phrases):
    names = {without_article(phrase): phrase for phrase in phrases}
    return tuple((o.box, names[o.label]) for o in scene.objects if o.label in names)


def _phrases(scene: Scene, rng: np.random.Generator) -> list[str]:
    """One to three different phrases to detect; each with even chances of being in the scene, where that can be."""
    present = clear_labels(scene)
    order = [present[i] for i in rng.permutation(len(present))]
    phrases: list[str] = []
    draw = rng.random()
    for _ in range(1 if draw < 0.6 else 2 if draw < 0.9 else 3):
        absent = None if order and rng.random() < 0.5 else absent_label(scene, rng)
        phrase = absent or (order.pop() if order else None)
        if phrase and phrase not in phrases:
            phrases.append(phrase)
    return phrases


def vocabulary_text() -> list[str]:
    """Every word form of the grammar in its surroundings, to train the tokenizer on."""
    lines = [TASK_PROMPTS["caption"], TASK_PROMPTS["dense_caption"], "What is this?", "Yes.", "No."]
    lines += ["How many objects are there?", "Which digit is there?", "Which word is there?"]
    for label in all_labels():
        a, text = with_article(label), label.startswith(("digit ", "word "))
        lines += [label, a, f"{sentence(a)} and {a}, {label}.", f"Detect: {label}, {label}.", f"Where is the {label}?"]
        lines.append(f"Is {a} there?" if text else f"Is there {a}?")
        if not text:
            many = plural(label)
            lines += [f"How many {many} are there?", f"Two {many}, two {many} and {many}."]
    for number in NUMBERS:
        lines += [sentence(number), f"{sentence(number)[:-1]} cats and {number} dogs."]
    for colour in COLOURS:
        lines += [sentence(colour), f"What colour is the {colour} circle?", f"What color is the {colour} square?"]
    for row in ROWS:
        for column in COLUMNS:
            cell = where((COLUMNS.index(column) * 2, ROWS.index(row) * 2) * 2, 6, 6)
            lines += [f"What is {at(cell)}?", sentence(at(cell))]
    lines += ["What is the background like?", "What colour is the background?", "What color is the background?"]
    lines += [sentence(BACKGROUND_WORDS.get(b, b)) for b in BACKGROUNDS]
    return [*lines, "User:", "Assistant:", "\nAssistant: ", "User: "]
