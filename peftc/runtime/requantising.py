"""What merged weights would lose if they were packed into as few bits as they came from. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftc.quantised import quantised_in


@dataclass(frozen=True)
class Rounded:
    """One weight W + Δ that was in few bits before Δ was added.

    Attributes:
        path: where it is; packing: how it was kept.
        change: |Δ| / |W + Δ|, by Frobenius' norm: what the adapters changed.
        error: |Q(W + Δ) − (W + Δ)| / |W + Δ|: what packing it again would change.
    """

    path: str
    packing: str
    change: float
    error: float


@dataclass(frozen=True)
class Requantising:
    """What packing merged weights again would do; `str` says it in a line."""

    weights: tuple[Rounded, ...]

    @property
    def error(self) -> float:
        """The largest error."""
        return max((each.error for each in self.weights), default=0.0)

    def __str__(self) -> str:
        worst = max(self.weights, key=lambda each: each.error)
        count = len(self.weights)
        error = sum(each.error for each in self.weights) / count
        change = sum(each.change for each in self.weights) / count
        kept = ", ".join(dict.fromkeys(each.packing for each in self.weights))
        return (
            f"{count} merged weights were in {kept}; packing them so again changes them by {error:.2%} on average "
            f"(at most {worst.error:.2%}, {worst.path}), where the adapters changed them by {change:.2%}"
        )


def requantising(root: nn.Module, weights: Mapping[str, Tensor]) -> Requantising:
    """What packing `weights`, path → merged, would do to those that are quantised in a compiled module."""
    found = []
    for path, held in quantised_in(root).items():
        if path not in weights:
            continue
        before, merged = held.read(root.get_parameter(path)).double(), weights[path].double()
        codes, statistics = held.repacked(weights[path])
        again = held.read_from(codes, tuple(statistics.values())).double()
        size = merged.norm().clamp(min=torch.finfo(torch.float64).tiny)
        found.append(
            Rounded(
                path,
                held.packing.text,
                float((merged - before).norm() / size),
                float((again - merged).norm() / size),
            )
        )
    return Requantising(tuple(found))
