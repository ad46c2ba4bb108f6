"""What the cards in hub_cards/ show, made again by one command: the picture of the box convention, results for the hub.

    python -m argus_tools.cards

Each folder gets `images/boxes.png`, drawn from its own `num_location_bins`. One that holds `training/scores.json` gets
`.eval_results/*.yaml`, the hub's format for results (https://huggingface.co/docs/hub/eval-results), from those numbers.
"""

import argparse
import json
from pathlib import Path

from .cli_support import CommandError, whole_file
from .paths import hub_cards_path

PICTURE = Path("images") / "boxes.png"
RESULTS = Path(".eval_results")
SCORES = Path("training") / "scores.json"

# The hub lists a result under a data set of its own. The scenes are rendered, not stored, so there is none yet; no
# account can be called so, and nobody else can publish it.
DATASET = "YOUR_NAME/rendered-scenes"
FILES = {"test": "rendered-scenes.yaml", "unseen_style": "rendered-scenes-unseen-style.yaml"}
_HEADER = """\
# Written by `python -m argus_tools.cards` from training/scores.json. `argus evaluate scenes` renders the scenes;
# {dataset} is not on the hub, which shows these results once the data set is there as a benchmark.
"""
_SETTING = {
    "test": "held-out scenes",
    "unseen_style": "held-out scenes of pictograms alone in a drawing style that was not trained on",
}
_REGIONS = "regions at IoU 0.5 with the right words"
TASKS = {  # task_id -> where scores.json has it, what it is
    "caption": (("caption", "object_recall"), "objects named, recall"),
    "detect": (("detect", "ap_50"), f"AP of {_REGIONS}"),
    "dense_caption": (("dense_caption", "ap_50"), f"AP of {_REGIONS}"),
    "dense_caption_f1": (("dense_caption", "f1_50"), f"F1 of {_REGIONS}"),
}

# The white circle of examples/scene.png, which is 288 x 288: x1, y1, x2, y2 of the pixels that it covers.
SCENE_SIZE = (288, 288)
BOX, CAPTION = (194, 21, 267, 92), "a white circle"
_INK, _PAPER, _LINE = (20, 20, 20), (255, 255, 255), (0, 90, 200)


def eval_results(scores: dict) -> dict[str, list[dict]]:
    """{file name: entries} of `.eval_results/` for what `python -m argus_tools.evaluate.card` wrote.

    Raises ValueError where a score that is to be shown is missing.
    """
    files = {}
    for setting, name in FILES.items():
        if setting not in scores:
            continue
        result = scores[setting]
        values, data = result.get("scores", result), result.get("data", {})
        about = [_SETTING[setting], f"{values.get('scenes', '?')} scenes, greedy, self-reported"]
        about += [f"scenes version {data['scenes_version']}"] if "scenes_version" in data else []
        entries, suffix = [], "" if setting == "test" else f"_{setting}"
        kinds = {
            f"answer_{kind}": (("answer", kind, "accuracy"), f"{kind}, accuracy") for kind in sorted(values["answer"])
        }
        for task, (path, what) in {**TASKS, **kinds}.items():
            value = values
            for step in path:
                if step not in value:
                    raise ValueError(f"{setting} has no {'.'.join(path)}: measure it by argus_tools.evaluate.card")
                value = value[step]
            dataset = {"id": DATASET, "task_id": task + suffix}
            entries.append({"dataset": dataset, "value": value, "notes": "; ".join([what, *about])})
        files[name] = entries
    if not files:
        raise ValueError(f"none of {', '.join(FILES)} is there: measure them by argus_tools.evaluate.card")
    return files


def write_eval_results(folder: Path) -> list[Path]:
    """Write `.eval_results/` of a card from its scores.json, and return the files. Needs pyyaml."""
    import yaml

    file = folder / SCORES
    try:
        results = eval_results(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{file} holds no scores for the hub: {error}") from error
    (folder / RESULTS).mkdir(exist_ok=True)
    written = []
    for name, entries in results.items():
        text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=1000)
        written.append(folder / RESULTS / name)
        with whole_file(written[-1]) as temporary:
            temporary.write_text(_HEADER.format(dataset=DATASET) + text, encoding="utf-8")
    return written


def draw_convention(num_location_bins: int, scene: Path, out: Path) -> Path:
    """One box as a model of K bins writes it and as it is read back, drawn on the scene; a PNG."""
    from PIL import Image, ImageDraw, ImageFont

    from processing_argus.locations_argus import LocationVocabulary

    words = LocationVocabulary(num_location_bins)
    written = words.encode_regions([BOX], [CAPTION], SCENE_SIZE)
    read = [f"{value:g}" for value in words.bins_to_box(words.box_to_bins(BOX, SCENE_SIZE), SCENE_SIZE)]
    large, small = ImageFont.load_default(22), ImageFont.load_default(17)
    scale, margin = 1.5, 60
    picture = Image.open(scene).convert("RGB").resize([round(scale * side) for side in SCENE_SIZE], Image.LANCZOS)
    W, H = picture.size
    canvas = Image.new("RGB", (W + 2 * margin + 90, H + 2 * margin + 80), _PAPER)
    canvas.paste(picture, (margin, margin))
    draw = ImageDraw.Draw(canvas)

    x1, y1, x2, y2 = (margin + scale * value for value in BOX)
    draw.rectangle((x1, y1, x2, y2), outline=_PAPER, width=7)
    draw.rectangle((x1 + 2, y1 + 2, x2 - 2, y2 - 2), outline=_LINE, width=3)
    for x, y, text, place, anchor in (
        (x1, y1, "x1, y1", (x1 - 10, y1 + 4), "rs"),
        (x2, y2, "x2, y2", (x2 + 2, y2 + 10), "lt"),
    ):
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=_LINE, outline=_PAPER, width=2)
        draw.text(place, text, _INK, large, anchor, stroke_width=4, stroke_fill=_PAPER)

    # The axes, from the top left corner of the original image.
    near, right, bottom = margin - 16, margin + W, margin + H
    draw.line((margin, near, right, near), _INK, 2)
    draw.polygon([(right, near), (right - 8, near - 5), (right - 8, near + 5)], fill=_INK)
    draw.text((margin + W / 2, near - 10), f"x: 0 to {SCENE_SIZE[1]} pixels", _INK, small, "ms")
    draw.line((near, margin, near, bottom), _INK, 2)
    draw.polygon([(near, bottom), (near - 5, bottom - 8), (near + 5, bottom - 8)], fill=_INK)
    label = Image.new("L", (H, 24))
    ImageDraw.Draw(label).text((H / 2, 20), f"y: 0 to {SCENE_SIZE[0]} pixels", 255, small, "ms")
    turned = label.rotate(90, expand=True)
    canvas.paste(_INK, (near - 30, margin), turned)
    y = margin + H + 26
    draw.text((margin, y), "written (y1 x1 y2 x2, then the caption):", _INK, small, "ls")
    draw.text((margin, y + 28), written, _LINE, large, "ls")
    draw.text((margin, y + 66), "read back (x1, y1, x2, y2 in pixels of the original image):", _INK, small, "ls")
    draw.text((margin, y + 94), f"[{', '.join(read)}]  {CAPTION}", _LINE, large, "ls")
    out.parent.mkdir(exist_ok=True)
    with whole_file(out) as temporary:
        canvas.save(temporary, format="PNG", optimize=True)
    return out


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="cards (default: all of hub_cards)")
    cards = parser.parse_args(argv).folders
    cards = cards or sorted(path.parent for path in hub_cards_path().glob("argus-*/config.json"))
    scene = hub_cards_path().parent / "examples" / "scene.png"
    for folder in cards:
        bins = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))["num_location_bins"]
        written = [draw_convention(bins, scene, folder / PICTURE)]
        if (folder / SCORES).is_file():
            written += write_eval_results(folder)
        print(f"{folder.name}: {', '.join(str(path.relative_to(folder)) for path in written)}")


if __name__ == "__main__":
    main()
