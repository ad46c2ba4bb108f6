"""One run of the comparison in `boxes.py`: train a small model from nothing on rendered scenes, then score it.

Everything but the plan's own fields is the same in all runs: data, budget in samples, optimizer, schedule. One thing
comes with the format: location tokens start as waves of their bin (`build_nano`), an order that digits are not given;
`waves=False` takes it away. A run that was interrupted goes on from its newest checkpoint; its result is one JSON file,
written last.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForImageTextToText

from argus_tools.evaluate.dense_caption import RegionImage, dense_caption_map
from argus_tools.evaluate.meteor import open_meteor, why_no_jar
from argus_tools.evaluate.models import ArgusAnswerer
from argus_tools.evaluate.scenes import region_scores
from argus_tools.scenes import SHAPES, Scene, render_scene, with_article
from argus_tools.train import nano
from argus_tools.train.config import TrainConfig, parse_config
from argus_tools.train.run import run_config
from argus_tools.train.training_model import ArgusForTraining
from processing_argus import ArgusProcessor
from processing_argus.locations_argus import LocationVocabulary, Region

ORDERS = ("row-column", "column-row")
# Things that look little alike, so that minutes are enough to tell them apart: places are what is compared here.
CLASSES = (
    *SHAPES,
    *("cat", "penguin", "ladybug", "tree", "banana", "strawberry", "pizza", "doughnut"),
    *("bus", "rocket", "house", "sun", "umbrella", "key", "book", "guitar"),
)
TILE, PATCH = 96, 12
LEARNING_RATES = {"small": 4e-3, "large": 3e-3, "toy": 2e-3}  # with Muon, twice what AdamW bears
# Fields of the two sizes, of the vision encoder and of the decoder; the rest is nano's. "large" is about nano itself.
SIZES = {
    "small": (
        {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 3},
        {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 3, "num_attention_heads": 3},
    ),
    "large": (
        {"hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 4, "num_attention_heads": 4},
        {"hidden_size": 160, "intermediate_size": 448, "num_hidden_layers": 4, "num_attention_heads": 4},
    ),
    # Shows that the machinery works; learns nothing.
    "toy": (
        {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    ),
}


@dataclass(frozen=True)
class Plan:
    """One run. `order`: of a box's location tokens, "row-column" (y1 x1 y2 x2, as the product) or "column-row".

    samples: images with their dense captions, each seen once; scenes: held-out ones to score on. waves: whether a
    location token starts with sines and cosines of its bin added, as the product's, or as any other new token does.
    """

    size: str
    box_format: str = "location_tokens"
    seed: int = 0
    bins: int = 100
    order: str = "row-column"
    samples: int = 32_000
    batch_size: int = 32
    max_objects: int = 3
    scenes: int = 300
    waves: bool = True

    @property
    def max_new_tokens(self) -> int:
        """Ample for three regions in either format: what has not learnt to stop would go on for long."""
        return 16 if self.size == "toy" else 128

    @property
    def name(self) -> str:
        """A file name: what differs between runs."""
        extra = "" if self.order == "row-column" else f"-{self.order}"
        extra += "" if self.waves else "-no-waves"
        return f"{self.size}-{self.box_format.replace('_', '-')}-{self.bins}{extra}-seed{self.seed}"


def config_of(plan: Plan, folder: Path) -> TrainConfig:
    """The training configuration: dense captions alone, one stage, all parts."""
    vision, text = SIZES[plan.size]
    heads = {"num_key_value_heads": text["num_attention_heads"]}
    # A run draws scenes of its own, the same whatever the format.
    scenes = {"count": 1_000_000, "seed": plan.seed, "height": TILE, "width": TILE, "max_objects": plan.max_objects}
    return parse_config(
        {
            "output_dir": str(folder),
            "model": "nano",
            "nano": {
                "vision": {**vision, "image_size": TILE, "patch_size": PATCH},
                "text": {**text, **heads},
                "num_location_bins": plan.bins,
                "box_format": plan.box_format,
                "max_tiles": 1,
            },
            "seed": plan.seed,
            "data": {
                "region_order": "reading",
                "sources": [
                    {
                        "reader": "scenes",
                        "weight": 1.0,
                        "options": {**scenes, "classes": CLASSES, "conversations": ["dense_caption"]},
                    }
                ],
            },
            "stages": [
                {
                    "name": "all",
                    "steps": max(1, plan.samples // plan.batch_size),
                    "batch_size": plan.batch_size,
                    "learning_rate": dict.fromkeys(("vision", "connector", "text"), LEARNING_RATES[plan.size]),
                    "warmup": min(100, plan.samples // plan.batch_size // 10),
                    # Says what is where at the visual tokens, in words and without boxes: the same help to both.
                    "naming_weight": 1.0,
                }
            ],
            "optimizer": "muon",
            "loader_processes": 0,
            "save_every": 250,
            "log_every": min(50, max(1, plan.samples // plan.batch_size)),
            "keep": 1,
            "tensorboard": False,
        },
        plan.name,
    )


class ColumnRowVocabulary(LocationVocabulary):
    """`<loc_x1><loc_y1><loc_x2><loc_y2>`: the other order of a box's four location tokens."""

    def encode_box(self, box, image_size) -> str:
        x1, y1, x2, y2 = self.box_to_bins(box, image_size)
        return "".join(f"<loc_{i}>" for i in (x1, y1, x2, y2))

    def parse(self, text: str) -> tuple[list[Region], list[str]]:
        regions, unparsed = super().parse(text)
        return [dataclasses.replace(r, bins=(r.bins[1], r.bins[0], r.bins[3], r.bins[2])) for r in regions], unparsed


@contextlib.contextmanager
def order_of(plan: Plan) -> Iterator[None]:
    """Within, every processor writes and reads boxes in the plan's order; the product knows one only."""
    if plan.order == "row-column" or plan.box_format == "plain_text":
        yield
        return
    kept = ArgusProcessor.locations
    ArgusProcessor.locations = property(lambda self: ColumnRowVocabulary(self.num_location_bins, self.box_format))
    try:
        yield
    finally:
        ArgusProcessor.locations = kept


@contextlib.contextmanager
def start_of(plan: Plan) -> Iterator[None]:
    """Within, a fresh model's location tokens start as the plan says; the product starts them with waves only."""
    if plan.waves:
        yield
        return
    kept = nano.build_nano

    def without_waves(tokenizer, config, seed):
        model = kept(tokenizer, config, seed)
        ids = [i for token, i in tokenizer.get_vocab().items() if token.startswith("<loc_")]
        torch.manual_seed(seed)  # as `build_nano` draws them, before it adds the waves
        drawn = ArgusForTraining(model.config).get_input_embeddings().weight
        with torch.no_grad():
            model.get_input_embeddings().weight[ids] = drawn[ids]
        return model

    nano.build_nano = without_waves
    try:
        yield
    finally:
        nano.build_nano = kept


def held_out(plan: Plan) -> list[Scene]:
    """The scenes that every run is scored on."""
    options = {"height": TILE, "width": TILE, "max_objects": plan.max_objects, "classes": CLASSES}
    return [render_scene(i, "val", **options) for i in range(plan.scenes)]


def run_one(plan: Plan, folder: Path, progress: bool = False) -> dict:
    """Train (or go on), score, and write `folder`/result.json, which is returned; a finished run is only read.

    Raises ValueError where the folder holds a run of another plan.
    """
    file, given = folder / "result.json", dataclasses.asdict(plan)
    if file.is_file():
        result = json.loads(file.read_text(encoding="utf-8"))
        # A field that is younger than the result had its default then.
        if any(result.get(name, getattr(Plan, name, None)) != value for name, value in given.items()):
            raise ValueError(f"{folder} holds the result of another plan: give another --work folder.")
        return result
    with order_of(plan), start_of(plan):
        model_folder = run_config(config_of(plan, folder / "training"), progress=progress)
        model, processor = load(model_folder)
        log = read_log(folder / "training" / "all" / "log.jsonl")
        result = {
            "run": plan.name,
            **given,
            "learning_rate": LEARNING_RATES[plan.size],
            "parameters": sum(p.numel() for p in model.parameters()),
            "loss": [line["answer_loss"] for line in log if "answer_loss" in line][-1:],
            # Of the last start, where a run was interrupted.
            "samples_a_second": [line["train_samples_per_second"] for line in log if "train_runtime" in line][-1:],
            **scored(model, processor, plan, held_out(plan)),
        }
    work = file.with_suffix(".tmp")
    work.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    work.replace(file)
    return result


def stopped_at(folder: Path) -> int:
    """The step that an interrupted run in `folder` goes on from; 0 where there is none to go on with."""
    whole = (folder / "training" / "all").glob("checkpoint-*/trainer_state.json")  # the file that is written last
    return max((int(file.parent.name.rpartition("-")[2]) for file in whole), default=0)


def load(folder: Path):
    """(model in float32, processor) of a trained run."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, ArgusProcessor.from_pretrained(folder)


def scored(model, processor, plan: Plan, scenes: list[Scene]) -> dict:
    """mAP in both modes with every METEOR that runs here, and by boxes alone; tokens a region."""
    truth = [[(o.box, with_article(o.label)) for o in scene.objects] for scene in scenes]
    images = [scene.image for scene in scenes]
    found = ArgusAnswerer(model, processor, max_new_tokens=plan.max_new_tokens).dense_caption(images)
    rows = [
        RegionImage(s.size, f["boxes"], f["captions"], f["scores"], [b for b, _ in t], [c for _, c in t])
        for s, f, t in zip(scenes, found, truth)
    ]
    result: dict = {"map": {}}
    for kind in ("lite",) if plan.size == "toy" or why_no_jar() else ("lite", "jar"):
        with open_meteor(kind) as meteor:
            maps = dense_caption_map(rows, meteor)
        result["map"][meteor.name] = {mode: maps[mode]["map"] for mode in ("clean", "reference")}
        result["localisation_map"] = maps["clean"]["localisation_map"]
    result |= {k: v for k, v in region_scores(found, "captions", truth).items() if k in ("f1_50", "mean_iou_of_right")}
    return result | {"tokens": tokens_of(processor, scenes, truth)}


def tokens_of(processor, scenes, truth) -> dict:
    """Tokens a region in the true answers, and how many of them are the box."""
    vocabulary, tokenizer = processor.locations, processor.tokenizer
    whole = boxes = regions = 0
    for scene, pairs in zip(scenes, truth):
        text = vocabulary.encode_regions([b for b, _ in pairs], [c for _, c in pairs], scene.size)
        whole += len(tokenizer(text, add_special_tokens=False)["input_ids"])
        for box, _ in pairs:
            ids = tokenizer(vocabulary.encode_box(box, scene.size), add_special_tokens=False)["input_ids"]
            boxes, regions = boxes + len(ids), regions + 1
    return {"region": whole / regions, "box": boxes / regions}


def read_log(log: Path) -> list[dict]:
    """The lines of a stage's log; none where there is none."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []


def main(arguments: list[str]) -> None:
    """`python -m benchmarks.accuracy.boxes_run PLAN FOLDER`: one run on one thread, its plan as JSON."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    plan = Plan(**json.loads(arguments[0]))
    print(json.dumps(run_one(plan, Path(arguments[1]))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
