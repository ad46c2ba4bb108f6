"""VQAv2, GQA and POPE: answers worked by hand from the official rules."""

from pathlib import Path

import pytest

from argus_tools.evaluate import annotations, gqa, pope, vqa

FILES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The Cat.", "cat"),
        ("a  red, an old hat", "red old hat"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("ten-year-old", "10 year old"),  # no space beside the mark: it becomes one
        ("red - white", "red white"),  # a space beside it: it goes
        ("left/right", "left right"),
        ("1,000", "1000"),  # a comma within a number: marks go without a space
        ("1,000 a-b", "1000 ab"),  # and all of them do
        ("3.50", "3.50"),
        ("U.S. flag", "us flag"),
        ("dont know", "don't know"),
        ("couldntve couldnt've couldn'tve", "couldntve couldn't've couldn't've"),
        ("somebody'd", "somebodyd"),  # as the official table has it
        ("whats up?", "what's up"),
    ],
)
def test_vqa_normalisation(text, expected):
    assert vqa.normalise(text) == expected


def test_only_so_many_periods_go():
    """The official call hands a flag, 32, to the place of a count."""
    assert vqa.normalise("." * 40) == "." * 8


@pytest.mark.parametrize(
    "answer, answers, expected",
    [
        ("yes", ["yes"] * 10, 1.0),
        ("yes", ["no"] * 10, 0.0),
        ("cat", ["cat"] * 4 + ["dog"] * 6, 1.0),  # 3 or 4 others agree, whoever is left out
        ("cat", ["cat"] * 3 + ["dog"] * 7, 0.9),  # 3 times 2/3, 7 times 1
        ("cat", ["cat"] * 2 + ["dog"] * 8, 0.6),  # 2 times 1/3, 8 times 2/3
        ("cat", ["cat"] + ["dog"] * 9, 0.3),  # once 0, 9 times 1/3
        ("A cat.", ["cat"] * 9 + ["dog"], 1.0),  # normalised where the ten differ
        ("A cat.", ["cat"] * 10, 0.0),  # and not where they agree
        (" cat\n", ["cat"] * 10, 1.0),
        ("one", ["1"] * 5 + ["one"] * 5, 1.0),
    ],
)
def test_vqa_accuracy(answer, answers, expected):
    assert vqa.accuracy(answer, answers) == pytest.approx(expected)


def test_vqa_of_the_official_files():
    """ "One" of 8 x "1", "one", "2": 9 of ten say 1: 1. "Yes" of ten "no": 0. "a bear." of 7 bears: 1."""
    rows = annotations.read_vqa(FILES / "vqav2_questions.json", FILES / "vqav2_annotations.json")
    found = vqa.score(rows, {139000: "One", 139001: "Yes", 285000: "a bear."})
    assert found["accuracy"] == pytest.approx(2 / 3) and found["questions"] == 3
    assert found["by_answer_type"] == {"number": 1.0, "other": 1.0, "yes/no": 0.0}


def test_gqa():
    rows = annotations.read_gqa(FILES / "gqa_questions.json")
    found = gqa.score(rows, {"201307251": " No.", "201307252": "cat"})
    assert found == {"exact_match": 1.0, "verbatim": 0.5, "binary": 1.0, "open": 1.0, "questions": 2}
    found = gqa.score(rows, {"201307251": "no it is not", "201307252": "a cat"})
    assert found == {"exact_match": 0.0, "verbatim": 0.0, "binary": 0.0, "open": 0.0, "questions": 2}


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("Yes, there is a car.", True),
        ("No, there is no car.", False),
        ("There is not a car.", False),
        ("no", False),
        ("NO", True),  # the script knows "No", "no" and "not"
        ("Nothing there", True),
        ("I see it. No doubt.", True),  # the first sentence counts
        ("", True),
    ],
)
def test_pope_reads_answers_as_its_script_does(answer, expected):
    assert pope.says_yes(answer) is expected


def test_pope_by_hand():
    """Truth yes no yes no; said yes yes no no: one of each."""
    rows = annotations.read_pope(FILES / "pope.json")
    found = pope.score(rows, {1: "Yes", 2: "Yes, there is.", 3: "No", 4: "no"})
    assert found == {
        "accuracy": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "yes_ratio": 0.5,
        "exact_accuracy": 0.5,
        "questions": 4,
    }
    found = pope.score(rows, {1: "yes", 2: "no", 3: "yes", 4: "yes"})  # 2 true yes, 1 true no, 1 false yes
    assert found["accuracy"] == 0.75 and found["precision"] == pytest.approx(2 / 3) and found["recall"] == 1.0
    assert found["f1"] == pytest.approx(0.8) and found["yes_ratio"] == 0.75
    never = pope.score(rows, dict.fromkeys((1, 2, 3, 4), "no"))
    assert never["precision"] == never["recall"] == never["f1"] == 0.0 and never["accuracy"] == 0.5
