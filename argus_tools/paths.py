"""Where the project's own files lie: the embedded model, the cards of the family, and the code that a hub folder holds.

Two layouts are served alike: a checkout (or an editable install of it), with `hub_cards/` beside `argus_tools/`,
and an installed wheel, which carries the cards inside `argus_tools/`.
"""

from pathlib import Path

DEFAULT_MODEL = "argus-nano"
HUB_PACKAGES = ("modeling_argus", "processing_argus")

_HERE = Path(__file__).resolve().parent


def hub_cards_path() -> Path:
    """The folder with one folder per model of the family. Raises FileNotFoundError when the installation lacks it."""
    candidates = [_HERE / "hub_cards", _HERE.parent / "hub_cards"]
    for path in candidates:
        if path.is_dir():
            return path
    raise FileNotFoundError(f"no hub_cards folder in {' or '.join(map(str, candidates))}: reinstall argusvlm")


def card_path(name: str) -> Path:
    """The folder of one model of the family, for example `argus-2b`. Raises FileNotFoundError with the known names."""
    cards = hub_cards_path()
    path = cards / name
    if not path.is_dir():
        known = ", ".join(sorted(p.name for p in cards.iterdir() if (p / "config.json").is_file()))
        raise FileNotFoundError(f"no model {name!r} in {cards}: there are {known}")
    return path


def default_model_path() -> Path:
    """The model that is used where none is named: argus-nano, which ships with its weights."""
    return card_path(DEFAULT_MODEL)


def hub_code_files() -> list[Path]:
    """The files of both hub packages that a hub folder holds, flat. Their names are unique across the packages."""
    folders = [_HERE.parent / package for package in HUB_PACKAGES]
    return sorted(path for folder in folders for path in folder.glob("*.py") if path.name != "__init__.py")
