"""The pass that turns in-place operators into their functional twins where no view tells the difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from peftc.graphs.reading import operator_name, schema_of, value

SCATTERS: Mapping[str, Callable[..., Any]] = {
    "slice": torch.ops.aten.slice_scatter.default,
    "select": torch.ops.aten.select_scatter.default,
}
"""View → the operator that puts a value in its place."""

VIEWS = frozenset(
    "view _unsafe_view reshape transpose permute t numpy_T slice select unsqueeze squeeze expand split"
    " split_with_sizes chunk unbind narrow flatten unflatten alias detach diagonal view_as expand_as movedim"
    " swapaxes".split()
)


@dataclass(frozen=True)
class MakeFunctional:
    """`x.add_(y)` becomes `add(x, y)`, and later readers of `x` read the result.

    A write into a slice of a fresh tensor becomes a new tensor with that slice in it.
    Left alone: writes to inputs, parameters and buffers, and those that are seen through other views.
    """

    def run(self, graph: fx.Graph) -> int:
        """Replace what can be replaced."""
        changed = 0
        order = {node: position for position, node in enumerate(graph.nodes)}
        for node in list(graph.nodes):
            twin = functional_twin(node)
            if twin is None:
                continue
            target = node.args[0]
            if not isinstance(target, fx.Node) or target.op != "call_function":
                continue
            if operator_name(target) in SCATTERS:
                changed += scattered(graph, node, target, twin, order)
                continue
            if aliased(target):
                continue
            with graph.inserting_after(node):
                new = graph.call_function(twin, node.args, dict(node.kwargs))
            new.meta = dict(node.meta)
            order[new] = order[node]
            node.replace_all_uses_with(new)
            target.replace_all_uses_with(new, delete_user_cb=later_readers(order, new))
            graph.erase_node(node)
            changed += 1
        return changed


def scattered(
    graph: fx.Graph, node: fx.Node, view: fx.Node, twin: Callable[..., Any], order: dict[fx.Node, int]
) -> int:
    """Turn a write into a slice into a new tensor, if nothing else sees the old one; says how many it turned."""
    base = view.args[0]
    if not isinstance(base, fx.Node) or base.op != "call_function" or operator_name(base) in VIEWS:
        return 0
    others = [user for user in base.users if operator_name(user) in VIEWS and user is not view]
    for other in others:
        if order[other] < order[node] and any(order[user] > order[node] for user in other.users):
            return 0  # an older view would have seen the write
    with graph.inserting_before(node):
        new = written(graph, node, view, twin)
        whole = graph.call_function(
            SCATTERS[operator_name(view)], (base, new, *view.args[1:]), dict(view.kwargs)
        )
    whole.meta = {**node.meta, "val": base.meta.get("val")}
    order[whole] = order[node]
    order.setdefault(new, order[node])
    node.replace_all_uses_with(new)
    view.replace_all_uses_with(new, delete_user_cb=later_readers(order, new))
    later = later_readers(order, whole)
    base.replace_all_uses_with(whole, delete_user_cb=lambda user: later(user) and user is not new)
    graph.erase_node(node)
    return 1


def written(graph: fx.Graph, node: fx.Node, view: fx.Node, twin: Callable[..., Any]) -> fx.Node:
    """What a write leaves in a view, at the insertion point. A copy is its source: `copy` itself has no gradient."""
    if operator_name(node) != "copy_":
        new = graph.call_function(twin, node.args, dict(node.kwargs))
        new.meta = dict(node.meta)
        return new
    source = node.args[1]
    assert isinstance(source, fx.Node)
    if value(source).dtype != value(view).dtype:
        source = graph.call_function(torch.ops.aten.to.dtype, (source, value(view).dtype))
        source.meta = dict(node.meta)
    if tuple(map(str, value(source).shape)) != tuple(map(str, value(view).shape)):
        source = graph.call_function(torch.ops.aten.expand_as.default, (source, view))
        source.meta = dict(node.meta)
    return source


def later_readers(order: Mapping[fx.Node, int], new: fx.Node) -> Callable[[fx.Node], bool]:
    """Tells, of a user of what was written to, whether it stands behind the write that `new` replaces."""
    return lambda user: user is not new and order[user] > order[new]


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


def aliased(node: fx.Node) -> bool:
    """Whether a node's storage may be seen through another node."""
    if operator_name(node) in VIEWS or operator_name(node) == "getitem":
        return True
    return any(operator_name(user) in VIEWS for user in node.users)
