"""The command `argus train`. Cheap to import: torch and transformers come with `run`."""

import argparse
import json
import os


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `argus train`."""
    command.add_argument("config", metavar="CONFIG.yaml", help="what to train on what, and for how long")
    command.add_argument("--output-dir", metavar="DIR", help="in place of the configuration's")
    command.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="replace one value, as in stages.0.steps=100; can be repeated",
    )
    command.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="stop after so long with a checkpoint; the same command goes on from it",
    )
    command.add_argument("--restart", action="store_true", help="delete what an earlier run left in the folder")
    command.add_argument("--json", action="store_true", help="say what was written as one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """Train. Raises ValueError for a configuration or data that do not fit."""
    import yaml

    from .config import load_config
    from .run import run_config

    changes = {}
    for change in arguments.changes:
        name, equals, value = change.partition("=")
        if not equals or not name:
            raise ValueError(f"--set takes NAME=VALUE, got {change!r}.")
        try:
            changes[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {change}: the value is not valid YAML.") from error
    if arguments.output_dir is not None:
        changes["output_dir"] = arguments.output_dir
    if arguments.minutes is not None and not arguments.minutes > 0:
        raise ValueError(f"--minutes must be above 0, got {arguments.minutes}.")
    config = load_config(arguments.config, changes)
    folder = run_config(config, minutes=arguments.minutes, restart=arguments.restart)
    if int(os.environ.get("RANK", "0")):
        return  # one process speaks for all
    if arguments.json:
        print(json.dumps({"output_dir": config.output_dir, "model": None if folder is None else str(folder)}))
    elif folder is None:
        print(f"stopped after {arguments.minutes:g} minutes; the same command goes on from {config.output_dir}")
    else:
        print(f"trained: {folder}")
