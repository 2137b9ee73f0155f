"""Scores that take a long way to their softmax: what is read as attention, equal, and what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftc.graphs.reading import value
from tests.graphs import calls, captured, run

LOW = torch.finfo(torch.float32).min


class Scores(nn.Module):
    """softmax(way(q kᵀ)) v."""

    def __init__(self, way: Callable[[Tensor, dict[str, Tensor]], Tensor], *, flat: bool = False) -> None:
        super().__init__()
        self.way, self.flat = way, flat

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **more: Tensor) -> Tensor:
        batch, heads, queries, width = q.shape
        if not self.flat:
            return torch.softmax(self.way(q @ k.transpose(-1, -2), more), -1) @ v
        q, k, v = (x.reshape(batch * heads, -1, width) for x in (q, k, v))
        scores = self.way(torch.bmm(q, k.transpose(1, 2)).view(batch, heads, queries, -1), more)
        weights = torch.softmax(scores, -1).view(batch * heads, queries, -1)
        return torch.bmm(weights, v).view(batch, heads, queries, width)


def biased_then_scaled(scores: Tensor, more: dict[str, Tensor]) -> Tensor:
    return (scores + more["bias"]) / 1.7


def hidden_by_where(scores: Tensor, more: dict[str, Tensor]) -> Tensor:
    return torch.where(more["seen"], scores * 0.4, torch.full([], LOW)) + more["bias"]


def hidden_by_filling(scores: Tensor, more: dict[str, Tensor]) -> Tensor:
    return (scores * 0.4 - more["bias"]).masked_fill(~more["seen"], LOW)


def clamped_below(scores: Tensor, more: dict[str, Tensor]) -> Tensor:
    return torch.max(scores + more["bias"], torch.tensor(LOW))


def scaled_by_a_tensor(scores: Tensor, more: dict[str, Tensor]) -> Tensor:
    return scores * more["each_head"] + more["bias"]


def capped(scores: Tensor, more: dict[str, Tensor]) -> Tensor:
    return 3.0 * torch.tanh(scores * 0.3 / 3.0) + more["bias"]


READ = [
    biased_then_scaled,
    hidden_by_where,
    hidden_by_filling,
    clamped_below,
    scaled_by_a_tensor,
    capped,
]


def tensors() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 4, length, 6, generator=generator) for length in (5, 7, 7))
    seen = torch.ones(5, 7, dtype=torch.bool).tril(1)
    bias = torch.randn(3, 4, 5, 7, generator=generator)
    return {
        "q": q,
        "k": k,
        "v": v,
        "bias": bias,
        "seen": seen,
        "each_head": torch.rand(4, 1, 1, generator=generator),
    }


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("way", READ)
def test_a_way_is_read_and_equal(way: Any, flat: bool) -> None:
    module, given = Scores(way, flat=flat), tensors()
    program = captured(module, **given)
    found = calls(program, "capped_attention" if way is capped else "scaled_dot_product_attention")
    assert len(found) == 1
    assert (
        value(found[0].all_input_nodes[0]).dim() == 4
    )  # heads have an axis, however flat the model keeps them
    assert not calls(program, "softmax")
    given = {name: given[name] for name in program.inputs}
    torch.testing.assert_close(run(program, module, *given.values()), module(**given), atol=2e-6, rtol=2e-6)


def scaled_by_key(scores: Tensor, more: dict[str, Tensor]) -> Tensor:
    return scores * more["bias"]


def filled_with_little(scores: Tensor, more: dict[str, Tensor]) -> Tensor:
    return scores.masked_fill(~more["seen"], -1.0)


def cut_below_zero(scores: Tensor, more: dict[str, Tensor]) -> Tensor:
    return torch.max(scores + more["bias"], torch.tensor(0.0))


def capped_with_its_bias(scores: Tensor, more: dict[str, Tensor]) -> Tensor:
    return 3.0 * torch.tanh((scores + more["bias"]) / 3.0)


def squared(scores: Tensor, more: dict[str, Tensor]) -> Tensor:
    return scores * scores + more["bias"]


@pytest.mark.parametrize(
    "way", [scaled_by_key, filled_with_little, cut_below_zero, capped_with_its_bias, squared]
)
def test_twins_are_left_and_equal(way: Any) -> None:
    module, given = Scores(way), tensors()
    program = captured(module, **given)
    assert len(calls(program, "softmax")) == 1
    given = {name: given[name] for name in program.inputs}
    torch.testing.assert_close(run(program, module, *given.values()), module(**given), atol=0, rtol=0)
