"""What all commands share: the error that ends one, quiet libraries, whole files, text that is safe to print."""

import codecs
import contextlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path


class CommandError(Exception):
    """Bad input: a sentence for the person who typed the command."""


def one_line(error: BaseException) -> str:
    """The error's text on one line; its kind where it has none."""
    return " ".join(printable(str(error)).split()) or type(error).__name__


def printable(text: str, newlines: bool = False) -> str:
    """Text without control characters (a model or a file name could steer the terminal); newlines kept on request."""
    return "".join(c if c.isprintable() or (newlines and c == "\n") else " " for c in text)


@contextlib.contextmanager
def quiet(debug: bool) -> Iterator[None]:
    """Keeps warnings and the libraries' chatter off stderr while a command runs; `debug` lets them speak."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a caption must not fail on a narrow terminal encoding
    if debug:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def quiet_transformers(debug: bool) -> Iterator[None]:
    """transformers' warnings and its bars of weights being loaded; restored, for callers that go on living."""
    from transformers.utils import logging

    if debug:
        yield
        return
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A temporary name beside `target` that becomes `target` when the block ends well, and vanishes when it does not.

    Raises:
        CommandError: `target` cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise CommandError(f"{target} cannot be written: {error.strerror or error}") from error
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's files are private
        os.replace(temporary, target)
    except OSError as error:
        raise CommandError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_target(option: str, path: Path, inputs: Iterable = ()) -> None:
    """Before hours of work: that `path`, as `option` names it, can become a file, and is none of `inputs`.
    Raises CommandError."""
    if not path.absolute().parent.is_dir():
        raise CommandError(f"{option} {path}: there is no folder {path.absolute().parent}")
    if path.is_dir():
        raise CommandError(f"{option} {path} is a folder: name a file in it")
    if any(same_file(path, each) for each in inputs):
        raise CommandError(f"{option} {path}: the command reads that file; name another")


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether two names are of one file, which need not be there yet."""
    try:
        return Path(one).resolve() == Path(other).resolve() or os.path.samefile(one, other)
    except (OSError, ValueError, RuntimeError):  # not there, no name of a file, a loop of links
        return False


def json_line(fields: dict) -> str:
    """One JSON object on one line, readable where stdout is UTF-8 and escaped where it could not hold every letter."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return json.dumps(fields, ensure_ascii=codecs.lookup(encoding).name != "utf-8")


def progress_bar(total: int, what: str, unit: str):
    """A bar on stderr, if that is a terminal and there is more than one thing to wait for."""
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=unit, file=sys.stderr, disable=True if total < 2 else None)


def say(text: str) -> None:
    """One line on stdout, above a bar if one is shown."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()
