"""From a finished run to a folder of the hub: weights in bf16, and `training/` with configuration, losses and curve.

    python -m argus_tools.train.publish runs/nano --out hub_cards/argus-nano

What else stands in the folder, README.md above all, stays.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import torch

from processing_argus import ArgusProcessor

from .curve import draw_curve
from .saving import save_checkpoint, write_json
from .training_model import ArgusForTraining

MAX_LINES = 400  # of the log that is kept: enough for the curve


def publish(
    run: str | Path, out: str | Path, *, dtype: torch.dtype = torch.bfloat16, max_tiles: int | None = None
) -> Path:
    """Write the hub files of a run's model to `out` and return it.

    max_tiles: what its processor cuts an image into at most where the user says nothing; None: as in training.

    Raises FileNotFoundError where the run has not come to its end.
    """
    run, out = Path(run), Path(out)
    if not (run / "model").is_dir():
        raise FileNotFoundError(f"{run} has no model/: the run is not at its end (argus train goes on with it).")
    model = ArgusForTraining.from_pretrained(run / "model", dtype=torch.float32)
    processor = ArgusProcessor.from_pretrained(run / "model")
    if max_tiles is not None:
        processor.image_processor.max_tiles = max_tiles
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as work:
        made = save_checkpoint(model, processor, Path(work) / "model", dtype=dtype)
        for file in made.iterdir():
            os.replace(file, out / file.name)
    training = out / "training"
    training.mkdir(exist_ok=True)
    config = json.loads((run / "run.json").read_text(encoding="utf-8"))
    config["output_dir"] = Path(config["output_dir"]).name
    config["data"]["root"] = "."
    config.pop("fingerprints", None)
    write_json(training / "config.json", config)
    lines = read_log(run)
    kept = lines[:: max(1, len(lines) // MAX_LINES)]
    (training / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    if len(lines) > 1:
        draw_curve(lines, training / "curve.png")
    return out


def read_log(run: Path) -> list[dict]:
    """The losses of all stages, each line with the number of `samples` seen by then, over the whole run."""
    config = json.loads((run / "run.json").read_text(encoding="utf-8"))
    lines, seen = [], 0
    for stage in config["stages"]:
        file = run / stage["name"] / "log.jsonl"
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
            line = json.loads(line)
            if "loss" in line:
                line["samples"] = seen + line["step"] * stage["batch_size"]
                lines.append({name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in line.items()})
        seen += stage["steps"] * stage["batch_size"]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder that the training wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--max-tiles", type=int, metavar="N", help="the processor's default (as in training if left out)"
    )
    args = parser.parse_args()
    print(publish(args.run, args.out, max_tiles=args.max_tiles))


if __name__ == "__main__":
    main()
