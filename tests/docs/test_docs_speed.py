"""docs/speed.md has no number of its own: its tables are excerpts of results files, its prose repeats what they say."""

import re

import pytest
from markdown_pages import ROOT, blocks, page_name, prose, shell_lines, tables

PAGE = ROOT / "docs" / "speed.md"
RESULTS = re.compile(r"\]\(\.\./(benchmarks/results/\w+\.md)\)")
EXCERPT = re.compile(r'^From \[\w+\.md\]\(\.\./(benchmarks/results/\w+\.md)\), "([^"]+)":$')
NUMBER = re.compile(r"(?<![\w.,-])\d+(?:[.,]\d+)*(?![\w])")


def excerpts():
    return [(table, *match.groups()) for table in tables(PAGE) if (match := EXCERPT.match(table.paragraph))]


def plain(cell: str) -> str:
    return cell.replace("\\", "").strip()


@pytest.mark.parametrize("number", range(len(excerpts())), ids=lambda i: "{1}: {2}".format(*excerpts()[i]))
def test_tables_are_excerpts(number):
    """Columns and rows may be left out; what is shown stands in one row of the table under that heading."""
    table, file, heading = excerpts()[number]
    sources = [
        each for each in tables(ROOT / file) if each.heading == heading and set(table.header) <= set(each.header)
    ]
    assert sources, f"{file} has no table {heading!r} with the columns {table.header}"
    known = [
        [plain(row[source.header.index(name)]) for name in table.header] for source in sources for row in source.rows
    ]
    for row in table.rows:
        assert [plain(cell) for cell in row] in known, f"{file}, {heading!r} has no row {row}"


def test_every_table_with_numbers_is_an_excerpt():
    shown = [table for table, *_ in excerpts()]
    assert len(shown) >= 12
    for table in tables(PAGE):
        if table not in shown:
            cells = [re.sub(r"`[^`]*`", "", cell) for row in table.rows for cell in row]
            assert not [c for c in cells if NUMBER.search(c) and "threads" not in c], (table.heading, table.header)


def test_prose_repeats_numbers_of_the_files_that_it_cites():
    for text in prose(PAGE):
        if not EXCERPT.match(text):
            words = re.sub(r"\]\([^)]*\)", "]", re.sub(r'`[^`]*`|"[^"]*"', "", text))
            cited = "".join((ROOT / file).read_text(encoding="utf-8") for file in RESULTS.findall(text))
            strangers = set(NUMBER.findall(words)) - set(NUMBER.findall(cited))
            assert not strangers, f"{strangers} not in a file that is cited beside them: {text}"


def test_hardware_and_commands_are_those_of_the_files():
    (sources,) = [table for table in tables(PAGE) if table.header[0] == "results"]
    listed = set()
    for link, hardware, command in sources.rows:
        (file,) = RESULTS.findall(link)
        text = (ROOT / file).read_text(encoding="utf-8")
        assert hardware in text and command in text, f"{file}: {hardware}, {command}"
        listed.add(file)
    assert listed == {file for _, file, _ in excerpts()}


def test_benchmark_commands_exist():
    words = [line for line in shell_lines(PAGE) if line[:2] == ["python", "-m"]]
    assert words and blocks(PAGE, "python")
    for line in words:
        script = ROOT / (line[2].replace(".", "/") + ".py")
        assert script.is_file(), f"{page_name(PAGE)}: {line}"
