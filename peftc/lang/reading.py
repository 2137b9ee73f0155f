"""Reads a rule from TOML or from a mapping, and says in the words of the format what is wrong with it.

What it gives is not proved yet.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from peftc.errors import instead
from peftc.lang.codes import fault
from peftc.lang.document import (
    Data,
    Define,
    Loss,
    Match,
    MatchChange,
    Option,
    Parameter,
    Quantise,
    Rule,
    Schedule,
    Section,
    Train,
    Use,
)
from peftc.lang.limits import FILE_BYTES, LINE_DOTS
from peftc.lang.measure import refuse_large
from peftc.lang.source import Key, Place, Source

DataT = TypeVar("DataT", bound=Data)


def read_file(path: Path) -> Rule:
    """The rule in a file, not proved yet. Raises RuleSyntaxError, and OSError where there is no file."""
    with path.open("rb") as file:
        raw = file.read(FILE_BYTES + 1)
    place = Place(path.name)
    if len(raw) > FILE_BYTES:
        raise fault("R001", place, "a rule file has at most 64 KiB")
    try:
        return read_text(raw.decode().removeprefix("\ufeff"), path.name)  # some editors mark the byte order
    except UnicodeDecodeError as error:
        raise fault("R002", place, f"is not UTF-8 text: {error.reason} at byte {error.start}") from None


def read_text(text: str, file: str) -> Rule:
    """The rule in a TOML text, not proved yet. Raises RuleSyntaxError."""
    if len(text.encode(errors="replace")) > FILE_BYTES:
        raise fault("R001", Place(file), "a rule file has at most 64 KiB")
    source = Source(file, text)
    return read_mapping(_toml(text, source), source)


def read_data(kind: type[DataT], text: str, source: Source) -> DataT:
    """Another kind of file in the same form, such as a spelling. Raises RuleSyntaxError."""
    try:
        return kind.model_validate(_toml(text, source))
    except ValidationError as error:
        raise _fault(error.errors(include_url=False), source, kind) from None


def _toml(text: str, source: Source) -> dict[str, object]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > LINE_DOTS:
            message = f"a line of a rule file has at most {LINE_DOTS} dots, this has {line.count('.')}"
            raise fault("R002", source.line(number), message)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError alone
        raise _no_toml(error, source) from None


def _no_toml(error: Exception, source: Source) -> Exception:
    """What the reader found, at the line and the column that it tells."""
    told = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
    if "int_max_str_digits" in told:
        told = "a number has too many digits"
    said, _, at = told.partition(" (at ")
    message = f"is not TOML: {said[:1].lower()}{said[1:]}"
    if not (found := re.match(r"line (\d+), column (\d+)", at)):
        return fault("R002", Place(source.file), f"{message}{f' ({at}' if at else ''}")
    place, start = source.line(int(found[1])), int(found[2]) - 1
    return fault("R002", place, message, span=(start, start + 1) if start < len(place.said) - 1 else None)


def read_mapping(data: Mapping[str, object], source: Source) -> Rule:
    """The rule in a mapping, as TOML or JSON gives it, not proved yet. Raises RuleSyntaxError."""
    refuse_large(data, source)
    try:
        rule = Rule.model_validate(dict(data))
    except ValidationError as error:
        raise _fault(error.errors(include_url=False), source) from None
    return rule.read_from(source)


def _fault(errors: list[ErrorDetails], source: Source, kind: type[Data] = Rule) -> Exception:
    """The first thing pydantic found, in the words of the format."""
    error = errors[0]
    keys = _keys(error)
    place = source.place(*keys)
    last = str(keys[-1]) if keys else ""
    if error["type"] == "extra_forbidden":
        return fault(
            "R003", place, f"there is no key {last!r} here", hint=instead(last, _known_keys(keys[:-1], kind))
        )
    if error["type"] == "too_short":
        return fault("R005", place, f"{last} names nothing")
    if error["type"] == "missing":
        return fault("R004", source.place(*keys[:-1]), f"the key {last!r} is missing")
    if error["type"] == "string_pattern_mismatch":
        named = str(error["input"])
        return fault(
            "R005", place, f"{named!r} is no name", hint="a name is letters, digits and _, after a letter"
        )
    wanted = [_wanted(other) for other in errors if _keys(other) == keys]
    said = f"{last} should be {' or '.join(dict.fromkeys(wanted))}"
    shown = None if place.said else f"{last} = {json.dumps(error['input'], default=str)[:80]}"
    return fault("R005", place, said, text=shown)


WANTED: Mapping[str, str] = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
}
"""What pydantic misses, in the words of the format."""


def _wanted(error: ErrorDetails) -> str:
    return WANTED.get(error["type"], error["msg"].removeprefix("Input should be "))


def _keys(error: ErrorDetails) -> tuple[Key, ...]:
    """Where it is in the file, without the branch of a union that pydantic tried."""
    return tuple(key for key in error["loc"] if key not in KINDS_OF_UNION)


KINDS_OF_UNION = frozenset({"bool", "int", "float", "str", "constrained-int", "constrained-str", "[key]"})
"""What pydantic puts into an error's location besides keys of the file."""


def _known_keys(keys: tuple[Key, ...], kind: type[Data]) -> list[str]:
    """The keys of the section at `keys`, in a file of this kind."""
    inner: Mapping[tuple[type[Data], Key], type[Data]] = {
        (Rule, "also"): Section,
        (Rule, "use"): Use,
        (Rule, "define"): Define,
        (Rule, "options"): Option,
        (Use, "match"): MatchChange,
    }
    both: Mapping[Key, type[Data]] = {
        "match": Match,
        "parameters": Parameter,
        "train": Train,
        "loss": Loss,
        "schedule": Schedule,
        "quantise": Quantise,
    }
    for key in keys:  # the keys of tables of tables, such as a parameter's name, change no kind
        kind = inner.get((kind, key), both.get(key, kind) if key in kind.model_fields else kind)
    return sorted(kind.model_fields)
