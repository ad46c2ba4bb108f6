"""VQAv2 accuracy by the official rule (vqaEval.py of the VQA challenge), its oddities kept.

An answer is worth min(1, matches / 3) against the nine other annotators, averaged over leaving out each of the ten.
Where the ten do not all say the same, both sides are normalised first: punctuation, lower case, number words to
digits, articles away, contractions with their apostrophe. Where they do, the texts are compared as they are.
(LMMs-Eval, by which the paper's starred rows were measured, normalises the model's answer there too.)
"""

import re
from collections import defaultdict

from .benchmark import mean

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = ("a", "an", "the")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The official pattern, "(?!<=\d)(\.)(?!\d)", looks for "<=" where a look-behind was meant: only what follows counts.
_PERIOD = re.compile(r"\.(?!\d)")
# The official call hands re.UNICODE to `count`: more periods than that stay.
_MOST_PERIODS = int(re.UNICODE)

# Each stands in the official table once for every apostrophe that can be missing: "couldnt've" and "couldn'tve".
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {key: word for word in _CONTRACTIONS for key in _without_one_apostrophe(word)}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the wrong way round, as it stands there


def normalise(text: str) -> str:
    """An answer as the official script compares it."""
    result = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or _COMMA_IN_NUMBER.search(text) else " ")
    result = _PERIOD.sub("", result, count=_MOST_PERIODS)
    words = [_DIGITS.get(word, word) for word in result.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def accuracy(answer: str, answers: list[str]) -> float:
    """0..1 of one answer against the annotators' (ten in VQAv2)."""
    answer, answers = (_plain(answer), [_plain(each) for each in answers])
    if len(set(answers)) > 1:
        answer, answers = normalise(answer), [normalise(each) for each in answers]
    equal = [each == answer for each in answers]
    return mean(min(1.0, (sum(equal) - own) / 3) for own in equal)


def score(questions: list[dict], answers: dict) -> dict:
    """{"accuracy", "by_answer_type", "questions"}, 0..1; questions: {"id", "answers", "type"}, answers: {id: text}."""
    values, by_type = [], defaultdict(list)
    for question in questions:
        values.append(accuracy(answers[question["id"]], question["answers"]))
        by_type[question.get("type") or "all"].append(values[-1])
    kinds = {kind: mean(each) for kind, each in sorted(by_type.items())}
    return {"accuracy": mean(values), "by_answer_type": kinds, "questions": len(values)}


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
