"""peftc knows no model by name and its engine no method: a name in the code would be a special case."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "peftc"

# Model types that are also words of English, with the sense in which the package means them.
WORDS = {"align": "to put the columns of a table, or two sequences, in line"}

# Where the name of a method may stand in code, and why. Docstrings and comments may give examples everywhere.
METHOD_NAMES_ALLOWED = {
    "cli/plans.py": "examples in --help",
    "cli/specs.py": "examples in --help",
    "cli/training.py": "examples in --help",
    "lang/formats.py": "a number format and the method that uses it have one name",
}
# Rules whose names are words of English: a sentence may say `full` or `head`.
METHODS_THAT_ARE_WORDS = {"full", "head", "prefix", "prompt"}


def sources() -> list[Path]:
    """Every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def model_names() -> list[str]:
    """transformers' model types of four letters or more, less the words of English."""
    return sorted(name for name in CONFIG_MAPPING if len(name) >= 4 and name not in WORDS)


def method_names() -> list[str]:
    """The library's rules, by their files."""
    return sorted({path.stem for path in (ROOT / "rules").glob("*.toml")} - METHODS_THAT_ARE_WORDS)


def code_of(text: str) -> str:
    """The text without comments and docstrings, its lines where they were."""
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    for token in (token for token in tokens if token.type == tokenize.COMMENT):
        line, column = token.start
        lines[line - 1] = lines[line - 1][:column]
    return "\n".join(lines)


def named(text: str, names: list[str]) -> list[str]:
    """`name (line n)` of each name that stands in the text as a whole word."""
    pattern = re.compile(rf"(?<![a-z0-9])({'|'.join(map(re.escape, names))})(?![a-z0-9])", re.IGNORECASE)
    return [
        f"{match[0]} (line {text.count(chr(10), 0, match.start()) + 1})" for match in pattern.finditer(text)
    ]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_model_is_named(path: Path) -> None:
    assert named(path.read_text(encoding="utf-8"), model_names()) == []


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_engine_names_no_method(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    if str(relative) not in METHOD_NAMES_ALLOWED:
        assert named(code_of(path.read_text(encoding="utf-8")), method_names()) == []


def test_code_is_text_without_docstrings_and_comments() -> None:
    text = '"""About lora."""\nx = "lora"  # as in lora\n'
    assert named(code_of(text), ["lora"]) == ["lora (line 2)"]


def test_a_name_would_be_found() -> None:
    assert named("if model_type == 'llama':\n", model_names()) == ["llama (line 1)"]
    assert named("class BertThing: ...\nbert_layer = 1\n", model_names()) == ["bert (line 2)"]
    assert named("alberta\n", model_names()) == []
