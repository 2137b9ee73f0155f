"""Golden text for every test: `golden(name, text)` compares with a file, `pytest --accept` writes it anew. And the list
of long tests, which are marked as slow.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
LONG = Path(__file__).parent / "long.txt"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--accept`: golden files are written from what the tests saw, for a reviewer to read the difference."""
    parser.addoption("--accept", action="store_true", help="rewrite golden files")


def long_tests() -> list[str]:
    """Node ids of the tests that are marked as slow for nothing but their length."""
    return [line for line in LONG.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the long tests, before `-m` looks at marks."""
    listed = set(long_tests())
    for item in items:
        if item.nodeid in listed:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What was imported is no garbage, and graphs make many objects: looking for some so often takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with `tests/golden/<name>`."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        text = text.rstrip("\n") + "\n"
        if request.config.getoption("--accept"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"there is no golden file {name}; write it with pytest --accept"
        assert text == path.read_text(encoding="utf-8")

    return compare
