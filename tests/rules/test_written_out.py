"""Every rule of the library against its paper's equation written into three plain models: values and gradients.

A pre-norm decoder, an encoder with the norm behind, and an encoder with a decoder, one capture of each. Rules have
tests of their own beside this for what is theirs alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.captured import Captured, fill
from peftc.lang import default_library
from tests.models import bert, llama, padding, shaken, tokens
from tests.rules.test_adapter_fusion import t5
from tests.rules.written_out import PLACES, WrittenOut, modules_at

ALL = "q k v o gate up down"
WHERE = {
    **dict.fromkeys(("lora", "rslora", "dora", "pissa", "olora", "vera", "loha", "lokr", "oft"), "q v"),
    **dict.fromkeys(("bottleneck", "parallel", "pfeiffer", "adapter_drop", "adapter_fusion"), "down"),
    **dict.fromkeys(("prefix", "prefix_mlp", "p_tuning_v2"), "attention"),
    **dict.fromkeys(("prompt", "p_tuning"), "input"),
    **dict.fromkeys(("full", "head", "layernorm", "nf4"), ""),
    **dict.fromkeys(("houlsby", "compacter"), "o down"),
    "adalora": ALL,
    "bitfit": ALL,
    "ia3": "k v down",
    "loreft": "block",
    "mam": "attention down",
    "unipelt": "q v attention down",
}
"""Where a rule has parameters: everywhere at these places, and nowhere else."""
VARIANTS = {
    "lora:attention,ffn(rank=4)": ALL,
    "lora:o(rank=4)": "o",
    "oft:q,up(block=4, terms=4)": "q up",
    "bottleneck(size=6, act=tanh, scale=0.5)": "down",
    "parallel(size=6, place=attention, act=silu)": "o",
    "parallel(size=6, place=both)": "o down",
    "pfeiffer(size=6, reads=sum)": "down",
    "loreft(rank=4, first=2, last=3)": "block",
    "p_tuning(length=3, hidden=5, network=mlp)": "input",
    "p_tuning_v2(length=3, hidden=5, encoder=mlp)": "attention",
}
"""Rules with options that change the equation, and where they have parameters."""


@cache
def captured(kind: str) -> Captured:
    """A model, and a call with padding; where there are two texts they are of one length, and one is padded."""
    model = {"decoder": llama, "encoder": bert, "both": lambda: shaken(t5())}[kind]()
    given = {"input_ids": tokens(), "attention_mask": padding()}
    return Captured(model, {**given, "decoder_input_ids": tokens(seed=8)} if kind == "both" else given)


def real(kind: str, logits: Tensor) -> Tensor:
    """Those of tokens that are no padding."""
    return logits[padding().bool()] if kind == "decoder" else logits


def filled(compiled: Any, kind: str) -> Any:
    """Random values in all that rules add and train; some ranks of an update are cut off."""
    fill(compiled)
    with torch.no_grad():
        for path, parameter in compiled.named_parameters():
            if "peftc" in path.split(".") and kind == "both":
                parameter.mul_(0.5)  # scores without a factor are steep in their inputs
            if path.endswith(".adalora.q.E"):
                parameter[::2] = 0
    return compiled


def check(kind: str, compiled: Any, written: WrittenOut) -> None:
    """Outputs within 1e-5 of the largest, and gradients of all that trains."""
    given = captured(kind).given
    plain = real(kind, captured(kind).model(**given).logits)
    got, want = real(kind, compiled(**given).logits), real(kind, written(**given))
    assert (want - plain).abs().max() > 1e-3
    assert (got - want).abs().max() <= 1e-5 * max(1.0, float(want.detach().abs().max()))
    own = {path: each for path, each in compiled.named_parameters() if each.requires_grad}
    if not own:
        return
    weights = torch.randn(want.shape, generator=torch.Generator().manual_seed(0))
    ours = torch.autograd.grad((got * weights).sum(), list(own.values()))
    theirs = torch.autograd.grad((want * weights).sum(), list(own.values()))
    scales = [float(each.abs().max()) for each in theirs]
    # Sums of what nearly cancels (a gate's bias, a bias of keys, which moves all scores of a query alike) are nothing
    # but rounding: they are held against the largest gradient.
    least = max(scales) / 20
    for path, one, other, scale in zip(own, ours, theirs, scales, strict=True):
        assert scale > 0, path
        far = float((one - other).abs().max())
        assert far <= 1e-5 * max(scale, least), (path, far, scale, least)


CASES = [
    pytest.param(kind, rule, where, id=f"{kind}-{rule}")
    for kind in PLACES
    for rule, where in (WHERE | VARIANTS).items()
    if (rule, kind) not in {("head", "decoder"), ("head", "both")}
]


@pytest.mark.parametrize(("kind", "rule", "where"), CASES)
def test_values_and_gradients_are_those_of_the_equation(kind: str, rule: str, where: str) -> None:
    held = captured(kind)
    compiled = filled(held.compiled([rule]), kind)
    (label,) = (bound.label for bound in compiled.peftc_plan.rules)
    written = WrittenOut(held.model, kind, compiled, [label])
    if (kind, rule) == ("encoder", "bitfit"):
        where = ""  # it trains the biases that there are
    assert set(written.touched) == {place for place in where.split() if place in {*PLACES[kind], "input"}}
    for place, paths in written.touched.items():
        assert place == "input" or sorted(paths) == sorted(modules_at(held.model, kind, place))
    check(kind, compiled, written)


@pytest.mark.parametrize("rule", ["prefix_mlp", "p_tuning_v2(length=3, hidden=5, encoder=mlp)"])
def test_each_scope_has_a_network_of_its_own(rule: str) -> None:
    """What is shared in the equations above is one parameter for the encoder, the decoder and across."""
    compiled = captured("both").compiled([rule])
    found: dict[str, dict[str, set[int]]] = {}
    for each in compiled.peftc_plan.applications:
        for made in each.parameters:
            name = made.name.removeprefix("mlp_")
            found.setdefault(name, {}).setdefault(each.site.scope, set()).add(
                id(compiled.get_parameter(made.path))
            )
    assert set(found) == {"P", "W", "b", "W_k", "b_k", "W_v", "b_v"}
    for name, by_scope in found.items():
        count = 1 if name in ("P", "W", "b") else 2
        assert {scope: len(own) for scope, own in by_scope.items()} == dict.fromkeys(
            ("encoder", "decoder", "cross"), count
        )
        assert len(set.union(*by_scope.values())) == 3 * count


def test_every_rule_is_written_out() -> None:
    missing = set(default_library().names()) - set(WHERE)
    assert not missing, (
        f"write the equations into tests/rules/written_out.py, and their places into this file: {missing}"
    )
    assert set(WHERE) <= set(default_library().names())
