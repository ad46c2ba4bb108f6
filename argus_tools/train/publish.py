"""From a training run to a folder that `from_pretrained` loads, on transformers 4.57 and 5.x: `hub_cards/argus-nano`.

    python -m argus_tools.train.publish runs/nano --out hub_cards/argus-nano

Writes configs, tokenizer, processor files, the chat template, the weights in bf16, and `training/` with the run's
settings, log and curve; a README.md already there stays.
"""

import argparse
import inspect
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from argus_tools.convert.processors import write_argus_processor
from argus_tools.export import AUTO_MAP
from modeling_argus import ArgusConfig, ArgusForConditionalGeneration, ArgusTextConfig, ArgusVisionConfig
from processing_argus import CHAT_TEMPLATE

from .curve import draw_curve
from .tokenizer import IMAGE, save_tokenizer
from .train import CHECKPOINT, load_weights, read_checkpoint


def publish(run: str | Path, out: str | Path, *, max_tiles: int = 1, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write the hub files of the run's checkpoint to `out` and return it.

    max_tiles: the processor's default tile budget. Raises FileNotFoundError where the run has no checkpoint.
    """
    run, out = Path(run), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = read_checkpoint(run)
    if checkpoint is None:
        raise FileNotFoundError(f"no {CHECKPOINT} in {run}")
    learned, _, state, plan = checkpoint
    config = ArgusConfig.from_pretrained(run)
    model = ArgusForConditionalGeneration(config)
    load_weights(model, learned)
    model.to(dtype)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        model.save_pretrained(folder)
        weights = load_file(Path(folder) / "model.safetensors")
        save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
        (out / "model.safetensors").chmod(0o644)
        raw = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    tidy_config(raw, dtype)
    write_json(out / "config.json", raw)
    ids = {name: raw[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(out / "generation_config.json", {**ids, "do_sample": False, "max_new_tokens": 128})
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    save_tokenizer(tokenizer, out, model_max_length=config.text_config.max_position_embeddings)
    images = {
        "tiling": "aspect_ratio",
        "tile_size": config.vision_config.image_size,
        "min_tiles": 1,
        "max_tiles": max_tiles,
        "use_thumbnail": True,
        "max_upscale": None,
        "resample": 3,
        "image_mean": config.vision_config.image_mean,
        "image_std": config.vision_config.image_std,
    }
    write_argus_processor(out, images, "native", IMAGE, config.image_seq_length, CHAT_TEMPLATE, plan["bins"])
    training = out / "training"
    training.mkdir(exist_ok=True)
    settings = json.loads((run / "run.json").read_text(encoding="utf-8")) if (run / "run.json").is_file() else {}
    write_json(training / "config.json", {**settings, "plan": plan, "state": state})
    if (run / "log.jsonl").is_file():
        lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        kept = lines[:: max(1, len(lines) // 300)]  # enough for the curve
        (training / "log.jsonl").write_text("".join(kept), encoding="utf-8")
        if len(lines) > 1:
            draw_curve(run / "log.jsonl", training / "curve.png")
    return out


def tidy_config(raw: dict, dtype: torch.dtype) -> None:
    """Make a saved config.json say what every supported transformers version reads, and nothing of this machine."""
    name = str(dtype).removeprefix("torch.")
    raw["architectures"] = ["ArgusForConditionalGeneration"]
    raw["auto_map"] = AUTO_MAP
    raw["dtype"] = name
    for part in (raw, raw["vision_config"], raw["text_config"]):
        for key in ("transformers_version", "_name_or_path", "torch_dtype", "_attn_implementation"):
            part.pop(key, None)
    for part, config_class in (("vision_config", ArgusVisionConfig), ("text_config", ArgusTextConfig)):
        own = set(inspect.signature(config_class.__init__).parameters) | {"model_type", "rope_parameters"}
        raw[part] = {key: value for key, value in raw[part].items() if key in own} | {"dtype": name}


def write_json(path: Path, value: dict) -> None:
    """Indented JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder that the training wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-tiles", type=int, default=1)
    args = parser.parse_args()
    print(publish(args.run, args.out, max_tiles=args.max_tiles))


if __name__ == "__main__":
    main()
