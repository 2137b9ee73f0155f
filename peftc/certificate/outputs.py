"""All that a call gives: its tensors of numbers, by name, and how far they are from those of another module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftc.certificate.subject import called, error, main_output

Outputs = dict[str, Tensor]


def outputs_of(output: Any) -> Outputs:
    """The tensors of numbers at the top of an output, a loss among them; the main one where none stands there.

    What is deeper is not looked at: a cache is there for a next call, which is examined by itself.
    """
    if isinstance(output, Mapping):
        named = {str(name): value for name, value in output.items()}
    elif isinstance(output, (tuple, list)):
        named = {f"output {number}": value for number, value in enumerate(output)}
    else:
        named = vars(output) if hasattr(output, "__dict__") and not isinstance(output, Tensor) else {}
    found = {name: value for name, value in named.items() if is_numbers(value)}
    return found or {"output": main_output(output)}


def is_numbers(value: Any) -> bool:
    """Whether a value is a tensor of numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def run_whole(module: nn.Module, arguments: Mapping[str, Any]) -> Outputs:
    """All outputs of a call, without gradients."""
    with torch.no_grad():
        return outputs_of(called(module, arguments))


def difference(ours: Outputs, wanted: Outputs) -> float:
    """The largest relative difference of an output to the wanted one of its name; without end where one has no other."""
    if ours.keys() != wanted.keys():
        return float("inf")
    return max(error(ours[name], want) for name, want in wanted.items())
