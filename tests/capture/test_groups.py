"""Grouped heads without repeated keys: products of five axes, by einsum or by broadcasting, are attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from tests.models import randomise

WIDTH, GROUPS, HEADS, DIM = 16, 2, 3, 4


class Grouped(nn.Module):
    """Causal attention of two groups of three query heads, which share a key head."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, wide = form, GROUPS * HEADS * DIM
        self.first, self.last = nn.Linear(WIDTH, wide), nn.Linear(wide, WIDTH)
        self.second, self.third = nn.Linear(WIDTH, GROUPS * DIM), nn.Linear(WIDTH, GROUPS * DIM)
        self.bias = nn.Parameter(torch.randn(1, GROUPS, HEADS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.first(x).view(batch, length, GROUPS, HEADS, DIM)
        k, v = (part(x).view(batch, length, GROUPS, DIM) for part in (self.second, self.third))
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        away = torch.arange(length) - torch.arange(length)[:, None]
        match self.form:
            case "einsum":
                scores = torch.einsum("btghd,bsgd->bghts", q, k) * DIM**-0.5
                weights = scores.masked_fill(later, float("-inf")).softmax(-1)
                y = torch.einsum("bghts,bsgd->btghd", weights, v)
            case "a bias for each head":
                scores = torch.einsum("btghd,bsgd->bghts", q / DIM**0.5, k) + self.bias * away
                weights = torch.where(later, torch.finfo(x.dtype).min, scores).softmax(-1)
                y = torch.einsum("bghts,bsgd->btghd", weights, v)
            case _:
                q, k, v = q.permute(0, 2, 3, 1, 4), k.permute(0, 2, 1, 3), v.permute(0, 2, 1, 3)
                scores = q @ k.unsqueeze(2).transpose(-1, -2) / DIM**0.5
                scores = scores + torch.zeros(length, length).masked_fill(later, float("-inf"))
                weights = functional.dropout(scores.softmax(-1), 0.1, self.training)
                y = (weights @ v.unsqueeze(2)).permute(0, 3, 1, 2, 4)
        result: Tensor = x + self.last(y.reshape(batch, length, -1))
        return result


@pytest.mark.parametrize("form", ["einsum", "a bias for each head", "broadcasting"])
def test_they_are_read_with_their_key_heads(form: str) -> None:
    model, x = Grouped(form).eval(), torch.randn(2, 5, WIDTH)
    compiled: Any = peftc.compile(model, ["lora:q,v(rank=2)", "prefix:2"], {"x": x}, defaults=False)
    parts = {each.path: each.part for each in compiled.peftc_plan.sites if each.role == "linear"}
    assert parts == {"first": "q", "second": "k", "third": "v", "last": "o"}
    (prefix,) = (each for each in compiled.peftc_plan.applications if each.site.role == "attention")
    assert prefix.site.sizes["heads"] == GROUPS * HEADS
    assert prefix.site.sizes["kv_heads"] == GROUPS
    randomise(compiled)
    other = torch.randn(3, 7, WIDTH)
    with torch.no_grad(), compiled.disable_adapter():
        torch.testing.assert_close(compiled.eval()(other), model(other), atol=1e-6, rtol=1e-5)


class SeesNothing(Grouped):
    """The first token sees no key: its weights are no numbers, and made 0."""

    def forward(self, x: Tensor) -> Tensor:
        split = (part(x).unflatten(-1, (GROUPS, DIM)).transpose(1, 2) for part in (self.second, self.third))
        k, v = split
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu()
        weights = (k @ k.transpose(-1, -2)).masked_fill(later, float("-inf")).softmax(-1).nan_to_num()
        result: Tensor = (weights @ v).transpose(1, 2).flatten(2)
        return result


def test_a_query_that_sees_nothing_gives_zeros() -> None:
    model, x = SeesNothing("").eval(), torch.randn(2, 5, WIDTH)
    compiled: Any = peftc.compile(model, ["lora:v(rank=2)"], {"x": x}, defaults=False)
    assert [each.site.path for each in compiled.peftc_plan.applications] == ["third"]
    with torch.no_grad():
        got, want = compiled.eval()(x), model(x)
    assert not want[:, 0].any()
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
