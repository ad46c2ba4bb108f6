"""Lists, when the session ends, which values transformers' own `generate` reads on the way to a few tokens."""

from collections import Counter

import pytest

_READS: dict[str, Counter] = {}


@pytest.fixture
def record_reads(request):
    """Call it with the names of the functions that read, in order."""
    return lambda names: _READS.__setitem__(request.node.name, Counter(names))


def pytest_terminal_summary(terminalreporter):
    if not _READS:
        return
    import transformers

    terminalreporter.section(f"reads of transformers {transformers.__version__}'s own generate(), four new tokens")
    most = Counter()
    for counts in _READS.values():
        most |= counts
    for name, count in sorted(most.items()):
        terminalreporter.write_line(f"{name:<80} at most {count}")
