"""Rule files made to cost much: each is refused, or read, within a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftc.errors import RuleError
from peftc.lang import ROLES, default_library, load_rule, read_mapping
from peftc.lang.source import Source
from tests.lang.test_safety import harmless, read_and_write, read_stored
from tests.lang.wrong_rules import SHIPPED

HEAD = 'format = 1\nname = "costly"\nsummary = "Costs much."\n'
LINEAR = '[match]\nrole = "linear"\n'
ATTENTION = '[match]\nrole = "attention"\n'
TWICE = "concat(c{0}, c{0}, axis='keys')"


def lets(count: int, text: str, last: str) -> str:
    """Bindings c0, c1, …, each reading the next."""
    return "\n".join([f'c{i} = "{text.format(i + 1)}"' for i in range(count)] + [f'c{count} = "{last}"'])


def expression(text: str) -> str:
    return f'{HEAD}{LINEAR}[rewrite]\ny = "{text}"'


def many_choices() -> str:
    """As many choices, roles and characters as the limits allow, all of them read."""
    options = [
        f'o{i} = {{ default = "relu", choices = ["relu", "gelu", "silu", "tanh"] }}' for i in range(12)
    ]
    sums = [
        " + ".join(f"activate(y, kind=o{i % 12})" for i in range(first, first + 15)) for first in range(38)
    ]
    reading = [f'b{i} = "{text}"' for i, text in enumerate(sums)]
    halves = [
        'left = "' + " + ".join(f"b{i}" for i in range(19)) + '"',
        'right = "' + " + ".join(f"b{i}" for i in range(19, 38)) + '"',
    ]
    roles = '"linear", "head", "ffn", "block", "norm", "attention"'
    body = [f"[match]\nrole = [{roles}]\n[let]", *reading, *halves, '[rewrite]\ny = "left + right"']
    return "\n".join([f"{HEAD}[options]", *options, *body])


COSTLY = {
    "a name that doubles": f'{HEAD}{ATTENTION}[let]\n{lets(20, TWICE, "k")}\n[rewrite]\nk = "c0"',
    "read from the far end": (
        f"{HEAD}{ATTENTION}[let]\n" + "\n".join(
            [f'c{i} = "{TWICE.format(i - 1)}"' for i in range(60, 0, -1)] + ['c0 = "k"']
        ) + '\n[rewrite]\nv = "' + " * ".join(f"mean(c{i}, axis='keys')" for i in range(12)) + '"'
    ),
    "products that grow": f'{HEAD}{LINEAR}[let]\n{lets(20, "c{0} * c{0} * c{0}", "y")}\n[rewrite]\ny = "c0"',
    "axes that grow": (
        f"{HEAD}{LINEAR}[parameters]\n"
        + "\n".join(f'P{i} = {{ axes = "a{i}=2 b{i}=2 d_in", init = "zeros" }}' for i in range(20))
        + '\n[rewrite]\ny = "' + " + ".join(f"P{i}" for i in range(20)) + '"'
    ),
    "many choices": many_choices(),
    "every role again": f"{HEAD}[match]\nrole = [{', '.join(f'{name!r}' for name in [*ROLES] * 7)}]\n[rewrite]\ny = \"y\"",
    "open brackets": expression("(" * 480),
    "brackets": expression("(" * 190 + "y" + ")" * 190),
    "braces": expression("{" * 240 + "}" * 240),
    "squares": expression("[" * 240 + "]" * 240),
    "indices": expression("y[" * 190 + "0" + "]" * 100),
    "nots": expression("not " * 120 + "y"),
    "minus": expression("-" * 499 + "y"),
    "lambdas": expression("lambda:" * 70 + "y"),
    "conditions": expression("y if y else " * 40 + "y"),
    "formats": expression("f'{y!r:{y}}' " * 35),
    "a chain": expression(" + ".join(["y"] * 120)),
    "comparisons": expression(" < ".join(["y"] * 120)),
    "calls": expression("relu(" * 90 + "y" + ")" * 90),
    "numbers": expression("1" * 499),
    "powers": expression("9**" * 160 + "9"),
    "spaces in a header": f'{HEAD}paper = """\n[{" " * 60_000}"""\n',
    "spaces before a key": f'{HEAD}paper = """\n{" " * 60_000}"""\n',
    "commas": f'{HEAD}paper = """\na = {"{," * 30_000}"""\n',
    "a long word": f'{HEAD}{"a" * 60_000} = 1\n',
    "empty lines": HEAD + "\n" * 64_000,
    "many tables": HEAD + "[[also]]\n" * 7000,
    "many arrays": HEAD + "\n".join(f"[a{i}]" for i in range(8000)),
    "dotted keys": HEAD + "\n".join(f"{'a.' * 95}k{i} = 1" for i in range(300)),
    "dotted headers": HEAD + "\n".join(f"[{'a.' * 90}k{i}]" for i in range(300)),
    "inline tables": f"{HEAD}options = {{ {', '.join(f'o{i} = {{ default = 1 }}' for i in range(3000))} }}",
    "nested tables": f"{HEAD}options = {'{ a = ' * 400}1{' }' * 400}",
    "a near name": f"{HEAD}{LINEAR}[rewrite]\ny = \"{'a' * 480}\"",
}  # fmt: skip


@pytest.mark.parametrize("name", COSTLY)
def test_it_costs_no_more_than_a_moment(name: str) -> None:
    harmless(lambda: read_and_write(COSTLY[name]))


def nested(depth: int) -> object:
    held: object = 1
    for level in range(depth):
        held = {"a": held} if level % 2 else [held]
    return held


@pytest.mark.parametrize("key", ["options", "let", "also", "match", "summary", "other"])
def test_a_deep_mapping_is_refused(key: str) -> None:
    data = {"format": 1, "name": "deep", "summary": "Deep.", "match": {"role": "linear"}, key: nested(50_000)}
    harmless(lambda: read_stored(data))
    with pytest.raises(RuleError):
        read_mapping(data, Source("deep"))


def test_marks_of_editors_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "lora.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SHIPPED["lora"].replace("\n", "\r\n").encode())
    assert load_rule(path) == default_library().rule("lora")
    path.write_bytes(path.read_bytes().replace(b"p=drop", b"p=drp"))
    with pytest.raises(RuleError, match=r"\[let\] delta, line 25"):
        load_rule(path)
