"""Root-mean-square norms in every spelling, and what only looks like one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.graphs import calls, captured, operators, run

EPS = 1e-5


class Norm(nn.Module):
    """A norm around a function of (x, weight)."""

    def __init__(
        self, function: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(8, generator=generator).to(dtype))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def by_pow(x: Tensor, w: Tensor) -> Tensor:
    return w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS))


def by_product(x: Tensor, w: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS) * w


def with_casts(x: Tensor, w: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    return w * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)


def weight_before_the_cast(x: Tensor, w: Tensor) -> Tensor:
    wide = x.float()
    return ((wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)) * w.float()).to(x.dtype)


def one_plus_weight(x: Tensor, w: Tensor) -> Tensor:
    wide = x.float()
    return ((wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)) * (1.0 + w.float())).type_as(x)


def variance(x: Tensor, w: Tensor) -> Tensor:
    return w * (x * torch.rsqrt((x - x.mean(-1, keepdim=True)).pow(2).mean(-1, keepdim=True) + EPS))


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def by_rsqrt(x: Tensor, w: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    middle = wide.mean(-1, keepdim=True)
    spread = (wide - middle).pow(2).mean(-1, keepdim=True)
    return (w.to(torch.float32) * ((wide - middle) * torch.rsqrt(spread + EPS))).to(x.dtype)


def by_quotient(x: Tensor, w: Tensor) -> Tensor:
    wide = x.float()
    middle = wide.mean(-1, keepdim=True)
    spread = (wide - middle).pow(2).mean(-1, keepdim=True)
    return w * ((wide - middle) / torch.sqrt(spread + EPS)).to(x.dtype) + w


def one_difference(x: Tensor, w: Tensor) -> Tensor:
    moved = centred(x)
    return w * (moved * torch.rsqrt(moved.pow(2).mean(-1, keepdim=True) + EPS))


def not_centred(x: Tensor, w: Tensor) -> Tensor:
    return w * (x * torch.rsqrt(centred(x).pow(2).mean(-1, keepdim=True) + EPS))


def centred_elsewhere(x: Tensor, w: Tensor) -> Tensor:
    moved = x - x.mean(1, keepdim=True)
    return w * (moved * torch.rsqrt(moved.pow(2).mean(-1, keepdim=True) + EPS))


def another_axis(x: Tensor, w: Tensor) -> Tensor:
    return w * (x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + EPS))


def no_eps(x: Tensor, w: Tensor) -> Tensor:
    return w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)))


def cubes(x: Tensor, w: Tensor) -> Tensor:
    return w * (x * torch.rsqrt(x.abs().pow(3).mean(-1, keepdim=True) + EPS))


def another_value(x: Tensor, w: Tensor) -> Tensor:
    return w * ((x + 1) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS))


def a_scaled_sum(x: Tensor, w: Tensor) -> Tensor:
    return w * (x * torch.rsqrt(torch.add(x.pow(2).mean(-1, keepdim=True), EPS, alpha=3)))


def values(dtype: torch.dtype) -> Tensor:
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", [by_pow, by_product, with_casts])
def test_spellings_become_one_bit_for_bit(
    function: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    module, x = Norm(function, dtype), values(dtype)
    program = captured(module, x=x)
    (norm,) = calls(program, "rms_norm")
    assert isinstance(norm.args[1], torch.fx.Node)
    assert norm.args[1].target == "weight"
    assert operators(program) == {"rms_norm": 1}
    assert torch.equal(run(program, module, x), module(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", [by_rsqrt, by_quotient, one_difference])
def test_a_norm_of_mean_and_variance_within_rounding(
    function: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    if function is one_difference and dtype != torch.float32:
        return  # its statistics are rounded, those of the call are not
    module, x = Norm(function, dtype), values(dtype)
    program = captured(module, x=x)
    assert operators(program) == {"layer_norm": 1}
    bound = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(run(program, module, x), module(x), atol=bound, rtol=bound)


@pytest.mark.parametrize("function", [not_centred, centred_elsewhere])
def test_twins_of_mean_and_variance_are_left(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    module, x = Norm(function), values(torch.float32)
    program = captured(module, x=x)
    assert not operators(program)["layer_norm"]
    assert torch.equal(run(program, module, x), module(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", [weight_before_the_cast, one_plus_weight])
def test_weights_that_come_another_way_keep_their_bits(
    function: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    module, x = Norm(function, dtype), values(dtype)
    assert torch.equal(run(captured(module, x=x), module, x), module(x))


@pytest.mark.parametrize("function", [variance, another_axis, no_eps, cubes, another_value, a_scaled_sum])
def test_twins_are_left(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    module, x = Norm(function), values(torch.float32)
    program = captured(module, x=x)
    assert not operators(program)["rms_norm"]
    assert torch.equal(run(program, module, x), module(x))
