"""Letters on a picture: the font that a text is written in, what of the text it has, and how that is folded into lines.

The font that ships with Pillow knows plain Latin letters, so accents are dropped and letters of their own are spelt out
(ø as o, ß as ss). Any other script is written in the first font of SYSTEM_FONTS that this machine has and that has all
of its letters; symbols in no font are left out, and a text with letters in no font becomes `#` and its region's number.
"""

import unicodedata
from bisect import bisect_right
from functools import lru_cache

from PIL import ImageFont, features

MAX_LINES = 3
SYSTEM_FONTS = (  # Linux, Windows, macOS; looked up by name, and only when a text needs one
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKjp-Regular.otf",
    "wqy-microhei.ttc", "NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf",
    "segoeui.ttf", "msyh.ttc", "msgothic.ttc", "malgun.ttf", "Nirmala.ttf", "seguisym.ttf",
    "Arial Unicode.ttf", "ARIALUNI.TTF", "PingFang.ttc", "AppleSDGothicNeo.ttc",
)  # fmt: skip
PLAIN = str.maketrans({  # what Unicode does not take apart into a Latin letter and an accent
    "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L",
    "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ħ": "h", "Ħ": "H", "ŧ": "t", "Ŧ": "T",
    "ı": "i", "ŋ": "ng", "Ŋ": "Ng", "ĸ": "k", "ƒ": "f", "×": "x", "÷": "/", "−": "-", "‐": "-", "‑": "-",
    "‒": "-", "–": "-", "—": "-", "―": "-", "•": "·", "„": '"', "‚": "'", "€": "EUR", "£": "GBP", "¥": "JPY",
})  # fmt: skip
JOINERS = "\u200c\u200d"  # they shape the letters beside them


@lru_cache(maxsize=256)
def font_of(face: str | None, size: int) -> ImageFont.FreeTypeFont:
    """The font of a file, or Pillow's own for None, `size` pixels high."""
    return ImageFont.load_default(size=size) if face is None else ImageFont.truetype(face, size)


def written(text: str, number: int) -> tuple[str, str | None]:
    """What is written for the text of a region, in one line, and the font's file, None for Pillow's own.

    `number` is the region's, counted from 1, and stands for a text that no font has.
    """
    plain, native = drawable(text), _native(text)
    if not native or _letters_of(plain, None) == plain:
        return plain, None
    # All of it in one font, or else all of its letters.
    faces = [(native, face) for face in (_system_faces() if _shapes(native) else ())]
    for candidate, face in faces:
        if _letters_of(candidate, face) == candidate:
            return candidate, face
    for candidate, face in [(plain, None), *faces]:
        if kept := _letters_of(candidate, face):
            return " ".join(kept.split()), face
    return f"#{number}", None


def drawable(text: str) -> str:
    """The text in plain Latin letters as far as it has them, in one line without characters that control."""
    letters = unicodedata.normalize("NFKD", text.translate(PLAIN)).translate(PLAIN)
    return _printable(c for c in letters if unicodedata.category(c) not in ("Mn", "Me"))


def _native(text: str) -> str:
    letters = unicodedata.normalize("NFC", text)
    return _printable(c for c in letters if not "\ufe00" <= c <= "\ufe0f")  # which say how an emoji looks


def _printable(letters) -> str:
    kept = (c for c in letters if c in JOINERS or unicodedata.category(c) != "Cf")
    return " ".join("".join(c if c.isprintable() or c in JOINERS else " " for c in kept).split())


def _shapes(text: str) -> bool:
    """Whether Pillow can shape this: right-to-left scripts and marks on letters take libraries that it may lack."""
    if features.check("raqm") and features.check("fribidi"):
        return True
    return not any(unicodedata.bidirectional(c) in ("R", "AL") or unicodedata.category(c)[0] == "M" for c in text)


def _letters_of(text: str, face: str | None) -> str:
    """The text without the symbols that the font lacks; nothing if it lacks a letter, a digit or a mark."""
    missing = {c for c in set(text) if not _has(face, c)}
    if any(unicodedata.category(c)[0] in "LNM" for c in missing):
        return ""
    return "".join(c for c in text if c not in missing).strip()


@lru_cache(maxsize=8192)
def _has(face: str | None, letter: str) -> bool:
    if letter.isspace() or (letter in JOINERS and face is not None):
        return True
    glyph, nothing = (font_of(face, 24).getmask(c) for c in (letter, "\uffff"))  # the latter is no character
    return glyph.size != nothing.size or bytes(glyph) != bytes(nothing)


@lru_cache(maxsize=1)
def _system_faces() -> tuple[str, ...]:
    found = []
    for name in SYSTEM_FONTS:
        try:
            found.append(ImageFont.truetype(name, 24).path)
        except OSError:
            continue
    return tuple(dict.fromkeys(found))


# --- lines ------------------------------------------------------------------------------------------------------------


def folded(text: str, font, width: float, tail: str = "") -> tuple[list[str], bool]:
    """At most MAX_LINES lines of at most `width` pixels, and whether anything is broken or left out of them.

    What does not fit becomes an ellipsis; the tail is written behind it all the same.
    """
    lines, whole = _lines(f"{text} {tail}", font, width)
    if len(lines) <= MAX_LINES:
        return lines, not whole
    lines = _lines(f"... {tail}", font, width)[0][:MAX_LINES]
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        tried = _lines(f"{text[:middle].rstrip()}... {tail}", font, width)[0]
        if len(tried) <= MAX_LINES:
            low, lines = middle, tried
        else:
            high = middle - 1
    return lines, True


def _lines(text: str, font, width: float) -> tuple[list[str], bool]:
    """Lines, no more than shows that they are too many, and whether no word is broken (CJK text may be)."""
    lines, line, whole = [], "", True
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            longer = word
        while len(longer) > 1 and len(lines) <= MAX_LINES and font.getlength(longer) > width:
            end = bisect_right(range(1, len(longer)), width, key=lambda n, w=longer: font.getlength(w[:n]))
            end = max(1, end)
            whole = whole and unicodedata.east_asian_width(longer[end]) in "WF"
            lines.append(longer[:end])
            longer = longer[end:]
        line = longer
        if len(lines) > MAX_LINES:
            break
    return [*lines, line], whole
