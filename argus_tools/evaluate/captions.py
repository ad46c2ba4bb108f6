"""BLEU and CIDEr of captions by pycocoevalcap, tokenized as the COCO caption evaluation does: Stanford's PTB tokenizer.

The tokenizer needs Java. Without it "ptb-lite" takes its place: lower case, clitics split as the Penn Treebank has
them, punctuation away. Scores then differ in the third digit or so; the result names the tokenizer.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..cli_support import CommandError
from .meteor import package_folder, why_no_java

_JAR = "stanford-corenlp-3.4.1.jar"
_PUNCTUATION = {
    "''",
    "'",
    "``",
    "`",
    "-LRB-",
    "-RRB-",
    "-LCB-",
    "-RCB-",
    ".",
    "?",
    "!",
    ",",
    ":",
    "-",
    "--",
    "...",
    ";",
}
_LITE = re.compile(
    r"n't\b|'(?:s|re|ve|ll|d|m)\b|[a-z0-9]+(?:[-.,:/][a-z0-9]+)*?(?=n't\b)|[^\W_]+(?:[-.,:/][^\W_]+)*|[%$&]"
)


def tokenizer_name(kind: str = "auto") -> str:
    """ "PTB tokenizer" or "ptb-lite": what `tokenize` of this kind is. Raises CommandError for "jar" without Java."""
    if kind == "lite" or (kind == "auto" and (why_no_java() or _jar() is None)):
        return "ptb-lite"
    missing = why_no_java() or ("" if _jar() else f"{_JAR} is not installed with pycocoevalcap")
    if missing:
        raise CommandError(f"the PTB tokenizer cannot run here: {missing}")
    return "PTB tokenizer"


def tokenize(captions: Sequence[str], kind: str = "auto") -> list[str]:
    """Each caption as its tokens, single spaces between them, without punctuation.

    Raises:
        CommandError: Java is asked for and is not there, or fails.
    """
    lines = [" ".join(caption.split()) for caption in captions]
    if tokenizer_name(kind) == "ptb-lite":
        return [" ".join(_LITE.findall(line.lower())) for line in lines]
    jar = _jar()
    command = [shutil.which("java"), "-Dfile.encoding=UTF-8", "-cp", jar.name, "edu.stanford.nlp.process.PTBTokenizer"]
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"],
        cwd=jar.parent,
        input="\n".join(lines) + "\n",
        capture_output=True,
        encoding="utf-8",
    )
    found = done.stdout.split("\n")[: len(lines)]
    if done.returncode != 0 or len(found) != len(lines):
        raise CommandError(f"the PTB tokenizer failed: {done.stderr.strip()[-300:] or 'it gave too few lines'}")
    return [" ".join(word for word in line.split() if word not in _PUNCTUATION) for line in found]


def score(references: dict, captions: dict, kind: str = "auto") -> dict:
    """BLEU-1 to BLEU-4 (closest reference length) and CIDEr over all images.

    Args:
        references: {image: captions of its annotators}; captions: {image: the model's}.
        kind: of tokenizer: "jar", "lite" or "auto".

    Raises:
        CommandError: pycocoevalcap is not installed, or no reference holds a word.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise CommandError("captions are scored by pycocoevalcap: pip install pycocoevalcap") from error
    images = list(references)
    tokens = iter(tokenize([text for image in images for text in (captions[image], *references[image])], kind))
    predicted, true = {}, {}
    for image in images:
        predicted[image] = [next(tokens)]
        true[image] = [next(tokens) for _ in references[image]]
    if not any(text for texts in true.values() for text in texts):
        raise CommandError(f"the references of {len(images)} images hold no words: there is nothing to measure against")
    bleu = Bleu(4).compute_score(true, predicted, verbose=0)[0]
    cider = Cider().compute_score(true, predicted)[0]
    scores = {f"bleu_{n}": float(value) for n, value in enumerate(bleu, start=1)}
    return {**scores, "cider": float(cider), "tokenizer": tokenizer_name(kind), "images": len(images)}


def _jar() -> Path | None:
    folder = package_folder("pycocoevalcap")
    jar = folder / "tokenizer" / _JAR if folder else None
    return jar if jar is not None and jar.is_file() else None
