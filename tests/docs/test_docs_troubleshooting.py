"""docs/troubleshooting.md quotes messages that the source really holds, or that other libraries really raise."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import transformers
from markdown_pages import ROOT, tables

PAGE = ROOT / "docs" / "troubleshooting.md"
VALUE = "\0"  # where an f-string has a value; the page writes …


def template(node: ast.AST) -> str | None:
    """The fixed words of a string or an f-string, or of several with `+` between them."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) or VALUE for part in node.values)
    return None


def templates() -> list[str]:
    """Every string of the three packages that is no docstring."""
    folders = ("modeling_argus", "processing_argus", "argus_tools")
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    return [text for node in nodes if node not in docstrings and (text := template(node))]


def quoted(header: str) -> list[str]:
    """The first cells' code spans of the tables with that first column."""
    rows = [row for table in tables(PAGE) if table.header[0] == header for row in table.rows]
    spans = [re.fullmatch(r"(`+) ?(.*?) ?\1", row[0]) for row in rows]
    assert all(spans), "a message is one code span"
    return [span[2] for span in spans]


@pytest.fixture(scope="module")
def source() -> str:
    return "\n\n".join(templates())


def test_the_page_quotes_many_messages_once():
    messages = quoted("message")
    assert len(messages) > 80 and len(set(messages)) == len(messages)


@pytest.mark.parametrize("message", quoted("message"))
def test_messages_stand_in_the_source(message, source):
    parts = [re.escape(part) for part in message.split("…")]
    # One … may stand for several values with words between them, within one message.
    assert re.search(r"[^\n]*?\0[^\n]*?".join(parts), source), f"no message of the source reads {message!r}"


def test_other_libraries_raise_what_is_quoted():
    library = Path(importlib.util.find_spec("transformers").origin).parent
    files = [
        library / name for name in ("dynamic_module_utils.py", "modeling_utils.py", "utils/hub.py", "pipelines/base.py")
    ]
    files += [library / "modeling_flash_attention_utils.py", library / "models/auto/image_processing_auto.py"]
    known = "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    messages = quoted("message of another library")
    assert len(messages) == 6
    for message in messages:
        if message.startswith("Using a slow image processor") and transformers.__version__.startswith("5."):
            continue  # 4.57's
        if "AutoModelForVision2Seq" not in message:
            assert message in known, f"transformers {transformers.__version__} has no {message!r}"
        elif transformers.__version__.startswith("5."):
            with pytest.raises(ImportError, match=re.escape(message)):
                exec("from transformers import AutoModelForVision2Seq", {})
