"""The scores on argus-nano's card: one command, one file, `training/scores.json` beside the weights.

    python -m argus_tools.evaluate.card hub_cards/argus-nano

Each entry is what `argus evaluate scenes --out` writes for its setting, model and data named, so that any of them can
be had again by that command. `first_16` is the start of `test`, short enough for a test to repeat. `unseen_style` holds
pictograms alone, as shapes, digits and words look the same in every style: compare it with `pictograms`, not `test`.
"""

import argparse
import json
from pathlib import Path

from ..cli_support import CommandError, say, whole_file

FILE = Path("training") / "scores.json"


def settings() -> dict[str, list[str]]:
    """name -> the arguments of `argus evaluate scenes`."""
    from ..scenes import atlas_info

    unseen = atlas_info()["unseen_styles"]
    return {
        "first_16": ["--split", "test", "--count", "16"],
        "test": ["--split", "test", "--count", "160"],
        "pictograms": ["--split", "test", "--count", "160", "--pictograms-only"],
        "unseen_style": ["--split", "test", "--count", "160", "--pictograms-only", "--styles", *unseen],
        "unseen_style_all_kinds": ["--split", "test", "--count", "160", "--styles", *unseen],
        "val": ["--split", "val", "--count", "160"],
        "larger_288_one_tile": ["--count", "80", "--size", "288", "288", "--max-tiles", "1"],
        "larger_288_four_tiles": ["--count", "80", "--size", "288", "288", "--max-tiles", "4"],
        "crowded_288_one_tile": ["--count", "80", "--size", "288", "288", "--max-tiles", "1", "--max-objects", "10"],
        "crowded_288_four_tiles": ["--count", "80", "--size", "288", "288", "--max-tiles", "4", "--max-objects", "10"],
        "wide_144x288_one_tile": ["--count", "80", "--size", "144", "288", "--max-tiles", "1"],
        "wide_144x288_two_tiles": ["--count", "80", "--size", "144", "288", "--max-tiles", "2"],
    }


def measure(model: str | None, chosen: list[str], batch_size: int = 32, device: str = "auto", meteor="both") -> dict:
    """{name: result} of the chosen settings, each printed as it comes."""
    from .command import add_arguments, evaluate, score_lines

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    results = {}
    for name in chosen:
        words = ["scenes", *settings()[name], "--batch-size", str(batch_size), "--device", device]
        words += ["--meteor", meteor]
        arguments = parser.parse_args([*words, *(["--model", model] if model else [])])
        arguments.debug = False
        results[name] = evaluate(arguments)
        say(f"{name}: " + "\n".join(score_lines(results[name])))
    return results


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the model's folder")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these settings; the others keep what the file says")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args(argv)
    chosen = arguments.only or list(settings())
    unknown = [name for name in chosen if name not in settings()]
    if unknown:
        raise CommandError(f"unknown setting {unknown[0]!r}: take of {', '.join(settings())}")
    file = Path(arguments.model) / FILE
    known = json.loads(file.read_text(encoding="utf-8")) if arguments.only and file.is_file() else {}
    results = known | measure(arguments.model, chosen, arguments.batch_size, arguments.device)
    file.parent.mkdir(exist_ok=True)
    with whole_file(file) as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
