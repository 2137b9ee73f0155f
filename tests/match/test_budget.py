"""Parameters are counted before they are made: a runaway size is refused, and nothing is allocated."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.errors import MatchError, PeftcError
from peftc.lang import check, read_text

WIDE = """
format  = 1
name    = "wide"
summary = "As wide as it is asked to be."
[options]
width = { default = 3, min = 1 }
[match]
role = "linear"
[parameters]
A = { axes = "width d_in",  init = "zeros" }
B = { axes = "d_out width", init = "zeros" }
[rewrite]
y = "y + x @ A @ B"
"""


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(x)))
        return out


@pytest.mark.parametrize("width", [10**8, 10**12, 2**62])
@pytest.mark.parametrize("call", [peftc.plan, peftc.compile])
def test_a_runaway_size_is_refused_before_anything_is_made(
    call: Any, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: object) -> None:
        raise AssertionError("a parameter was made")

    monkeypatch.setattr(importlib.import_module("peftc.runtime.build"), "add_parameter", made)
    rule = {"rule": check(read_text(WIDE, "wide.toml")), "width": width}
    with pytest.raises(MatchError, match="the budget is 50,000,000") as caught:
        call(Small(), [rule], {"x": torch.zeros(2, 8)})
    assert "the largest is" in str(caught.value)


def test_a_size_that_no_number_holds_is_refused() -> None:
    rule = {"rule": check(read_text(WIDE, "wide.toml")), "width": 2**80}
    with pytest.raises(PeftcError, match="ordinary size"):
        peftc.plan(Small(), [rule], {"x": torch.zeros(2, 8)})


def test_a_rank_above_the_widths_leaves_every_site_out() -> None:
    with pytest.raises(MatchError, match="matches nothing"):
        peftc.plan(Small(), ["lora:all-linear(rank=100000000)"], {"x": torch.zeros(2, 8)})
