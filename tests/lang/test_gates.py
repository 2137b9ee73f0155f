"""Gates: rules in which nothing is left where a parameter is 0 are proved, whatever the way in which they say so.

What is no gate is refused word for word: tests/golden/lang/rule_errors.txt, R063.
"""

from __future__ import annotations

import pytest

from peftc.lang import Rule, check, default_library, read_text
from peftc.lang.gates import gone

LIBRARY = default_library()
LORA = (LIBRARY.folders[0] / "lora.toml").read_text().partition("\n[[also]]")[0] + "\n"
ADALORA = (LIBRARY.folders[0] / "adalora.toml").read_text()
NUMBER = 'g = { axes = "", init = "ones", gate = true }\n\n[let]'
CONSTANT = 'c = { axes = "d_out", init = "zeros" }\n\n[let]'


def all_gone(rule: Rule, gate: str) -> bool:
    options = {name: option.typed(option.default) for name, option in rule.options.items()}
    return gone(rule, 0, rule.match.role[0], options, gate)


@pytest.mark.parametrize(
    "delta",
    [
        "(x @ A) * E @ B",
        "x @ (A * E) @ B",
        "x @ A @ (B * E)",
        "(-(x @ A) * -E @ B)",
        "tanh(gelu(square(E))) * (x @ A) @ B",
        "(activate(E, kind='leaky_relu') * (x @ A) @ B)",
        "dropout((x @ A) * E, p=0.5) @ B",
        "(E / (1 + square(x @ A)) * (x @ A) @ B)",
        "stop_gradient(masked(x @ A, E)) * E @ B",
        "(E + 2 * E - E) * (x @ A) @ B",
        "while_training(E, otherwise=0) * (x @ A) @ B",
        "length(E * A, axis='d_in') * (x @ A) @ B",
        "length(E, axis='rank') * ((x @ A) * E @ B)",
        "sum(E, axis='rank') * sum(E * B, axis='rank')",
        "layer_norm(x, axis='d_in') @ A * E @ B",
    ],
)
def test_an_axis_whose_entries_count_for_nothing_where_the_gate_is_0(delta: str) -> None:
    text = ADALORA.replace("(dropout(x, p=drop) @ A) * E @ B", f"dropout({delta}, p=drop)")
    rule = check(read_text(text, "adalora.toml"))
    assert rule.let["delta"] != LIBRARY.rule("adalora").let["delta"]
    assert all_gone(rule, "E")


@pytest.mark.parametrize(
    "new",
    ["y + g * delta", "g * delta + y", "y - delta * g", "y + tanh(delta) * g / 3", "y + g * delta + g * 2"],
)
def test_a_number_with_which_all_of_a_section_goes(new: str) -> None:
    text = LORA.replace("[let]", NUMBER).replace("y + delta", new).replace("W + scale", "W + g * scale")
    assert all_gone(check(read_text(text, "lora.toml")), "g")


def test_where_something_is_left_a_section_stays() -> None:
    """Entries of an axis can go, and yet the section does something without any."""
    text = ADALORA.replace('y = "y + delta"', 'y = "y + delta + c"').replace("[let]", CONSTANT)
    assert not all_gone(check(read_text(text, "adalora.toml")), "E")
    assert all_gone(LIBRARY.rule("adalora"), "E")
    assert all_gone(LIBRARY.rule("adapter_drop"), "bottleneck_kept")


def test_a_gate_is_part_of_what_a_rule_says() -> None:
    rule = LIBRARY.rule("adalora")
    assert rule.content["parameters"]["E"]["gate"] is True
    assert rule != check(read_text(ADALORA.replace(", gate = true", ""), "adalora.toml"))
