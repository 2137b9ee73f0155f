"""A compiled module as the model of another: what its rules learned stays where it is, and other rules stand on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from peftc.errors import CaptureError
from peftc.lang import Bound
from peftc.match.plan import Plan
from peftc.quantised import quantised_in
from peftc.runtime.compiled import CompiledModule
from peftc.runtime.merging import plain_model


def carried(model: nn.Module, going_on: Iterable[Bound] = ()) -> tuple[nn.Module, tuple[Bound, ...]]:
    """The plain model below a compiled module, and its rules as ones that are kept; any other model as it is.

    Args:
        going_on: rules that go on training where the module has them, such as the head of a task.
    """
    if not isinstance(model, CompiledModule):
        return model, ()
    alike = {bound.rule.digest for bound in going_on}
    rules = tuple(replace(bound, kept=bound.rule.digest not in alike) for bound in model.peftc_plan.rules)
    came = quantised_in(model).values()
    return plain_model(model, requantise=bool(came) and all(each.origin is not None for each in came)), rules


def put_over(compiled: nn.Module, base: nn.Module) -> None:
    """Give a compiled module what the rules of its base learned, and the weights that these packed.

    Raises:
        CaptureError: the model has another form here than it had for the base.
    """
    plan: Plan = base.peftc_plan  # type: ignore[assignment]
    learned = {*(parameter.path for parameter in plan.new_parameters), *plan.trained}
    packed = {name for name, _ in base.named_buffers() if any(name.startswith(each) for each in homes(base))}
    own, held = tensors_of(compiled), tensors_of(base)
    for name in (*learned, *packed):
        if name not in own or own[name].shape != held[name].shape:
            message = f"{name} of the adapter that the model carries has no place here"
            raise CaptureError(
                message, hint="compile it with the example inputs that the adapter was compiled with"
            )
    with torch.no_grad():
        for name in (*learned, *packed):
            own[name].copy_(held[name])


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, by each of its paths."""
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


def homes(root: nn.Module) -> list[str]:
    """The paths below which quantised weights have their tensors."""
    found = {id(module) for module in quantised_in(root).values()}
    return [f"{path}." for path, module in root.named_modules() if id(module) in found]
