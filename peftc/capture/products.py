"""Passes that write products with weights in one way: the weight on the right, and picked matrices by their numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from peftc.capture.calls import made, replace_each
from peftc.graphs.operations import numbered_linear
from peftc.graphs.reading import is_call, is_parameter, is_tensor, operator_name, value

aten = torch.ops.aten


@dataclass(frozen=True)
class TurnLeftProducts:
    """W x becomes (xᵀ Wᵀ)ᵀ, x [... d_in length]: state-space models write their steps' sizes so, an einsum experts."""

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> int:
        """Replace them."""
        return replace_each(graph, right_product)


def right_product(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """A product with the weight on its right, for one that has it on its left."""
    weight, x = node.args[:2] if is_call(node, "matmul", "bmm") else (None, None)
    if not is_tensor(weight) or not is_tensor(x):
        return None
    alone = is_parameter(weight) and value(weight).dim() == 2 and value(x).dim() >= 3
    if not alone and not (is_stack(weight) and value(x).dim() == 3 and not is_stack(x)):
        return None
    rows = made(graph, node, aten.transpose.int, x, -1, -2)
    if alone:
        product = made(graph, node, aten.linear.default, rows, weight)
    else:
        turned = made(graph, node, aten.transpose.int, weight, -1, -2)
        product = made(graph, node, aten.bmm.default, rows, turned)
    return made(graph, node, aten.transpose.int, product, -1, -2)


@dataclass(frozen=True)
class NumberMatrices:
    """A product of each row with a matrix picked from a stack for it becomes one with the stack and the numbers."""

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> int:
        """Replace them: `bmm(x.unsqueeze(1), W[numbers])`, or `bmm(W[numbers], x.unsqueeze(2))`, squeezed again."""
        return replace_each(graph, numbered_product) + sum(map(cancelled, list(graph.nodes)))


def numbered_product(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """The product with the stack, for one of each row with a matrix that is picked from it."""
    if not is_call(node, "bmm") or not all(map(is_tensor, node.args)):
        return None
    for at, axis in ((0, 1), (1, 2)):
        x: Any = node.args[at]
        found = picked(node.args[1 - at])
        if found is None or value(x).shape[axis] != 1:
            continue
        stack, numbers, turned = found
        rows = made(graph, node, aten.squeeze.dim, x, axis)
        inward = turned != bool(at)
        held = made(graph, node, aten.transpose.int, stack, -1, -2) if inward else stack
        product = made(graph, node, numbered_linear, rows, held, numbers)
        return made(graph, node, aten.unsqueeze.default, product, axis)
    return None


def picked(node: Any) -> tuple[fx.Node, fx.Node, bool] | None:
    """The stack, the numbers and whether its matrices are turned, of matrices that are picked by their numbers."""
    turned = False
    while is_call(node, "transpose") and set(map(last_of_three, node.args[1:])) == {1, 2}:
        node, turned = node.args[0], not turned
    if not is_call(node, "index") or not is_stack(node.args[0]):
        return None
    numbers: Any = node.args[1]
    if len(numbers) != 1 or not is_tensor(numbers[0]) or value(numbers[0]).dim() != 1:
        return None
    stack: Any = node.args[0]
    return stack, numbers[0], turned


def last_of_three(axis: Any) -> int:
    """An axis of three, counted from the front."""
    return int(axis) % 3


def cancelled(node: fx.Node) -> bool:
    """Whether a node was one of two that undo each other, and has gone: an axis of one put in and taken out."""
    pair = {"squeeze": ("unsqueeze",), "transpose": ("transpose",)}.get(operator_name(node))
    source: Any = node.args[0] if node.args else None
    if pair is None or not is_call(source, *pair) or not is_tensor(source.args[0]):
        return False
    own: Any = node
    here, there = ({axis % value(each).dim() for axis in each.args[1:]} for each in (own, source))
    if here != there:
        return False
    node.replace_all_uses_with(source.args[0])
    node.graph.erase_node(node)
    if not source.users:
        node.graph.erase_node(source)
    return True


def is_stack(node: Any) -> bool:
    """Whether a value is a stack of matrices of the model, turned at most."""
    while is_call(node, "transpose", "permute", "mT"):
        node = node.args[0]
    return is_tensor(node) and is_parameter(node) and value(node).dim() == 3
