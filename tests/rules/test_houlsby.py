"""A bottleneck behind every attention and feed-forward network, against the equation written out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from tests.models import bert, llama, padding, randomise, tokens
from tests.rules.composites import check_saved


class Behind(nn.Module):
    """h + W_u GELU(W_d h + b_d) + b_u of the output h of another module."""

    def __init__(self, own: nn.Module, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.own, self.tensors = own, tensors

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.own(x)
        inner = functional.gelu(h @ self.tensors["down_w"].T + self.tensors["down_b"])
        return h + inner @ self.tensors["up_w"].T + self.tensors["up_b"]


def places(model: Any, kind: str) -> list[str]:
    """What the bottlenecks stand behind: the last linear of each attention and of each network."""
    ends = ("output.dense",) if kind == "bert" else ("o_proj", "down_proj")
    return [path for path, _ in model.named_modules() if path.endswith(ends)]


@pytest.mark.parametrize(("make", "kind"), [(bert, "bert"), (llama, "llama")], ids=["bert", "llama"])
def test_the_equation_and_the_norms(make: Callable[[], Any], kind: str) -> None:
    model = make().double()
    compiled: Any = peftc.compile(model, ["houlsby:8"], defaults=False)
    randomise(compiled)
    want_of = copy.deepcopy(model)
    norms = [want_of.get_parameter(name) for name in compiled.peftc_plan.trained]
    assert {"norm" in name.lower() for name in compiled.peftc_plan.trained} == {True}
    new = [each for each in compiled.peftc_plan.applications if each.parameters]
    assert len(new) == len(places(model, kind)) == 4
    tensors: list[Tensor] = []
    for path in places(model, kind):
        (each,) = [
            one
            for one in new
            if path == one.site.path
            or (
                one.site.role == "ffn"
                and path in (f"{one.site.path}.output.dense", f"{one.site.path}.down_proj")
            )
        ]
        held = {p.name.partition("_")[2]: compiled.get_parameter(p.path) for p in each.parameters}
        tensors += held.values()
        want_of.set_submodule(path, Behind(want_of.get_submodule(path), held))
    call = {"input_ids": tokens(), "attention_mask": padding()}
    got, want = compiled(**call).logits, want_of(**call).logits
    assert (got - model(**call).logits).abs().max() > 1e-3
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)
    weights = torch.randn_like(want)
    own = [compiled.get_parameter(name) for name in compiled.peftc_plan.trained]
    assert {id(p) for p in compiled.parameters() if p.requires_grad} == {id(p) for p in (*tensors, *own)}
    ours = torch.autograd.grad((got * weights).sum(), [*tensors, *own])
    theirs = torch.autograd.grad((want * weights).sum(), [*tensors, *norms])
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-8 * other.abs().max()


def test_norms_can_stay_frozen() -> None:
    plan = peftc.plan(bert(), ["houlsby:8(norms=freeze)"], defaults=False)
    assert not plan.trained
    assert len(plan.applications) == 4


def test_it_starts_close_to_the_model_and_is_saved(tmp_path: Path) -> None:
    model = bert()
    compiled: Any = peftc.compile(model, ["houlsby:8"], defaults=False)
    with torch.no_grad():
        assert (compiled(tokens()).logits - model(tokens()).logits).abs().max() < 1e-3
    randomise(compiled)
    check_saved(compiled, model, tmp_path / "adapter")


def test_the_papers_numbers_are_the_defaults() -> None:
    plan = peftc.plan(bert(), ["houlsby"], defaults=False)
    assert plan.bound("houlsby").options["size"] == 64
    assert {p.settings["std"] for p in plan.new_parameters if p.name.endswith("_w")} == {0.001}
    small = peftc.plan(bert(), ["houlsby:1(norms=freeze)"], defaults=False)
    assert small.trainable_count == 4 * (3 * 24 + 1)
