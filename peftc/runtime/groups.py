"""Groups of parameters for an optimiser: the factors of the rules on the learning rate, and what does not decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from peftc.match.plan import Plan


def param_groups(compiled: nn.Module, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Everything of a compiled module that trains, in groups of one learning rate and one weight decay.

    Biases and norms do not decay, as in transformers' Trainer; nor does any other vector, such as a scale: decay
    would not make it simpler, but turn it off.
    """
    plan: Plan = compiled.peftc_plan  # type: ignore[assignment]
    factors = {id(compiled.get_parameter(each.path)): each.lr for each in plan.new_parameters}
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in compiled.parameters():
        if parameter.requires_grad:
            key = factors.get(id(parameter), 1.0), parameter.dim() > 1
            found.setdefault(key, []).append(parameter)
    return [
        {"params": held, "lr": lr * factor, "weight_decay": weight_decay if decays else 0.0}
        for (factor, decays), held in found.items()
    ]
