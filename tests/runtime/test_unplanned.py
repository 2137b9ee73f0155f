"""A later call that reaches sites which no example call did is warned of: nothing acts there."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).abs()


class Branching(nn.Module):
    """A linear map, and another one for what has a negative sum; a third in training."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        if x.sum() < 0:
            y = self.other(y)
        return torch.relu(self.third(y) if self.training else y)


def compiled(spec: str) -> Any:
    return peftc.compile(Branching().eval(), [spec], {"x": X}, defaults=False)


def test_a_branch_that_no_example_took() -> None:
    module = compiled("lora:all-linear(rank=2)")
    with pytest.warns(UserWarning, match=r"not reach them: other:other\. No rule acts there"):
        module(-X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(-X)
        with module.disable_adapter():  # another program, of which it was said already
            module(-X)
        copy.deepcopy(module)(-X)


def test_a_way_that_only_training_takes() -> None:
    module = compiled("lora:all-linear(rank=2)")
    with pytest.warns(UserWarning, match=r"third:other"):
        module.train()(X)


def test_what_no_rule_asks_for_is_not_told() -> None:
    module = compiled("lora:path=inner(rank=2)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(-X)
        module.train()(X)


def test_what_the_example_call_reached_is_not_told() -> None:
    module = peftc.compile(Branching().train(), ["lora:all-linear(rank=2)"], {"x": X}, defaults=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(X)
        module.eval()(X)


def test_an_example_that_takes_the_other_way_is_captured_on_it() -> None:
    module: Any = peftc.compile(Branching().eval(), ["lora:all-linear(rank=2)"], {"x": -X}, defaults=False)
    assert [each.site.path for each in module.peftc_plan.applications] == ["inner", "other"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(-X)
        module(X)
    assert peftc.sites(Branching().eval(), {"x": -X}) == module.peftc_plan.sites
