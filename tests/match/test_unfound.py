"""Attentions some of whose products were not found, and linear maps in no part: what is said of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from tests.models import bert, llama

WIDTH, HEADS = 12, 3
GIVEN = {"x": torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))}


def heads(x: Tensor) -> Tensor:
    split: Tensor = x.unflatten(-1, (HEADS, -1))
    return split.transpose(1, 2)


class Summed(nn.Module):
    """An attention whose values are summed over the tokens before, which nothing follows to a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        values = self.v(x).cumsum(1)
        gathered = functional.scaled_dot_product_attention(heads(self.q(x)), heads(self.k(x)), heads(values))
        return x + self.o(gathered.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


WHY = "attention .:attention: no v was found, since its v is made by cumsum, behind which no product with a weight was seen"


@pytest.mark.parametrize(
    ("rule", "is_said"),
    [("lora:attention", True), ("lora:q,k", False), ("lora:all-linear", False), ("prefix:2", False)],
)
def test_a_part_that_was_not_found_is_noted_where_a_rule_asks_for_it(rule: str, is_said: bool) -> None:
    plan = peftc.plan(Summed(), [rule], GIVEN)
    assert [note for note in plan.notes if note.startswith("attention ")] == ([WHY] if is_said else [])
    assert (f"note: {WHY}" in str(peftc.explain(plan))) == is_said


def test_where_no_attention_has_a_part_that_is_asked_for_the_error_says_why() -> None:
    with pytest.raises(peftc.errors.UnknownPartError, match="cumsum"):
        peftc.plan(Summed(), ["lora:q,v"], GIVEN)


def test_attentions_that_lack_the_same_share_a_note() -> None:
    model = nn.Sequential(Summed(), Summed())
    (note,) = (
        each
        for each in peftc.plan(model, ["lora:attention"], {"input": GIVEN["x"]}).notes
        if each.startswith("attention ")
    )
    assert note.startswith("attention 0:attention and 1 more: no v")


def test_a_map_in_no_part_says_what_reads_it() -> None:
    (site,) = (each for each in peftc.sites(Summed(), GIVEN) if each.role == "linear" and not each.part)
    assert (site.path, site.evidence) == ("v", "no part of an attention or a network: read by cumsum")


class OverQueries(nn.Module):
    """An attention whose weights sum to one over the queries: none that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights = (heads(self.k(x)) @ heads(self.q(x)).mT).softmax(-2).mT
        return x + self.o((weights @ heads(self.v(x))).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Routed(nn.Module):
    """Two networks, weighed by a softmax that is none of an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.one, self.other = (nn.Linear(WIDTH, size) for size in (2, WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.router(x).softmax(-1).split(1, -1)
        return x + one * self.one(x) + other * self.other(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("rule", "is_said"),
    [("prefix:2", True), ("lora:q,k", True), ("lora:attention", True), ("lora:all-linear", False)],
)
def test_an_attention_that_was_not_read_is_noted_where_a_rule_asks_for_attentions(
    rule: str, is_said: bool
) -> None:
    model = nn.Sequential(Summed(), OverQueries(), Routed())
    plan = peftc.plan(model, [rule], {"input": GIVEN["x"]})
    said = [note for note in plan.notes if note.startswith("not read as attention")]
    want = "not read as attention: softmax in 1: not over the last axis"
    assert said == ([want] if is_said else [])
    assert (f"note: {want}" in str(peftc.explain(plan))) == is_said


def test_a_map_in_front_of_a_new_head_is_told_of() -> None:
    plan = peftc.plan(bert(), ["lora:q,v"])
    assert any(
        "bert.pooler.dense between the blocks and the head does not train" in note for note in plan.notes
    )
    whole = peftc.plan(bert(), ["lora:q,v", "full:path=bert.pooler.dense.*"])
    assert set(whole.trained) >= {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert not any("pooler" in note for note in whole.notes)
    for model, defaults in ((llama(), True), (bert(), False)):
        found = peftc.plan(model, ["lora:q,v"], defaults=defaults)
        assert not any("between the blocks and the head" in note for note in found.notes)
