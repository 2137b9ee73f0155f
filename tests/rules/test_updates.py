"""Reparameterisations against their papers' equations, several of them at once on different parts of real architectures.

A decoder with grouped heads and no biases, one with fused projections stored [d_in d_out], an encoder with the norm
behind, and an encoder with a decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import peftc
from tests.models import bert, llama, padding, tokens
from tests.rules.test_stored import conv
from tests.rules.updates import by_hand
from tests.zoo import entry, inputs


def t5() -> Any:
    """An encoder and a decoder, with attention across."""
    return entry("t5").model()


MODELS: dict[str, Callable[[], Any]] = {"llama": llama, "conv": conv, "bert": bert, "t5": t5}
RULES = {
    "low-rank": ["rslora:q(rank=4)", "dora:v,down(rank=3)", "pissa:k(rank=3, alpha=5)", "olora:o(rank=4, alpha=6)",
                 "lokr:up(rank=3)"],
    "turned": ["oft:q,v(block=4)", "vera:k,o,up(rank=5)", "loha:down(rank=3)"],
    "scaled": ["ia3", "oft:o,up(block=8, terms=4)", "lokr:q(factor=3, rank=2)"],
}  # fmt: skip
BOTH = [pytest.param(model, rules, id=f"{model}-{rules}") for model in MODELS for rules in RULES]


def batch(name: str, model: Any) -> dict[str, Tensor]:
    if name == "t5":
        return inputs(model)
    return {"input_ids": tokens(model.config.vocab_size), "attention_mask": padding()}


@dataclass(frozen=True)
class Case:
    """A model, compiled; `start` is how far it is from the plain one before anything is changed, over its scale."""

    model: Any
    compiled: Any
    given: dict[str, Tensor]
    start: float


@cache
def made(name: str, rules: str) -> Case:
    """One for all tests, which give it other values and leave them there."""
    model = MODELS[name]()
    given = batch(name, model)
    compiled: Any = peftc.compile(model, RULES[rules], given, defaults=False).eval()
    with torch.no_grad():
        first = logits(compiled, given)
        with compiled.disable_adapter():
            plain = logits(compiled, given)
    shake(compiled, 0.1 if name == "t5" else 0.2)  # scores without a factor are steep in their inputs
    return Case(model, compiled, given, float((first - plain).abs().max() / plain.abs().max()))


def logits(model: Any, given: dict[str, Tensor]) -> Tensor:
    out = model(**given)
    found: Tensor = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return found


def shake(compiled: Any, std: float = 0.2) -> None:
    """Random values in place of the initial ones, frozen ones included; scales keep away from 0."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for each in compiled.peftc_plan.new_tensors:
            parameter, path = compiled.get_parameter(each.path), each.path
            drawn = std * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + drawn if path.rpartition(".")[2] in ("l", "m") else drawn)


def close(one: Tensor, other: Tensor) -> None:
    """Within 1e-5, of the scale of the values where that is above 1."""
    assert (one - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max().detach()))


def rows(path: str, part: str, width: int) -> Tensor:
    """The channels of a part: thirds where queries, keys and values are one matrix."""
    if path.endswith("c_attn"):
        third = width // 3
        return torch.arange(third) + third * "qkv".index(part)
    return torch.arange(width)


@pytest.mark.parametrize(("name", "rules"), BOTH)
def test_it_starts_as_the_model(name: str, rules: str) -> None:
    assert made(name, rules).start <= 1e-6


@pytest.mark.parametrize(("name", "rules"), BOTH)
def test_values_and_gradients_are_those_of_the_equations(name: str, rules: str) -> None:
    case = made(name, rules)
    reference = by_hand(case.model, case.compiled, rows)
    got, want = logits(case.compiled, case.given), logits(reference, case.given)
    assert (want - logits(case.model, case.given)).abs().max() > 1e-2
    close(got, want)
    weights = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))
    trained = {each: p for each, p in case.compiled.named_parameters() if p.requires_grad}
    assert {each.path for each in case.compiled.peftc_plan.new_tensors if each.trainable} == set(trained)
    ours = torch.autograd.grad((got * weights).sum(), list(trained.values()))
    theirs = torch.autograd.grad((want * weights).sum(), list(trained.values()))
    for path, one, other in zip(trained, ours, theirs, strict=True):
        assert other.abs().max() > 0, path
        assert (one - other).abs().max() <= 1e-5 * other.abs().max(), path


@pytest.mark.parametrize(("name", "rules"), BOTH)
def test_merged_equals_beside(name: str, rules: str) -> None:
    case = made(name, rules)
    with torch.no_grad():
        beside = logits(case.compiled, case.given)
        inside = logits(case.compiled.merge_and_unload(), case.given)
    close(inside, beside)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", ["llama", "conv"])
def test_the_way_back_gives_the_same_bits(name: str, rules: str, tmp_path: Path) -> None:
    case = made(name, rules)
    case.compiled.save_pretrained(tmp_path / "adapter")
    again: Any = peftc.load(case.model, tmp_path / "adapter", case.given).eval()
    with torch.no_grad():
        assert torch.equal(logits(again, case.given), logits(case.compiled, case.given))
