"""Refuses a rule that is too large or unprintable before anything looks at what it says. Knows no key."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from peftc.lang.codes import fault
from peftc.lang.limits import ALL_TEXT, ENTRIES, LARGEST_NUMBER, NAME, NESTING, TEXT
from peftc.lang.source import Key, Source

Path = tuple[Key, ...]


def refuse_large(data: Mapping[str, object], source: Source) -> None:
    """Raise RuleSyntaxError for the first thing in `data` that is over a limit."""
    if _is_small(data):
        return
    characters = 0
    for path, value in _walk(data):
        if len(path) > NESTING:
            raise fault(
                "R012", source.place(*path[:2]), f"tables and lists are nested more than {NESTING} deep"
            )
        if problem := _problem(value):
            code = "R006" if isinstance(value, str) and len(value) > TEXT else "R012"
            raise fault(code, source.place(*path), problem)
        characters += len(value) if isinstance(value, str) else 0
        if characters > ALL_TEXT:
            message = f"all texts of a rule together have at most {ALL_TEXT} characters"
            raise fault("R012", source.place(*path), message)


def _is_small(data: object) -> bool:
    """Whether nothing is over a limit: the quick answer for the rules that are right, without paths."""
    waiting, characters = [(0, data)], 0
    while waiting:
        depth, value = waiting.pop()
        if depth > NESTING:
            return False
        if type(value) is str and len(value) <= TEXT and value.isprintable():
            characters += len(value)
            continue
        if _problem(value) is not None:
            return False
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, Mapping):
            waiting += [(depth + 1, inner) for inner in value.values()]
        elif isinstance(value, (list, tuple)):
            waiting += [(depth + 1, inner) for inner in value]
    return characters <= ALL_TEXT


def _walk(data: object) -> Iterator[tuple[Path, object]]:
    """Every value with its path, from the outside in, not by recursion: depth is what is measured here."""
    waiting: list[tuple[Path, object]] = [((), data)]
    while waiting:
        path, value = waiting.pop()
        yield path, value
        if isinstance(value, Mapping):
            waiting += [((*path, _spoken(key)), inner) for key, inner in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [((*path, index), inner) for index, inner in enumerate(value)]


def _problem(value: object) -> str | None:
    if type(value) is str and len(value) <= TEXT and value.isprintable():
        return None
    match value:
        case str() if len(value) > TEXT:
            return f"a text has at most {TEXT} characters, this has {len(value)}"
        case str() if not value.isprintable():
            strange = next((sign for sign in value if not sign.isprintable() and sign not in "\t\r\n"), None)
            return f"has a character that cannot be printed, U+{ord(strange):04X}" if strange else None
        case Mapping() | list() | tuple() if len(value) > ENTRIES:
            return f"a table or a list has at most {ENTRIES} entries, this has {len(value)}"
        case Mapping():
            long = next((key for key in value if not isinstance(key, str) or len(key) > NAME), None)
            return None if long is None else f"a key is a text of at most {NAME} characters"
        case float() if not math.isfinite(value):
            return f"{value} is no number to reckon with"
        case int() | float() if not abs(value) < LARGEST_NUMBER:
            return "this number is too large"
    return None


def _spoken(key: object) -> str:
    return key if isinstance(key, str) else repr(key)
