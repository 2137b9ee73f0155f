"""The router of experts that are modules of their own, however their parts of the sum are picked and weighed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc

WIDTH, INNER, EXPERTS = 8, 12, 3


class Network(nn.Module):
    """One expert."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(functional.silu(self.first(x)))
        return y


class Mixture(nn.Module):
    """A sum of networks by a softmax, in one of many ways; or each with a gate of its own, which is no router."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.dense, self.out = form, nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 5)
        self.networks = nn.ModuleList(Network() for _ in range(EXPERTS))
        self.gates = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        told = self.dense(x).softmax(-1)
        best, which = told.topk(2, -1)
        match self.form:
            case "all":
                y = torch.stack([told[..., i : i + 1] * net(x) for i, net in enumerate(self.networks)]).sum(0)
            case "stacked":
                y = (torch.stack([net(x) for net in self.networks], -2) * told[..., None]).sum(-2)
            case "the best of all":
                kept = torch.zeros_like(told).scatter(-1, which, best / best.sum(-1, keepdim=True))
                y = torch.stack([kept[..., i, None] * net(x) for i, net in enumerate(self.networks)]).sum(0)
            case "each its tokens":
                tokens, flat = x.flatten(0, 1), which.flatten(0, 1)
                y = torch.zeros_like(tokens)
                for number, net in enumerate(self.networks):
                    row, place = torch.where(flat == number)
                    y.index_add_(0, row, net(tokens[row]) * best.flatten(0, 1)[row, place, None])
                y = y.view_as(x)
            case _:
                pairs = zip(self.networks, self.gates, strict=True)
                y = torch.stack([net(x) * gate(x).sigmoid() for net, gate in pairs]).sum(0)
        result: Tensor = self.out(x + y)
        return result


FORMS = {
    "all": "dense",
    "stacked": "dense",
    "the best of all": "dense",
    "each its tokens": "dense",
    "gates": None,
}


@pytest.mark.parametrize(("form", "router"), FORMS.items())
def test_what_weighs_several_networks_is_their_router(form: str, router: str | None) -> None:
    sites = peftc.sites(Mixture(form).eval(), {"x": torch.randn(2, 5, WIDTH)})
    assert [each.path for each in sites if each.part == "router"] == ([router] if router else [])
    assert {each.path for each in sites if each.role == "ffn"} == {f"networks.{n}" for n in range(EXPERTS)}
