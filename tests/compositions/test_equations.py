"""Several rules in one model against the sum of their references: each one's equation, one after the other.

`benchmarks/compositions.py` compares the outputs of every pair so. Here are gradients too, and rules at layers of
their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.rules.test_written_out import captured, check, filled
from tests.rules.written_out import WrittenOut

PAIRS = [
    ("decoder", "bottleneck(size=6)", "houlsby(size=6)"),
    ("decoder", "compacter(reduction=3)", "parallel(size=6, place=both)"),
    ("decoder", "loreft(rank=4)", "prompt(length=3)"),
    ("decoder", "prefix(length=3)", "prefix_mlp(length=2, hidden=5)"),
    ("decoder", "oft(block=4)", "lora(rank=4)"),
    ("encoder", "pfeiffer(size=6)", "adapter_drop(size=6)"),
    ("encoder", "mam(prefix_length=3, bottleneck_size=6)", "p_tuning_v2(length=2)"),
    ("both", "adapter_fusion", "unipelt"),
    ("both", "p_tuning(length=2, hidden=5)", "loreft(rank=4, last=3)"),
    ("both", "ia3", "adalora(rank=4, target=2)"),
]
"""Most of rules that stay beside the weights: no merged model says what these come to."""


@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
@pytest.mark.parametrize(("kind", "one", "other"), PAIRS)
def test_a_pair_is_both_equations(kind: str, one: str, other: str, turned: bool) -> None:
    agree(kind, [other, one] if turned else [one, other])


@pytest.mark.parametrize(
    ("kind", "specs", "places"),
    [
        (
            "decoder",
            ["lora:q,v@0(rank=4)", "bottleneck:ffn@1(size=6)"],
            {"q": [0], "v": [0], "down": [1]},
        ),
        (
            "encoder",
            ["prefix@0(length=3)", "houlsby@1(size=6, norms=freeze)"],
            {"attention": [0], "o": [1], "down": [1]},
        ),
        (
            "both",
            ["lora:encoder.q@0(rank=4)", "lora:cross.v@1(rank=4)", "parallel:decoder@1(size=6)"],
            {"q": [0], "v": [1], "down": [1]},
        ),
        (
            "decoder",
            ["lora:q,v@0(rank=4)", "dora:q,v@1(rank=4)", "bitfit:q@0"],
            {"q": [0, 1, 0], "v": [0, 1]},
        ),
    ],
)
def test_a_mix_of_layers_is_each_equation_at_its_own(
    kind: str, specs: Sequence[str], places: dict[str, list[int]]
) -> None:
    written = agree(kind, specs)
    found = {
        place: [int(next(part for part in path.split(".") if part.isdigit())) for path in paths]
        for place, paths in written.touched.items()
    }
    assert found == places


def agree(kind: str, specs: Sequence[str]) -> WrittenOut:
    """Rules in the order given: outputs and gradients are those of their equations."""
    held = captured(kind)
    compiled = filled(held.compiled(specs), kind)
    written = WrittenOut(held.model, kind, compiled, [bound.label for bound in compiled.peftc_plan.rules])
    check(kind, compiled, written)
    return written
