"""Parameters that several sites share, and frozen ones that are drawn from a seed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.errors import MatchError
from peftc.runtime.build import drawn
from tests.models import bert, llama, padding, randomise, tokens

# Frozen random matrices for the whole model, and two trained vectors for each site.
VECTORS = {
    "format": 1,
    "name": "vectors",
    "summary": "Scale a random update.",
    "shorthand": "part",
    "options": {"seed": {"default": 3, "min": 0}, "rank": {"default": 4, "min": 1}},
    "match": {"role": "linear", "part": ["q", "o"]},
    "parameters": {
        "A": {
            "axes": "rank d_in",
            "init": "normal(std=1)",
            "trainable": False,
            "share": "model",
            "seed": "seed",
        },
        "B": {
            "axes": "d_out rank",
            "init": "orthogonal",
            "trainable": False,
            "share": "model",
            "seed": "seed",
        },
        "g": {"axes": "rank", "init": "constant(value=0.1)"},
        "s": {"axes": "d_out", "init": "zeros"},
    },
    "rewrite": {"y": "y + s * ((x @ A) * g @ B)"},
    "merge": {"W": "W + (s * B * g) @ A"},
}


def rule(**changes: Any) -> peftc.Rule:
    given = copy.deepcopy(VECTORS)
    for key, value in changes.items():
        given["parameters"][key] |= value  # type: ignore[index]
    return peftc.Rule.model_validate(given)


def compiled_with(model: nn.Module, **changes: Any) -> Any:
    return peftc.compile(model, [rule(**changes)], defaults=False)


def named(compiled: Any, name: str) -> list[Tensor]:
    return [
        compiled.get_parameter(parameter.path)
        for each in compiled.peftc_plan.applications
        for parameter in each.parameters
        if parameter.name == name
    ]


class ByHand(nn.Module):
    """W x + c + s ⊙ B (g ⊙ A x)."""

    def __init__(self, own: nn.Module, a: Tensor, b: Tensor, g: Tensor, s: Tensor) -> None:
        super().__init__()
        self.own, self.a, self.b, self.g, self.s = own, a, b, g, s

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.own(x) + self.s * ((x @ self.a.T * self.g) @ self.b.T)
        return out


@pytest.mark.parametrize("make", [bert, pytest.param(llama, marks=pytest.mark.slow)])
def test_one_tensor_for_the_model(make: Any, tmp_path: Path) -> None:
    model = make().double()
    compiled = compiled_with(model, A={"trainable": True})
    assert len({id(tensor) for tensor in named(compiled, "A")}) == 1
    assert len({id(tensor) for tensor in named(compiled, "g")}) == 4
    randomise(compiled)
    trained = {name: p for name, p in compiled.named_parameters() if p.requires_grad}
    assert compiled.peftc_plan.trainable_count == sum(p.numel() for p in trained.values()) == 4 * 24 + 4 * 28
    want_of = copy.deepcopy(model)
    for each in compiled.peftc_plan.applications:
        tensors = {p.name: compiled.get_parameter(p.path) for p in each.parameters}
        own = want_of.get_submodule(each.site.path)
        hand = ByHand(own, tensors["A"], tensors["B"], tensors["g"], tensors["s"])
        want_of.set_submodule(each.site.path, hand)
    call = {"input_ids": tokens(), "attention_mask": padding()}
    got, want = compiled(**call).logits, want_of(**call).logits
    torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)
    weights = torch.randn_like(want)
    ours = torch.autograd.grad((got * weights).sum(), list(trained.values()))
    theirs = torch.autograd.grad((want * weights).sum(), list(trained.values()))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-9 * other.abs().max()
    compiled.save_pretrained(tmp_path / "adapter")
    loaded: Any = peftc.load(model, tmp_path / "adapter")
    assert len({id(tensor) for tensor in named(loaded, "A")}) == 1
    with torch.no_grad():
        assert torch.equal(loaded(**call).logits, compiled(**call).logits)
    inner = copy.deepcopy(compiled)
    assert len({id(tensor) for tensor in named(inner, "A")}) == 1


def test_one_tensor_for_each_layer() -> None:
    compiled = compiled_with(bert(), A={"share": "layer"})
    first, second = named(compiled, "A")[0], named(compiled, "A")[-1]
    assert len({id(tensor) for tensor in named(compiled, "A")}) == 2
    assert not torch.equal(first, second)


def test_a_submodule_called_alone_has_them_too() -> None:
    compiled = compiled_with(llama())
    randomise(compiled)
    hidden = compiled.model(tokens()).last_hidden_state
    torch.testing.assert_close(compiled.lm_head(hidden), compiled(tokens()).logits)


def test_a_seed_draws_the_same_and_leaves_torchs_own_generator_alone() -> None:
    found = []
    for other in (1, 2):
        torch.manual_seed(other)
        compiled = compiled_with(bert(seed=5), A={"share": "site"}, B={"share": "layer"})
        found.append([*named(compiled, "A"), *named(compiled, "B")])
    for one, other_tensor in zip(*found, strict=True):
        assert torch.equal(one, other_tensor)
    assert len({float(tensor[0, 0]) for tensor in found[0][:4]}) == 4
    plan = peftc.plan(bert(), [rule()], defaults=False)
    seeded = next(parameter for parameter in plan.new_parameters if parameter.name == "A")
    state = torch.get_rng_state()
    value = drawn(seeded)
    assert torch.equal(state, torch.get_rng_state())
    # The same on every machine: adapters may be made anew from the seed.
    torch.testing.assert_close(value[0, :3], torch.tensor([-1.5492970, 0.6880786, 1.3818827]))


def test_another_seed_draws_otherwise() -> None:
    one, other = (peftc.compile(bert(), [{"rule": rule(), "seed": seed}], defaults=False) for seed in (3, 4))
    assert not torch.equal(named(one, "A")[0], named(other, "A")[0])


def test_places_of_different_sizes_cannot_share() -> None:
    with pytest.raises(MatchError, match="A is shared, but its places need it in different shapes") as caught:
        peftc.plan(bert(), [{"rule": rule(), "part": ["q", "down"]}])
    assert "choose parts of one size" in str(caught.value)


def test_shared_tensors_count_once_towards_the_budget() -> None:
    count = sum(p.count for p in peftc.plan(bert(), [rule()], defaults=False).new_tensors)
    assert count == 2 * 4 * 24 + 4 * 28
    peftc.plan(bert(), [rule()], defaults=False, budget=count)


def test_the_explanation_counts_what_trains_once() -> None:
    told = peftc.explain(peftc.plan(bert(), [rule(A={"trainable": True})], defaults=False))
    assert sum(group.count for each in told.rules for group in each.groups) == told.trainable
