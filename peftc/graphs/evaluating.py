"""Runs the small part of a graph that computes masks and positions, at sizes of one's choice, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from peftc.graphs.reading import value


def filled_for(placeholder: fx.Node, batch: int, length: int, number: int = 1) -> Tensor:
    """A number all over in the shape of an input: a symbolic first dimension is the batch, others are the length."""
    seen = value(placeholder)
    sizes = [
        size if isinstance(size, int) else (batch if dimension == 0 else length)
        for dimension, size in enumerate(seen.shape)
    ]
    return torch.full(sizes, number, dtype=seen.dtype)


def evaluate(
    target: fx.Node,
    nodes: Set[fx.Node],
    sizes: tuple[int, int],
    state: Callable[[str], Tensor],
    number: int = 1,
    instead: Mapping[int, int] = MappingProxyType({}),
) -> Tensor:
    """The value of `target` for inputs of (batch, length) `sizes`, all of one number.

    Args:
        target: a node that makes a tensor.
        nodes: the node and all it is computed from.
        sizes: batch and length.
        state: gives the parameter, buffer or constant of a path.
        instead: whole numbers that stand in the place of others in the graph, whatever their sign.
    """
    env: dict[fx.Node, Any] = {}

    def given(leaf: Any) -> Any:
        if isinstance(leaf, fx.Node):
            return env[leaf]
        if type(leaf) in (int, float) and abs(leaf) in instead:
            return type(leaf)(instead[int(abs(leaf))] * (1 if leaf > 0 else -1))
        return leaf

    for node in target.graph.nodes:
        if node not in nodes:
            continue
        if node.op == "placeholder":
            env[node] = filled_for(node, *sizes, number)
        elif node.op == "get_attr":
            env[node] = state(str(node.target)).detach().cpu()
        else:
            args, kwargs = fx.node.map_aggregate((node.args, dict(node.kwargs)), given)
            here = {
                key: torch.device("cpu") if key == "device" and item else item for key, item in kwargs.items()
            }
            env[node] = node.target(*args, **here)
    result = env[target]
    assert isinstance(result, Tensor)
    return result
