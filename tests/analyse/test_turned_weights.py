"""A weight that is read as it is and turned over: two matrices, of which neither shares the other's adapter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from peftc.errors import MergeError
from tests.models import randomise


class Mirrored(nn.Module):
    """An autoencoder with tied weights: the way back is the way there, turned over."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.there, self.again = nn.Linear(8, inner, bias=False), nn.Linear(inner, inner)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        held = torch.tanh(self.again(torch.tanh(self.there(x))))
        y: Tensor = self.head(functional.linear(held, self.there.weight.T))
        return y


@pytest.mark.parametrize("inner", [6, 8], ids=["oblong", "square"])
def test_each_way_has_an_adapter_of_its_own(inner: int) -> None:
    model, x = Mirrored(inner), torch.randn(2, 5, 8)
    compiled: Any = peftc.compile(model, ["lora:all-linear(rank=2, alpha=2)"], {"x": x}, defaults=False)
    of_it = [each for each in compiled.peftc_plan.applications if each.site.weights["W"] == "there.weight"]
    assert [each.site.stored.get("W") for each in of_it] == [None, ("d_in", "d_out")]
    randomise(compiled)
    deltas: dict[object, Any] = {}
    for application in compiled.peftc_plan.applications:
        a, b = (compiled.get_parameter(made.path) for made in application.parameters)
        deltas[application.site.matrix] = b @ a
    there, back, again = (
        deltas[each] for each in (*(each.site.matrix for each in of_it), ("again.weight", None))
    )
    held = torch.tanh(functional.linear(x, model.there.weight + there))
    held = torch.tanh(functional.linear(held, model.again.weight + again, model.again.bias))
    want = model.head(functional.linear(held, model.there.weight.T + back))
    torch.testing.assert_close(compiled(x), want, atol=1e-5, rtol=1e-5)
    with pytest.raises(MergeError, match="reads the same weight"):
        compiled.merge_and_unload()
