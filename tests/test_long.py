"""The list of long tests names tests that there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import long_tests

ROOT = Path(__file__).resolve().parent.parent


def test_it_is_sorted_and_has_each_once() -> None:
    assert long_tests() == sorted(set(long_tests()))


def test_what_is_listed_is_there() -> None:
    named = {line.split("[")[0] for line in long_tests()}
    for path in sorted({line.split("::")[0] for line in named}):
        text = (ROOT / path).read_text(encoding="utf-8")
        missing = [
            line
            for line in named
            if line.startswith(f"{path}::") and f"def {line.split('::')[1]}(" not in text
        ]
        assert not missing, path


@pytest.mark.slow
def test_every_case_that_is_listed_is_collected() -> None:
    listed, files = long_tests(), sorted({line.split("::")[0] for line in long_tests()})
    plugin = Collected()
    assert (
        pytest.main(
            ["--collect-only", "-q", "-p", "no:xdist", *(str(ROOT / file) for file in files)],
            plugins=[plugin],
        )
        == 0
    )
    assert not set(listed) - plugin.ids


class Collected:
    """Remembers what was collected."""

    def __init__(self) -> None:
        self.ids: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Called by pytest."""
        self.ids = {item.nodeid for item in session.items}
