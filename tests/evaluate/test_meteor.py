"""METEOR: the fallback by hand, the stemmer by its paper, the jar by its own numbers where Java is."""

import pytest

from argus_tools.evaluate import meteor as module
from argus_tools.evaluate.meteor import JarMeteor, MeteorLite, open_meteor, why_no_jar
from argus_tools.evaluate.stemming import stem

LITE = MeteorLite()
needs_java = pytest.mark.skipif(bool(why_no_jar()), reason=f"METEOR 1.5 cannot run: {why_no_jar()}")


@pytest.mark.parametrize(
    "caption, reference, matches, weight, chunks",
    [
        ("a red cat", "a red cat", 3, 3.0, 1),
        ("cats", "cat", 1, 0.6, 1),
        ("dog cat", "cat dog", 2, 2.0, 2),
        ("the cat the dog", "the dog", 2, 2.0, 1),  # the second "the" stands beside the dog
        ("a b c d", "a b x c d", 4, 4.0, 2),
        ("cat cat", "cat", 1, 1.0, 1),  # a word is matched once
        ("tree", "house", 0, 0.0, 0),
    ],
)
def test_alignments_have_most_matches_and_fewest_chunks(caption, reference, matches, weight, chunks):
    assert LITE.align(caption.split(), reference.split()) == (matches, pytest.approx(weight), chunks)


@pytest.mark.parametrize(
    "caption, reference, expected",
    [
        ("a red cat", "a red cat", 1.0),  # word for word: no penalty
        ("A red cat!", "a red cat", 1.0),
        ("tree", "house", 0.0),
        ("", "house", 0.0),
        # P = R = 1, two chunks of two matches: 1 - 0.6 x (2/2)^0.2
        ("dog cat", "cat dog", 0.4),
        # P = 1/2, R = 1: F = 0.5 / (0.85 x 0.5 + 0.15) = 0.5 / 0.575; one match, one chunk: x 0.4
        ("cat hat", "cat", 0.4 * 0.5 / 0.575),
        # a stem: P = R = 0.6, F = 0.36 / 0.6 = 0.6; whole and in one chunk: no penalty
        ("cats", "cat", 0.6),
        # 2 of 3 words each, one chunk of two: F = 2/3, x (1 - 0.6 x 0.5^0.2)
        ("big red cat", "small red cat", 2 / 3 * (1 - 0.6 * 0.5**0.2)),
    ],
)
def test_the_fallback_by_hand(caption, reference, expected):
    assert LITE.score([(caption, [reference])]) == [pytest.approx(expected)]


def test_of_several_references_the_best_counts():
    assert LITE.score([("a cat", ["a dog", "a cat", "tree"]), ("a cat", [])]) == [1.0, 0.0]


@pytest.mark.parametrize(
    "word, expected",
    [  # the examples of Porter's paper, step by step
        ("caresses", "caress"),
        ("ponies", "poni"),
        ("cats", "cat"),
        ("feed", "feed"),
        ("agreed", "agre"),
        ("plastered", "plaster"),
        ("bled", "bled"),
        ("motoring", "motor"),
        ("sing", "sing"),
        ("conflated", "conflat"),
        ("hopping", "hop"),
        ("falling", "fall"),
        ("hissing", "hiss"),
        ("filing", "file"),
        ("happy", "happi"),
        ("sky", "sky"),
        ("relational", "relat"),
        ("conditional", "condit"),
        ("vietnamization", "vietnam"),
        ("hopefulness", "hope"),
        ("electrical", "electr"),
        ("adjustment", "adjust"),
        ("adoption", "adopt"),
        ("probate", "probat"),
        ("rate", "rate"),
        ("controll", "control"),
        ("generalizations", "gener"),
        ("oscillators", "oscil"),
        ("a", "a"),
    ],
)
def test_stems_are_porters(word, expected):
    assert stem(word) == expected


def test_results_say_which_meteor_it_was(monkeypatch):
    with open_meteor("lite") as meteor:
        assert meteor.name == "meteor-lite"
    monkeypatch.setattr(module, "why_no_jar", lambda: "Java is not installed")
    with open_meteor("auto") as meteor:
        assert meteor.name == "meteor-lite"
    with pytest.raises(ValueError, match=r"METEOR 1\.5 cannot run here: Java is not installed"), open_meteor("jar"):
        pass
    with pytest.raises(ValueError, match="unknown METEOR 'nltk'"), open_meteor("nltk"):
        pass


def test_a_score_that_was_never_given_is_never_returned(monkeypatch):
    """Java that dies before it answers: the same question raises again."""
    meteor = object.__new__(JarMeteor)
    meteor._known = {}

    def ended(keys):
        raise OSError("METEOR's Java process ended")

    monkeypatch.setattr(meteor, "_ask", ended)
    for _ in range(2):
        with pytest.raises(OSError, match="Java process ended"):
            meteor.score([("a cat", ["a cat"]), ("", ["a dog"])])
    monkeypatch.setattr(meteor, "_ask", lambda keys: [0.25] * len(keys))
    assert meteor.score([("a cat", ["a cat"]), ("", ["a dog"])]) == [0.25, 0.0]


@pytest.fixture(scope="module")
def jar():
    meteor = JarMeteor()
    yield meteor
    meteor.close()
    assert meteor._process.returncode is not None


@needs_java
def test_the_jar_passes_densecaps_own_sanity_check(jar):
    """The three cases of DenseCap's evaluation_test: some of it, nothing, all of it."""
    scores = jar.score(
        [
            ("one words matches", ["an example ref", "another ref", "and one more"]),
            ("nothing matches", ["some sentence", "one more for fun"]),
            ("expecting perfect match", ["expecting perfect match", "garbage sent", "bleh one more"]),
        ]
    )
    assert 0 < scores[0] < 1 and scores[1:] == [0.0, 1.0]


@needs_java
def test_the_jar_gives_what_pycocoevalcaps_own_wrapper_gives(jar):
    """Numbers of pycocoevalcap.meteor.Meteor, which asks the same jar by code of its own."""
    pairs = [
        ("a big photo of two dogs", ["a large picture of two dogs", "dogs"]),
        ("man riding a horse on the beach", ["a man rides a horse along a beach"]),
        ("the red car parked beside a tree", ["a red car is parked next to the trees", "blue bus"]),
        ("white clouds in sky", ["clouds in the blue sky"]),
        ("a cat", ["a dog"]),
    ]
    assert jar.score(pairs) == pytest.approx([0.816667, 0.45214, 0.250699, 0.288216, 0.1], abs=1e-6)


@needs_java
def test_the_jar_knows_more_than_the_fallback(jar):
    """A synonym, and captions that hold its separator, two lines, nothing, or letters beyond ASCII."""
    pairs = [("a big photo", ["a large picture"]), ("cat ||| dog\n", ["cat dog"]), ("", ["cat"]), ("cat", [])]
    assert jar.score(pairs) == [pytest.approx(jar.score(pairs[:1])[0]), 1.0, 0.0, 0.0]
    assert jar.score(pairs[:1])[0] > LITE.score(pairs[:1])[0]
    assert jar.score([("zoë 猫", ["zoë 猫"])]) == [1.0]


@needs_java
@pytest.mark.parametrize(
    "caption, reference",
    [
        ("dog cat", "cat dog"),
        ("cat hat", "cat"),
        ("cat", "cat hat"),
        ("big red cat", "small red cat"),
        ("red cat chasing green mouse", "green mouse chasing red cat"),
        ("striped zebra grazing", "brown horse grazing near fence"),
    ],
)
def test_without_synonyms_and_function_words_both_agree(jar, caption, reference):
    """Content words that match exactly or not at all: the fallback's formula is METEOR 1.5's."""
    assert jar.score([(caption, [reference])])[0] == pytest.approx(LITE.score([(caption, [reference])])[0], abs=1e-6)


@needs_java
def test_a_jar_that_ended_is_an_error_that_says_so():
    meteor = JarMeteor()
    meteor._process.kill()
    meteor._process.wait()
    with pytest.raises(OSError, match="METEOR's Java process ended"):
        meteor.score([("cat", ["cat"])])
    meteor.close()


@needs_java
def test_a_jar_that_does_not_answer_is_an_error_that_says_so():
    meteor = JarMeteor(start_timeout=0.0)
    with pytest.raises(OSError, match="gave no answer in 0 s"):
        meteor.score([("cat", ["cat"])])
    meteor._process.kill()
    meteor.close()
