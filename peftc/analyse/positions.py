"""Where tokens are placed: whole numbers that count up by one along the sequence, at a table or a rotation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from peftc.analyse.site import Port
from peftc.graphs.evaluating import evaluate
from peftc.graphs.reading import ancestors, is_call, is_tensor, value

State = Callable[[str], Tensor]


def position_ports(graph: fx.Graph, state: State) -> Iterator[tuple[fx.Node, Port]]:
    """Each place that reads token positions: the reader, and the operand."""
    for node in graph.nodes:
        if is_call(node, "embedding") and counts_up(node.args[1], state):
            yield node, Port("operand", node, 1)
        elif is_call(node, "to") and value(node).dtype.is_floating_point and counts_up(node.args[0], state):
            yield node, Port("operand", node, 0)


def counts_up(node: Any, state: State) -> bool:
    """Whether a tensor of whole numbers counts up by one along its longest axis."""
    return first_place(node, state) is not None


def first_place(node: Any, state: State) -> int | None:
    """The number that a tensor of whole numbers counts up from, by one along its longest axis; None if it does not.

    It is computed for a small size, with inputs of ones: a mask of ones is one without padding; and of twos: one of
    the two is not the id of the padding. Token ids do not count up, whatever they are made of.
    """
    if not is_tensor(node) or value(node).dtype not in (torch.int64, torch.int32):
        return None
    nodes = set(ancestors(node))
    if len(nodes) > 60 or any(is_call(inner, "linear", "embedding") for inner in nodes):
        return None
    for number in (1, 2):
        try:
            result = evaluate(node, nodes, (2, 7), state, number)
        except Exception:  # noqa: BLE001 - any node may fail outside the trace: that is no evidence
            return None
        long = [axis for axis, size in enumerate(result.shape) if size > 2]
        if len(long) == 1 and result.numel() > 0 and bool((result.diff(dim=long[0]) == 1).all()):
            return int(result.flatten()[0])
    return None
