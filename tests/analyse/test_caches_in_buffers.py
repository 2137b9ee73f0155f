"""Keys and values that a module writes into tensors of its own before it attends to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc

D, HEADS, ROOM = 12, 3, 16


def heads(x: Tensor) -> Tensor:
    made: Tensor = x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    return made


class Caching(nn.Module):
    keys: Tensor
    values: Tensor

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.second, self.third, self.last = (nn.Linear(D, D) for _ in range(4))
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(2, HEADS, ROOM, D // HEADS))

    def write(self, held: Tensor, new: Tensor, places: Tensor) -> Tensor:
        if self.way == "at places":
            held[:, :, places] = new
            return held
        if self.way == "copied to places":
            return held.index_copy_(2, places, new)
        if self.way == "copied to places of a new one":
            return held.index_copy(2, places, new)
        held[:, :, : new.shape[2]] = new
        return held[:, :, : new.shape[2]]

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        k = self.write(self.keys, heads(self.second(x)), places)
        v = self.write(self.values, heads(self.third(x)), places)
        mask = torch.arange(k.shape[2])[None] <= places[:, None]
        y = functional.scaled_dot_product_attention(heads(self.first(x)), k, v, attn_mask=mask)
        made: Tensor = x + self.last(y.transpose(1, 2).flatten(2))
        return made


@pytest.mark.parametrize(
    "way", ["at places", "copied to places", "copied to places of a new one", "in front"]
)
def test_keys_and_values_are_found_behind_a_cache(way: str) -> None:
    given: dict[str, Any] = {"x": torch.randn(2, 5, D), "places": torch.arange(5)}
    found = peftc.sites(Caching(way), given)
    parts = {site.path: (site.part, site.rows) for site in found if site.role == "linear"}
    assert parts == {
        "first": ("q", None),
        "second": ("k", None),
        "third": ("v", None),
        "last": ("o", None),
    }
