"""What int8 weights cost argus-nano in accuracy: its scores in float32, in bf16, and in bf16 with torchao's int8 rows.

The decoder's products and the output head are int8, vision and connector are not; the same scenes of the `val` split,
greedy. argus-nano is small (hidden size 128): a row's scale covers 128 or 352 weights, where a larger model's covers
576 and more.
"""

import torch

from argus_tools.evaluate.models import ArgusAnswerer
from argus_tools.evaluate.scenes import score_scenes
from argus_tools.paths import default_model_path
from argus_tools.scenes import render_scene

from .common import Report

SIDE = 144  # pixels of a scene: one tile of argus-nano


def models(device) -> dict:
    """name -> function that loads argus-nano so; without torchao int8 is not among them."""
    from modeling_argus import ArgusForConditionalGeneration

    def load(dtype):
        return ArgusForConditionalGeneration.from_pretrained(default_model_path(), dtype=dtype).eval().to(device)

    def int8():
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        model = load(torch.bfloat16)
        quantize_(model.get_decoder(), Int8WeightOnlyConfig())
        quantize_(model.lm_head, Int8WeightOnlyConfig())
        return model

    return {"float32": lambda: load(torch.float32), "bf16": lambda: load(torch.bfloat16), "bf16, int8 weights": int8}


def numbers(found: dict) -> dict[str, float]:
    """The table's columns out of all scores."""
    answers = list(found["answer"].values())
    right = sum(answer["accuracy"] * answer["questions"] for answer in answers)
    return {
        "caption recall": found["caption"]["object_recall"],
        "captions exact": found["caption"]["exact"],
        "answers right": right / max(sum(answer["questions"] for answer in answers), 1),
        "detect F1": found["detect"]["f1_50"],
        "detect AP": found["detect"]["ap_50"],
        "dense F1": found["dense_caption"]["f1_50"],
        "dense AP": found["dense_caption"]["ap_50"],
    }


def run(report: Report, scenes: int) -> None:
    from processing_argus import ArgusProcessor

    processor = ArgusProcessor.from_pretrained(default_model_path())
    pictured, rows = [render_scene(i, "val", height=SIDE, width=SIDE) for i in range(scenes)], []
    for name, load in models(report.args.device).items():
        try:
            model = load()
        except ImportError:
            report.cell(f"argus-nano in {name}", skipped="torchao is not installed (pip install torchao)")
            continue
        values = numbers(score_scenes(ArgusAnswerer(model, processor), pictured))
        report.cell(f"argus-nano in {name}", scenes=scenes, **{k: round(v, 4) for k, v in values.items()})
        rows.append([name, *(f"{value:.3f}" for value in values.values())])
    table(report, ["argus-nano in", *(values if rows else ())], rows, pictured)


def table(report: Report, header: list[str], rows: list[list[str]], pictured: list) -> None:
    objects = sum(len(scene.objects) for scene in pictured)
    note = f"n = {len(pictured)} scenes with {objects} objects, the same for all: differences of a "
    note += "hundredth or two are noise. F1 and AP at IoU 0.5."
    report.table("Accuracy of argus-nano", header, rows, note)
