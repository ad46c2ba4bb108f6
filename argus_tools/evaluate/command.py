"""`argus evaluate TASK`: a model's predictions on a data set, kept on the way, and their scores.

Cheap to import: torch and transformers come with the task. Predictions saved with --save go on where they stopped;
--predictions scores a finished file without a model. What is wrong with the command is found before a model is loaded.
"""

import argparse
import json
from pathlib import Path

from ..cli_models import read_device
from ..cli_support import CommandError, check_target, json_line, printable, quiet_transformers, say, whole_file

TASKS = ("scenes", "dense-caption", "detection", "coco-captions", "nocaps", "vqav2", "gqa", "pope")
TABLES = ("table3", "table4")
METEORS = ("auto", "jar", "lite", "both")

DESCRIPTION = """\
Scores a model. Tasks and the files that they read:

  scenes         rendered scenes of this project: --split --count --size --max-objects --styles,
                 --pictograms-only
  dense-caption  Visual Genome: --annotations region_descriptions.json, --images FOLDER; region-caption mAP
  detection      COCO: --annotations instances_val2017.json, --images FOLDER; mAP by pycocotools
  coco-captions  COCO: --annotations captions_val2017.json, --images FOLDER; BLEU-4, CIDEr
  nocaps         NoCaps: --annotations nocaps_val_4500_captions.json, --images FOLDER; BLEU-4, CIDEr
  vqav2          VQAv2: --questions, --annotations, --images FOLDER; accuracy
  gqa            GQA: --questions testdev_balanced_questions.json, --images FOLDER; exact match
  pope           POPE: --questions coco_pope_random.json [..popular.json ..adversarial.json], --images FOLDER;
                 accuracy, precision, recall, F1 of all questions together
  table3, table4 results that --out wrote, in the form of the paper's table beside the paper's values
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `argus evaluate`, and `run` as what runs them."""
    parser.set_defaults(run=run)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = DESCRIPTION
    parser.add_argument("task", metavar="TASK", choices=(*TASKS, *TABLES), help="one of the above")
    parser.add_argument("results", nargs="*", metavar="RESULT.json", help="of table3 and table4: what --out wrote")
    add = parser.add_argument_group("the model").add_argument
    add("--model", help="a folder or a hub repository: Argus, Florence-2 or SmolVLM (default: argus-nano)")
    add("--trust-remote-code", action="store_true", help="run the code that comes with the model")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="auto: float32 on a CPU")
    add("--max-tiles", type=_positive, metavar="N", help="tiles per image at most")
    add("--max-new-tokens", type=_positive, metavar="N", help="length of an answer at most")
    add("--batch-size", type=_positive, metavar="N", default=8, help="items at a time (default: 8)")
    add = parser.add_argument_group("the data").add_argument
    add("--annotations", metavar="FILE", help="ground truth in its original format")
    add("--questions", nargs="+", metavar="FILE", help="questions in their original format; of POPE several, pooled")
    add("--images", metavar="FOLDER", help="where the images are")
    add("--splits", metavar="FILE", help="DenseCap's densecap_splits.json: the images of --split only")
    add("--prompt", help="asks for captions in these words (default: the model's own)")
    add("--suffix", help="behind each question (default: a request for a single word or phrase, LMMs-Eval's)")
    add("--limit", type=_positive, metavar="N", help="the first N items only; the scores say so")
    add("--split", choices=("val", "test"), default="val", help="of scenes and --splits (default: val)")
    add("--count", type=_positive, metavar="N", default=160, help="scenes (default: 160)")
    add("--size", type=_positive, nargs=2, metavar=("HEIGHT", "WIDTH"), default=[144, 144], help="of scenes, in pixels")
    add("--max-objects", type=_positive, metavar="N", default=5, help="in a scene, 1 to 10 (default: 5)")
    add("--styles", nargs="+", metavar="STYLE", help="drawing styles of scenes (default: those trained on)")
    add("--pictograms-only", action="store_true", help="scenes without shapes, digits and words, which have no styles")
    add("--seed", type=_not_negative, default=0, help="of what is asked about scenes (default: 0)")
    add = parser.add_argument_group("the scores").add_argument
    add(
        "--meteor",
        choices=METEORS,
        default="auto",
        help="jar: METEOR 1.5, with Java; lite: our own without Java, other numbers; auto: the jar where it runs; "
        "both: lite, and the jar where it runs (default: auto, of scenes both)",
    )
    add("--save", metavar="FILE", help="keep predictions in this JSONL file, and go on with it if it is there")
    add("--predictions", metavar="FILE", help="score this finished file; no model is run")
    add("--out", metavar="FILE.json", help="write the result to a file too")
    add("--json", action="store_true", help="print the result as one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """`argus evaluate`. Raises CommandError, ValueError or OSError for bad input."""
    if arguments.out is not None:
        inputs = [*arguments.results, *(arguments.questions or ())]
        inputs += [getattr(arguments, name) for name in ("annotations", "splits", "save", "predictions")]
        check_target("--out", Path(arguments.out), filter(None, inputs))
    if arguments.task in TABLES:
        _run_table(arguments)
        return
    if arguments.results:
        raise CommandError(f"{arguments.results[0]}: files of results belong to table3 and table4 only")
    if arguments.save is not None and arguments.predictions is not None:
        raise CommandError("--save and --predictions exclude each other: the one runs a model, the other does not")
    result = evaluate(arguments)
    if arguments.out is not None:
        with whole_file(Path(arguments.out)) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    say(json_line(result) if arguments.json else "\n".join(score_lines(result)))


def evaluate(arguments: argparse.Namespace) -> dict:
    """{"task", "model", "options", "data", "parameters", "items", "scores"}: whose scores on what, and the scores."""
    benchmark = open_benchmark(arguments)
    ids = benchmark.ids()
    if arguments.predictions is not None:
        from .predictions import complete

        header, rows = complete(arguments.predictions, benchmark.name, benchmark.data, ids)
        benchmark.check(arguments.predictions, rows)
    else:
        header, rows = _predict(benchmark, arguments)
    scores = rounded(benchmark.score({item: rows[item] for item in ids}))
    result = {**header, "items": len(ids), "scores": scores}
    result.pop("argus_predictions")
    return result


def rounded(scores):
    """Six digits: more than any of these numbers is worth, and the same on machines that differ in the last bit."""
    if isinstance(scores, dict):
        return {name: rounded(value) for name, value in scores.items()}
    return round(scores, 6) if isinstance(scores, float) else scores


def open_benchmark(arguments):
    """The benchmark that a command names, its files read and checked. Raises CommandError, ValueError, OSError."""
    from .meteor import why_no_jar

    if arguments.meteor == "jar" and why_no_jar():  # said now, not after hours of predictions
        raise CommandError(f"--meteor jar cannot run here: {why_no_jar()}")
    kind = ("lite", "jar") if not why_no_jar() else ("lite",)
    if arguments.meteor != "both" and not (arguments.task == "scenes" and arguments.meteor == "auto"):
        kind = (arguments.meteor,)
    if arguments.task == "scenes":
        if arguments.limit is not None:
            raise CommandError("--limit belongs to data in files; of scenes --count says how many")
        from .scenes import Scenes

        (height, width), styles = arguments.size, tuple(arguments.styles) if arguments.styles else None
        options = {"height": height, "width": width, "max_objects": arguments.max_objects, "styles": styles}
        return Scenes(arguments.split, arguments.count, arguments.seed, kind, arguments.pictograms_only, **options)
    from .datasets import open_dataset

    return open_dataset(arguments, kind)


def _predict(benchmark, arguments) -> tuple[dict, dict]:
    """(header, {id: prediction}) of every item, by the model that is named."""
    from .benchmark import predict_all
    from .models import check_model, num_parameters, open_model
    from .predictions import Predictions

    kind, name, identity = check_model(arguments.model, arguments.trust_remote_code)
    device = read_device(arguments.device)
    dtype = "float32" if arguments.dtype == "auto" and device.type == "cpu" else arguments.dtype
    options = {"dtype": dtype, "max_tiles": arguments.max_tiles, "max_new_tokens": arguments.max_new_tokens}
    options = {key: value for key, value in options.items() if value is not None}
    header = {"task": benchmark.name, "model": identity, "options": options, "data": benchmark.data}
    header["parameters"] = num_parameters(arguments.model)
    if getattr(arguments, "prompt", None) and kind == "florence2" and "caption" in benchmark.needs:
        raise CommandError(f"--prompt: {identity['name']} is a Florence-2, which captions by its own <CAPTION> alone")
    predictions = Predictions(arguments.save, header)
    benchmark.check(arguments.save, predictions.rows)
    if any(item not in predictions for item in benchmark.ids()):
        import torch

        with quiet_transformers(arguments.debug):
            model = open_model(kind, name, identity, arguments)
            try:
                predict_all(benchmark, model, predictions, arguments.batch_size)
            except torch.OutOfMemoryError as error:
                advice = "take a smaller --batch-size or --max-tiles, or --dtype bfloat16"
                raise CommandError(f"{arguments.device} has not enough memory: {advice}") from error
    return predictions.header, predictions.rows


def _run_table(arguments) -> None:
    from .tables import read_results, table

    results = read_results(arguments.results)
    text = table(arguments.task, results)
    if arguments.out is not None:
        with whole_file(Path(arguments.out)) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    say(json_line({"table": arguments.task, "text": text}) if arguments.json else text)


def score_lines(result: dict) -> list[str]:
    """A heading and one aligned line for each number."""
    model = printable(str(result["model"].get("name", "?")))
    lines = [f"{result['task']}  {model}  {result['items']} items"]
    flat = list(_flat(result["scores"]))
    width = max(len(name) for name, _ in flat)
    return [*lines, *(f"  {name.ljust(width)}  {_shown(value)}" for name, value in flat)]


def _flat(scores: dict, before: str = ""):
    for name, value in scores.items():
        if isinstance(value, dict):
            if name != "ap":  # the 30 cells are for --json and --out
                yield from _flat(value, f"{before}{name} / ")
        else:
            yield before + name, value


def _shown(value) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _positive(text: str) -> int:
    return _at_least(1, text)


def _not_negative(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else -1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return number
