"""One module that is a child of several: an attention core that all layers call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc

WIDTH, HEADS = 12, 3


def heads(x: Tensor) -> Tensor:
    split: Tensor = x.unflatten(-1, (HEADS, -1))
    return split.transpose(1, 2)


class Core(nn.Module):
    """Attention without a weight."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gathered = functional.scaled_dot_product_attention(heads(q), heads(k), heads(v))
        return gathered.transpose(1, 2).flatten(2)


class Layer(nn.Module):
    """Projections around a core."""

    def __init__(self, core: Core) -> None:
        super().__init__()
        self.core = core
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.o(self.core(self.q(x), self.k(x), self.v(x)))
        return out


def test_each_layer_has_a_prefix_of_its_own() -> None:
    core = Core()
    model = nn.Sequential(Layer(core), Layer(core))
    given = {"input": torch.randn(2, 5, WIDTH)}
    compiled: Any = peftc.compile(model, ["prefix:2"], given)
    assert len(compiled.peftc_plan.applications) == 2
    certificate = peftc.check(compiled, given)
    assert certificate.passed, str(certificate)
