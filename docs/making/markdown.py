"""The few pieces of Markdown that the made pages consist of."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

MADE = "<!-- Made from the code by `make docs`: change the code, not this file. -->"


def page(title: str, *parts: str) -> str:
    """A page: its title, then its parts with an empty line between them."""
    return "\n\n".join((MADE, f"# {title}", *parts)) + "\n"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; the bars inside its cells are escaped."""
    names = tuple(header)
    lines = [_row(names), _row("---" for _ in names), *(_row(row) for row in rows)]
    return "\n".join(lines)


def code(text: object) -> str:
    """`text`, or nothing for nothing."""
    return f"`{text}`" if str(text) else ""


def said(thing: object) -> str:
    """What the docstring of a function or a class says, without its remark on errors. It must say something."""
    doc = inspect.cleandoc(getattr(thing, "__doc__", None) or "")
    assert doc, f"{thing} needs a docstring: it is part of the made documentation"
    kept = [sentence for sentence in doc.replace("\n\n", "\n").split("\n") if sentence]
    return " ".join(kept).replace(" Raises AxesError.", "")


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"
