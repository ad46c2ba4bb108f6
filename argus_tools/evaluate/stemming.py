"""Porter's stemmer (M. F. Porter, "An algorithm for suffix stripping", 1980), for METEOR without its jar."""

from itertools import pairwise

_DOUBLE = {"ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "abli": "able"}
_DOUBLE |= {"alli": "al", "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate"}
_DOUBLE |= {"alism": "al", "iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive"}
_DOUBLE |= {"biliti": "ble"}
_SINGLE = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_LAST = ("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate")
_LAST += ("iti", "ous", "ive", "ize")


def stem(word: str) -> str:
    """The stem of a lower-case English word: "running" -> "run", "ponies" -> "poni"; up to two letters stay."""
    if len(word) <= 2:
        return word
    word = _plurals(word)
    word = _past(word)
    if word.endswith("y") and _has_vowel(word[:-1]):
        word = word[:-1] + "i"
    word = _longest(word, _DOUBLE)
    word = _longest(word, _SINGLE)
    for suffix in sorted((s for s in _LAST if word.endswith(s)), key=len, reverse=True)[:1]:
        left = word[: -len(suffix)]
        if _measure(left) > 1 and (suffix != "ion" or left.endswith(("s", "t"))):
            word = left
    if word.endswith("e"):
        left = word[:-1]
        if _measure(left) > 1 or (_measure(left) == 1 and not _short(left)):
            word = left
    return word[:-1] if word.endswith("ll") and _measure(word) > 1 else word


def _plurals(word: str) -> str:
    for suffix, replacement in (("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")):
        if word.endswith(suffix):
            return word[: -len(suffix)] + replacement
    return word


def _past(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for suffix in ("ed", "ing"):
        left = word[: -len(suffix)]
        if word.endswith(suffix) and _has_vowel(left):
            if left.endswith(("at", "bl", "iz")):
                return left + "e"
            if len(left) > 1 and left[-1] == left[-2] and not _vowel(left, len(left) - 1) and left[-1] not in "lsz":
                return left[:-1]
            return left + "e" if _measure(left) == 1 and _short(left) else left
    return word


def _longest(word: str, table: dict[str, str]) -> str:
    for suffix in sorted((s for s in table if word.endswith(s)), key=len, reverse=True)[:1]:
        left = word[: -len(suffix)]
        return left + table[suffix] if _measure(left) > 0 else word
    return word


def _vowel(word: str, i: int) -> bool:
    return word[i] in "aeiou" or (word[i] == "y" and i > 0 and not _vowel(word, i - 1))


def _has_vowel(word: str) -> bool:
    return any(_vowel(word, i) for i in range(len(word)))


def _measure(word: str) -> int:
    """How often a consonant follows a vowel."""
    kinds = [_vowel(word, i) for i in range(len(word))]
    return sum(before and not after for before, after in pairwise(kinds))


def _short(word: str) -> bool:
    """Whether it ends in consonant, vowel, consonant, the last of them not w, x or y."""
    if len(word) < 3 or word[-1] in "wxy":
        return False
    return [_vowel(word, len(word) - i) for i in (3, 2, 1)] == [False, True, False]
