"""The pass that turns in-place operators into their functional twins where nothing else tells the difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from peftc.graphs.reading import operator_name, schema_of, storage, value

SCATTERS: Mapping[str, Callable[..., Any]] = {
    "slice": torch.ops.aten.slice_scatter.default,
    "select": torch.ops.aten.select_scatter.default,
}
"""View → the operator that puts a value in its place."""


@dataclass(frozen=True)
class MakeFunctional:
    """`x.add_(y)` becomes `add(x, y)`, and later readers of `x` read the result.

    A write into a slice of a fresh tensor becomes a new tensor with that slice in it.
    Left alone: writes to inputs, parameters and buffers, and those that are seen through other views.
    """

    def run(self, graph: fx.Graph) -> int:
        """Replace what can be replaced."""
        writes = Writes(graph)
        return sum(writes.replace(node) for node in list(graph.nodes))


class Writes:
    """The in-place calls of a graph, and which of its nodes share the memory that each of them writes to.

    What shares memory is what shared it in the trace: names of operators do not tell (`contiguous`, `to`), and the
    result of an in-place call is the tensor that it wrote to.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.order: dict[fx.Node, int] = {}
        self.sharing: dict[int, list[fx.Node]] = {}
        for position, node in enumerate(graph.nodes):
            self.order[node] = position
            if (memory := storage(node)) is not None:
                self.sharing.setdefault(memory, []).append(node)

    def replace(self, node: fx.Node) -> bool:
        """Replace a call that writes, if nothing but later readers of its target can tell; says whether it did."""
        twin = functional_twin(node)
        target = node.args[0] if twin is not None else None
        if twin is None or not isinstance(target, fx.Node) or not self.is_fresh(target):
            return False
        seeing = self.seeing(node, target)
        with self.graph.inserting_before(node):
            if not seeing:
                new = self.insert(node, node, twin, node.args, node.kwargs)
                self.pass_on(target, node, new)
                node.replace_all_uses_with(new)
            elif operator_name(target) not in SCATTERS or seeing != [target.args[0]]:
                return False
            elif is_in_place_already(node, target):
                node.replace_all_uses_with(target)
            else:
                self.scatter(node, target, seeing[0], twin)
        self.graph.erase_node(node)
        return True

    def is_fresh(self, target: fx.Node) -> bool:
        """Whether an operator of the graph made the memory of a node: not the caller's, nor the model's."""
        memory = storage(target)
        if memory is None:
            return False
        first = self.sharing[memory][0]
        return first.op == "call_function" and schema_of(first) is not None

    def seeing(self, node: fx.Node, target: fx.Node) -> list[fx.Node]:
        """Other nodes with the memory of the target of a write that were made before it and are read behind it."""
        memory = storage(target)
        assert memory is not None
        return [
            other
            for other in self.sharing[memory]
            if other is not target and self.order[other] < self.order[node] and self.later(other, node)
        ]

    def scatter(self, node: fx.Node, view: fx.Node, base: fx.Node, twin: Callable[..., Any]) -> None:
        """Make of a write into a slice a new tensor with the slice in it. A later reader of the slice reads that."""
        at = view.args[1:]
        new = self.written(node, view, twin)
        whole = self.insert(node, base, SCATTERS[operator_name(view)], (base, new, *at), view.kwargs)
        self.pass_on(base, node, whole)
        if node.users or self.later(view, node):
            again = self.insert(node, view, view.target, (whole, *at), view.kwargs)
            self.pass_on(view, node, again)
            node.replace_all_uses_with(again)

    def written(self, node: fx.Node, view: fx.Node, twin: Callable[..., Any]) -> fx.Node:
        """What a write leaves in a view. A copy is its source: `copy` itself has no gradient."""
        if operator_name(node) != "copy_":
            return self.insert(node, node, twin, node.args, node.kwargs)
        source = node.args[1]
        assert isinstance(source, fx.Node)
        if value(source).dtype != value(view).dtype:
            source = self.insert(node, node, torch.ops.aten.to.dtype, (source, value(view).dtype), {})
        if tuple(map(str, value(source).shape)) != tuple(map(str, value(view).shape)):
            source = self.insert(node, node, torch.ops.aten.expand_as.default, (source, view), {})
        return source

    def insert(
        self, write: fx.Node, like: fx.Node, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> fx.Node:
        """A new call in the place of a write, with a value like that of a node."""
        new = self.graph.call_function(target, args, dict(kwargs))
        new.meta = {**write.meta, "val": value(like)}
        self.order[new] = self.order[write]
        memory = storage(like)
        assert memory is not None
        self.sharing[memory].append(new)
        return new

    def later(self, node: fx.Node, write: fx.Node) -> list[fx.Node]:
        """The readers of a node behind a write."""
        return [user for user in node.users if self.order[user] > self.order[write]]

    def pass_on(self, old: fx.Node, write: fx.Node, new: fx.Node) -> None:
        """Let what reads `old` behind a write read `new`."""
        later = self.later(old, write)
        old.replace_all_uses_with(new, delete_user_cb=later.__contains__)


def is_in_place_already(node: fx.Node, view: fx.Node) -> bool:
    """Whether a copy writes into a view what is in it, as `x[0] += 1` does with its result."""
    source = node.args[1] if operator_name(node) == "copy_" else None
    return (
        isinstance(source, fx.Node)
        and source.target == view.target
        and source.args == view.args
        and source.kwargs == view.kwargs
    )


def functional_twin(node: fx.Node) -> Callable[..., Any] | None:
    """The operator that computes what an in-place one writes; None for operators that write nothing."""
    schema = schema_of(node)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return None
    space, _, name = schema.name.partition("::")
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(getattr(torch.ops, space), name[:-1], None)
    overload = schema.overload_name or "default"
    if packet is None or overload not in packet.overloads():
        return None
    twin: Callable[..., Any] = getattr(packet, overload)
    return twin
