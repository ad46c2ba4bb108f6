"""What a region's score should be: region-caption mAP of one model's answers, ranked by five definitions of the score.

    python -m benchmarks.accuracy.scores --save tokens.jsonl

A language model has no objectness. The product's score (processing_argus/regions_argus.py) is the mean log-probability
of all of a region's tokens; the others here exist in this script only. The model answers once, greedy; its tokens and
their log-probabilities are kept, so that all definitions rank the very same regions. A definition can only move what is
wrong behind what is right: mAP of `constant` is what the regions are worth without any ranking of their own.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from argus_tools.cli_models import check_model, load
from argus_tools.cli_support import whole_file
from argus_tools.evaluate.benchmark import Benchmark, predict_all
from argus_tools.evaluate.dense_caption import RegionImage, dense_caption_map
from argus_tools.evaluate.meteor import open_meteor
from argus_tools.evaluate.predictions import Predictions, fingerprint
from argus_tools.evaluate.scenes import region_scores
from argus_tools.scenes import SCENES_VERSION, ask, render_scene
from benchmarks.efficiency.common import ROOT, at_least, command_line, hardware, markdown
from processing_argus.regions_argus import decode_with_spans

RESULTS = ROOT / "benchmarks" / "accuracy" / "results"
# name -> a region's score, of the log-probabilities of its location tokens and of its caption's; only ranks matter.
DEFINITIONS = {
    "mean of all tokens (the product's)": lambda location, caption: np.mean([*location, *caption]),
    "mean of the location tokens": lambda location, caption: np.mean(location),
    "mean of the caption's tokens": lambda location, caption: np.mean(caption),
    "sum of all tokens": lambda location, caption: np.sum([*location, *caption]),
    "constant (the order written)": lambda location, caption: 0.0,
}
RESAMPLES = 100


class Tokens(Benchmark):
    """The tokens of a model's dense captions of scenes, and their log-probabilities."""

    name, needs = "dense-caption-tokens", ("tokens",)

    def __init__(self, count: int, **options):
        self._count, self._options, self.truths = count, options, {}
        self.data = {"scenes_version": SCENES_VERSION, "count": count, **options}

    def ids(self) -> list[int]:
        return list(range(self._count))

    def render(self, index: int):
        """The scene; its size and ground truth are kept."""
        options = dict(self._options)
        scene = render_scene(index, options.pop("split"), **options)
        self.truths[index] = (scene.size, ask(scene, np.random.default_rng(0), "dense_caption").answer)
        return scene

    def predict(self, model, ids: list) -> list[dict]:
        return model.tokens([self.render(i).image for i in ids])

    def score(self, predictions: dict) -> dict:
        raise NotImplementedError("see regions_of: one set of tokens has several scores")


class Speaker:
    """Asks a model for dense captions and gives {"ids", "log_probs"} of each answer."""

    name = "argus"

    def __init__(self, model, processor, max_new_tokens: int):
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens

    def tokens(self, images) -> list[dict]:
        prompt = {"type": "text", "text": "Describe and locate every object."}
        chats = [[{"role": "user", "content": [{"type": "image", "image": image}, prompt]}] for image in images]
        inputs = self.processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
        ).to(self.model.device)
        with torch.inference_mode():
            output = self.model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=self.max_new_tokens,
                return_dict_in_generate=True,
                output_logits=True,
            )
        new = output.sequences[:, inputs["input_ids"].shape[1] :]
        log_probs = torch.stack(output.logits, dim=1).float().log_softmax(-1).gather(-1, new[..., None])[..., 0]
        return [{"ids": ids, "log_probs": values} for ids, values in zip(new.tolist(), log_probs.tolist())]


def regions_of(processor, row: dict, size) -> list[tuple]:
    """(box, caption, log-probabilities of its location tokens, of its caption's tokens) for each region."""
    text, spans = decode_with_spans(processor.tokenizer, row["ids"])
    regions = []
    for region in processor.locations.parse(text)[0]:
        words = region.start + text[region.start : region.end].rindex(region.caption)
        parts: tuple[list, list] = ([], [])
        for place, start, end in spans:
            if start < region.end and end > region.start:
                parts[end > words].append(row["log_probs"][place])
        regions.append((processor.locations.bins_to_box(region.bins, size), region.caption, *parts))
    return regions


def images_of(found: list[list[tuple]], truths: list[tuple], definition) -> list[RegionImage]:
    """What the metric takes, with scores by one definition."""
    images = []
    for regions, (size, truth) in zip(found, truths):
        boxes, captions = [region[0] for region in regions], [region[1] for region in regions]
        scores = [float(definition(*region[2:])) for region in regions]
        images.append(
            RegionImage(size, boxes, captions, scores, [box for box, _ in truth], [text for _, text in truth])
        )
    return images


def compare(found: list[list[tuple]], truths: list[tuple], meteor, resamples: int = RESAMPLES) -> list[dict]:
    """One dict a definition: mAP of both modes, AP at IoU 0.5 of exact words, and the standard error of its clean mAP's
    difference from the product's, over scenes drawn anew with replacement."""
    picks = [np.random.default_rng(i).integers(0, len(found), len(found)) for i in range(resamples)]
    rows, drawn = [], {}
    for name, definition in DEFINITIONS.items():
        images = images_of(found, truths, definition)
        maps = dense_caption_map(images, meteor)
        plain = [{"boxes": i.boxes, "captions": i.captions, "scores": i.scores} for i in images]
        drawn[name] = np.array(
            [dense_caption_map([images[i] for i in pick], meteor, ["clean"])["clean"]["map"] for pick in picks]
        )
        apart = drawn[name] - next(iter(drawn.values()))
        rows.append(
            {
                "score": name,
                "reference_map": maps["reference"]["map"],
                "clean_map": maps["clean"]["map"],
                "ap_50": region_scores(plain, "captions", [truth for _, truth in truths])["ap_50"],
                "difference": maps["clean"]["map"] - rows[0]["clean_map"] if rows else 0.0,
                "difference_error": float(apart.std(ddof=1)) if resamples > 1 else 0.0,
            }
        )
    return rows


def write(rows: list[dict], out: Path, header: dict, meteor: str, counts: dict, command: str) -> str:
    """scores.md and scores.jsonl in `out`, whole; returns the text."""
    table = [
        [
            row["score"],
            *(f"{100 * row[key]:.2f}" for key in ("reference_map", "clean_map", "ap_50")),
            f"{100 * row['difference']:+.2f} ± {100 * row['difference_error']:.2f}",
        ]
        for row in rows
    ]
    heading = ["score of a region", "mAP, reference", "mAP, clean", "AP50, exact words", "clean mAP less the first's"]
    where = hardware("cpu")
    lines = [
        "# mAP of the same regions under five definitions of the score",
        f"`{command}`",
        f"{header['model']['name']} ({header['model']['fingerprint']}), greedy, {counts['scenes']} held-out scenes, "
        f"{counts['truth']} objects, {counts['regions']} predicted regions; {meteor}; everything in %. The error is "
        f"the standard deviation of the difference over {RESAMPLES} draws of the scenes with replacement.",
        markdown(heading, table),
        f"Scenes: `{json.dumps(header['data'])}`. torch {where['torch']}, transformers {where['transformers']}, "
        f"commit {where['commit']}.",
    ]
    text = "\n\n".join(lines) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(out / "scores.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    with whole_file(out / "scores.jsonl") as temporary:
        shared = {"meteor": meteor, **counts, "model": header["model"], "data": header["data"], **where}
        temporary.write_text("".join(json.dumps({**row, **shared}) + "\n" for row in rows), encoding="utf-8")
    return text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", help="an Argus model's folder (default: argus-nano)")
    add("--split", choices=("val", "test"), default="test")
    add("--scenes", type=at_least(1), default=160, metavar="N", help="default: 160")
    add("--size", type=at_least(16), nargs=2, default=[144, 144], metavar=("HEIGHT", "WIDTH"))
    add("--max-objects", type=at_least(1), default=5, metavar="N")
    add("--styles", nargs="+", metavar="STYLE", help="drawing styles (default: those trained on)")
    add("--batch-size", type=at_least(1), default=32, metavar="N")
    add("--max-new-tokens", type=at_least(1), default=256, metavar="N")
    add("--meteor", choices=("auto", "jar", "lite"), default="auto")
    add("--save", type=Path, metavar="FILE", help="keep the tokens there, and go on with them")
    add("--out", type=Path, default=RESULTS, metavar="DIR")
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(words)
    name = check_model(args.model)
    model, processor = load(name, torch.device("cpu"), "float32", False)
    styles = tuple(args.styles) if args.styles else None
    size = {"height": args.size[0], "width": args.size[1], "max_objects": args.max_objects}
    tokens = Tokens(args.scenes, split=args.split, styles=styles, **size)
    identity = {"name": Path(name).name, "fingerprint": fingerprint(name)}
    options = {"dtype": "float32", "max_new_tokens": args.max_new_tokens}
    header = {"task": tokens.name, "model": identity, "options": options, "data": tokens.data}
    predictions = Predictions(args.save, header)
    predict_all(tokens, Speaker(model, processor, args.max_new_tokens), predictions, args.batch_size)
    for i in tokens.ids():
        if i not in tokens.truths:
            tokens.render(i)
    truths = [tokens.truths[i] for i in tokens.ids()]
    found = [regions_of(processor, predictions.rows[i], truth[0]) for i, truth in zip(tokens.ids(), truths)]
    counts = {"scenes": len(truths), "truth": sum(len(t) for _, t in truths), "regions": sum(map(len, found))}
    with open_meteor(args.meteor) as meteor:
        rows = compare(found, truths, meteor)
    shown = ["DIR" if before in ("--save", "--model") else word for before, word in zip(["", *words], words)]
    print(write(rows, args.out, header, meteor.name, counts, command_line("benchmarks.accuracy.scores", shown)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
