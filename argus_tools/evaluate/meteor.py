"""METEOR of a caption against references: the 1.5 jar that pycocoevalcap ships, or "meteor-lite" where it cannot run.

The two give different numbers. Every result therefore carries the `name` of what computed it, and `open_meteor`
chooses once for a whole evaluation.
"""

import contextlib
import importlib.util
import queue
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from .stemming import stem

KINDS = ("auto", "jar", "lite")
Pair = tuple[str, Sequence[str]]


@contextlib.contextmanager
def open_meteor(kind: str = "auto") -> Iterator:
    """A scorer with `name` and `score(pairs) -> list[float]`; its process, if it has one, ends with the block.

    Args:
        kind: "jar", METEOR 1.5 itself; "lite", our own; "auto", the jar where Java and pycocoevalcap are, else lite.

    Raises:
        ValueError: an unknown kind, or "jar" where it cannot run; the message says what is missing.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown METEOR {kind!r}: take {', '.join(KINDS)}")
    missing = why_no_jar() if kind != "lite" else ""
    if kind == "jar" and missing:
        raise ValueError(f"METEOR 1.5 cannot run here: {missing}; meteor-lite needs nothing")
    if kind == "lite" or missing:
        yield MeteorLite()
        return
    meteor = JarMeteor()
    try:
        yield meteor
    finally:
        meteor.close()


@lru_cache(maxsize=1)
def why_no_jar() -> str:
    """What METEOR 1.5 lacks here, in words; empty where it can run."""
    if jar_path() is None:
        return "its jar is not installed (it comes with pip install pycocoevalcap)"
    return why_no_java()


@lru_cache(maxsize=1)
def why_no_java() -> str:
    """Why Java cannot run here, in words; empty where it can."""
    java = shutil.which("java")
    if java is None:
        return "Java is not installed (`java` is not on the PATH)"
    try:  # macOS has a `java` that only says where to get one
        done = subprocess.run([java, "-version"], capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{java} does not run ({error})"
    return "" if done.returncode == 0 else f"{java} -version ends with status {done.returncode}"


def package_folder(name: str) -> Path | None:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def jar_path() -> Path | None:
    """pycocoevalcap's meteor-1.5.jar, if it and its paraphrase table are there."""
    folder = package_folder("pycocoevalcap")
    if folder is None:
        return None
    jar = folder / "meteor" / "meteor-1.5.jar"
    return jar if jar.is_file() and (jar.parent / "data" / "paraphrase-en.gz").is_file() else None


class JarMeteor:
    """METEOR 1.5 in a Java process that is asked over its standard input: `-stdio -l en -norm`, as DenseCap asks it.

    `SCORE ||| reference ||| .. ||| caption` gives a line of statistics (those of the best reference), and
    `EVAL ||| statistics ||| ..` one score for each of them and one for all.
    """

    name = "METEOR 1.5"
    _TOGETHER = 50

    def __init__(self, start_timeout: float = 300.0, timeout: float = 60.0):
        jar = jar_path()
        command = [shutil.which("java") or "java", "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", jar.name]
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [*command, "-", "-", "-stdio", "-l", "en", "-norm"],
            cwd=jar.parent,  # it looks for its paraphrases beside itself
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            errors="replace",
        )
        self._lines: queue.Queue = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._known: dict[tuple, float] = {}
        self._wait, self._later_wait = start_timeout, timeout  # it reads 60 MB of paraphrases first

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """0..1 for each (caption, references); 0 for an empty caption or without references.

        Raises:
            OSError: Java ended or does not answer in time; with what it said.
        """
        keys = [_key(caption, references) for caption, references in pairs]
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        for start in range(0, len(new), self._TOGETHER):
            some = new[start : start + self._TOGETHER]
            asked = [key for key in some if key[0] and key[1]]
            answers = self._ask(asked)  # nothing is known of any of them if this fails
            self._known.update({**dict.fromkeys(some, 0.0), **dict(zip(asked, answers))})
        return [self._known[key] for key in keys]

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=10)
        self._process.stdout.close()
        self._errors.close()

    def _ask(self, keys: list[tuple]) -> list[float]:
        if not keys:
            return []
        statistics = []
        for caption, references in keys:
            self._write(" ||| ".join(("SCORE", *references, caption)))
            statistics.append(self._line())
        self._write(" ||| ".join(("EVAL", *statistics)))
        scores = [float(self._line()) for _ in keys]
        self._line()  # of all together
        return scores

    def _write(self, line: str) -> None:
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise OSError(f"METEOR's Java process ended: {self._said()}") from error

    def _line(self) -> str:
        try:
            line = self._lines.get(timeout=self._wait)
        except queue.Empty:
            raise OSError(f"METEOR's Java process gave no answer in {self._wait:.0f} s") from None
        if line is None:
            raise OSError(f"METEOR's Java process ended: {self._said()}")
        self._wait = self._later_wait
        return line.strip()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _said(self) -> str:
        self._errors.seek(0)
        text = self._errors.read().decode("utf-8", "replace").strip()
        return text.splitlines()[-1] if text else "it said nothing"


class MeteorLite:
    """METEOR 1.5's formula with two of its four kinds of match: equal words (weight 1) and equal stems (0.6).

    No WordNet synonyms, no paraphrases, no list of function words (all words weigh the same), Porter's stemmer.
    With m matches in c chunks, P and R the matches' weights over the words of caption and reference:
    F = P R / (0.85 P + 0.15 R), score = F (1 - 0.6 (c / m)^0.2), without the penalty where both are word for word the
    same. Of several references the best counts. Of all alignments with most matches, the one with fewest chunks.
    """

    name = "meteor-lite"
    ALPHA, BETA, GAMMA, STEM_WEIGHT = 0.85, 0.2, 0.6, 0.6
    _BEAM = 40

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """0..1 for each (caption, references)."""
        known: dict[tuple, float] = {}
        for caption, references in pairs:
            key = _key(caption, references)
            if key not in known:
                known[key] = max((self.score_one(key[0], each) for each in key[1]), default=0.0)
        return [known[_key(caption, references)] for caption, references in pairs]

    def score_one(self, caption: str, reference: str) -> float:
        """Against one reference."""
        words, wanted = (re.findall(r"\w+", text.lower()) for text in (caption, reference))
        matches, weight, chunks = self.align(words, wanted)
        if not matches:
            return 0.0
        precision, recall = weight / len(words), weight / len(wanted)
        mean = precision * recall / (self.ALPHA * precision + (1 - self.ALPHA) * recall)
        whole = matches == len(words) == len(wanted) and chunks == 1
        return mean * (1 - (0.0 if whole else self.GAMMA * (chunks / matches) ** self.BETA))

    def align(self, words: list[str], wanted: list[str]) -> tuple[int, float, int]:
        """(matches, the sum of their weights, chunks) of the best alignment; a word is matched at most once."""
        stems, wanted_stems = [stem(word) for word in words], [stem(word) for word in wanted]
        # A state: words of the reference used, the last one matched if the last word was, matches, weight, chunks.
        states = {(frozenset(), None): (0, 0.0, 0)}
        for i, word in enumerate(words):
            following: dict[tuple, tuple] = {}
            for (used, last), (matches, weight, chunks) in states.items():
                options = [((used, None), (matches, weight, chunks))]
                for j, other in enumerate(wanted):
                    if j in used or (word != other and stems[i] != wanted_stems[j]):
                        continue
                    new_chunks = chunks + (last is None or j != last + 1)
                    gain = 1.0 if word == other else self.STEM_WEIGHT
                    options.append(((used | {j}, j), (matches + 1, weight + gain, new_chunks)))
                for state, value in options:
                    if state not in following or _rank(value) > _rank(following[state]):
                        following[state] = value
            best = sorted(following.items(), key=lambda item: _rank(item[1]), reverse=True)
            states = dict(best[: self._BEAM])
        return max(states.values(), key=_rank)


def _rank(value: tuple[int, float, int]) -> tuple:
    matches, weight, chunks = value
    return matches, -chunks, weight


def _key(caption: str, references: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """One line each, without the jar's separator."""
    plain = [" ".join(text.replace("|||", " ").split()) for text in (caption, *references)]
    return plain[0], tuple(text for text in plain[1:] if text)
