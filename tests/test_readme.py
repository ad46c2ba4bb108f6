"""What README and the cards show is run: snippets as a stranger would, command lines by the parser they address."""

import re
import shutil
import sys

import pytest
from huggingface_hub import ModelCard
from markdown_pages import ROOT, argus_commands, blocks

sys.path.insert(0, str(ROOT / "tests" / "hub"))

from isolation import run_isolated

from argus_tools.export import export
from argus_tools.paths import default_model_path

CARDS = sorted(path.with_name("README.md") for path in ROOT.glob("hub_cards/*/config.json"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *CARDS]


def test_readme_snippets_run_as_shown(tmp_path):
    """In one process, from an exported folder in the working directory, with the project out of reach."""
    work = tmp_path / "elsewhere"
    export(default_model_path(), work / "argus-nano-hub")
    shutil.copytree(ROOT / "examples", work / "examples")
    shown = blocks(ROOT / "README.md", "python")
    assert len(shown) >= 2
    checks = (
        "assert isinstance(text[0], str) and text[0].strip() and len(captions) == len(answers) == len(found) == 1\n"
    )
    script = tmp_path / "snippets.py"
    script.write_text("\n".join([*shown, checks]), encoding="utf-8")
    run_isolated(str(script), home=tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_are_understood(page):
    from argus_tools.cli import build_parser

    for arguments in argus_commands(page):
        build_parser().parse_args(arguments)  # SystemExit, with the parser's message, where it is not


def test_readme_has_command_lines():
    assert {arguments[0] for arguments in argus_commands(ROOT / "README.md")} >= {
        "dense-caption",
        "convert",
        "ask",
        "export",
    }


@pytest.mark.parametrize("page", CARDS, ids=lambda page: page.parent.name)
def test_cards_have_their_front_matter(page):
    card = ModelCard.load(page)
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-text-to-text"
    assert card.data.license and {"custom_code", "dense-captioning", "grounding"} <= set(card.data.tags)
    has_weights = any(page.parent.glob("*.safetensors"))
    assert has_weights or "No trained weights" in card.text
    assert not re.search(r"\b(TODO|TBD|FIXME)\b", card.text)
