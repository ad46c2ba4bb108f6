"""How far Argus' pixels, and the logits made of them, are from those of transformers' own image processors.

Every backend and device path of Argus against SmolVLM's (Lanczos, a chain of resizes, thumbnail from the canvas) and
InternVL's GotOcr2 (bicubic, one resize) processors, over photograph-like pictures. Pixels in levels of 255, with the
published 512 px / 2048 and 448 px / 12 tiles. Logits in float32, largest difference over all positions, beside the
largest logit itself: of argus-nano (trained; its 144 px tiles in the same chain of resizes) and of a random model of
SmolVLM-256M's form, a quarter as wide and deep, with at most five tiles of the published side.

    python -m benchmarks.efficiency.fidelity [--out FOLDER] [--device cuda] [--tiny]

writes fidelity.jsonl, a line a cell, and fidelity.md. Where there is no CUDA device the device path runs in float32 on
the CPU, and its rows say so.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import numpy as np
import PIL
import torch
import transformers
from PIL import Image

from modeling_argus import ArgusConfig, ArgusForConditionalGeneration
from processing_argus import ArgusImageProcessor, resizing_argus
from processing_argus.tile_pixels_argus import write_tiles_on_device

from .common import command_line

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SIZES = [(480, 640), (640, 427), (375, 500), (1200, 900), (333, 1000)]
LANCZOS, BICUBIC = 1, 3


def photo(height: int, width: int) -> np.ndarray:
    """uint8[H, W, 3]: smooth colours, hard edges, a camera's noise."""
    y, x = np.mgrid[:height, :width]
    waves = 127.5 + 100 * np.sin(np.stack([x / 37 + y / 59, x / 31, y / 43], -1))
    waves[(x // 83 + y // 79) % 5 == 0] = (255, 30, 0)
    noise = np.random.default_rng([height, width]).normal(0, 6, (height, width, 3))
    return (waves + noise).clip(0, 255).astype(np.uint8)


# --- the references --------------------------------------------------------------------------------------------------


def reference(family: str, backend: str, S: int, edge: int, max_tiles: int, resample: int):
    """image -> uint8[tiles, 3, S, S] of transformers' processor."""
    names = {"pil": (f"{family}ImageProcessorPil", f"{family}ImageProcessor")}
    names["torchvision"] = (f"{family}ImageProcessorFast", f"{family}ImageProcessor")
    make = next(getattr(transformers, name) for name in names[backend] if hasattr(transformers, name))
    plain = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    if family == "GotOcr2":
        size = {"height": S, "width": S}
        processor = make(size=size, crop_to_patches=True, max_patches=max_tiles, resample=resample)
        return lambda image: processor([Image.fromarray(image)], **plain)["pixel_values"].to(torch.uint8)
    sizes = {"size": {"longest_edge": edge}, "max_image_size": {"longest_edge": S}}
    processor = make(**sizes, do_image_splitting=True, resample=resample)
    return lambda image: processor([Image.fromarray(image)], **plain)["pixel_values"][0].to(torch.uint8)


# --- Argus' paths ----------------------------------------------------------------------------------------------------


def on_cpu(processor):
    return lambda image: processor(image, return_tensors="pt")["pixel_values"]


def by_pillow(processor):
    def tiles(image):
        has_lanczos = resizing_argus.torch_has_lanczos
        resizing_argus.torch_has_lanczos = lambda: False  # as with torch < 2.14
        try:
            return on_cpu(processor)(image)
        finally:
            resizing_argus.torch_has_lanczos = has_lanczos

    return tiles


def on_device(processor, device: str):
    if torch.device(device).type == "cuda":
        return lambda image: processor(image, device=device, return_tensors="pt")["pixel_values"].cpu()

    def tiles(image):
        prepared = processor.prepare(image)
        plan = prepared.plans[0]
        output = torch.empty(plan.grid.num_tiles, 3, *2 * [processor.tile_size], dtype=torch.uint8)
        write_tiles_on_device(prepared.images[0], plan, processor.resample, output)
        return output

    return tiles


def paths(family: str, S: int, edge: int, max_tiles: int, device: str) -> dict:
    """Name of a path -> image -> uint8[tiles, 3, S, S]."""
    on_gpu = torch.device(device).type == "cuda"
    there = "CUDA, float32 bicubic" if on_gpu else "device path forced on the CPU, float32 bicubic"
    if family == "GotOcr2":
        processor = ArgusImageProcessor(tile_size=S, max_tiles=max_tiles, resample=BICUBIC)
        return {"CPU, torch bicubic": on_cpu(processor), there: on_device(processor, device)}
    exact = {"tiling": "longest_edge", "tile_size": S, "longest_edge": edge, "max_tiles": None}
    lanczos, bicubic = (ArgusImageProcessor(**exact, resample=number) for number in (LANCZOS, BICUBIC))
    found = {"CPU, torch Lanczos": on_cpu(lanczos)} if resizing_argus.torch_has_lanczos() else {}
    found |= {"CPU, Pillow Lanczos": by_pillow(lanczos), "CPU, torch bicubic": on_cpu(bicubic)}
    found[there] = on_device(lanczos, device)
    for number, word in ((LANCZOS, "Lanczos"), (BICUBIC, "bicubic")):
        grids = {}

        def one_resize(image, number=number, grids=grids):
            grid = lanczos.get_tile_grid(*image.shape[:2])  # the same tiles, straight from the original
            tiles = grid.rows * grid.cols
            key = (grid.rows, grid.cols)
            grids.setdefault(key, ArgusImageProcessor(tile_size=S, min_tiles=tiles, max_tiles=tiles, resample=number))
            mine = grids[key].get_tile_grid(*image.shape[:2])
            return on_cpu(grids[key])(image) if mine == grid else None

        found[f"CPU, torch {word}, one resize"] = one_resize
    return found


# --- logits ----------------------------------------------------------------------------------------------------------


def nano():
    return ArgusForConditionalGeneration.from_pretrained(ROOT / "hub_cards" / "argus-nano", dtype=torch.float32).eval()


def quarter(S: int):
    """SmolVLM-256M's form, tiles of S pixels, a quarter as wide and deep, random weights that keep its activations."""
    raw = json.loads((ROOT / "hub_cards" / "argus-256m" / "config.json").read_text())
    raw["vision_config"] |= {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3}
    raw["vision_config"] |= {"num_hidden_layers": 3, "image_size": S, "patch_size": S // 32}
    raw["text_config"] |= {"hidden_size": 192, "intermediate_size": 384, "num_attention_heads": 3}
    raw["text_config"] |= {"num_key_value_heads": 1, "num_hidden_layers": 8, "vocab_size": 2000}
    raw |= {"image_token_id": 3, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    model = ArgusForConditionalGeneration(ArgusConfig(**raw)).float().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in dict.fromkeys(model.parameters()):
        if parameter.dim() > 1:
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.data.uniform_(-bound, bound, generator=generator)
    return model


@torch.no_grad()
def logits(model, tiles: torch.Tensor) -> torch.Tensor:
    """float32[T, V] after a begin token, the tiles and a few words; all prompts of equal tiles are the same."""
    config = model.config
    ids = [config.bos_token_id, *[config.image_token_id] * (len(tiles) * config.image_seq_length), 40, 50, 60, 70]
    return model(input_ids=torch.tensor([ids]), pixel_values=tiles).logits[0].float()


# --- cells -----------------------------------------------------------------------------------------------------------


def differences(expected: list, given: list) -> dict:
    pairs = [(e.int(), g.int()) for e, g in zip(expected, given) if g is not None and e.shape == g.shape]
    total = sum(e.numel() for e, _ in pairs)
    return {
        "images": len(pairs),
        "largest": max(int((e - g).abs().max()) for e, g in pairs),
        "mean": sum(float((e - g).abs().double().sum()) for e, g in pairs) / total,
    }


def logit_differences(model, expected: list, given: list) -> dict:
    largest = scale = 0.0
    for e, g in zip(expected, given):
        if g is not None and e.shape == g.shape:
            there, here = logits(model, e), logits(model, g)
            largest = max(largest, float((there - here).abs().max()))
            scale = max(scale, float(there.abs().max()))
    return {"largest": largest, "of": scale}


def cells(images: list[np.ndarray], device: str = "cpu", tiny: bool = False):
    """Yields one dict a cell. `tiny`: tiles of 64 pixels."""
    published = (("SmolVLM", 512, 2048, None, LANCZOS), ("GotOcr2", 448, None, 12, BICUBIC))
    small = (("SmolVLM", 64, 256, None, LANCZOS), ("GotOcr2", 64, None, 12, BICUBIC))
    for family, S, edge, max_tiles, resample in small if tiny else published:
        small = {"nano": (nano(), 144, 288, 4), "quarter": (quarter(S), S, 2 * S, 4)}
        for backend in ("pil", "torchvision"):
            make = reference(family, backend, S, edge, max_tiles, resample)
            expected = [make(image) for image in images]
            few = {
                name: [reference(family, backend, side, longest, most, resample)(image) for image in images]
                for name, (_, side, longest, most) in small.items()
            }
            for name, path in paths(family, S, edge, max_tiles, device).items():
                cell = {"reference": f"{family}, {backend}", "argus": name}
                cell["pixels"] = differences(expected, [path(image) for image in images])
                for model_name, (model, side, longest, most) in small.items():
                    path_there = paths(family, side, longest, most, device)[name]
                    given = [path_there(image) for image in images]
                    cell[model_name] = logit_differences(model, few[model_name], given)
                yield cell


def table(lines: list[dict], where: str, command: str, tiny: bool = False) -> str:
    rows = [
        "| reference | Argus | largest pixel difference | mean | largest logit difference, nano | quarter of 256M |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        pixels, nano_, quarter_ = line["pixels"], line["nano"], line["quarter"]
        rows.append(
            f"| {line['reference']} | {line['argus']} | {pixels['largest']} | {pixels['mean']:.4f} "
            f"| {nano_['largest']:.3g} of {nano_['of']:.3g} | {quarter_['largest']:.3g} of {quarter_['of']:.3g} |"
        )
    words = ["Tiny tiles: this run shows that the script works; its numbers mean nothing.", ""] if tiny else []
    return "\n".join(["# Fidelity", "", *words, f"`{command}`, {where}", "", *rows, ""])


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)")
    parser.add_argument("--num-images", type=int, default=len(SIZES), help="number of pictures (default: all)")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="cuda, cuda:1, cpu (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="one small picture, tiny tiles: tries the script")
    options = parser.parse_args(arguments)
    on_gpu = torch.device(options.device).type == "cuda"
    device = torch.cuda.get_device_name(options.device) if on_gpu else platform.processor() or platform.machine()
    command = command_line("benchmarks.efficiency.fidelity", sys.argv[1:] if arguments is None else arguments)
    pictures = [photo(*size) for size in ([(96, 128)] if options.tiny else SIZES[: options.num_images])]
    where = f"{device}, torch {torch.__version__}, transformers {transformers.__version__}, Pillow {PIL.__version__}"
    options.out.mkdir(parents=True, exist_ok=True)
    lines = []
    with open(options.out / "fidelity.jsonl", "w", encoding="utf-8") as file:
        for cell in cells(pictures, options.device, options.tiny):
            lines.append(cell)
            file.write(json.dumps({**cell, "command": command, "where": where}) + "\n")
            file.flush()
    text = table(lines, where, command, options.tiny)
    (options.out / "fidelity.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
