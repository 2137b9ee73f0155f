"""What a graph writes into beside what it returns: the model's buffers and the caller's tensors; and putting it back."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from peftc.graphs.branches import expect
from peftc.graphs.reading import is_write, storage


def written(graph: fx.Graph, *, before_a_branch: bool = False) -> tuple[fx.Node, ...]:
    """The inputs and the state into which calls of a graph write.

    Args:
        before_a_branch: only calls behind which data may still say that the graph is the wrong one.
    """
    memory, found = set[int | None](), set[int | None]()
    for node in graph.nodes:
        if node.op == "call_function" and is_write(node):
            memory.update(storage(source) for source in node.args[:1] if isinstance(source, fx.Node))
        if node.target is expect or not before_a_branch:
            found |= memory
    return tuple(
        node
        for node in graph.nodes
        if node.op in ("placeholder", "get_attr") and (held := storage(node)) is not None and held in found
    )


class Kept:
    """What tensors hold that a graph is about to write into."""

    def __init__(self, nodes: Sequence[fx.Node], root: Any, given: Sequence[Tensor]) -> None:
        inputs = nodes[0].graph.find_nodes(op="placeholder") if nodes else []
        called = dict(zip(inputs, given, strict=False))  # behind the tensors' are those of objects
        tensors = [
            called[node] if node.op == "placeholder" else attrgetter(str(node.target))(root) for node in nodes
        ]
        self.before = [(tensor, tensor.detach().clone(), tensor.requires_grad) for tensor in tensors]

    def put_back(self) -> None:
        """Let them hold it again."""
        with torch.no_grad():
            for tensor, values, wants_gradient in self.before:
                if tensor.requires_grad and not wants_gradient:
                    tensor.detach_()
                tensor.copy_(values)
