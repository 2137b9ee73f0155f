"""Operators of peftc's own that stand in normalised graphs. Each is made of torch calls and nothing else.

They exist so that rules and analyses see one spelling of a thing that models spell in many ways, while the numbers
stay those of the spelling that was captured, bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, compute: torch.dtype | None = None) -> Tensor:
    """Root-mean-square norm over the last axis (https://arxiv.org/abs/1910.07467).

    Args:
        x: [... d], any floating dtype.
        weight: [d], or None.
        eps: added to the mean square.
        compute: dtype in which the mean square is taken; the result is cast back before `weight` is applied.
    """
    wide = x if compute is None else x.to(compute)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if compute is not None:
        normed = normed.to(x.dtype)
    return normed if weight is None else weight * normed


def causal_mask(query: Tensor, key: Tensor) -> Tensor:
    """Boolean mask [queries keys]: True where a key is not later than the query, both counted from the start."""
    queries, keys = query.shape[-2], key.shape[-2]
    rows = torch.arange(queries, device=query.device).unsqueeze(1)
    return torch.arange(keys, device=query.device).unsqueeze(0) <= rows
