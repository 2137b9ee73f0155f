"""Updates of linear maps written out from the equations of their papers, and a module that stands in for a model's own.

Independent of the rules: plain torch on matrices [d_out d_in], whatever order and whatever larger matrix the model
stores them in.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Tensors = Mapping[str, Tensor]
Options = Mapping[str, float]
Equation = Callable[[Tensor, Tensor, Tensor, Tensors, Options], Tensor]
"""x [* d_in], W [d_out d_in], b [d_out], the rule's tensors and options → y [* d_out]."""


def lora(x: Tensor, w: Tensor, b: Tensor, t: Tensors, o: Options) -> Tensor:
    """W x + (α/r) B A x."""
    return x @ w.T + b + o["alpha"] / o["rank"] * (x @ t["A"].T @ t["B"].T)


def rslora(x: Tensor, w: Tensor, b: Tensor, t: Tensors, o: Options) -> Tensor:
    """W x + (α/√r) B A x."""
    return x @ w.T + b + o["alpha"] / math.sqrt(o["rank"]) * (x @ t["lora_A"].T @ t["lora_B"].T)


def dora(x: Tensor, w: Tensor, b: Tensor, t: Tensors, o: Options) -> Tensor:
    """(m / ‖V‖) V x, V = W + (α/r) B A; ‖V‖, the length of each row, is a constant (section 4.3)."""
    v = w + o["alpha"] / o["rank"] * t["B"] @ t["A"]
    lengths = v.detach().square().sum(1).sqrt()
    return x @ ((t["m"] / lengths)[:, None] * v).T + b


def residual(x: Tensor, w: Tensor, b: Tensor, t: Tensors, o: Options) -> Tensor:
    """(W − (α/r) B₀ A₀) x + (α/r) B A x."""
    scale = o["alpha"] / o["rank"]
    rest = w - scale * t["B0"] @ t["A0"]
    return x @ rest.T + b + scale * (x @ t["A"].T @ t["B"].T)


def vera(x: Tensor, w: Tensor, b: Tensor, t: Tensors, o: Options) -> Tensor:
    """W x + Λ_b B Λ_d A x, of the shared matrices the first rows and columns that fit."""
    left = torch.diag(t["lambda_b"]) @ t["B"][: w.shape[0]]
    right = torch.diag(t["lambda_d"]) @ t["A"][:, : w.shape[1]]
    return x @ (w + left @ right).T + b


def loha(x: Tensor, w: Tensor, b: Tensor, t: Tensors, o: Options) -> Tensor:
    """W x + (α/r) ((B₁ A₁) ⊙ (B₂ A₂)) x."""
    update = (t["B1"] @ t["A1"]) * (t["B2"] @ t["A2"])
    return x @ (w + o["alpha"] / o["rank"] * update).T + b


def lokr(x: Tensor, w: Tensor, b: Tensor, t: Tensors, o: Options) -> Tensor:
    """W x + (α/r) (C ⊗ B A) x: each number of C times all of B A."""
    small, inner = t["C"], t["B"] @ t["A"]
    update = torch.cat([torch.cat([number * inner for number in row], 1) for row in small], 0)
    return x @ (w + o["alpha"] / o["rank"] * update).T + b


def rotation(numbers: Tensor, block: int, terms: int = 0) -> Tensor:
    """(1 + Q)(1 − Q)⁻¹ of the skew Q whose numbers above the diagonal these are, or 1 + 2 Q + 2 Q² + … + Qⁿ⁻¹."""
    q, one = numbers.new_zeros(block, block), torch.eye(block, dtype=numbers.dtype)
    for place, (row, column) in enumerate(itertools.combinations(range(block), 2)):
        unit = torch.zeros(block, block, dtype=numbers.dtype)
        unit[row, column], unit[column, row] = 1, -1
        q = q + numbers[place] * unit
    if not terms:
        turned: Tensor = (one + q) @ torch.linalg.inv(one - q)
        return turned
    powers = [torch.linalg.matrix_power(q, n) for n in range(terms)]
    series: Tensor = powers[0] + 2 * sum(powers[1:-1], torch.zeros_like(q)) + powers[-1]
    return series


def oft(x: Tensor, w: Tensor, b: Tensor, t: Tensors, o: Options) -> Tensor:
    """W (R x), R a rotation of blocks of channels."""
    blocks = [rotation(row, int(o["block"]), int(o["terms"])) for row in t["S"]]
    turned: Tensor = x @ torch.block_diag(*blocks)
    return turned @ w.T + b


def scaled_output(x: Tensor, w: Tensor, b: Tensor, t: Tensors, o: Options) -> Tensor:
    """l ⊙ (W x)."""
    return t["l"] * (x @ w.T + b)


def scaled_input(x: Tensor, w: Tensor, b: Tensor, t: Tensors, o: Options) -> Tensor:
    """W (l ⊙ x)."""
    return (t["l"] * x) @ w.T + b


EQUATIONS: Mapping[tuple[str, int], Equation] = {
    ("lora", 0): lora,
    ("rslora", 0): rslora,
    ("dora", 0): dora,
    ("pissa", 0): residual,
    ("olora", 0): residual,
    ("vera", 0): vera,
    ("loha", 0): loha,
    ("lokr", 0): lokr,
    ("oft", 0): oft,
    ("ia3", 0): scaled_output,
    ("ia3", 1): scaled_input,
}
"""Name of the rule and number of its section → its equation."""


class Parts(nn.Module):
    """In place of a linear map: each of some parts of its output is what an equation says, the rest as it was."""

    own: Any

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.own = own
        self.parts: list[tuple[Tensor, Callable[[Tensor, Tensor, Tensor], Tensor]]] = []

    @property
    def weight(self) -> Any:
        """Models look at the dtype of it."""
        return self.own.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.own(x)
        stored: Any = self.own.weight
        matrix = stored if isinstance(self.own, nn.Linear) else stored.T
        bias = torch.zeros(matrix.shape[0]) if self.own.bias is None else self.own.bias
        for rows, equation in self.parts:
            y = y.index_copy(-1, rows, equation(x, matrix[rows], bias[rows]))
        return y


def by_hand(model: Any, compiled: Any, rows: Callable[[str, str, int], Tensor]) -> Any:
    """A copy of the model that computes the equations of a compiled one's rules, with the same parameters.

    Args:
        rows: path, part and number of output channels → the channels of the part.
    """
    made = copy.deepcopy(model)
    plan = compiled.peftc_plan
    for application in plan.applications:
        site, bound = application.site, plan.bound(application.rule)
        own: Any = made.get_submodule(site.path)
        if not isinstance(own, Parts):
            own = Parts(own)
            made.set_submodule(site.path, own)
        tensors = {each.name: compiled.get_parameter(each.path) for each in application.parameters}
        equation = EQUATIONS[bound.rule.name, application.section]

        def stand_in(
            x: Tensor,
            w: Tensor,
            b: Tensor,
            equation: Any = equation,
            t: Any = tensors,
            o: Any = bound.options,
        ) -> Tensor:
            out: Tensor = equation(x, w, b, t, o)
            return out

        weight = own.own.weight
        width = weight.shape[0] if isinstance(own.own, nn.Linear) else weight.shape[1]
        own.parts.append((rows(site.path, site.part, width), stand_in))
    return made
