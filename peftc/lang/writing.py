"""A rule as TOML text again: what `content` says, in the layout that people write. Reads nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

WIDTH = 100
"""A table of up to so many characters stands on one line."""

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")


def write(content: Mapping[str, Any]) -> str:
    """`content` of a rule as a TOML text, which reads as the same rule."""
    lines = [
        *(f"{_key(key)} = {_value(value)}" for key, value in content.items() if not _is_table(value)),
        *(line for key, value in content.items() if _is_table(value) for line in _section((key,), value)),
    ]
    return "\n".join(lines) + "\n"


def _section(path: tuple[str, ...], value: Any) -> Iterator[str]:
    """A table, or each of an array of tables, with its header."""
    dotted = ".".join(_key(key) for key in path)
    if isinstance(value, list):
        for element in value:
            yield f"\n[[{dotted}]]"
            yield from _entries(element)
        return
    yield f"\n[{dotted}]"
    yield from _entries(value)


def _entries(table: Mapping[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        line = f"{_key(key)} = {_value(value)}"
        if isinstance(value, Mapping) and len(line) > WIDTH:
            for inner, held in value.items():
                yield f"{_key(key)}.{_key(inner)} = {_value(held)}"
        else:
            yield line


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and all(isinstance(element, Mapping) for element in value)
    )


def _key(key: str) -> str:
    return key if _BARE.match(key) else _text(key)


def _value(value: Any) -> str:
    match value:
        case str():
            return _text(value)
        case bool():
            return "true" if value else "false"
        case Mapping():
            return f"{{ {', '.join(f'{_key(key)} = {_value(held)}' for key, held in value.items())} }}"
        case list():
            return f"[{', '.join(_value(element) for element in value)}]"
    return repr(value)


def _text(text: str) -> str:
    """A basic string; JSON escapes as TOML does, but for the one character that TOML forbids and JSON not."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
