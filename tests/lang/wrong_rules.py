"""Makes rule files and specs that are mostly wrong, for the safety tests: mutated and grown from a grammar."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from peftc.lang import FORMATS, LAWS, OPERATIONS, POLICIES, ROLES, default_library
from peftc.lang.document import Match, Option, Parameter, Rule

LIBRARY = default_library()
SHIPPED = {name: (LIBRARY.folders[0] / f"{name}.toml").read_text() for name in LIBRARY.names()}
TOKEN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|\d+(?:\.\d+)?|\s+|.", re.DOTALL)
PORTS = sorted({port for role in ROLES.values() for port in role.ports})
NASTY = [
    "\x00", "\ufeff", "\r\n", "\r", "\u202e", "\u2028", "\x1b[2J", "\ud800", "ｘ", "а", "é", "𝐱", "\\", "'", '"""',
    "nan", "inf", "-inf", "1e400", "9" * 5000, "0x" + "f" * 400, "2020-13-45", "[" * 2000, "{" * 2000, "(" * 200,
    "-" * 100, "a." * 90, "a" * 70000, "__class__", "__import__('os').system('id')", "exec('1')", "eval('1')",
    "open('/etc/passwd')", "lambda: 0", "x[0]", "x.y", "9 ** 9", "9 ** 9 ** 9", "1 if x else 2", "f'{x}'", "await x",
    "yield", "x := 1", "*x", "**x", "../../etc/passwd", "/etc/passwd", "file:///", "$(id)", "`id`", "{}", "%s",
    "True", "None", "...", "1_000", "0b1", "1j", "b'x'", "concat(x, x, axis='d_in')",
]  # fmt: skip
WORDS = [
    *Rule.model_fields, *Match.model_fields, *Option.model_fields, *Parameter.model_fields, *ROLES, *PORTS, *LAWS,
    *OPERATIONS, "rank", "alpha", "part", "d_in", "d_out", "keys", "length", "=", "[", "]", "{", "}", ",", "@", "+",
    "*", "/", "-", "(", ")", "<", "==", "and", "not", "0", "1", "-1", "1.5", "true", "false", "\n", " ", "#",
]  # fmt: skip
pieces = st.one_of(st.sampled_from(WORDS), st.sampled_from(NASTY), st.text(max_size=20))


@st.composite
def mutated(draw: Callable[[st.SearchStrategy[Any]], Any]) -> str:
    """A shipped rule file with some of its tokens, lines or characters changed, moved, repeated or gone."""
    text = SHIPPED[draw(st.sampled_from(sorted(SHIPPED)))]
    for _ in range(draw(st.integers(1, 4))):
        cut = draw(st.sampled_from([TOKEN.findall, lambda held: held.splitlines(keepends=True), list]))
        parts: list[str] = cut(text) or [""]
        at = draw(st.integers(0, len(parts) - 1))
        match draw(st.integers(0, 5)):
            case 0:
                parts[at] = draw(pieces)
            case 1:
                parts.insert(at, draw(pieces))
            case 2:
                del parts[at]
            case 3:
                parts[at] = parts[at] * draw(st.sampled_from([2, 70, 700]))
            case 4:
                other = draw(st.integers(0, len(parts) - 1))
                parts[at], parts[other] = parts[other], parts[at]
            case _:
                parts[at] = SHIPPED[draw(st.sampled_from(sorted(SHIPPED)))]
        text = "".join(parts)[:200_000]
    return text


def _call(draw_from: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    named = st.sampled_from([*OPERATIONS, "f"])
    setting = st.sampled_from(
        ["axis='keys'", "axis='d_in'", "p=drop", "p=2", "eps=1e-5", "kind='relu'", "**x"]
    )
    return st.builds(lambda name, one, key: f"{name}({one}, {key})", named, draw_from, setting)


names = st.sampled_from(
    [*PORTS, "rank", "alpha", "drop", "A", "B", "d_in", "scale", "delta", "nothing", "1", "2.5", "'text'"]
)
expressions = st.recursive(
    names,
    lambda inner: st.one_of(
        st.builds(
            lambda a, op, b: f"({a} {op} {b})", inner, st.sampled_from(["+", "-", "*", "/", "@", "**"]), inner
        ),
        st.builds(lambda a: f"-{a}", inner),
        _call(inner),
        st.builds(lambda a, op, b: f"{a} {op} {b}", inner, st.sampled_from(["<", "==", "and", "if"]), inner),
    ),
    max_leaves=12,
)
axes = st.lists(
    st.sampled_from(
        [
            "d_in",
            "d_out",
            "rank",
            "*",
            "batch",
            "keys",
            "heads",
            "keys=length",
            "n=3",
            "Rank",
            "o=d_out/rank",
            "o=d_out*rank/2",
            "o=rank/0",
            "o=1/rank",
            "o=d_in/d_in*d_in",
        ]
    ),
    max_size=5,
).map(" ".join)


def _table(keys: st.SearchStrategy[str], values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(keys, values, max_size=4)


numbers = st.one_of(
    st.integers(-2, 20), st.floats(), st.sampled_from([2**63, -(2**64), 10**400, float("nan"), float("inf")])
)
choices = st.sampled_from([["never", "auto", "always"], [], ["a"] * 70])
options = st.fixed_dictionaries(
    {"default": st.one_of(numbers, st.booleans(), st.sampled_from(["auto", "keep"]))},
    optional={"min": numbers, "max": numbers, "choices": choices, "help": st.text(max_size=30)},
)
parameters = st.fixed_dictionaries(
    {
        "axes": axes,
        "init": st.one_of(
            st.sampled_from([*LAWS, "normal(std=0.02)", "normal(std=alpha)", "uniform(low=1, high=x)"]),
            st.sampled_from(
                [
                    "length(W, axis='d_in')",
                    "svd_vh(W, rank)",
                    "W",
                    "A",
                    "saved(A)",
                    "first(x, rank, axis='d_in')",
                ]
            ),
            expressions,
        ),
    },
    optional={"dtype": st.sampled_from(["float32", "int8"]), "trainable": st.booleans()},
)
matches = st.fixed_dictionaries(
    {"role": st.one_of(st.sampled_from([*ROLES]), st.lists(st.sampled_from([*ROLES]), max_size=3))},
    optional={
        "part": st.sampled_from(["q", "decoder.q", "qq", ["q", "v"]]),
        "values": _table(st.sampled_from(PORTS), axes),
        "where": st.lists(expressions, max_size=2),
    },
)
local_names = st.sampled_from(["A", "B", "scale", "delta", "rank", "lambda", "a b", "x"])
losses = st.fixed_dictionaries(
    {"value": st.one_of(expressions, st.sampled_from(["sum(sum(A, axis='rank'), axis='d_in')", "1"]))},
    optional={
        "weight": st.one_of(numbers, local_names, names),
        "reduce": st.sampled_from(["sum", "mean", "max"]),
    },
)
schedules = st.fixed_dictionaries(
    {
        "policy": st.sampled_from([*POLICIES, "policy"]),
        "parameters": _table(st.sampled_from(["value", "left", "right", "keep", "other"]), local_names),
    },
    optional={
        "settings": _table(
            st.sampled_from(["start", "stop", "most", "target", "every", "shape", "begin", "none"]),
            st.one_of(numbers, names, st.sampled_from(["linear", "rank", 2])),
        )
    },
)
quantises = st.fixed_dictionaries(
    {"format": st.one_of(st.sampled_from([*FORMATS, "format"]), names)},
    optional={
        "settings": _table(
            st.sampled_from(["blocksize", "double", "none"]),
            st.one_of(numbers, names, st.sampled_from([64, 128, True])),
        ),
        "compute": st.one_of(st.sampled_from(["input", "bfloat16", "int8"]), names),
    },
)
sections = st.fixed_dictionaries(
    {"match": matches},
    optional={
        "parameters": _table(local_names, parameters),
        "let": _table(local_names, expressions),
        "rewrite": _table(st.sampled_from(PORTS), expressions),
        "merge": _table(st.sampled_from(PORTS), expressions),
        "train": _table(st.sampled_from(PORTS), st.sampled_from([{}, {"insert": "insert"}])),
        "quantise": _table(st.sampled_from(["W", "b", "x"]), quantises),
        "loss": _table(local_names, losses),
        "schedule": _table(local_names, schedules),
    },
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=9), st.dates(), st.binary(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def grown(draw: Callable[[st.SearchStrategy[Any]], Any]) -> dict[str, Any]:
    """A mapping with the sections of a rule, filled from the vocabulary; now and then with something else."""
    head = {"format": 1, "name": "grown", "summary": "Grown."}
    rule: dict[str, Any] = {**head, **draw(sections), "options": draw(_table(names, options))}
    if draw(st.booleans()):
        rule["also"] = draw(st.lists(sections, max_size=2))
    if draw(st.integers(0, 3)) == 0:
        rule[draw(st.sampled_from([*Rule.model_fields, "other"]))] = draw(anything)
    return rule


@st.composite
def specs(draw: Callable[[st.SearchStrategy[Any]], Any]) -> str:
    """Something like a rule spec."""
    some = st.sampled_from([
        ";", "; *.0.*:", "*:q: rank=4",
        *SHIPPED, ":", "@", "(", ")", ",", "=", ".", "rank", "length", "4", "q", "v", "decoder.q", "path=*.x", "4-11",
        "6-", "-", "'", '"', " ", "x.toml", "/dev/zero", "/proc/self/mem", ".toml", "path=", "*", "0" * 500, *NASTY,
    ])  # fmt: skip
    if draw(st.booleans()):
        return "".join(draw(st.lists(st.one_of(some, st.text(max_size=5)), max_size=8)))
    name = draw(st.sampled_from(sorted(SHIPPED)))
    return f"{name}:{draw(some)}@{draw(some)}({draw(names)}={draw(some)})"
