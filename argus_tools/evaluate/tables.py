"""Tables 3 and 4 of the paper with measured rows beside the paper's, which are marked as the paper's.

`argus evaluate table3 RESULT.json ...`: each file is what `argus evaluate TASK --out` wrote; the results of one model,
which is what its fingerprint says, become one row, in table4 one for each way of counting. Scores are in the paper's
units: percent for GQA, POPE, VQAv2 and mAP; BLEU-4 and CIDEr as they are.
Where LMMs-Eval, by which the paper measured, and a benchmark's own script differ, the notes say which rule is ours.
"""

import json
from collections import Counter
from pathlib import Path

from ..cli_support import CommandError
from .records import check

# Section 5.1. Models with * were measured by the paper's authors from published checkpoints, with LMMs-Eval.
TABLE_3 = """\
SmolVLM*|256M|41.5|80.1|66.0|0.056|0.118|0.087|0.182
ArgusVLM|256M|55.3|87.3|70.4|0.347|1.191|0.409|1.014
SmolVLM*|500M|45.3|85.9|70.4|0.184|0.712|0.273|0.722
ArgusVLM|500M|58.2|86.3|74.1|0.369|1.263|0.438|1.086
MobileVLM|1.7B|56.1|84.5|-|-|-|-|-
MobileVLM-V2|1.7B|59.3|84.3|-|-|-|-|-
SmolVLM*|2B|49.2|87.7|75.3|0.226|0.889|0.351|0.932
InternVL3*|2B|58.9|89.6|72.5|0.394|1.371|0.472|1.208
DeepSeekVL|2B|59.3|88.3|-|-|-|-|-
MiniGemini|2.3B|59.9|83.9|-|-|-|-|-
Qwen2.5-VL*|3B|60.2|88.1|72.7|0.276|1.014|0.399|1.047
Qwen3-VL*|2B|59.4|89.4|74.1|0.127|0.220|0.171|0.194
ArgusVLM|2B|63.3|89.3|80.7|0.422|1.420|0.477|1.187"""

# Section 5.2, dense captioning on Visual Genome.
TABLE_4 = """\
ArgusVLM-256M|Plain-text|1.89
ArgusVLM-256M|Location Tokens|1.98
Florence2-base (0.23B)|Location Tokens|1.67
ArgusVLM-500M|Plain-text|2.18
ArgusVLM-500M|Location Tokens|3.21
Florence2-large (0.77B)|Location Tokens|1.48"""

COLUMNS_3 = {
    "GQA exact match": ("gqa", ("exact_match",), 100, 1),
    "POPE accuracy": ("pope", ("exact_accuracy",), 100, 1),
    "VQAv2 accuracy": ("vqav2", ("accuracy",), 100, 1),
    "COCO BLEU-4": ("coco-captions", ("bleu_4",), 1, 3),
    "COCO CIDEr": ("coco-captions", ("cider",), 1, 3),
    "NoCaps BLEU-4": ("nocaps", ("bleu_4",), 1, 3),
    "NoCaps CIDEr": ("nocaps", ("cider",), 1, 3),
}
# Said under Table 3 where a measured row has a number of the task.
RULES_3 = {
    "gqa": "GQA: LMMs-Eval's rule, as the paper's (lower case, no punctuation, then the same text)",
    "pope": "POPE: LMMs-Eval's rule, as the paper's starred rows (the lower-cased answer is exactly yes or no); what "
    "POPE's own script says is `accuracy` in the result",
    "vqav2": "VQAv2: the challenge's own script, which compares answers as they are where all ten annotators agree; "
    "the starred rows are LMMs-Eval's, which normalises the model's answer there too ('A cat.' is 'cat')",
    "coco-captions": "COCO: BLEU-4 and CIDEr of pycocoevalcap, as LMMs-Eval's",
    "nocaps": "NoCaps: BLEU-4 and CIDEr of pycocoevalcap over all domains together, as LMMs-Eval's",
}
_BOX_FORMATS = {"location_tokens": "Location Tokens", "plain_text": "Plain-text"}
METEORS = ("METEOR 1.5", "meteor-lite")


def read_results(files: list[str]) -> list[dict]:
    """What the files hold. Raises CommandError for one that is no result."""
    results = []
    for file in files:
        try:
            result = json.loads(Path(file).read_text(encoding="utf-8"))
            ok = {"task", "model", "scores"} <= result.keys()
        except OSError as error:
            raise CommandError(f"{file} cannot be read: {error.strerror or error}") from error
        except (ValueError, AttributeError):
            ok = False
        if not ok:
            raise CommandError(f"{file} is no result that `argus evaluate TASK --out` wrote")
        check(file, result, {"task": "text", "model": {}, "scores": {}, "data?": {}, "parameters?": "size"})
        names = {path[0]: "number" for task, path, *_ in COLUMNS_3.values() if task == result["task"]}
        if result["task"] == "dense-caption":
            modes = {"reference": {"map": "number"}, "clean": {"map": "number"}}
            names = {name: modes for name in METEORS if name in result["scores"]} or {METEORS[0]: modes}
        check(file, result["scores"], names, "scores")
        results.append(result)
    return results


def table(name: str, results: list[dict]) -> str:
    """ "table3" or "table4" as Markdown. Raises CommandError for results of tasks that the table does not hold."""
    tasks = {task for task, *_ in COLUMNS_3.values()} if name == "table3" else {"dense-caption"}
    for result in results:
        if result["task"] not in tasks:
            raise CommandError(f"{name} has no column for {result['task']}: it holds {', '.join(sorted(tasks))}")
    return _table_3(results) if name == "table3" else _table_4(results)


def _table_3(results: list[dict]) -> str:
    rows, notes = [], []
    for model, tasks in _by_model(results).items():
        cells = []
        for task, path, factor, digits in COLUMNS_3.values():
            value = _at(tasks[task]["scores"], path) if task in tasks else None
            cells.append("-" if value is None else f"{value * factor:.{digits}f}")
        size = next(filter(None, (result.get("parameters") for result in tasks.values())), None)
        rows.append([f"**{model}**", _short(size), *cells, "measured"])
        notes += [f"{model}, {task}: {note}" for task, result in tasks.items() for note in _notes(result)]
    measured = {result["task"] for result in results}
    notes += [rule for task, rule in RULES_3.items() if task in measured]
    paper = [[*line.split("|"), "the paper's"] for line in TABLE_3.splitlines()]
    header = ["model", "parameters", *COLUMNS_3, "whose numbers"]
    return _markdown(header, rows + paper, notes)


def _table_4(results: list[dict]) -> str:
    rows, notes = [], []
    for model, tasks in _by_model(results).items():
        result = tasks["dense-caption"]
        meteor = next((name for name in METEORS if name in result["scores"]), None)
        if meteor is None:
            raise CommandError(f"the dense-caption result of {model} names no METEOR")
        for mode in ("reference", "clean"):
            value = f"{100 * result['scores'][meteor][mode]['map']:.2f}"
            boxes = _BOX_FORMATS.get(str(result["model"].get("box_format")), "-")
            rows.append([f"**{model}**", boxes, value, f"measured, {mode}, {meteor}"])
        notes += [f"{model}: {note}" for note in _notes(result)]
        if not result.get("data", {}).get("splits"):
            notes.append(f"{model}: all images of the file, not DenseCap's test split (--splits was not given)")
    paper = [[*line.split("|"), "the paper's"] for line in TABLE_4.splitlines()]
    return _markdown(["model", "box format", "mAP (%)", "whose numbers"], rows + paper, notes)


def _by_model(results: list[dict]) -> dict[str, dict[str, dict]]:
    """{shown name: {task: result}}. What tells models apart is shown behind names that are not theirs alone.

    Raises CommandError for two results of one task for one model.
    """
    models: dict[tuple, dict] = {}
    for result in results:
        tasks = models.setdefault(_identity(result["model"]), {"name": str(result["model"].get("name", "?"))})
        if result["task"] in tasks:
            raise CommandError(f"two results of {result['task']} for {tasks['name']}: give one of them")
        tasks[result["task"]] = result
    names = Counter(tasks["name"] for tasks in models.values())
    shown = {}
    for (_, mark), tasks in models.items():
        name = tasks.pop("name")
        shown[name if names[name] == 1 else f"{name} ({mark})"] = tasks
    return shown


def _identity(model: dict) -> tuple:
    """(name, revision) of a model of the hub, (None, fingerprint) of a folder's, whatever the folder is called."""
    if model.get("fingerprint"):
        return None, str(model["fingerprint"])
    return str(model.get("name", "?")), str(model.get("revision"))


def _short(parameters: int | None) -> str:
    """3253920 -> "3.25M", 1.7 billion -> "1.7B", as the paper writes them."""
    if not parameters:
        return "-"
    return f"{parameters / 1e6:.3g}M" if parameters < 999.5e6 else f"{parameters / 1e9:.2g}B"


def _at(scores: dict, path: tuple[str, ...]):
    for key in path:
        scores = scores[key]
    return scores


def _notes(result: dict) -> list[str]:
    """What makes a number incomparable."""
    notes = []
    if result.get("data", {}).get("limit"):
        notes.append(f"the first {result['data']['limit']} items only")
    if result["scores"].get("tokenizer", "PTB tokenizer") != "PTB tokenizer":
        notes.append(f"tokenized by {result['scores']['tokenizer']}, not by the PTB tokenizer")
    if "meteor-lite" in result["scores"] and "METEOR 1.5" not in result["scores"]:
        notes.append("meteor-lite, not METEOR 1.5")
    return notes


def _markdown(header: list[str], rows: list[list[str]], notes: list[str]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    text = "\n".join("| " + " | ".join(row) + " |" for row in lines)
    if any(row[-1] == "the paper's" and row[0].endswith("*") for row in rows):
        text += "\n\n(*: measured by the paper's authors from published checkpoints)\n"
    return text + "".join(f"\n- {note}" for note in notes)
