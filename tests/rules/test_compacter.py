"""Bottlenecks of Kronecker products behind every attention and feed-forward network, against the equation written out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from tests.models import bert, llama, randomise, tokens
from tests.zoo import entry, inputs


def matrix(small: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Σᵢ Aᵢ ⊗ (sᵢ tᵢᵀ) [out in], of A [i rows columns], s [out i rank] and t [in i rank]."""
    parts = [torch.kron(small[i], s[:, i] @ t[:, i].T) for i in range(len(small))]
    return torch.stack(parts).sum(0)


class Behind(nn.Module):
    """h + W_u GELU(W_d h + b_d) + b_u of the output h of another module."""

    def __init__(self, own: nn.Module, held: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.own, self.held = own, held

    @property
    def weight(self) -> Any:
        """Models look at the dtype of it."""
        return self.own.weight

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.own(x)
        own = self.held
        down = matrix(own["A"], own["down_s"], own["down_t"])
        up = matrix(own["A"], own["up_s"], own["up_t"])
        inner = functional.gelu(h @ down.T + own["down_b"], approximate="tanh")
        return h + inner @ up.T + own["up_b"]


ENDS = {
    "bert": {".attention.self": ".attention.output.dense", "": ".output.dense"},
    "llama": {".self_attn": ".self_attn.o_proj", ".mlp": ".mlp.down_proj"},
    "t5": {"Attention": "Attention.o", ".DenseReluDense": ".DenseReluDense.wo"},
}
"""How the path of a site ends, and how that of the last product there does."""


def end(kind: str, path: str) -> str:
    mine, its = next((mine, its) for mine, its in ENDS[kind].items() if path.endswith(mine))
    return path.removesuffix(mine) + its


@pytest.mark.parametrize(
    ("kind", "make", "reduction", "count"),
    [("bert", bert, 3, 4), ("llama", llama, 3, 4), ("t5", lambda: entry("t5").model(), 4, 10)],
)
def test_the_equation(kind: str, make: Callable[[], Any], reduction: int, count: int) -> None:
    model = make().double()
    given = inputs(model)
    spec = f"compacter:{reduction}(rank=2, norms=freeze)"
    compiled: Any = peftc.compile(model, [spec], given, defaults=False)
    randomise(compiled, scale=0.5)
    want_of = copy.deepcopy(model)
    for application in compiled.peftc_plan.applications:
        held = {each.name: compiled.get_parameter(each.path) for each in application.parameters}
        path = end(kind, application.site.path)
        want_of.set_submodule(path, Behind(want_of.get_submodule(path), held))
    assert len(compiled.peftc_plan.applications) == count
    own = {name: each for name, each in compiled.named_parameters() if each.requires_grad}
    assert len([name for name in own if name.endswith(".A")]) == 1  # shared by all sites
    got, want = compiled(**given).logits, want_of(**given).logits
    assert (got - model(**given).logits).abs().max() > 1e-3
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)
    weights = torch.randn_like(want)
    ours = torch.autograd.grad((got * weights).sum(), list(own.values()))
    theirs = torch.autograd.grad((want * weights).sum(), list(own.values()))
    for name, one, other in zip(own, ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-8 * max(float(other.abs().max()), 1e-6), name


@pytest.mark.slow
def test_it_trains_the_norms_and_starts_close_to_the_model(tmp_path: Path) -> None:
    model = bert(num_hidden_layers=1)
    compiled: Any = peftc.compile(model, ["compacter:3"], defaults=False)
    want = {name for name, _ in model.named_parameters() if "LayerNorm" in name}
    assert set(compiled.peftc_plan.trained) == want
    with torch.no_grad():
        assert (compiled(tokens()).logits - model(tokens()).logits).abs().max() < 0.1
    randomise(compiled)
    compiled.save_pretrained(tmp_path / "adapter")
    loaded: Any = peftc.load(model, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(loaded(tokens()).logits, compiled(tokens()).logits)


@pytest.mark.parametrize("norms", ["freeze", "train"])
def test_a_width_that_the_terms_do_not_divide_is_refused(norms: str) -> None:
    """Norms alone would be another method."""
    with pytest.raises(peftc.errors.NoMatchError, match="no whole number"):
        peftc.plan(bert(), [f"compacter:3(terms=5, norms={norms})"], defaults=False)


def test_the_papers_numbers_are_the_defaults() -> None:
    rule = peftc.lang.default_library().rule("compacter")
    assert {name: option.default for name, option in rule.options.items()} == {
        "reduction": 32, "terms": 4, "rank": 1, "act": "gelu_tanh", "norms": "train",
    }  # fmt: skip
