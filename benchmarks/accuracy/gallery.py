"""Predictions to look at: contact sheets of the best, the worst and some random ones on held-out scenes.

    python -m benchmarks.accuracy.gallery --model hub_cards/argus-nano

Which scenes are shown is a rule and no choice. Each task's scenes are ranked by its score of the single scene: F1 of
regions with the right words at IoU 0.5 (dense captions, detection), F1 of the objects named (captions), the share of
questions answered word for word. Shown are the first three, the last three, and three drawn by the seed from the rest;
among equals those with more to find come first, then those with the lower number. The last sheet is of the drawing
style that training never showed.
"""

import argparse
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image, ImageDraw, ImageFont

from argus_tools.draw import draw_regions
from argus_tools.evaluate.models import ArgusAnswerer
from argus_tools.evaluate.scenes import exchanges_of, match, predict
from argus_tools.scenes import Scene, atlas_info, caption_labels, render_scene
from benchmarks.efficiency.common import ROOT, at_least, hardware, markdown
from modeling_argus import ArgusForConditionalGeneration
from processing_argus import ArgusProcessor

EMBEDDED = str(ROOT / "hub_cards" / "argus-nano")
RESULTS = Path(__file__).parent / "results" / "gallery"
SHOWN = 3  # of the best, the worst and the random ones
CELL, LINE = 440, 17
TEXT_LINES = {"dense_caption": 4, "detect": 5, "caption": 5, "answer": 8}
TASKS = ("dense_caption", "detect", "caption", "answer")
TITLES = {
    "dense_caption": "Dense captions",
    "detect": "Detection by phrase",
    "caption": "Captions",
    "answer": "Answers",
    "unseen_style": "Dense captions of a drawing style never trained on",
}


@dataclass(frozen=True)
class Shown:
    """A scene, what was asked of it, what the model said, and how good that is, 0..1."""

    index: int
    scene: Scene
    asked: dict
    said: dict
    score: float
    to_find: int


def f1(right: int, made: int, true: int) -> float:
    """1 where there is nothing to find and nothing was found."""
    return 2 * right / (made + true) if made + true else 1.0


def score_of(task: str, asked: dict, said: dict) -> float:
    """The score of one scene by which it is ranked."""
    if task in ("dense_caption", "detect"):
        true, found = asked[task].answer, said[task]
        words = found["captions" if task == "dense_caption" else "labels"]
        matches = match(found["boxes"], words, [box for box, _ in true], [text for _, text in true])
        return f1(sum(m is not None for m in matches), len(words), len(true))
    if task == "caption":
        true, found = caption_labels(asked[task].answer), caption_labels(said[task])
        return f1((true & found).total(), found.total(), true.total())
    answers = [said["answers"][kind].strip() == each.answer for kind, each in asked["answer"].items()]
    return sum(answers) / max(1, len(answers))


def chosen(task: str, scenes: list[Scene], asked: list[dict], said: list[dict], seed: int) -> dict[str, list[Shown]]:
    """{"best", "worst", "random"} by the rule above; no scene stands in two of them while there are enough."""
    everything = [
        Shown(i, scene, a, s, score_of(task, a, s), len(a["detect"].answer if task == "detect" else scene.objects))
        for i, (scene, a, s) in enumerate(zip(scenes, asked, said))
    ]
    best = sorted(everything, key=lambda e: (-e.score, -e.to_find, e.index))[:SHOWN]
    rest = [e for e in everything if e not in best]
    worst = sorted(rest, key=lambda e: (e.score, -e.to_find, e.index))[:SHOWN]
    rest = [e for e in rest if e not in worst]
    drawn = np.random.default_rng([seed, TASKS.index(task)]).permutation(len(rest))[:SHOWN]
    return {"best": best, "worst": worst, "random": [rest[i] for i in sorted(drawn)]}


def boxes_and_lines(task: str, shown: Shown) -> tuple[list, list[str], list[str]]:
    """(boxes, their words, the lines under the scene): what the model said and, where that is not right, what is."""
    said = shown.said
    if task in ("dense_caption", "detect"):
        key = "captions" if task == "dense_caption" else "labels"
        asked = [f"Detect: {', '.join(shown.asked[task].phrases)}."] if task == "detect" else []
        there = listed(text for _, text in shown.asked[task].answer)
        lines = [*asked, f"Said: {listed(said[task][key])}", f"True: {there}"]
        return said[task]["boxes"], said[task][key], lines
    if task == "caption":
        truth = shown.asked[task].answer
        return [], [], [said[task].strip(), *([] if said[task].strip() == truth else [f"WRONG: {truth}"])]
    lines = []
    for kind, each in shown.asked["answer"].items():
        answer = said["answers"][kind].strip()
        lines.append(f"{each.prompt} {answer}" + ("" if answer == each.answer else f"  WRONG: {each.answer}"))
    return [], [], lines


def listed(texts) -> str:
    """ "a cat, 2 x a dog", "nothing"."""
    return ", ".join(f"{n} x {text}" if n > 1 else text for text, n in Counter(texts).items()) or "nothing"


def sheet(task: str, rows: dict[str, list[Shown]]) -> Image.Image:
    """One row for the best, the worst and the random ones; a cell is a picture with its lines."""
    lines = TEXT_LINES[task]
    height = CELL + 8 + lines * LINE
    canvas = Image.new("RGB", (SHOWN * (CELL + 12) + 12, sum(1 for _ in rows) * (height + 26) + 8), "white")
    draw, font, bold = ImageDraw.Draw(canvas), ImageFont.load_default(13), ImageFont.load_default(16)
    for r, (name, cells) in enumerate(rows.items()):
        y = 6 + r * (height + 26)
        draw.text((12, y), name, fill="black", font=bold)
        # Boxes are drawn on the row, so that labels are as large as the sheet wants them, not as each scene would.
        row, boxes, words, below = Image.new("RGB", (canvas.width, CELL), "white"), [], [], []
        for c, shown in enumerate(cells):
            x, (H, W) = 12 + c * (CELL + 12), shown.scene.image.shape[:2]
            scale = CELL / max(H, W)
            resized = Image.fromarray(shown.scene.image).resize((round(W * scale), round(H * scale)), Image.BICUBIC)
            row.paste(resized, (x, 0))
            said, captions, text = boxes_and_lines(task, shown)
            boxes += [[x + x1 * scale, y1 * scale, x + x2 * scale, y2 * scale] for x1, y1, x2, y2 in said]
            words += captions
            below.append((x, resized.height, text))
        canvas.paste(draw_regions(row, boxes, words), (0, y + 22))
        for x, bottom, text in below:
            wrapped = [(part, "WRONG" in line) for line in text for part in textwrap.wrap(line, 68)][:lines]
            for i, (line, is_wrong) in enumerate(wrapped):
                colour = (170, 0, 0) if is_wrong else "black"
                draw.text((x, y + 26 + bottom + i * LINE), line, fill=colour, font=font)
    return canvas


def save(image: Image.Image, path: Path) -> None:
    """A PNG of 256 colours, so that a sheet stays small; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_suffix(".tmp")
    palette = image.resize((image.width // 4, image.height // 4), Image.Resampling.NEAREST).quantize(256, kmeans=1)
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(work, format="PNG", optimize=True)
    work.replace(path)


def table(task: str, rows: dict[str, list[Shown]]) -> str:
    """What is on a sheet, in words."""
    lines = []
    for name, cells in rows.items():
        for shown in cells:
            key = {"dense_caption": "captions", "detect": "labels"}.get(task)
            if key:
                said, true = listed(shown.said[task][key]), listed(text for _, text in shown.asked[task].answer)
            elif task == "caption":
                said, true = shown.said[task].strip(), shown.asked[task].answer
            else:
                said = " ".join(shown.said["answers"][kind].strip() for kind in shown.asked["answer"])
                true = " ".join(each.answer for each in shown.asked["answer"].values())
            lines.append([name, shown.index, f"{shown.score:.2f}", said.replace("|", " "), true])
    return markdown(["", "scene", "score", "said", "true"], lines)


def looked_at(model, styles: tuple[str, ...] | None, args) -> tuple[list[Scene], list[dict], list[dict]]:
    """(scenes, what was asked, what was said) of the split's first scenes."""
    options = {"height": args.size[0], "width": args.size[1], "max_objects": args.max_objects, "styles": styles}
    scenes = [render_scene(i, args.split, **options) for i in range(args.count)]
    asked = [exchanges_of(scene, i, args.seed) for i, scene in enumerate(scenes)]
    said = []
    for start in range(0, len(scenes), 16):
        part = slice(start, start + 16)
        said += predict(model, [scene.image for scene in scenes[part]], asked[part])
        print(f"gallery: {min(start + 16, len(scenes))} of {len(scenes)} scenes", flush=True)
    return scenes, asked, said


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description="Contact sheets of good, bad and random predictions.")
    add = parser.add_argument
    add("--model", default=EMBEDDED, metavar="DIR", help="default: the embedded model")
    add("--count", type=at_least(2 * SHOWN), default=96, metavar="N", help="scenes to choose from (default: 96)")
    add("--size", type=at_least(32), nargs=2, default=[144, 144], metavar=("HEIGHT", "WIDTH"), help="of the scenes")
    add("--max-objects", type=at_least(1), default=5, metavar="N", help="in a scene (default: 5)")
    add("--split", choices=("val", "test"), default="test", help="default: test")
    add("--seed", type=at_least(0), default=0, help="of the questions and of the random ones (default: 0)")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="where the sheets and gallery.md go")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Everything; the sheets' names and sizes are printed."""
    args = build_parser().parse_args(arguments)
    transformers.logging.set_verbosity_error()
    folder = Path(args.model)
    processor = ArgusProcessor.from_pretrained(folder)
    model = ArgusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    answerer = ArgusAnswerer(model, processor, folder.resolve().name)
    sheets = []
    seen = looked_at(answerer, None, args)
    sheets += [(task, task, chosen(task, *seen, args.seed)) for task in TASKS]
    unseen = looked_at(answerer, tuple(atlas_info()["unseen_styles"]), args)
    sheets.append(("unseen_style", "dense_caption", chosen("dense_caption", *unseen, args.seed)))
    where = ", ".join(f"{key} {value}" for key, value in hardware("cpu").items() if value is not None)
    (height, width), chosen_model = args.size, "" if args.model == EMBEDDED else "--model DIR "
    parts = [
        "# Predictions, good and bad",
        f"`{answerer.name}` on {args.count} held-out scenes ({args.split} split, {height} x {width} pixels, up to "
        f"{args.max_objects} objects), greedy. " + " ".join(__doc__.split("\n\n")[2].split()),
        f"`python -m benchmarks.accuracy.gallery {chosen_model}--count {args.count} --size {height} {width} "
        f"--max-objects {args.max_objects} --split {args.split} --seed {args.seed}`",
        f"Made with: {where}.",
    ]
    for name, task, rows in sheets:
        path = args.out / f"{name}.png"
        save(sheet(task, rows), path)
        print(f"gallery: {path.name}, {path.stat().st_size / 1000:.0f} kB")
        parts += [f"## {TITLES[name]}", f"![{TITLES[name]}]({path.name})", table(task, rows)]
    text, work = "\n\n".join(parts) + "\n", args.out / ".gallery.tmp"
    work.write_text(text, encoding="utf-8")
    work.replace(args.out / "gallery.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
