"""GQA accuracy: exact match, verbatim and normalised.

GQA's own eval.py compares the strings as they are; its answers are lower-case words without punctuation. What
LMMs-Eval reports as `exact_match` (the paper's Table 3 is measured by it) lower-cases both sides and removes
punctuation. Both are given; `exact_match` is the second.
"""

import string
from collections import defaultdict

from .benchmark import mean

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case without punctuation; white space around it away."""
    return text.strip().lower().translate(_NO_PUNCTUATION)


def score(questions: list[dict], answers: dict) -> dict:
    """Scores in 0..1; questions: {"id", "answer", "type"} with type "query" (open) or another (binary)."""
    normalised, verbatim, by_kind = [], [], defaultdict(list)
    for question in questions:
        answer, wanted = answers[question["id"]].strip(), question["answer"]
        normalised.append(normalise(answer) == normalise(wanted))
        verbatim.append(answer == wanted)
        if question.get("type"):
            by_kind["open" if question["type"] == "query" else "binary"].append(normalised[-1])
    kinds = {kind: mean(each) for kind, each in sorted(by_kind.items())}
    return {"exact_match": mean(normalised), "verbatim": mean(verbatim), **kinds, "questions": len(normalised)}
