"""Figure 6's comparison: a 2B at one tile against Qwen3-VL-2B, which has no tiles. `ttft.py` runs it."""

import torch

from . import pictures
from .common import Report, repeats_of, shape_of
from .measuring import median, shown, summary, tokens_per_second
from .models import build_reference
from .sides import OURS, TORCHVISION, Side, build_sides, whole


def figure_6(report: Report, images: list[bytes]) -> dict:
    """A 2B at one tile against Qwen3-VL-2B, which has no tiles: TTFT and tokens a second."""
    args, dtype = report.args, getattr(torch, report.args.dtype)
    ours_shape, theirs_shape = shape_of(args, "2b").at_most(1), shape_of(args, "qwen3-vl-2b")
    ours = build_sides(ours_shape, args.device, dtype, args.reference_attention)
    sides = {f"{name}, 2B at one tile": ours[name] for name in (OURS, TORCHVISION)}
    processor = build_sides(theirs_shape, args.device, dtype, models=False)[TORCHVISION].processor
    theirs = build_reference(theirs_shape, args.device, dtype, args.reference_attention)
    sides["Qwen3-VL-2B, torchvision"] = Side("qwen", processor, theirs, device=torch.device(args.device), dtype=dtype)
    photos, tokens, medians = pictures.same_size(images), ours_shape.new_tokens, {}
    repeats = repeats_of(args, 20, 2)
    first = whole(sides, photos, 1, repeats, report.budget)
    answer = whole(sides, photos, tokens, repeats, report.budget, warmup=0)
    for name in sides:
        ttft, total = median(first[name]), median(answer[name])
        medians[name] = {"ttft": ttft, "answer": total, "tokens/s": tokens_per_second(tokens, ttft, total)}
    report.cell("figure 6", device=args.device, new_tokens=tokens, **{n: summary(v) for n, v in first.items()})
    rows = [[n, shown(m["ttft"]), shown(m["tokens/s"]), shown(m["answer"])] for n, m in medians.items()]
    report.table(
        f"Figure 6's comparison: one tile against Qwen3-VL-2B, {tokens} new tokens",
        ["side", "TTFT (ms)", "tokens/s", "end to end (ms)"],
        rows,
        "Both are shapes with random weights; Qwen3-VL encodes the image at its own resolution.",
    )
    return medians
