"""Same image, many questions: time to first token of a first question and of a second one, ours alone.

    python -m benchmarks.efficiency.reuse                  # argus-nano
    python -m benchmarks.efficiency.reuse --shapes 256m    # the 256M shape, 13 tiles, random weights

A second question about a kept image decodes, tiles and encodes nothing, and the decoder reads the question alone: what
is left is to tokenize about 10 tokens, to copy 23 KB of keys and values a token of the image (256M, bf16; 20 MB for 13
tiles), and one forward of the question. TTFT is from JPEG bytes, or from the kept image, to the first token's id.
"""

import torch

from argus_tools.paths import default_model_path

from . import pictures
from .common import Report, build_parser, repeats_of, set_up, shape_of
from .measuring import in_turn, median, shown, summary
from .sides import OURS, build_sides

QUESTIONS = ["What is in this image?", "How many people are there?", "What color is the largest thing?",
             "Is it day or night?"]  # fmt: skip
WITHOUT, FEATURES, PREFIX = "image", "visual tokens kept", "keys and values kept"
APART, TOGETHER = "one call a question", "one call for all"


def nano(device):
    """(model, processor) of argus-nano in float32."""
    from modeling_argus import ArgusForConditionalGeneration
    from processing_argus import ArgusProcessor

    model = ArgusForConditionalGeneration.from_pretrained(default_model_path(), dtype=torch.float32)
    return model.eval().to(device), ArgusProcessor.from_pretrained(default_model_path())


def measure(report: Report, name: str, model, processor, photo: bytes, repeats: int, **options) -> list[list[str]]:
    """Two cells: a question after another about a kept image, and four questions about a new one. Returns rows."""
    options = {"processor": processor, "max_new_tokens": 1, "do_sample": False, **options}
    device = model.device
    (kept,) = model.encode_images(photo, processor=processor)

    def ask(image, forget=False):
        def run(i):
            if forget:
                kept.forget()
            return model.answer(image, QUESTIONS[i % len(QUESTIONS)], **options)

        return run

    # The side that forgets keys and values computes them anew, and so leaves them for the one that keeps them.
    times = in_turn({WITHOUT: ask(photo), FEATURES: ask(kept, True), PREFIX: ask(kept)}, repeats, device, warmup=2)
    several = {
        APART: lambda i: [model.answer(photo, question, **options) for question in QUESTIONS],
        TOGETHER: lambda i: model.answer(photo, QUESTIONS, **options),
    }
    several_times = in_turn(several, max(1, repeats // 2), device)
    longer = {**options, "max_new_tokens": 8}
    same = [model.answer(image, QUESTIONS[0], **longer) for image in (photo, kept)]
    facts = {"tiles": kept.num_patches, "kept_mb": round(kept.nbytes / 1e6, 2), "same_answer": same[0] == same[1]}
    report.cell(f"{name}: one question", **facts, **{side: summary(ms) for side, ms in times.items()})
    report.cell(f"{name}: four questions", **{side: summary(ms) for side, ms in several_times.items()})
    rows = []
    for asked, sides in (("one question", times), ("four questions", several_times)):
        base = median(next(iter(sides.values())))
        for side, ms in sides.items():
            share = f"{median(ms) / base:.3f}"
            rows.append([name, kept.num_patches, f"{asked}, {side}", shown(median(ms)), share])
    return rows


def run(report: Report, keys=None) -> None:
    args = report.args
    photo = pictures.same_size(pictures.load(args.images, 2 if args.tiny else 10)[0])[0]
    model, processor = nano(args.device)
    repeats = repeats_of(args, 20, 10)
    rows = report.attempt("argus-nano", measure, report, "argus-nano", model, processor, photo, repeats) or []
    for key in args.shapes if keys is None else keys:
        sides = report.attempt(
            f"{key}: building", build_sides, shape_of(args, key), args.device, getattr(torch, args.dtype)
        )
        if not sides:
            continue
        side, repeats = sides[OURS], repeats_of(args, 20, 3)
        rows += report.attempt(key, measure, report, key, side.model, side.processor, photo, repeats) or []
    header = ["model", "tiles", "what is asked", "TTFT (ms)", "of the first row"]
    size = "x".join(map(str, pictures.size_of(photo)))
    report.table(f"Time to first token of a {size} JPEG, asked again", header, rows)
    report.write("Same image, many questions", f"Greedy, batch 1; argus-nano in float32, else {args.dtype}.")


def main(arguments=None) -> int:
    args = build_parser(__doc__.splitlines()[0], shapes=[]).parse_args(arguments)
    set_up(args)
    report = Report("reuse", args, arguments)
    run(report)
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
