"""Fragments: what their calls become, and every way they are refused, word for word."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from peftc.errors import RuleError
from peftc.lang import Rule, check, default_library, read_text

HEAD = 'format = 1\nname = "gated"\nsummary = "A gate."\n'
GATE = """
[define.gate]
takes      = { h = "batch seq d" }
parameters = { w = { axes = "d", init = "normal(std=0.02)" }, b = { axes = "", init = "zeros" } }
gives      = "mean(sigmoid(h @ w + b), axis='seq')"
"""
MATCH = """
[match]
role   = "linear"
values = { x = "batch seq d_in", y = "batch seq d_out" }
"""
NORM = '\n[match]\nrole = "norm"\nvalues = { x = "batch tokens d", y = "batch tokens d" }\n'


def rule(text: str) -> Rule:
    return check(read_text(HEAD + text, "gated.toml"), default_library().rule)


def test_a_call_makes_parameters_of_its_own() -> None:
    flat = rule(GATE + MATCH + '[rewrite]\ny = "gate(x) * y + gate(y)"')
    by_hand = f"""{MATCH}
        [parameters]
        gate_w = {{ axes = "d_in", init = "normal(std=0.02)" }}
        gate_b = {{ axes = "", init = "zeros" }}
        gate_2_w = {{ axes = "d_out", init = "normal(std=0.02)" }}
        gate_2_b = {{ axes = "", init = "zeros" }}
        [let]
        gate = "mean(sigmoid(x @ gate_w + gate_b), axis='seq')"
        gate_2 = "mean(sigmoid(y @ gate_2_w + gate_2_b), axis='seq')"
        [rewrite]
        y = "gate * y + gate_2"
    """
    assert flat == rule(by_hand)
    assert not flat.define


def test_a_call_in_a_binding_is_shared() -> None:
    flat = rule(GATE + MATCH + '[let]\ng = "gate(x)"\n[rewrite]\ny = "g * y + g"')
    assert set(flat.parameters) == {"gate_w", "gate_b"}


def test_axes_are_lined_up_by_position() -> None:
    flat = rule(GATE + NORM + '[rewrite]\ny = "gate(x + y) * y"')
    assert flat.let["gate_h"] == "x + y"
    assert flat.let["gate"] == "mean(sigmoid(gate_h @ gate_w + gate_b), axis='tokens')"
    assert flat.parameters["gate_w"].axes == "d"


def test_a_fragment_has_bindings_options_and_axes_of_its_own() -> None:
    flat = rule(f"""
        [options]
        width = {{ default = 5, min = 1 }}
        [define.squeeze]
        takes = {{ h = "* d" }}
        [define.squeeze.parameters]
        down = {{ axes = "d_in=width d", init = "zeros" }}
        up   = {{ axes = "d d_in=width", init = "zeros" }}
        [define.squeeze.let]
        inner = "softmax(h @ down, axis='d_in')"
        [define.squeeze]
        gives = "inner @ up"
        {MATCH}
        [rewrite]
        y = "squeeze(y)"
    """.replace('[define.squeeze]\n        gives = "inner @ up"\n', "").replace(
        'takes = { h = "* d" }', 'takes = { h = "* d" }\n        gives = "inner @ up"'
    ))  # fmt: skip
    assert flat.parameters["squeeze_down"].axes == "squeeze_d_in=width d_out"
    assert flat.let["squeeze_inner"] == "softmax(y @ squeeze_down, axis='squeeze_d_in')"


def test_sizes_follow_the_axes_of_the_argument() -> None:
    flat = rule(
        GATE
        + MATCH
        + """
        [options]
        rank = { default = 4, min = 1 }
        [parameters]
        A = { axes = "rank d_in", init = "zeros" }
        C = { axes = "few=7 d_in", init = "zeros" }
        [rewrite]
        y = "y * gate(x @ A) * gate(x @ C)"
        """
    )
    assert flat.parameters["gate_w"].axes == "rank"
    assert flat.parameters["gate_2_w"].axes == "few=7"


def test_bindings_may_stand_in_any_order() -> None:
    flat = rule(
        GATE + MATCH + '[let]\na = "gate(c)"\nc = "d * x"\nd = "e + 1"\ne = "gate(x)"\n[rewrite]\ny = "y * a"'
    )
    assert flat.let["gate"] == "mean(sigmoid(c @ gate_w + gate_b), axis='seq')"
    assert flat.let["e"] == "gate_2"


def test_fragments_call_fragments() -> None:
    flat = rule(
        GATE
        + '[define.double]\ntakes = { a = "batch seq e" }\ngives = "gate(a) * gate(a)"\n'
        + MATCH
        + '[rewrite]\ny = "y * double(gate(x) * x)"'
    )
    assert set(flat.parameters) == {f"gate{n}_{p}" for n in ("", "_2", "_3") for p in "wb"}
    assert flat.let["double"] == "gate_2 * gate_3"


def test_a_merge_reads_the_binding_that_the_rewrite_reads() -> None:
    half = '[define.half]\ntakes = { a = "d" }\nparameters = { s = { axes = "d", init = "ones" } }\ngives = "a * s"\n'
    flat = rule(
        half
        + '[match]\nrole = "norm"\n[parameters]\nu = { axes = "d", init = "ones" }\n'
        + '[let]\nv = "half(u)"\n[rewrite]\ny = "y * v"\n[merge]\nW = "W * v"'
    )
    assert set(flat.parameters) == {"u", "half_s"}


def case(code: str, *parts: str) -> tuple[str, str]:
    return code, "\n".join(parts)


USE = '[rewrite]\ny = "gate(x) * y"'
LORA = '[[use]]\nrule = "lora"\nlet.scale = "gate(x)"'
TWO = GATE.replace('"batch seq d" }', '"batch seq d", k = "batch seq d" }').replace("h @ w", "h * k @ w")
OTHER = '[define.other]\ntakes = { a = "batch seq d" }\ngives = "gate(a) * a"'
TWICE = [f'[define.f{n}]\ntakes = {{ a = "* d" }}\ngives = "f{n + 1}(a) * f{n + 1}(a)"' for n in range(8)]
LAST = '[define.f8]\ntakes = { a = "* d" }\ngives = "2 * a"'
CASES = [
    case("R003", GATE + "give = 1", MATCH, USE),
    case("R004", GATE.replace("gives ", "# "), MATCH, USE),
    case("R005", GATE.replace('{ h = "batch seq d" }', "{}"), MATCH, USE),
    case("R007", GATE.replace("+ b", "+"), MATCH, USE),
    case("R010", GATE.replace('"batch seq d"', '"batch batch d"'), MATCH, USE),
    case("R010", GATE.replace('axes = "d"', 'axes = "D"'), MATCH, USE),
    case("R011", GATE.replace("zeros", "zeroes"), MATCH, USE),
    case("R020", GATE.replace("define.gate", "define.mean"), MATCH, USE),
    case("R020", GATE.replace("h =", "w ="), MATCH, USE),
    case("R020", GATE, MATCH, '[let]\ngate = "gate(x)"\n[rewrite]\ny = "gate * y"'),
    case("R010", GATE, MATCH.replace("batch seq d_in", "batch * d_in"), USE),
    case(
        "R010",
        GATE,
        MATCH,
        '[parameters]\nA = { axes = "R d_in", init = "zeros" }',
        USE.replace("gate(x)", "gate(x @ A)"),
    ),
    case("R023", GATE, MATCH.replace("linear", "liner"), USE),
    case("R023", GATE, MATCH.replace('"linear"', "[]"), USE),
    case("R025", GATE, MATCH.replace("y =", "z ="), USE),
    case("R028", GATE.replace("@ w", "@ ww"), MATCH, USE),
    case("R028", GATE.replace("@ w", "@ w * y"), MATCH, USE),
    case("R029", GATE, MATCH, USE.replace("gate(x)", "gaet(x) * gate(x)")),
    case("R030", GATE, MATCH, USE.replace("gate(x)", "gate(x, y)")),
    case("R030", GATE, MATCH, USE.replace("gate(x)", "gate(h=x)")),
    case("R031", GATE, MATCH.replace("batch seq", "*"), USE),
    case("R031", GATE, MATCH, USE.replace("gate(x)", "gate(mean(x, axis='seq'))")),
    case("R031", GATE, MATCH, USE.replace("gate(x)", "gate(3)")),
    case("R031", GATE, MATCH, USE.replace("gate(x)", "gate(x @ y)")),
    case("R031", TWO, MATCH, USE.replace("gate(x)", "gate(x, y)")),
    case("R031", GATE.replace("+ b", "+ b @ h"), MATCH, USE),
    case("R032", GATE.replace('axes = "d"', 'axes = "e"'), MATCH, USE),
    case("R033", GATE.replace('axes = "d"', 'axes = "seq"'), MATCH, USE),
    case("R034", GATE.replace(" + b", ""), MATCH, USE),
    case("R035", GATE.replace('"batch seq d" }', '"batch seq d", k = "d" }'), MATCH, USE),
    case("R039", GATE.replace(", axis='seq'", ", axis='batch'"), MATCH, '[rewrite]\ny = "gate(x)"'),
    case("R054", GATE.replace("h @ w", "h * gate(h) @ w"), MATCH, USE),
    case("R054", GATE.replace("h @ w", "other(h) @ w"), OTHER, MATCH, USE),
    case("R055", GATE, MATCH, '[rewrite]\ny = "2 * y"'),
    case("R056", GATE, MATCH, USE, "[merge]\nW = \"W * mean(gate(x), axis='batch')\""),
    case("R031", GATE, LORA, "merge = false"),
    case("R039", GATE, LORA, 'match.values = { x = "batch seq d_in", y = "batch seq d_out" }'),
    case("R050", *TWICE, LAST, MATCH, '[rewrite]\ny = "f0(y)"'),
]


def refusal(text: str) -> RuleError:
    with pytest.raises(RuleError) as caught:
        rule(text)
    return caught.value


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_each_fault_has_its_code(index: int) -> None:
    code, text = CASES[index]
    assert refusal(text).code == code


def test_messages(golden: Callable[[str, str], None]) -> None:
    golden("lang/define_errors.txt", "\n\n".join(f"{text.strip()}\n\n{refusal(text)}" for _, text in CASES))
