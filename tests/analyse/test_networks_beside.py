"""Networks that read an attention's result themselves, and what has the form of a network and is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc

D, WIDE, HEADS = 12, 20, 3
GIVEN = {"x": torch.randn(2, 5, D)}


def heads(x: Tensor) -> Tensor:
    made: Tensor = x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    return made


class Straight(nn.Module):
    """An attention without an output projection, whose result a network reads."""

    def __init__(self, width: int = WIDE) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(D, D) for _ in range(3))
        self.wide, self.back = nn.Linear(D, width), nn.Linear(width, D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(each(x)) for each in (self.first, self.second, self.third))
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        made: Tensor = x + self.back(functional.gelu(self.wide(y)))
        return made


class Excited(nn.Module):
    """Squeeze and excite: what is pooled says how much of each channel is let through."""

    def __init__(self, squash: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.wide, self.back, self.squash = nn.Linear(D, WIDE), nn.Linear(WIDE, D), squash

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(1, keepdim=True)
        return x * self.squash(self.back(functional.relu(self.wide(pooled))))


def parts(module: nn.Module) -> dict[str, str]:
    return {site.path: site.part for site in peftc.sites(module, GIVEN) if site.role == "linear"}


def roles(module: nn.Module) -> list[str]:
    return [site.role for site in peftc.sites(module, GIVEN)]


def test_a_network_behind_an_attention_without_an_output() -> None:
    module = Straight()
    assert parts(module) == {"first": "q", "second": "k", "third": "v", "wide": "up", "back": "down"}
    assert {"ffn", "residual"} <= set(roles(module))
    compiled = peftc.compile(module, ["bottleneck:ffn(size=4)", "lora:attention(rank=2)"], GIVEN)
    assert peftc.check(compiled, GIVEN).passed


def test_a_product_of_the_stream_s_width_is_an_output() -> None:
    assert parts(Straight(D))["wide"] == "o"


@pytest.mark.parametrize("squash", [torch.sigmoid, functional.hardsigmoid])
def test_squeeze_and_excite_is_no_network(squash: Callable[[Tensor], Tensor]) -> None:
    assert parts(Excited(squash)) == {"wide": "", "back": ""}
    assert "ffn" not in roles(Excited(squash))


def test_a_network_that_nothing_squashes_is_one() -> None:
    assert "ffn" in roles(Excited(lambda y: y))
