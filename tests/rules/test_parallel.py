"""The bottleneck beside a feed-forward network under a name of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from tests.models import bert, llama, randomise
from tests.rules.composites import check_equal
from tests.zoo import entry, inputs


@pytest.mark.parametrize(("make", "kind"), [(bert, "bert"), (llama, "llama")], ids=["bert", "llama"])
def test_the_equation(make: Callable[[], Any], kind: str) -> None:
    model = make().double()
    compiled = peftc.compile(model, ["parallel:8(scale=2)"], defaults=False)
    randomise(compiled, scale=0.1)
    check_equal(model, kind, compiled, scale=2.0, parallel=True)


def test_its_options_are_its_own() -> None:
    options = peftc.plan(bert(), ["parallel"], defaults=False).bound("parallel").options
    assert options == {"size": 512, "scale": 4.0, "act": "relu", "place": "ffn"}
    assert peftc.plan(bert(), ["parallel:1"], defaults=False).trainable_count == 2 * (3 * 24 + 1)


class Beside(nn.Module):
    """y + s (W_u ReLU(W_d x + b_d) + b_u), y the output of a module and x what the attention it ends reads."""

    def __init__(self, own: nn.Module, held: dict[str, Tensor], scale: float, x: list[Tensor]) -> None:
        super().__init__()
        self.own, self.held, self.scale, self.x = own, held, scale, x

    @property
    def weight(self) -> Any:
        """Models look at the dtype of it."""
        return self.own.weight

    def forward(self, gathered: Tensor) -> Tensor:
        y: Tensor = self.own(gathered)
        inner = (self.x[0] @ self.held["down_w"].T + self.held["down_b"]).clamp(min=0)
        return y + self.scale * (inner @ self.held["up_w"].T + self.held["up_b"])


ENDS = {"bert": ("query", "output.dense"), "llama": ("q_proj", "o_proj"), "t5": ("q", "o")}
"""The first and the last product of an attention."""


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("bert", bert),
        pytest.param("llama", llama, marks=pytest.mark.slow),
        pytest.param("t5", lambda: entry("t5").model(), marks=pytest.mark.slow),
    ],
)
def test_beside_the_attention(kind: str, make: Callable[[], Any]) -> None:
    model = make().double()
    given = inputs(model)
    compiled: Any = peftc.compile(model, ["parallel:8(place=attention, scale=2)"], given, defaults=False)
    randomise(compiled, scale=0.1)
    made, (q, o) = copy.deepcopy(model), ENDS[kind]
    for application in compiled.peftc_plan.applications:
        held = {p.name.partition("_")[2]: compiled.get_parameter(p.path) for p in application.parameters}
        path = application.site.path
        above = path.rpartition(".")[0] if kind == "bert" else path
        x: list[Tensor] = []

        def keep(_: Any, got: tuple[Tensor, ...], x: list[Tensor] = x) -> None:
            x[:] = [got[0]]

        made.get_submodule(f"{path}.{q}").register_forward_pre_hook(keep)
        own = made.get_submodule(f"{above}.{o}")
        made.set_submodule(f"{above}.{o}", Beside(own, held, 2.0, x))
    assert len(compiled.peftc_plan.applications) == (6 if kind == "t5" else 2)
    got, want = compiled(**given).logits, made(**given).logits
    assert (got - model(**given).logits).abs().max() > 1e-3
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)
    own_ones = [p for p in compiled.parameters() if p.requires_grad]
    ours = torch.autograd.grad(got.square().sum(), own_ones)
    theirs = torch.autograd.grad(want.square().sum(), own_ones)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-8 * other.abs().max()


def test_beside_both() -> None:
    plan = peftc.plan(bert(), ["parallel:8(place=both)"], defaults=False)
    assert [each.site.role for each in plan.applications] == ["ffn", "ffn", "residual", "residual"]
