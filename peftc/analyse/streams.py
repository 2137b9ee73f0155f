"""Sums of a stream: something is added to what it was computed from, as each layer does."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from peftc.graphs.reading import is_call, is_tensor, shape


def order_of(graph: fx.Graph) -> Mapping[fx.Node, int]:
    """Node → its place in the graph."""
    return {node: place for place, node in enumerate(graph.nodes)}


def is_residual(node: fx.Node, order: Mapping[fx.Node, int]) -> bool:
    """Whether a node adds something to what it was computed from.

    A rotation, which adds two readings of one value, does not.
    """
    for own in node.args:
        if isinstance(own, fx.Node) and (other := other_side(node, own)) and is_before(other, own, order):
            return True
    return False


def other_side(node: fx.Node, own: fx.Node) -> fx.Node | None:
    """What a sum adds to one of its sides, if both are alike."""
    if not is_call(node, "add") or len(node.args) != 2 or node.kwargs:
        return None
    other = node.args[1] if node.args[0] is own else node.args[0]
    if not isinstance(other, fx.Node) or other is own or not is_tensor(other):
        return None
    return other if len(shape(other)) > 1 and shape(other) == shape(own) else None


def is_stream(other: fx.Node, result: fx.Node, order: Mapping[fx.Node, int]) -> bool:
    """Whether a value is what another was computed from, or a sum with that: blocks may add side by side."""
    if is_before(other, result, order):
        return True
    return is_call(other, "add") and any(
        isinstance(side, fx.Node) and is_tensor(side) and shape(side) == shape(other)
        and is_before(side, result, order)
        for side in other.args
    )  # fmt: skip


def is_before(one: fx.Node, other: fx.Node, order: Mapping[fx.Node, int]) -> bool:
    """Whether `other` is computed from `one`."""
    queue, seen = [other], {other}
    while queue:
        current = queue.pop()
        if current is one:
            return True
        for source in current.all_input_nodes:
            if source not in seen and order[source] >= order[one]:
                seen.add(source)
                queue.append(source)
    return False
