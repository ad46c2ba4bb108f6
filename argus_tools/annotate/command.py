"""The command `argus annotate`. Cheap to import: torch and all else come with `run`."""

import argparse
from pathlib import Path

OWN_FILES = ("manifest", "summary-", "annotations-", "journal-")  # what the files of a run begin with
KINDS_SHOWN = 5  # of files that were passed by
NAMES_NOTHING = "names nothing: give a name, or see whether a variable of the shell is empty"
TASKS = ("caption", "ask", "detect", "dense-caption")
DESCRIPTION = """\
Run a task on thousands of images and keep one row for each. The same command goes on where it was stopped or killed;
an image that cannot be read is a row with an error.

INPUT is an image, a folder (with all below it), a WebDataset tar, a Parquet file, a folder that `datasets` saved, a
text file with one of these or a URL a line, or a glob or {000..099} of names, in quotes; several are taken together.

DIR gets annotations-SHARD-of-SHARDS-NUMBER.jsonl (or .parquet) with the columns id, source, key, width, height,
num_tiles, those of the task, metadata and error (argus_tools/annotate/schema.py says more); manifest.json, which says
what the command was; and a journal while a run is under way.

  caption: caption   ask: questions, answers   detect: boxes, labels, scores, unparsed
  dense-caption: boxes, captions, scores, unparsed; boxes are x1 y1 x2 y2 in pixels of the original
"""


def add_arguments(parser: argparse.ArgumentParser, positive) -> None:
    """The arguments that only this command has, and `run` as what runs it. `positive` reads a number of at least 1."""
    parser.set_defaults(run=run)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = DESCRIPTION
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="where the images are; none: only --coco")
    parser.add_argument("--task", choices=TASKS, help="what to do with each image")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the rows")
    add = parser.add_argument_group("what is asked").add_argument
    add("--prompt", help='caption: ask in other words than "Describe the image."')
    add("-q", "--question", dest="questions", action="append", help="ask: asked of each image; can be repeated")
    add("-p", "--phrase", dest="phrases", action="append", help="detect: what to look for; can be repeated")
    add = parser.add_argument_group("reading").add_argument
    add("--image-column", metavar="NAME", help="the column of tables that holds images (default: found)")
    add("--workers", type=positive, metavar="N", help="processes that decode (default: processors - 1, at most 8)")
    add("--shard", type=_not_negative, metavar="I", help="annotate the images of part I of --num-shards, from 0 on")
    add("--num-shards", type=positive, metavar="N", help="parts; each may run on a machine of its own, into one DIR")
    add = parser.add_argument_group("running").add_argument
    add("--batch-size", type=positive, metavar="N", default=32, help="images of a batch at most (default: 32)")
    add("--batch-tiles", type=positive, metavar="N", default=64, help="tiles of a batch at most (default: 64)")
    add("--engine", choices=("local", "ray"), default="local", help="ray: on the machines of a Ray cluster")
    add("--actors", type=positive, metavar="N", help="ray: models that run at the same time (default: 1)")
    add = parser.add_argument_group("writing").add_argument
    add("--format", choices=("jsonl", "parquet"), default="jsonl", help="of the files of rows (default: jsonl)")
    add("--rows-per-file", type=positive, metavar="N", default=1000, help="default: 1000")
    add("--coco", metavar="OUT.json", help="then write all boxes in DIR as one COCO file; without INPUT only that")
    add("--restart", action="store_true", help="remove what an earlier run left in DIR")
    add("--retry-failed", action="store_true", help="ask anew for the images whose row in DIR has an error")
    add("--json", action="store_true", help="say what was done as one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """`argus annotate`. Raises CommandError, ValueError or OSError for bad input."""
    from ..cli_support import CommandError, check_target, json_line, say

    for option, name in (("--out", arguments.out), ("--coco", arguments.coco)):
        if name is not None and not name.strip():
            raise CommandError(f"{option} {name!r} {NAMES_NOTHING}")
    out, coco = Path(arguments.out), arguments.coco and Path(arguments.coco)
    if coco is not None:
        check_target("--coco", coco)
        if coco.suffix.lower() != ".json":
            raise CommandError(f"--coco {coco}: name a .json file; another may be an image")
        if coco.resolve().parent == out.resolve() and coco.name.startswith(OWN_FILES):
            raise CommandError(f"--coco {coco}: that is a name of the run's own files; name another")
    if not arguments.inputs:
        if coco is None:
            raise CommandError("there is no INPUT (`argus annotate --help` shows how)")
        result = _coco(out, coco)
    else:
        result = _annotate(arguments, out, coco)
    say(json_line(result) if arguments.json else "\n".join(_lines(result)))


def _annotate(arguments, out: Path, coco: Path | None) -> dict:
    from .. import cli_models
    from ..cli_support import CommandError
    from ..evaluate.models import check_model
    from .coco import check_task
    from .tables import import_pyarrow

    words = _words(arguments)
    shard, num_shards = arguments.shard or 0, arguments.num_shards or 1
    if not 0 <= shard < num_shards:
        raise CommandError(f"--shard {shard} is none of {num_shards} (--num-shards): they are 0 to {num_shards - 1}")
    if num_shards > 1 and arguments.shard is None:
        raise CommandError("--num-shards needs --shard, the number of the part that is annotated here")
    if num_shards > 1 and arguments.restart:
        raise CommandError(f"--restart would remove what the other shards write: remove {out} by hand, once")
    if coco is not None:
        check_task(arguments.task)
        if num_shards > 1:
            raise CommandError("--coco is about all shards: run it without INPUT when they are done")
    if arguments.actors is not None and arguments.engine != "ray":
        raise CommandError("--actors belongs to --engine ray; --workers says how many processes decode here")
    if arguments.format == "parquet":
        import_pyarrow()
    name = cli_models.check_model(arguments.model, arguments.trust_remote_code)
    _, _, identity = check_model(arguments.model, arguments.trust_remote_code)

    from .annotator import Request
    from .run import Job, annotate

    names = ("trust_remote_code", "device", "dtype", "prompt", "max_tiles", "max_upscale", "max_new_tokens")
    options = {each: getattr(arguments, each) for each in (*names, "batch_size", "batch_tiles")}
    request = Request(arguments.task, name, words=words, **options)
    job = Job(
        tuple(arguments.inputs),
        out,
        identity,
        arguments.format,
        arguments.rows_per_file,
        shard,
        num_shards,
        arguments.image_column,
        arguments.workers,
        arguments.engine,
        arguments.actors or 1,
        arguments.restart,
        arguments.retry_failed,
        arguments.debug,
    )
    result = {"out": str(out), **annotate(job, request)}
    return result if coco is None else {**result, **_coco(out, coco)}


def _words(arguments) -> tuple[str, ...]:
    """Questions or phrases. Raises CommandError where some are missing, or are of another task."""
    from ..cli_support import CommandError

    task = arguments.task
    if task is None:
        raise CommandError(f"--task is missing: one of {', '.join(TASKS)}")
    for option, owner in (("prompt", "caption"), ("questions", "ask"), ("phrases", "detect")):
        given = getattr(arguments, option)
        typed = {"prompt": "--prompt", "questions": "-q", "phrases": "-p"}[option]
        if given is not None and task != owner:
            raise CommandError(f"{typed} belongs to --task {owner}, not to {task}")
        if given is None and task == owner and option != "prompt":
            raise CommandError(f"--task {task} needs {typed}")
    words = tuple(arguments.questions or arguments.phrases or ())
    for text in [*words, arguments.prompt or "x"]:
        if not text.strip():
            raise CommandError("a prompt, question or phrase is empty")
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # how Python holds bytes that are no UTF-8
            raise CommandError(f"{text!a} is not UTF-8 text")
    return words


def _coco(out: Path, coco: Path) -> dict:
    from .coco import write_coco
    from .manifest import read
    from .run import unfinished_shards

    command = read(out)
    counts = write_coco(out, command["task"], coco)
    unfinished = unfinished_shards(out, command["num_shards"])
    return {"out": str(out), "coco": {"file": str(coco), **counts, "unfinished_shards": unfinished}}


def _lines(result: dict) -> list[str]:
    from ..cli_support import printable

    lines = []
    if "images" in result:
        rate = f", {result['new'] / result['seconds']:.1f} images/s" if result["new"] and result["seconds"] else ""
        lines.append(
            f"{result['images']} images: {result['images'] - result['failed']} annotated, {result['failed']} failed; "
            f"{result['new']} of them now ({result['seconds']:.1f} s{rate})"
        )
        if passed_by := list(result["passed_by"].items()):
            kinds = [f"{count} {printable(suffix) or 'without suffix'}" for suffix, count in passed_by[:KINDS_SHOWN]]
            kinds += [f"{sum(count for _, count in passed_by[KINDS_SHOWN:])} others"] * (len(passed_by) > KINDS_SHOWN)
            lines.append(f"passed by, as no image was found in them: {', '.join(kinds)}")
        lines.append(f"written: {result['out']} ({result['files']} file{'' if result['files'] == 1 else 's'})")
    if coco := result.get("coco"):
        left_out = f", {coco['left_out']} unreadable left out" if coco["left_out"] else ""
        lines.append(
            f"COCO: {coco['file']} ({coco['images']} images{left_out}, {coco['annotations']} boxes, "
            f"{coco['categories']} categories)"
        )
        if coco["unfinished_shards"]:
            lines.append(f"not finished: shard {', '.join(map(str, coco['unfinished_shards']))}")
    return lines


def _not_negative(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)
