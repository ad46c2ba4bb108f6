"""What tests read in the repository's Markdown: code blocks, `argus` command lines, links, anchors, tables."""

import functools
import re
import shlex
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
_SKIPPED = {".git", ".nox", ".venv", ".pytest_cache", ".ruff_cache", ".hypothesis", "build", "dist", "runs"}
_PARSER = MarkdownIt("commonmark").enable("table")


def all_pages() -> list[Path]:
    """Every Markdown file of the checkout, environments and caches left out."""
    return sorted(p for p in ROOT.rglob("*.md") if not _SKIPPED & set(p.relative_to(ROOT).parts))


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@functools.cache
def tokens(page: Path) -> list:
    """The page's tokens, YAML front matter left out; read-only."""
    text = page.read_text(encoding="utf-8")
    return _PARSER.parse(re.sub(r"\A---\n.*?\n---\n", lambda m: "\n" * m[0].count("\n"), text, flags=re.S))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of one language, in order."""
    return [t.content for t in tokens(page) if t.type == "fence" and t.info.strip() == language]


def shell_lines(page: Path) -> list[list[str]]:
    """The words of each command in the page's bash blocks; continued lines joined, `&&` split."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(call, comments=True) for line in lines for call in line.split("&&")]
    return [w for w in words if w]


def argus_commands(page: Path) -> list[list[str]]:
    """The arguments of each `argus` call in the page's bash blocks."""
    return [w[1:] for w in shell_lines(page) if w[0].split("/")[-1] == "argus"]


def prose(page: Path) -> list[str]:
    """The source of each paragraph and list item outside of tables, headings and code."""
    found, inside = [], 0
    for before, token in zip([None, *tokens(page)], tokens(page)):
        inside += (token.type == "table_open") - (token.type == "table_close")
        if token.type == "inline" and not inside and before.type == "paragraph_open":
            found.append(token.content)
    return found


# --- links ------------------------------------------------------------------------------------------------------------


def links(page: Path) -> list[str]:
    """The targets of all links and images."""
    inline = [child for token in tokens(page) for child in token.children or ()]
    pairs = [(c.attrGet("href") if c.type == "link_open" else c.attrGet("src")) for c in inline]
    return [unquote(target) for target in pairs if target]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, by GitHub's rule: lower case, punctuation dropped, spaces to hyphens."""
    found, counts = set(), {}
    parsed = tokens(page)
    for place, token in enumerate(parsed):
        if token.type != "heading_open":
            continue
        text = "".join(c.content for c in parsed[place + 1].children if c.type in ("text", "code_inline"))
        slug = "".join(c for c in text.lower() if c in " -_" or unicodedata.category(c)[0] in "LN").replace(" ", "-")
        number = counts.get(slug, 0)
        counts[slug] = number + 1
        found.add(f"{slug}-{number}" if number else slug)
    return found


# --- tables -----------------------------------------------------------------------------------------------------------


@dataclass
class Table:
    """A table, the heading that it stands under, and the paragraph right before it ("" where none is)."""

    heading: str
    paragraph: str
    header: list[str]
    rows: list[list[str]]


def tables(page: Path) -> list[Table]:
    """All tables of a page, cells as they are written."""
    result, heading, paragraph, parsed = [], "", "", tokens(page)
    for place, token in enumerate(parsed):
        if token.type == "heading_open":
            heading, paragraph = parsed[place + 1].content, ""
        elif token.type == "paragraph_open":
            paragraph = parsed[place + 1].content
        elif token.type == "table_open":
            rows = []
            for later in range(place, len(parsed)):
                if parsed[later].type == "table_close":
                    break
                if parsed[later].type == "tr_open":
                    rows.append([])
                elif parsed[later].type in ("th_open", "td_open"):
                    rows[-1].append(parsed[later + 1].content)
            result.append(Table(heading, paragraph, rows[0], rows[1:]))
            paragraph = ""
    return result
