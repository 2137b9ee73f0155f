"""Feed-forward networks by whatever bends their numbers, and what bends none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from peftc.analyse import analyse
from tests.graphs import captured
from tests.zoo import entry, inputs

D, WIDE = 12, 20


class Network(nn.Module):
    def __init__(self, bend: Callable[[Tensor], Tensor], width: int = WIDE) -> None:
        super().__init__()
        self.first, self.last, self.bend = nn.Linear(D, WIDE), nn.Linear(width, D), bend

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.last(self.bend(self.first(x)))
        return made


class GatedNetwork(Network):
    def __init__(self, bend: Callable[[Tensor], Tensor]) -> None:
        super().__init__(bend)
        self.other = nn.Linear(D, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.last(self.other(x) * self.bend(self.first(x)))
        return made


def example() -> Tensor:
    return torch.randn(2, 5, D)


def parts(module: nn.Module) -> dict[str, str]:
    found = analyse(captured(module, x=example()).graph, module).sites
    return {site.path: site.part for site in found if site.role == "linear"}


BENDS: dict[str, Any] = {
    "square of relu": lambda y: functional.relu(y).square(),
    "power": lambda y: y**3,
    "relu6": functional.relu6,
    "hardtanh": functional.hardtanh,
    "prelu": nn.PReLU(),
    "softsign": functional.softsign,
    "softshrink": functional.softshrink,
    "logsigmoid": functional.logsigmoid,
    "silu by hand": lambda y: y * torch.sigmoid(y),
    "the larger of it and 0": lambda y: torch.maximum(y, torch.zeros_like(y)),
    "cut at 0": lambda y: y.clamp(min=0),
    "cut above and below": lambda y: functional.gelu(y).clip(-10, 10),
    "one or the other": lambda y: torch.where(y > 0, y, 0.1 * y),
    "sine": torch.sin,
    "root of softplus": lambda y: functional.softplus(y).sqrt() * y,
}


@pytest.mark.parametrize("name", BENDS)
def test_a_network_by_any_activation(name: str) -> None:
    assert parts(Network(BENDS[name])) == {"first": "up", "last": "down"}


@pytest.mark.parametrize("name", ["square of relu", "hardtanh", "logsigmoid", "one or the other"])
def test_what_is_bent_is_the_gate(name: str) -> None:
    assert parts(GatedNetwork(BENDS[name])) == {"first": "gate", "other": "up", "last": "down"}


def test_limits_do_not_make_a_gate() -> None:
    class Limited(GatedNetwork):
        def forward(self, x: Tensor) -> Tensor:
            up = self.other(x).clamp(-7, 7)
            made: Tensor = x + self.last(up * self.bend(self.first(x).clamp(max=7)))
            return made

    assert parts(Limited(functional.silu)) == {"first": "gate", "other": "up", "last": "down"}


STRAIGHT: dict[str, Any] = {
    "scaled": lambda y: 0.5 * y + 1,
    "rounded": torch.round,
    "limited": lambda y: y.clamp(-2, 2),
    "normed": lambda y: y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6),
    "shown in part": lambda y: torch.where(torch.arange(5)[:, None] > 2, y, torch.zeros_like(y)),
    "probabilities": torch.sigmoid,
}


@pytest.mark.parametrize("name", STRAIGHT)
def test_what_bends_nothing_makes_no_network(name: str) -> None:
    assert parts(Network(STRAIGHT[name])) == {"first": "", "last": ""}


def test_a_gated_linear_unit_is_gate_and_up_at_once() -> None:
    module = Network(functional.glu, WIDE // 2)
    found = analyse(captured(module, x=example()).graph, module).sites
    rows = {site.part: site.rows for site in found if site.path == "first"}
    assert rows == {"gate": ((10, 20),), "up": ((0, 10),)}


@pytest.mark.parametrize("model_type", ["nemotron", "apertus"])
def test_networks_of_models(model_type: str) -> None:
    model = entry(model_type).model()
    found = [site for site in peftc.sites(model, inputs(model)) if site.role == "ffn"]
    assert len(found) == model.config.num_hidden_layers
