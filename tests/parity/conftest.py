"""Collects the largest differences that the parity tests measure and prints them as one table when the session ends."""

import pytest
from reference_checkpoints import FAMILIES, make_source

_ROWS: dict[tuple[str, str], tuple[float, str]] = {}


@pytest.fixture
def record_difference():
    """Call it with (what, source, value, limit); the table keeps the largest value of each pair."""

    def record(what: str, source: str, value: float, limit: str) -> None:
        before = _ROWS.get((what, source), (float("-inf"), ""))[0]
        _ROWS[what, source] = (max(before, float(value)), limit)

    return record


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def source(request, tmp_path_factory):
    """A tiny checkpoint in a published layout, with tokenizer and processor, and the reference model that wrote it."""
    return make_source(request.param, tmp_path_factory.mktemp(request.param) / "source")


@pytest.fixture(scope="session")
def converted(source, tmp_path_factory):
    """The same checkpoint, converted to Argus."""
    from argus_tools.convert import convert

    out = tmp_path_factory.mktemp(source.name) / "argus"
    convert(source.folder, out)
    return out


def pytest_terminal_summary(terminalreporter):
    if not _ROWS:
        return
    import transformers

    terminalreporter.section(f"largest differences to transformers {transformers.__version__}")
    for (what, name), (value, limit) in sorted(_ROWS.items()):
        terminalreporter.write_line(f"{what:<44} {name:<18} {value:>10.3g}   (limit {limit})")
