"""POPE (object hallucination): accuracy, precision, recall, F1 and the share of "yes", as its evaluate.py has them.

An answer is "no" where its first sentence, commas removed, holds the word "No", "no" or "not"; anything else is "yes".
LMMs-Eval is stricter (the lower-cased answer must be "yes" or "no" itself); its accuracy, Table 3's, is given as
`exact_accuracy`.
"""

from .benchmark import mean


def says_yes(answer: str) -> bool:
    """What the official script takes an answer for."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not any(word in words for word in ("No", "not", "no"))


def score(questions: list[dict], answers: dict) -> dict:
    """Scores in 0..1; questions: {"id", "label": "yes" or "no"}. What would divide by nothing is 0."""
    true = [question["label"] != "no" for question in questions]
    said = [says_yes(answers[question["id"]]) for question in questions]
    both = sum(s and t for s, t in zip(said, true))
    precision, recall = both / max(1, sum(said)), both / max(1, sum(true))
    exact = [answers[q["id"]].strip().lower() == ("yes" if t else "no") for q, t in zip(questions, true)]
    return {
        "accuracy": mean(s == t for s, t in zip(said, true)),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if both else 0.0,
        "yes_ratio": mean(said),
        "exact_accuracy": mean(exact),
        "questions": len(questions),
    }
