"""Attention whose softmax has one score more than there are keys, or whose scores all move alike: read, and equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftc.graphs.program import Program
from peftc.graphs.reading import shape
from tests.graphs import calls, captured, run

HEADS, KEYS = 4, 7


def tensors(batch: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(batch, HEADS, length, 6, generator=generator) for length in (5, KEYS, KEYS))
    return {"q": q, "k": k, "v": v, "bias": torch.randn(batch, 1, 5, KEYS, generator=generator)}


def ran(program: Program, model: nn.Module, given: dict[str, Any]) -> Any:
    """What a program computes of tensors by their names."""
    return run(program, model, *(given[name] for name in program.inputs))


class Sunk(nn.Module):
    """A learned score beside those of the keys, whose weight is left out."""

    def __init__(self, *, biased: bool, shifted: bool, cut: int | None = -1, scaled: float = 1.0) -> None:
        super().__init__()
        self.biased, self.shifted, self.cut, self.scaled = biased, shifted, cut, scaled
        self.sinks = nn.Parameter(torch.linspace(-1, 3, HEADS))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) * 0.4
        if self.biased:
            scores = scores + bias
        sinks = self.sinks.reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[-2], -1)
        scores = torch.cat([scores, sinks], -1)
        if self.scaled != 1:
            scores = scores * self.scaled
        if self.shifted:
            scores = scores - scores.max(dim=-1, keepdim=True).values
        weights = torch.softmax(scores, -1)
        if self.cut is None:
            return weights @ torch.cat([v, v[:, :, :1]], 2)
        return weights[..., : self.cut] @ v


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_a_sink_is_a_key_of_zeros(biased: bool, shifted: bool) -> None:
    model, given = Sunk(biased=biased, shifted=shifted), tensors()
    program = captured(model, **given)
    (core,) = calls(program, "scaled_dot_product_attention")
    key: Any = core.args[1]
    assert shape(key)[2] == KEYS + 1
    for batch in (3, 2):
        torch.testing.assert_close(ran(program, model, tensors(batch)), model(**tensors(batch)))


@pytest.mark.parametrize(
    "model", [Sunk(biased=True, shifted=False, cut=None), Sunk(biased=False, shifted=True, scaled=0.5)]
)
def test_what_is_no_sink_is_left_and_equal(model: nn.Module) -> None:
    given = tensors()
    program = captured(model, **given)
    assert not calls(program, "scaled_dot_product_attention")
    torch.testing.assert_close(ran(program, model, given), model(**given))


class Shifted(nn.Module):
    """Scores with something taken off that all keys of a query share, and what reads only their format."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) * 0.4
        if self.way == "small numbers":
            small = (scores + bias) / 32
            scores = (small - small.amax(-1).unsqueeze(-1)) * 32
        elif self.way == "format":
            scores.masked_fill_(bias > 1, torch.finfo(scores.dtype).min)
            return torch.softmax(scores.float(), -1).type_as(scores) @ v
        elif self.way == "least":
            scores = scores - scores.amin(-1, keepdim=True)
        elif self.way == "over queries":
            scores = scores - scores.amax(-2, keepdim=True)
        return torch.softmax(scores, -1) @ v


@pytest.mark.parametrize(
    ("way", "read"), [("small numbers", 1), ("format", 1), ("least", 0), ("over queries", 0)]
)
def test_a_maximum_that_is_taken_off_changes_nothing(way: str, read: int) -> None:
    model, given = Shifted(way), tensors()
    program = captured(model, **given)
    assert len(calls(program, "scaled_dot_product_attention")) == read
    torch.testing.assert_close(ran(program, model, given), model(**given))


class Late(nn.Module):
    """Heads lie flat in the batch for the scores, and have an axis of their own for the values."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        batch, heads, queries, width = q.shape
        one, other = (each.reshape(batch * heads, -1, width) for each in (q, k))
        scores = torch.bmm(one, other.transpose(1, 2)).view(batch, heads, queries, -1)
        return torch.softmax(scores * 0.4 + bias, -1) @ v


def test_heads_that_get_their_axis_behind_the_scores() -> None:
    model, given = Late(), tensors()
    program = captured(model, **given)
    assert len(calls(program, "scaled_dot_product_attention")) == 1
    torch.testing.assert_close(ran(program, model, given), model(**given))
