"""What is made from the code is current, and the schema of rule files accepts and refuses what it should."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peftc.lang import CODES, LAWS, OPERATIONS, ROLES, default_library
from peftc.lang.schema import rule_schema

ROOT = Path(__file__).parents[2]
SCHEMA = rule_schema()
LORA = (default_library().folders[0] / "lora.toml").read_text()
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
NOTES = {"description", "default", "title", "$schema", "$defs"}


def faults(value: Any, schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Where a value breaks a schema; knows the words that the schema of rules uses, and fails at others."""
    rest = {key: held for key, held in schema.items() if key not in NOTES}
    if name := rest.pop("$ref", None):
        yield from faults(value, SCHEMA["$defs"][name.rpartition("/")[2]], path)
    for each in rest.pop("allOf", ()):
        yield from faults(value, each, path)
    if (some := rest.pop("anyOf", None)) and all(list(faults(value, each, path)) for each in some):
        yield f"{path}: none of anyOf"
    if (choices := rest.pop("enum", None)) and value not in choices:
        yield f"{path}: not in enum"
    if (kind := rest.pop("type", None)) and (
        not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")
    ):
        yield f"{path}: no {kind}"
        return
    if (pattern := rest.pop("pattern", None)) and isinstance(value, str) and not re.search(pattern, value):
        yield f"{path}: breaks its pattern"
    if items := rest.pop("items", None):
        for index, each in enumerate(value):
            yield from faults(each, items, f"{path}[{index}]")
    if kind in ("integer", "number") and not rest.pop("minimum", value) <= value < rest.pop(
        "exclusiveMaximum", math.inf
    ):
        yield f"{path}: out of its range"
    yield from _sizes(value, rest, path)
    yield from _members(value, rest, path)
    assert not rest, f"the test does not know {rest}"


def _sizes(value: Any, rest: dict[str, Any], path: str) -> Iterator[str]:
    if len(value) < (least := rest.pop("minProperties")) if "minProperties" in rest else False:
        yield f"{path}: fewer than {least}"
    for word in ("maxLength", "maxItems", "maxProperties"):
        if len(value) > (most := rest.pop(word)) if word in rest else False:
            yield f"{path}: more than {most}"


def _members(value: Any, rest: dict[str, Any], path: str) -> Iterator[str]:
    named, patterns = rest.pop("properties", {}), rest.pop("patternProperties", {})
    is_closed = rest.pop("additionalProperties", True) is False
    yield from (f"{path}.{key}: missing" for key in rest.pop("required", ()) if key not in value)
    for key, held in value.items() if isinstance(value, dict) else ():
        fitting = [schema for pattern, schema in patterns.items() if re.search(pattern, key)]
        fitting += [named[key]] if key in named else []
        for schema in fitting:
            yield from faults(held, schema, f"{path}.{key}")
        if is_closed and not fitting:
            yield f"{path}.{key}: unknown"


@pytest.mark.slow
def test_the_made_documentation_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "docs.make", "--check"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_it_tells_everything() -> None:
    language = (ROOT / "docs" / "rule-language.md").read_text(encoding="utf-8")
    roles = (ROOT / "docs" / "roles.md").read_text(encoding="utf-8")
    assert [word for word in (*CODES, *LAWS, *OPERATIONS) if word not in language] == []
    assert [name for name in ROLES if f"## `{name}`" not in roles] == []


@pytest.mark.parametrize("name", default_library().names())
def test_the_schema_accepts_every_shipped_rule(name: str) -> None:
    text = (default_library().folders[0] / f"{name}.toml").read_text()
    assert list(faults(tomllib.loads(text), SCHEMA)) == []
    stored = json.loads(json.dumps(default_library().rule(name).content))
    assert list(faults(stored, SCHEMA)) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("[merge]", "[marge]", ".marge: unknown"),
        ('role   = "linear"', 'role = "liner"', ".match.role: none of anyOf"),
        ('"q", "v"', '"decoder.qq"', ".match.part: none of anyOf"),
        ("format    = 1", "format = 2", ".format: not in enum"),
        ('summary   = "', 'summry = "', ".summary: missing"),
        ("min = 1, ", 'min = "1", ', ".options.rank.min: none of anyOf"),
        ('"kaiming_uniform"', '"kaiming"', ".parameters.A.init: breaks its pattern"),
        ('y = "y + delta"', 'W = "y + delta"', ".rewrite.W: unknown"),
        ('W = "W + scale', 'y = "W + scale', ".merge.y: unknown"),
        ("A = {", '"a b" = {', ".parameters.a b: unknown"),
    ],
)
def test_the_schema_refuses(old: str, new: str, fault: str) -> None:
    assert old in LORA
    assert fault in list(faults(tomllib.loads(LORA.replace(old, new)), SCHEMA))


def test_scoped_parts_are_known_to_the_schema() -> None:
    assert list(faults(tomllib.loads(LORA.replace('"q", "v"', '"decoder.q", "cross.v"')), SCHEMA)) == []
