"""Residual sums, and the norms behind them, in blocks of every kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from tests.zoo import entry, inputs


def found(model: Any, given: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Layer, scope and part → path of the module, and how many norms take the sum."""
    return {
        f"{site.layer} {site.scope}{'.' if site.scope else ''}{site.part}": (
            site.path,
            site.sizes["post_norms"],
        )
        for site in peftc.sites(model, given)
        if site.role == "residual" and ".encoder.layers" not in site.path
    }


@pytest.mark.parametrize(
    ("model_type", "parts", "norms"),
    [
        ("bert", "attention ffn", 1),
        ("gpt2", "attention ffn", 0),
        ("olmo2", "attention ffn", 0),  # the last block's sum is read by the model's last norm alone
        ("gpt_neox", "both", 0),
        ("cohere", "attention ffn", 0),
        ("mixtral", "attention ffn", 0),
        ("bart", "decoder.attention cross.attention decoder.ffn", 1),
        ("albert", "attention ffn", 1),
        ("deberta", "attention ffn", 1),  # its norms are written out
    ],
)
def test_blocks_of_models(model_type: str, parts: str, norms: int) -> None:
    model = entry(model_type).model()
    sums = found(model, inputs(model))
    layers = {key.partition(" ")[0] for key in sums}
    assert {key.partition(" ")[2] for key in sums} == set(parts.split())
    assert len(sums) == len(layers) * len(parts.split())
    assert {number for _, number in sums.values()} == {norms}


class Net(nn.Module):
    """A network with, and one without, a sum with what it reads."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.up, self.down, self.side = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 6)
        self.adds = adds

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.relu(self.up(x)))
        return y + x if self.adds else y + self.side(x)


@pytest.mark.parametrize("adds", [True, False])
def test_a_sum_with_something_else_is_none(adds: bool) -> None:
    sites = peftc.sites(Net(adds), {"x": torch.randn(3, 5, 6)})
    assert [site.part for site in sites if site.role == "residual"] == (["ffn"] if adds else [])
