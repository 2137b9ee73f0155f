"""What stands in for quantised weights while a model is traced: weights of their sizes without any memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from peftc.quantised.weight import QuantisedWeight, quantised_in


class StandIn(nn.Linear):
    """In a trace, the owner of a quantised weight: takes its input in any number format, as the operators do."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as the class in whose place it stands has it
        """x Wᵀ + b."""
        product: Tensor = torch.ops.peftc.linear(input, self.weight, self.bias)
        return product


@contextmanager
def standing_in(root: nn.Module) -> Iterator[None]:
    """Inside, every quantised weight has its first sizes and number format, and no values."""
    weights = {id(root.get_parameter(path)): empty(held) for path, held in quantised_in(root).items()}
    swapped: list[tuple[nn.Module, str, nn.Parameter]] = []
    kinds: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for module in root.modules() if weights else ():
            for name, own in list(module.named_parameters(recurse=False)):
                if id(own) not in weights:
                    continue
                swapped.append((module, name, own))
                setattr(module, name, weights[id(own)])
                if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
                    kinds.append((module, type(module)))
                    module.__class__ = StandIn
        yield
    finally:
        for module, kind in kinds:
            module.__class__ = kind
        for module, name, own in swapped:
            setattr(module, name, own)


def empty(held: QuantisedWeight) -> nn.Parameter:
    """A parameter of a weight's sizes whose storage holds nothing: tracing reads no values."""
    tensor = torch.empty(held.stored_shape, dtype=held.like.dtype, device=held.like.device)
    tensor.untyped_storage().resize_(0)
    return nn.Parameter(tensor, requires_grad=False)
