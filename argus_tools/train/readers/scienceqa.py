"""ScienceQA (Lu et al., 2022b): multiple-choice questions of school lessons, about half of them with an image.

A folder with problems.json, {"1": {"question", "choices", "answer", "hint", "image", "lecture", "solution", ...}},
pid_splits.json, {"train": ["1", ...], ...}, and images as images/<split>/<number>/image.png, which is how its own
tools/download.sh leaves them.
"""

from dataclasses import dataclass
from typing import ClassVar

from .json_stream import iterate_json
from .reading import Reader, get, import_datasets, one_turn, shorten

LETTERS = "ABCDEFGHIJ"


@dataclass(eq=False)
class ScienceQA(Reader):
    """One sample a question: the hint, the question, the lettered choices; the answer is the letter.

    `path` is the folder; `images`, by default, its folder images.

    Args:
        split: one of pid_splits.json: train, val, test, trainval, minitrain, ...
        answer: "letter", or "solution": the written solution, and then the letter.
        text_only: "keep" or "drop" questions without an image.
    """

    split: str = "train"
    answer: str = "letter"
    text_only: str = "keep"

    NAME: ClassVar[str] = "scienceqa"
    TAKES_FOLDER: ClassVar[bool] = True
    CHOICES: ClassVar = {**Reader.CHOICES, "answer": ("letter", "solution"), "text_only": ("keep", "drop")}

    def features(self):
        value = import_datasets().Value
        return {"problem": value("string"), "prompt": value("string"), "answer": value("string")}

    def sources(self):
        files = [self.path / name for name in ("problems.json", "pid_splits.json")]
        for path in files:
            if not path.is_file():
                raise FileNotFoundError(f"{self._who()}: there is no {path}.")
        return files

    def records(self, notes):
        problems, splits = self.sources()
        wanted, known = set(), set()
        for key, identity in iterate_json(splits):
            known.add(key)
            if key == self.split:
                wanted.add(str(identity))
        if not wanted:
            raise ValueError(f"{splits} has no split {self.split!r}; it has {', '.join(map(str, sorted(known)))}.")
        for number, (identity, problem) in enumerate(iterate_json(problems)):
            if identity in wanted:
                wanted.discard(identity)
                where = f"{problems}, problem {identity}"
                image = problem.get("image") if isinstance(problem, dict) else None
                if image is not None and not isinstance(image, str):
                    raise ValueError(f"{where}: 'image' must be str or null, got {shorten(image)}.")
                if image or self.text_only == "keep":
                    # "trainval" and the like are made of problems whose own split says where their image is.
                    images = [f"{problem.get('split', self.split)}/{identity}/{image}"] if image else []
                    row = self._asked(problem, where)
                    yield {"record": number, "images": images, "problem": identity, **row}
        if wanted:
            raise ValueError(f"{problems} lacks {len(wanted)} problems of split {self.split!r}, such as {min(wanted)}.")

    def _asked(self, problem, where: str) -> dict[str, str]:
        choices, right = get(problem, "choices", list, where), get(problem, "answer", int, where)
        if not all(isinstance(choice, str) for choice in choices) or not 1 < len(choices) <= len(LETTERS):
            raise ValueError(f"{where}: 'choices' must be 2 to {len(LETTERS)} strings, got {shorten(choices)}.")
        if not 0 <= right < len(choices):
            raise ValueError(f"{where}: its answer is number {right} of {len(choices)} choices.")
        lines = [problem.get("hint") or "", get(problem, "question", str, where)]
        lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices)]
        lines += ["Answer with the letter of the right choice."]
        answer = LETTERS[right]
        if self.answer == "solution":
            solution = get(problem, "solution", str, where).strip()
            lines[-1] = "Explain, then answer with the letter of the right choice."
            answer = f"{solution}\nThe answer is {answer}." if solution else f"The answer is {answer}."
        return {"prompt": "\n".join(line.strip() for line in lines if line.strip()), "answer": answer}

    def where(self, record):
        return f"{self.path / 'problems.json'}, record {record}"

    def _places(self, name):
        return [(self.images or self.path / "images") / name]

    def talk(self, row, images, where):
        return (one_turn(row["prompt"], row["answer"]),), ()
