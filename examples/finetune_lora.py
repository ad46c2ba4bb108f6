"""LoRA on one's own boxes: chat messages in (one JSON object a line), an adapter out, or a merged model.

    python examples/finetune_lora.py data.jsonl --images pictures --out adapter
    python examples/finetune_lora.py data.jsonl --images pictures --out adapter --merged model
    argus export --model model --out hub

A line of data.jsonl; boxes are x1, y1, x2, y2 in pixels of the picture:

    {"images": ["a.jpg"], "messages": [
        {"role": "user", "content": "Describe and locate every object."},
        {"role": "assistant", "content": [{"box": [10, 20, 110, 90], "caption": "a red cup"}]}]}
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import Trainer

from argus_tools.cli_models import check_model
from argus_tools.cli_support import CommandError, one_line
from argus_tools.train.augment import Augmentation
from argus_tools.train.batches import Batches
from argus_tools.train.collate import Collator
from argus_tools.train.lora import add_lora, lora_config
from argus_tools.train.mixture import Mixture, RegionOptions
from argus_tools.train.readers import open_reader
from argus_tools.train.saving import save_checkpoint
from argus_tools.train.trainer import Arguments
from argus_tools.train.training_model import ArgusForTraining
from argus_tools.train.typed import at_least
from processing_argus import ArgusProcessor


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="chat messages with boxes, JSON Lines")
    parser.add_argument("--images", help="the folder of the pictures (default: that of the data)")
    parser.add_argument("--model", help="a checkpoint or an exported folder (default: the embedded argus-nano)")
    parser.add_argument("--out", required=True, help="where the adapter goes")
    parser.add_argument("--merged", help="write the model with the adapter merged into it here, too")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--vision", action="store_true", help="adapt the vision tower too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[float]:
    """Trains, saves, and returns the losses of the steps. ValueError, OSError, CommandError: what does not fit."""
    options = parse_arguments(arguments)
    for name in ("steps", "batch_size", "rank"):
        at_least(getattr(options, name), 1, f"--{name.replace('_', '-')}")
    reader = open_reader("chat", path=options.data, images=options.images)
    folder = check_model(options.model)
    processor = ArgusProcessor.from_pretrained(folder)
    model = ArgusForTraining.from_pretrained(folder, dtype=torch.float32)
    # Frozen weights ask for no gradients: where the vision tower is not adapted, none go through it.
    config = lora_config(model, processor, rank=options.rank, vision=options.vision)
    torch.manual_seed(options.seed)  # the adapters' first values
    model = add_lora(model, config)

    samples = Mixture(
        [reader],
        [1.0],
        options.steps * options.batch_size,
        options.seed,
        RegionOptions(region_order="reading"),
        Augmentation(scale=(0.6, 1.0), colour=0.2),
    )
    batches = Batches(samples, Collator(processor), [options.data])

    def collate(numbers):
        """A batch; for a sample that cannot be used, of a broken image, another stands in."""
        batch = batches(numbers)
        for bad in batch.pop("bad_samples", ()):
            print(f"left out: {bad['reason']}", file=sys.stderr)
        if "failed" in batch:
            raise ValueError(batch["failed"])
        return batch

    trainer = Trainer(
        model=model,
        args=Arguments(
            output_dir=options.out,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            label_names=["labels"],
            use_cpu=options.cpu,
            seed=options.seed,
        ),
        train_dataset=range(len(samples)),
        data_collator=collate,
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    if not all(parameter.isfinite().all() for parameter in model.parameters() if parameter.requires_grad):
        raise ValueError(f"the training has diverged: its last loss is {losses[-1]}; lower --learning-rate.")
    trainer.model.save_pretrained(options.out)
    processor.save_pretrained(options.out)
    if options.merged:
        save_checkpoint(trainer.model.merge_and_unload(), processor, Path(options.merged))
    return losses


if __name__ == "__main__":
    try:
        losses = main()
    except (CommandError, ValueError, OSError) as error:
        print(f"finetune_lora: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
