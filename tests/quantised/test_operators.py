"""The operators: numbers and gradients of a product with the unpacked weight, and what tracers ask of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from peftc.lang import Packing
from peftc.quantised.formats import kernels_of
from peftc.quantised.operators import dequantise, linear, quantised_linear
from tests.quantised.test_formats import weight

NF4 = Packing("nf4", {"blocksize": 64, "double": True})
PACKINGS = [NF4, Packing("fp4", {"blocksize": 32, "double": False}), Packing("int8")]


def packed(packing: Packing, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    codes, statistics = kernels_of(packing).pack(weight(dtype=dtype))
    return codes, list(statistics.values()), [24, 40], packing.text


def given(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, b = torch.randn(3, 5, 40, generator=generator), torch.randn(24, generator=generator)
    return x.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: packing.text)
def test_numbers_and_gradients_are_those_of_the_unpacked_weight(packing: Packing) -> None:
    (x, b), held = given(), packed(packing)
    (other_x, other_b), whole = given(), dequantise(*held, torch.float32)
    got, want = quantised_linear(x, *held, None, b), functional.linear(other_x, whole, other_b)
    assert torch.equal(got, want)
    factor = torch.randn(want.shape)
    (got * factor).sum().backward()
    (want * factor).sum().backward()
    assert x.grad is not None
    assert other_x.grad is not None
    torch.testing.assert_close(x.grad, other_x.grad, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(b.grad, other_b.grad, atol=1e-6, rtol=1e-6)


def test_products_can_be_computed_in_another_number_format() -> None:
    (x, b), held = given(), packed(NF4)
    (other_x, other_b), whole = given(), dequantise(*held, torch.bfloat16)
    got = quantised_linear(x, *held, torch.bfloat16, b)
    want = functional.linear(other_x.bfloat16(), whole, other_b.bfloat16()).float()
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    got.sum().backward()
    want.sum().backward()
    assert torch.equal(x.grad, other_x.grad)  # type: ignore[arg-type]
    assert not torch.equal(got, quantised_linear(x, *held, None, b))


def test_the_backward_keeps_no_unpacked_weight() -> None:
    (x, b), held = given(), packed(NF4)
    kept: list[Tensor] = []

    def keep(each: Tensor) -> Tensor:
        kept.append(each)
        return each

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each):
        quantised_linear(x, *held, None, b)
    assert sum(each.numel() for each in kept) == sum(each.numel() for each in (held[0], *held[1]))
    assert not any(each.is_floating_point() for each in kept)


def test_nothing_but_x_and_the_bias_gets_a_gradient() -> None:
    x, _ = given()
    held = packed(NF4)
    quantised_linear(x.detach().requires_grad_(), *held, None, None).sum().backward()
    assert quantised_linear(x.detach(), *held, None, None).requires_grad is False


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: packing.text)
@pytest.mark.parametrize("compute", [None, torch.bfloat16])
def test_tracers_can_follow(packing: Packing, compute: torch.dtype | None) -> None:
    x, b = given()
    held = packed(packing)
    for bias in (b, None):
        torch.library.opcheck(quantised_linear, (x, *held, compute, bias))
    torch.library.opcheck(dequantise, (*held, torch.float16))
    torch.library.opcheck(linear, (x.detach(), weight(), None))


def test_the_work_of_a_product_is_counted() -> None:
    (x, b), held = given(), packed(NF4)
    with FlopCounterMode(display=False) as counter:
        quantised_linear(x, *held, None, b)
    assert counter.get_total_flops() == 2 * 15 * 40 * 24
