"""The number formats written out from their papers, value by value: what packing and unpacking gives, nothing packed."""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor


def nf4_values() -> Tensor:
    """Quantiles of the normal distribution, 8 above 0 and 7 below it and 0, over the largest (QLoRA, equation 4)."""
    delta = (1 / 32 + 1 / 30) / 2
    above = [NormalDist().inv_cdf(1 - delta - each * (0.5 - delta) / 8) for each in range(8)]
    below = [-NormalDist().inv_cdf(1 - delta - each * (0.5 - delta) / 7) for each in range(7)]
    return torch.tensor(sorted([*above, 0.0, *below])) / max(above)


def fp4_values() -> Tensor:
    """One bit for the sign, two for the exponent, one for the fraction; over the largest, 12."""
    sizes = torch.tensor([0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]) / 12
    return torch.cat([-sizes.flip(0), sizes[1:]])


def dynamic_values() -> Tensor:
    """8 bits of dynamic exponent: 2^i middles of equal steps from 0.1 to 1, times 10^(i - 6), of both signs; 0 and 1."""
    found = [0.0, 1.0]
    for bits in range(7):
        ends = torch.linspace(0.1, 1, 2**bits + 1)
        middles = (ends[1:] + ends[:-1]) / 2 * 10.0 ** (bits - 6)
        found += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(found))


def nearest(x: Tensor, values: Tensor) -> Tensor:
    """The nearest of some values to each number."""
    return values[(x.unsqueeze(-1) - values).abs().argmin(-1)]


def rounded_blocks(x: Tensor, values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Each number over the largest of its block, rounded; and the largest, one a block. The last block may be short."""
    flat = x.float().flatten()
    parts, scales = [], []
    for part in flat.split(size):
        largest = part.abs().max()
        parts.append(nearest(part * (1 / largest), values) if largest > 0 else torch.zeros_like(part))
        scales.append(largest)
    return torch.cat(parts), torch.stack(scales)


def blocks(weight: Tensor, values: Tensor, size: int = 64, *, double: bool = True) -> Tensor:
    """What is left of a weight [d_out d_in] of its blocks of values, and of their scales in blocks of 256."""
    codes, scales = rounded_blocks(weight, values, size)
    if double:
        mean = scales.mean()
        inner, outer = rounded_blocks(scales - mean, dynamic_values(), 256)
        scales = torch.cat([part * one for part, one in zip(inner.split(256), outer, strict=True)]) + mean
    return torch.cat([part * scale for part, scale in zip(codes.split(size), scales, strict=True)]).view(
        weight.shape
    )


def rows(weight: Tensor) -> Tensor:
    """What is left of a weight [d_out d_in] of 255 steps a row."""
    half = weight.to(torch.float16)
    largest = half.abs().amax(1, keepdim=True).float()
    steps = torch.round(half * (127 / largest)).clamp(-127, 127)
    return steps * largest / 127
