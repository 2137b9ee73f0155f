"""The operators that read quantised weights: opaque to tracers, so that packed weights stay packed in every graph.

`quantised_linear` keeps nothing for its backward but the packed weight, which is unpacked once more there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from peftc.lang import read_packing
from peftc.quantised.formats import kernels_of


@torch.library.custom_op("peftc::dequantise", mutates_args=())
def dequantise(
    codes: Tensor, statistics: Sequence[Tensor], shape: Sequence[int], packing: str, dtype: torch.dtype
) -> Tensor:
    """The weight [d_out d_in] of its codes and statistics."""
    return kernels_of(read_packing(packing)).unpack(codes, statistics, shape, dtype)


@dequantise.register_fake
def _(codes: Tensor, _statistics: Any, shape: Sequence[int], _packing: str, dtype: torch.dtype) -> Tensor:
    return codes.new_empty(list(shape), dtype=dtype)


@torch.library.custom_op("peftc::quantised_linear", mutates_args=())
def quantised_linear(
    x: Tensor,
    codes: Tensor,
    statistics: Sequence[Tensor],
    shape: Sequence[int],
    packing: str,
    compute: torch.dtype | None,
    bias: Tensor | None,
) -> Tensor:
    """x Wᵀ + b for a packed W [d_out d_in], computed in `compute` (or x's own number format), given back in x's."""
    dtype = x.dtype if compute is None else compute
    weight = kernels_of(read_packing(packing)).unpack(codes, statistics, shape, dtype)
    product = functional.linear(x.to(dtype), weight, None if bias is None else bias.to(dtype))
    return product.to(x.dtype)


@quantised_linear.register_fake
def _(x: Tensor, _codes: Tensor, _statistics: Any, shape: Sequence[int], *_: Any) -> Tensor:
    return x.new_empty([*x.shape[:-1], shape[0]])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch gives it by name
    x, codes, statistics, shape, packing, compute, bias = inputs
    ctx.save_for_backward(codes, *statistics)
    ctx.count, ctx.shape, ctx.packing = len(statistics), list(shape), packing
    ctx.x, ctx.bias = x.dtype, None if bias is None else bias.dtype
    ctx.compute = x.dtype if compute is None else compute


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    """The gradients of x, through the unpacked weight, and of the bias; the weight has none."""
    codes, *statistics = ctx.saved_tensors
    of_x = of_bias = None
    if ctx.needs_input_grad[0]:
        weight = torch.ops.peftc.dequantise(codes, statistics, ctx.shape, ctx.packing, ctx.compute)
        of_x = torch.matmul(gradient.to(ctx.compute), weight).to(ctx.x)
    if ctx.bias is not None and ctx.needs_input_grad[6]:
        of_bias = gradient.sum(list(range(gradient.dim() - 1))).to(ctx.bias)
    return of_x, None, [None] * ctx.count, None, None, None, of_bias


quantised_linear.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.peftc.quantised_linear)
def _flops(x: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """As many as those of the product; unpacking is counted nowhere."""
    count = 2 * x[-1]
    for size in out_shape:
        count *= size
    return count


@torch.library.custom_op("peftc::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b in x's number format, whatever that of W: what a quantised weight's owner is in a capture."""
    return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


@linear.register_fake
def _(x: Tensor, weight: Tensor, _bias: Tensor | None) -> Tensor:
    return x.new_empty([*x.shape[:-1], weight.shape[0]])
