"""Heads that lie flat in the batch: [batch·heads length width], as products of three axes want them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from peftc.capture.calls import made, replace_each, size_of
from peftc.graphs.reading import is_call, is_parameter, is_tensor, shape, value

aten = torch.ops.aten
LAYOUT = ("view", "reshape", "_unsafe_view")


@dataclass(frozen=True)
class FlattenGroups:
    """Heads by groups, [batch groups heads length width] beside keys of one head for each group, get one axis."""

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> int:
        """Replace products of five axes."""
        return replace_each(graph, flat_product)


def flat_product(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """The product with one axis of heads, for one with heads by groups."""
    if not is_grouped(node):
        return None
    left: Any = node.args[0]
    right: Any = node.args[1]
    groups, heads = shape(left)[1:3]
    one = made(graph, node, aten.flatten.using_ints, left, 1, 2)
    other = repeated(graph, node, right, groups * heads, heads)
    y = made(graph, node, aten.matmul.default, one, other)
    return made(graph, node, aten.unflatten.int, y, 1, [groups, heads])


def is_grouped(node: fx.Node) -> bool:
    """Whether a node is such a product of values."""
    operands: Any = node.args[:2]
    if not is_call(node, "matmul") or not all(
        is_tensor(each) and not is_parameter(each) for each in operands
    ):
        return False
    left, right = map(value, operands)
    if left.dim() != 5 or right.dim() != 5:
        return False
    known = all(isinstance(size, int) for size in (*left.shape[1:3], *right.shape[1:3]))
    # What both have two axes of besides the batch may be windows of an image: tokens, and no heads.
    return known and right.shape[1] == left.shape[1] and right.shape[2] == 1


def repeated(graph: fx.Graph, at: fx.Node, right: fx.Node, count: int, heads: int) -> fx.Node:
    """The right side with as many heads as the left, in the form in which models repeat those of keys."""
    are_keys = turns(right)
    source: Any = right.args[0] if are_keys else right
    wide = made(graph, at, aten.expand.default, source, [-1, -1, heads, -1, -1])
    sizes = [-1, count, size_of(graph, at, source, 3), size_of(graph, at, source, 4)]
    flat = made(graph, at, aten.reshape.default, wide, sizes)
    return made(graph, at, aten.transpose.int, flat, -1, -2) if are_keys else flat


def turns(node: fx.Node) -> bool:
    """Whether a node exchanges the last two axes of its input, as one of keys does."""
    if not is_call(node, "transpose", "swapaxes"):
        return is_call(node, "mT", "numpy_T") and value(node).dim() == 2
    axes = value(node).dim()
    return {int(axis) % axes for axis in node.args[1:3]} == {axes - 1, axes - 2}  # type: ignore[arg-type]


def flat_heads(query: fx.Node) -> int | None:
    """Number of heads in queries [batch·heads length width], whatever one number they are multiplied by; or None."""
    while is_call(query, "mul", "div") and not isinstance(query.args[1], fx.Node):
        query = query.args[0]  # type: ignore[assignment]
    source = source_of_flat(query)
    return heads_beside_batch(query) if source is None else shape(source)[1]


def source_of_flat(node: fx.Node) -> fx.Node | None:
    """x [batch heads length width] of which a node [batch·heads length width] is the flat form, or None."""
    after = value(node)
    current = node
    while is_call(current, *LAYOUT, "contiguous", "clone"):
        current = current.args[0]  # type: ignore[assignment]
        before = value(current)
        if before.dim() == 4:
            flat = (str(before.shape[0] * before.shape[1]), str(before.shape[2]), str(before.shape[3]))
            return current if flat == tuple(map(str, after.shape)) else None
    return None


def heads_beside_batch(node: fx.Node) -> int | None:
    """Number of heads in a value [batch·heads length width] that was made of one [length batch d]; or None."""
    if not is_call(node, "transpose", "swapaxes") or {node.args[1], node.args[2]} not in ({0, 1}, {-3, -2}):
        return None
    view = node.args[0]
    if not is_call(view, *LAYOUT) or not is_tensor(view.args[0]) or value(view.args[0]).dim() != 3:
        return None
    (length, batch, d), after = value(view.args[0]).shape, value(view).shape
    if len(after) != 3 or not isinstance(d, int) or not isinstance(after[2], int) or d % after[2]:
        return None
    heads = d // after[2]
    same = (str(length), str(batch * heads)) == (str(after[0]), str(after[1]))
    return heads if same and heads > 1 else None
