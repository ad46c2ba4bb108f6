"""The command line `argus`: describe, ask, detect, box; convert, bootstrap, export; train and evaluate; annotate.

What is here is cheap to import, so that `argus --help` is quick: torch and transformers are imported by the command
that needs them. Exit status: 0; 2 and one line on stderr for bad input; 1 and one line for a fault of the program;
130 after Ctrl-C, 143 and 129 after SIGTERM and SIGHUP; 141 if whoever read the output went away. `--debug` adds the
traceback.
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator

from . import __version__
from .cli_support import CommandError, one_line, quiet

DTYPES = ("float32", "bfloat16", "float16")


class _Help(Exception):
    """--help and --version are answered: there is nothing more to do."""


class _Ended(SystemExit):
    """A signal ends the program; `code` is 128 and its number."""


class _Parser(argparse.ArgumentParser):
    """Errors become CommandError, so that every one of them leaves by the same door, in one line."""

    def exit(self, status=0, message=None):
        raise _Help

    def error(self, message):
        raise CommandError(f"{message} (`{self.prog} --help` shows how)")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status. `argv` without the program's name; None: this process's."""
    argv = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in argv
    _open_closed_streams()
    try:
        with _ending_on_signals():
            with contextlib.suppress(_Help):
                arguments = build_parser().parse_args(argv)
                with quiet(debug):
                    arguments.run(arguments)
            sys.stdout.flush()  # a closed pipe shows here, not in the interpreter's exit
        return 0
    except KeyboardInterrupt:
        return _fail("interrupted", 130, False)
    except _Ended as ended:
        return _fail(f"ended by {signal.Signals(ended.code - 128).name}", ended.code, False)
    except BrokenPipeError:
        _silence_stdout()
        return 141
    except (CommandError, ValueError, OSError) as error:
        return _fail(one_line(error), 2, debug)
    except Exception as error:
        hint = "" if debug else "; --debug shows where"
        return _fail(f"{type(error).__name__}: {one_line(error)}{hint}", 1, debug)


def _open_closed_streams() -> None:
    """Where the caller closed stdout or stderr, nothing is shown, but the work is done."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, by an exception, so that what is half-written is removed."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread may set handlers
    before = {number: signal.getsignal(number) for number in numbers}

    def end(number, frame):
        for each in set_here:
            signal.signal(each, signal.SIG_IGN)  # what is removed now is removed in peace
        raise _Ended(128 + number)

    set_here = [number for number in numbers if before[number] is signal.SIG_DFL]  # nohup's stay ignored
    try:
        for number in set_here:
            signal.signal(number, end)
        yield
    finally:
        for number in set_here:
            signal.signal(number, before[number])


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"argus: error: {message}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # stdout itself is what failed: a full disk, a reader that went away
        _silence_stdout()
    return status


def _silence_stdout() -> None:
    """The interpreter flushes stdout at its exit, which would fail once more."""
    with contextlib.suppress(OSError, ValueError):  # not a real file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, a function of the parsed arguments."""
    parser = _Parser(
        prog="argus",
        description="Describe images, answer questions about them and box what is in them with an ArgusVLM.",
        epilog="`argus COMMAND --help` says more about each command.",
    )
    parser.add_argument("--version", action="version", version=f"argus {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    _add_tasks(commands)
    _add_checkpoints(commands)
    _add_training_and_evaluation(commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_tasks(commands) -> None:
    command = _task(commands, "caption", "describe each image", "IMAGE...")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="a file or an http(s) URL")
    command.add_argument("--prompt", help='ask in other words than "Describe the image."')
    _add_stream(command)

    command = _task(commands, "ask", "answer a question about each image", "IMAGE QUESTION", "IMAGE... -q QUESTION")
    command.add_argument(
        "images", nargs="+", metavar="IMAGE", help="a file or an http(s) URL; without -q the last one is the question"
    )
    command.add_argument(
        "-q", "--question", dest="questions", action="append", help="asked of each image by itself; can be repeated"
    )
    _add_stream(command)

    command = _task(commands, "detect", "box what phrases name", "IMAGE PHRASE...", "IMAGE... -p PHRASE")
    command.add_argument(
        "images", nargs="+", metavar="IMAGE", help="a file or an http(s) URL; without -p all but the first are phrases"
    )
    command.add_argument(
        "-p", "--phrase", dest="phrases", action="append", help="what to look for in every image; can be repeated"
    )
    _add_draw(command)

    command = _task(commands, "dense-caption", "box and describe everything", "IMAGE...")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="a file or an http(s) URL")
    _add_draw(command)


def _task(commands, name: str, summary: str, *usages: str) -> argparse.ArgumentParser:
    usage = "\n       ".join(f"argus {name} {usage} [options]" for usage in usages)
    command = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.", usage=usage)
    command.set_defaults(run=_run_task, stream=False, draw=None)
    _add_model(command)
    command.add_argument("--batch-size", type=_positive, metavar="N", default=8, help="images at a time (default: 8)")
    command.add_argument("--json", action="store_true", help="one JSON object a line, one line for each result")
    return command


def _add_model(command) -> None:
    command.add_argument("--model", help="a folder or a hub repository (default: argus-nano, which ships with argus)")
    command.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the code that comes with the model instead of the installed classes",
    )
    command.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    command.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="auto, the default: float32 on a CPU, else as the model was saved",
    )
    command.add_argument("--max-tiles", type=_positive, metavar="N", help="tiles per image at most: fewer are faster")
    command.add_argument(
        "--max-upscale",
        type=_positive_number,
        metavar="X",
        help="enlarge an image at most X times, so that small ones make fewer tiles; 1: not at all, unless a side is "
        "shorter than one tile (default: as the model was set up)",
    )
    command.add_argument("--max-new-tokens", type=_positive, metavar="N", help="length of an answer at most")


def _add_stream(command) -> None:
    command.add_argument("--stream", action="store_true", help="print the answer as it is written (one image)")


def _add_draw(command) -> None:
    command.add_argument(
        "--draw",
        metavar="OUT.png",
        help="draw boxes and captions; for several images a folder, or a name with {stem} in it",
    )


def _add_checkpoints(commands) -> None:
    command = commands.add_parser(
        "convert",
        help="SmolVLM, Idefics3 and InternVL3 checkpoints to Argus, and back",
        description="Convert a SmolVLM, SmolVLM2, Idefics3 or InternVL3 checkpoint to Argus, or an Argus one back.",
    )
    command.add_argument("source", metavar="SOURCE", help="a folder or a hub repository")
    command.add_argument("--to", choices=("smolvlm", "idefics3", "internvl"), help="from Argus to this format")
    _add_writing(command, _run_convert)
    command.add_argument("--dtype", choices=DTYPES, help="cast the weights (default: as they are)")

    command = commands.add_parser(
        "bootstrap",
        help="the starting points for training 256m, 500m and 2b",
        description="Make the starting point of Section 5 for training: a SmolVLM that gains location tokens, or a "
        "vision tower and a language model with a fresh connector. The published parts are taken where none are named.",
    )
    command.add_argument("size", metavar="SIZE", nargs="?", help="256m, 500m or 2b; leave it out for any other shape")
    command.add_argument("--source", "--smolvlm", dest="smolvlm", help="a SmolVLM, or an Argus made from one")
    command.add_argument("--vision", help="an InternViT, InternVL or SigLIP, with --text")
    command.add_argument("--text", help="a Llama or Qwen2 language model, with --vision")
    command.add_argument("--num-location-bins", type=_positive, metavar="K", default=1000, help="default: 1000")
    command.add_argument("--pixel-unshuffle-factor", type=_positive, metavar="R", help="of --vision and --text")
    command.add_argument("--seed", type=int, default=0, help="of what is new and untrained (default: 0)")
    _add_writing(command, _run_bootstrap)
    command.add_argument("--dtype", choices=DTYPES, help="cast the weights (default: as they are)")

    command = commands.add_parser(
        "export",
        help="a flat hub folder: code, card, configs, weights, tokenizer",
        description="Write a checkpoint and the code that it needs as one flat folder for a hub repository.",
    )
    command.add_argument("--model", help="a checkpoint folder (default: argus-nano, which ships with argus)")
    command.add_argument("--force", action="store_true", help="replace an earlier export")
    command.add_argument(
        "--push", metavar="OWNER/NAME", help="upload the folder to this repository of the hub, which has to exist"
    )
    _add_writing(command, _run_export, required=False)


def _add_writing(command, run, required: bool = True) -> None:
    command.set_defaults(run=run)
    command.add_argument("--out", required=required, metavar="DIR", help="the folder to write, whole or not at all")
    command.add_argument("--json", action="store_true", help="say what was written as one JSON object")


def _add_training_and_evaluation(commands) -> None:
    from .annotate import command as annotate
    from .evaluate import command as evaluate  # none imports anything heavy before it runs
    from .train import command as train

    command = commands.add_parser(
        "train",
        help="train or fine-tune a model from a YAML configuration",
        description="Train a model in stages, as a YAML file says. The same command goes on from its checkpoints.",
    )
    train.add_arguments(command)
    command.set_defaults(run=train.run)
    evaluate.add_arguments(commands.add_parser("evaluate", help="score a model on a data set or on rendered scenes"))
    command = commands.add_parser("annotate", help="run a task on thousands of images, into files of rows")
    annotate.add_arguments(command, _positive)
    _add_model(command)


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def _positive_number(text: str) -> float:
    try:
        number = float(text) if text.isascii() and "_" not in text else 0.0  # Python reads 1_0 as 10
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _run_task(arguments) -> None:
    from .cli_tasks import run

    run(arguments)


def _run_convert(arguments) -> None:
    from .cli_checkpoints import run_convert

    run_convert(arguments)


def _run_bootstrap(arguments) -> None:
    from .cli_checkpoints import run_bootstrap

    run_bootstrap(arguments)


def _run_export(arguments) -> None:
    from .cli_checkpoints import run_export

    run_export(arguments)


if __name__ == "__main__":
    sys.exit(main())
