"""Modules that look like something they are not: what they are shown as instead, and what is not said of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc

WIDTH, HEADS = 12, 3
GIVEN = {"x": torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))}
Sites = dict[str, dict[str, tuple[tuple[int, int], ...] | None]]


def linears(model: nn.Module, given: dict[str, Any] | None = None) -> Sites:
    """Path of each linear site → its parts → the rows of each."""
    found: Sites = {}
    for site in peftc.sites(model, GIVEN if given is None else given):
        if site.role == "linear":
            found.setdefault(site.path, {})[site.part or "other"] = site.rows
    return found


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    gathered = functional.scaled_dot_product_attention(*map(heads, (q, k, v)))
    return gathered.transpose(1, 2).flatten(2)


class Mixed(nn.Module):
    """One projection, whose channels are mixed before an attention."""

    def __init__(self, mix: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], parts: int) -> None:
        super().__init__()
        self.mix, self.up, self.down = mix, nn.Linear(WIDTH, parts * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(attend(*self.mix(self.up(x))))  # type: ignore[no-any-return]


def summed(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    one, other, k, v = y.chunk(4, -1)
    return one + other, k, v


def turned_in_part(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries are the first half of what a rotation makes of all: each is made of channels of both halves."""
    both, k, v = y.split([2 * WIDTH, WIDTH, WIDTH], -1)
    left, right = both.chunk(2, -1)
    return (both * 0.8 + torch.cat([-right, left], -1) * 0.6)[..., :WIDTH], k, v


@pytest.mark.parametrize("mix", [summed, turned_in_part])
def test_a_sum_of_slices_is_made_of_all_of_them(mix: Any) -> None:
    rows = {"q": ((0, 24),), "k": ((24, 36),), "v": ((36, 48),)}
    assert linears(Mixed(mix, 4)) == {"up": rows, "down": {"o": None}}
