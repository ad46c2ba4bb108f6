"""Every relative link and anchor of every Markdown file leads somewhere; nothing here goes to the network."""

from urllib.parse import urlsplit

import pytest
from markdown_pages import DOCS, ROOT, all_pages, anchors, links, page_name


@pytest.mark.parametrize("page", all_pages(), ids=page_name)
def test_links_lead_somewhere(page):
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            assert parts.scheme in ("https", "http", "mailto"), link
            continue
        target = page if not parts.path else (page.parent / parts.path).resolve()
        assert target.exists(), f"{page_name(page)}: {link}"
        assert target.is_relative_to(ROOT), f"{page_name(page)}: {link} leads out of the repository"
        if parts.fragment:
            assert target.suffix == ".md" and parts.fragment in anchors(target), f"{page_name(page)}: {link}"


def test_the_index_leads_to_every_page():
    index = ROOT / "docs" / "README.md"
    assert {p.name for p in DOCS} - {"README.md"} <= {link.partition("#")[0] for link in links(index)}


def test_anchors_follow_githubs_rule(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# `max_tiles=None` (no limit), it's here\n\n## Twice\n\n## Twice\n", encoding="utf-8")
    assert anchors(page) == {"max_tilesnone-no-limit-its-here", "twice", "twice-1"}
