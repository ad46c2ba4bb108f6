"""Scores of a model on held-out scenes, greedy: captions, questions, detection, dense captions.

    python -m argus_tools.train.score hub_cards/argus-nano --scenes 200

Held-out scenes come from a split of their own (other random streams), so no training scene is among them; the
pictograms and kinds of background are the training ones, unless `--styles` names a drawing style not trained on.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from argus_tools.scenes import QUESTION_KINDS, all_labels, make_example, plural, with_article
from argus_tools.scenes.render import Scene, render_scene


def iou(a, b) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def match(boxes, labels, true_boxes, true_labels, threshold: float = 0.5) -> list[int | None]:
    """For each prediction, in order, the ground truth of its label that it takes (each at most once), or None.

    A label None agrees with any.
    """
    taken: set[int] = set()
    matches: list[int | None] = []
    for box, label in zip(boxes, labels):
        best, best_iou = None, threshold
        for i, (true_box, true_label) in enumerate(zip(true_boxes, true_labels)):
            if i in taken or (label is not None and label != true_label):
                continue
            overlap = iou(box, true_box)
            if overlap >= best_iou:
                best, best_iou = i, overlap
        matches.append(best)
        if best is not None:
            taken.add(best)
    return matches


def average_precision(scored: list[tuple[float, bool]], total: int) -> float:
    """Area under the interpolated precision-recall curve at 101 recalls, over (score, is right) of all images."""
    if not scored or not total:
        return 0.0
    right = np.cumsum([hit for _, hit in sorted(scored, key=lambda s: -s[0])])
    precision = right / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    recall = right / total
    points = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.mean([precision[p] if p < len(precision) else 0.0 for p in points]))


def caption_labels(text: str) -> Counter:
    """What a caption of the scenes' grammar says, as label -> count; words that are no label are left out."""
    numbers = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
    names = {plural(label): label for label in all_labels()} | {label: label for label in all_labels()}
    found: Counter = Counter()
    for part in text.strip().rstrip(".").lower().replace(" and ", ", ").split(", "):
        head, _, name = part.strip().partition(" ")
        if name in names:
            found[names[name]] += 1 if head in ("a", "an") else numbers.get(head, 0)
    return found


def generate(model, processor, images, prompts, max_new_tokens, batch_size=32, **processor_kwargs):
    """Greedy answers: yields (text, ids, token log-probabilities) per image and prompt."""
    for start in range(0, len(images), batch_size):
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}]
            for image, prompt in zip(images[start : start + batch_size], prompts[start : start + batch_size])
        ]
        inputs = processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **processor_kwargs
        ).to(model.device)
        with torch.inference_mode():
            out = model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                return_dict_in_generate=True,
                output_logits=True,
            )
        new = out.sequences[:, inputs["input_ids"].shape[1] :]
        logits = torch.stack(out.logits, dim=1).float().log_softmax(-1)
        log_probs = logits.gather(-1, new[..., None])[..., 0]
        texts = processor.batch_decode(new, skip_special_tokens=True)
        yield from zip(texts, new, log_probs)


def score(model, processor, scenes: Iterable[Scene], seed: int = 0, **processor_kwargs) -> dict:
    """All scores as one dictionary of numbers in 0..1 (and counts).

    processor_kwargs: for the image processor, `max_tiles` above all.
    """
    scenes = list(scenes)
    images = [scene.image for scene in scenes]
    rng = np.random.default_rng([seed, 4])
    bins = processor.num_location_bins
    result: dict = {"scenes": len(scenes), "objects": sum(len(s.objects) for s in scenes)}

    def run(examples, max_new_tokens, chosen=images):
        prompts = [e.prompt for e in examples]
        return list(generate(model, processor, chosen, prompts, max_new_tokens, **processor_kwargs))

    examples = [make_example(s, rng, "caption", bins) for s in scenes]
    answers = run(examples, 48)
    said, true = [caption_labels(a[0]) for a in answers], [Counter(o.label for o in s.objects) for s in scenes]
    right = sum((a & b).total() for a, b in zip(said, true))
    result["caption"] = {
        "object_recall": right / max(1, sum(t.total() for t in true)),
        "object_precision": right / max(1, sum(s.total() for s in said)),
        "exact": float(np.mean([a[0].strip() == e.answer for a, e in zip(answers, examples)])),
    }

    asked = defaultdict(list)
    for i, scene in enumerate(scenes):
        for kind in QUESTION_KINDS:
            example = make_example(scene, rng, "answer", bins, kind)
            if example.task == f"answer:{kind}":
                asked[kind].append((i, example))
    flat = [(kind, i, example) for kind, entries in asked.items() for i, example in entries]
    answers = run([e for _, _, e in flat], 10, [images[i] for _, i, _ in flat])
    hits = defaultdict(list)
    for (kind, _, example), answer in zip(flat, answers):
        hits[kind].append(answer[0].strip() == example.answer)
    result["answer"] = {kind: {"accuracy": float(np.mean(h)), "questions": len(h)} for kind, h in hits.items()}

    examples = [make_example(s, rng, "detect", bins) for s in scenes]
    answers = run(examples, 64)
    sizes = [s.size for s in scenes]
    result["detect"] = _regions(
        _parse(processor.post_process_detection, "labels", answers, sizes),
        [_wanted(s, e.phrases) for s, e in zip(scenes, examples)],
    )
    examples = [make_example(s, rng, "dense_caption", bins) for s in scenes]
    answers = run(examples, 64)
    result["dense_caption"] = _regions(
        _parse(processor.post_process_dense_captioning, "captions", answers, sizes),
        [[(o.box, with_article(o.label)) for o in s.objects] for s in scenes],
    )
    return result


def _wanted(scene, phrases) -> list[tuple]:
    """(box, phrase) of the objects that the phrases name, with or without an article."""
    named = [(o.box, (o.label, with_article(o.label))) for o in scene.objects]
    return [(box, phrase) for box, names in named for phrase in phrases if phrase in names]


def _parse(parser, key, answers, sizes) -> list[tuple[list, list, list]]:
    parsed = []
    for (_, ids, log_probs), size in zip(answers, sizes):
        found = parser([ids.tolist()], [list(size)], scores=[log_probs])[0]
        parsed.append((found["boxes"].tolist(), list(found[key]), found["scores"].tolist()))
    return parsed


def _regions(predicted, truth) -> dict:
    """Recall, precision and F1 of regions with the right words at IoU 0.5, AP over their scores, and boxes alone."""
    total, made = sum(len(t) for t in truth), sum(len(p[0]) for p in predicted)
    right, boxes_right, overlaps, scored = 0, 0, [], []
    for (boxes, labels, scores), true in zip(predicted, truth):
        true_boxes, true_labels = [t[0] for t in true], [t[1] for t in true]
        matches = match(boxes, labels, true_boxes, true_labels)
        right += sum(m is not None for m in matches)
        overlaps += [iou(b, true_boxes[m]) for b, m in zip(boxes, matches) if m is not None]
        scored += [(s, m is not None) for s, m in zip(scores, matches)]
        boxes_right += sum(m is not None for m in match(boxes, [None] * len(boxes), true_boxes, true_labels))
    return {
        "recall_50": right / max(1, total),
        "precision_50": right / max(1, made),
        "f1_50": 2 * right / max(1, total + made),
        "ap_50": average_precision(scored, total),
        "f1_50_boxes_alone": 2 * boxes_right / max(1, total + made),
        "mean_iou_of_right": float(np.mean(overlaps)) if overlaps else 0.0,
    }


def main() -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--split", default="val", choices=("val", "test"))
    parser.add_argument("--styles", nargs="+", help="drawing styles (default: the training ones)")
    parser.add_argument("--max-tiles", type=int, help="the processor's tile budget (default: its own)")
    parser.add_argument("--size", type=int, nargs=2, default=(144, 144), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--out", type=Path, help="write the scores to this JSON file too")
    args = parser.parse_args()
    processor = AutoProcessor.from_pretrained(args.model)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32).eval()
    height, width = args.size
    styles = tuple(args.styles) if args.styles else None
    scenes = [render_scene(i, args.split, height=height, width=width, styles=styles) for i in range(args.scenes)]
    options = {} if args.max_tiles is None else {"max_tiles": args.max_tiles}
    text = json.dumps(score(model, processor, scenes, **options), indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
