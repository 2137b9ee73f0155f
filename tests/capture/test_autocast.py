"""Regions of `torch.autocast` in a model's code: they act in a compiled model as in the model itself."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from tests.models import randomise


class Routed(nn.Module):
    """Computes one part in bfloat16, and how much of it counts in single precision, whatever is around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.router = nn.Linear(8, 8), nn.Linear(8, 8)
        self.inner, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.tanh(self.first(x))
        with torch.autocast("cpu", enabled=False):
            weights = torch.softmax(self.router(x.float()), -1)
        with torch.autocast("cpu", torch.bfloat16):
            inner = self.inner(x)
            with torch.autocast("cpu", enabled=False):
                inside = self.inner(inner.float())
        return self.out(inner.float() * weights), weights, inside


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("traced", [False, True])
def test_regions_act_as_in_the_model(outer: bool, traced: bool) -> None:
    torch.manual_seed(0)
    model, x = Routed(), torch.randn(2, 5, 8)
    compiled: Any = peftc.compile(model, ["lora:all-linear(rank=2)"], {"x": x})
    called = torch.compile(compiled, backend="eager", fullgraph=True) if traced else compiled
    around = torch.autocast("cpu", torch.bfloat16) if outer else nullcontext()
    with around:
        ours, wanted = called(x), model(x)
    for one, other in zip(ours, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)  # the adapters begin with nothing
    assert wanted[1].dtype == torch.float32


def test_adapters_run_in_the_region_of_their_site() -> None:
    torch.manual_seed(0)
    model, x = Routed(), torch.randn(2, 5, 8)
    compiled: Any = peftc.compile(model, ["lora:all-linear(rank=2)"], {"x": x})
    randomise(compiled)
    with torch.autocast("cpu", torch.bfloat16):
        ours, wanted = compiled(x), compiled.merge_and_unload()(x)
    for one, other in zip(ours, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one, other, atol=0.05)
