"""The passes that turn an `einsum` of a value with a weight, or of the values of heads, into the product that it is."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import fx

from peftc.capture.products import made
from peftc.graphs.reading import is_call, is_parameter, is_tensor, shape, value

aten = torch.ops.aten


@dataclass(frozen=True)
class Equation:
    """An einsum over x and a weight, or another value in its place: its letters by what becomes of them.

    Attributes:
        x, weight, out: the letters of each, in order.
    """

    x: str
    weight: str
    out: str

    @property
    def stack(self) -> str:
        """Letters of all three: a matrix for each."""
        return "".join(each for each in self.weight if each in self.x and each in self.out)

    @property
    def summed(self) -> str:
        """Letters that are summed."""
        return "".join(each for each in self.weight if each in self.x and each not in self.out)

    @property
    def rows(self) -> str:
        """Letters of x alone."""
        return "".join(each for each in self.x if each not in self.weight)

    @property
    def channels(self) -> str:
        """Letters of the weight alone."""
        return "".join(each for each in self.weight if each not in self.x)

    @property
    def is_product(self) -> bool:
        """Whether it is one with a matrix, or with a stack of them, and nothing besides."""
        once = all(len(set(each)) == len(each) for each in (self.x, self.weight, self.out))
        kept = set(self.out) == {*self.stack, *self.rows, *self.channels}
        single = len(self.stack) <= 1 and (not self.stack or len(self.rows) == 1)
        return once and kept and single and bool(self.summed) and bool(self.channels)


@dataclass(frozen=True)
class SpellEinsums:
    """Becomes `linear`, or `bmm` with a stack of matrices; what is summed or made in several axes is flattened."""

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> int:
        """Replace them."""
        changed = 0
        for node in list(graph.nodes):
            found = read(node)
            if found is None:
                continue
            x, weight, equation = found
            with graph.inserting_before(node):
                new = product(graph, node, x, weight, equation)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            changed += 1
        return changed


@dataclass(frozen=True)
class SpellHeadProducts:
    """An `einsum` that multiplies matrices for each row and head becomes `matmul`, as attention is written elsewhere."""

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> int:
        """Replace them."""
        changed = 0
        for node in list(graph.nodes):
            told = operands_of(node)
            if told is None or not all(is_tensor(each) and not is_parameter(each) for each in told[0]):
                continue
            (one, other), (left, right), out = told
            if len(left) != 4 or len(right) != 4 or len({*left, *right}) != 5:
                continue
            of = Equation(left, right, out)
            if (len(of.stack), len(of.summed), len(of.rows), len(of.channels)) != (2, 1, 1, 1):
                continue
            if len(out) != 4 or set(out) != {*of.stack, *of.rows, *of.channels}:
                continue
            with graph.inserting_before(node):
                first = turned(graph, node, one, left, list(of.stack + of.rows + of.summed))
                second = turned(graph, node, other, right, list(of.stack + of.summed + of.channels))
                y = made(graph, node, aten.matmul.default, first, second)
                new = turned(graph, node, y, of.stack + of.rows + of.channels, list(out))
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            changed += 1
        return changed


def turned(graph: fx.Graph, at: fx.Node, node: fx.Node, have: str, want: list[str]) -> fx.Node:
    """A value with its axes in another order."""
    if list(have) == want:
        return node
    return made(graph, at, aten.permute.default, node, [have.index(each) for each in want])


def operands_of(node: fx.Node) -> tuple[tuple[fx.Node, fx.Node], tuple[str, str], str] | None:
    """The two operands of an einsum, the letters of each and those of what comes out; None for any other node."""
    if not is_call(node, "einsum") or len(node.args) < 2:
        return None
    text, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    if not isinstance(operands, (list, tuple)) or len(operands) != 2 or "." in text or "->" not in text:
        return None
    letters, out = text.split("->")
    one, other = letters.split(",")
    first, second = operands
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return None
    return (first, second), (one, other), out


def read(node: fx.Node) -> tuple[fx.Node, fx.Node, Equation] | None:
    """The value, the weight and the letters of an einsum that is a product with a weight; None for any other."""
    told = operands_of(node)
    if told is None:
        return None
    operands, letters, out = told
    pairs = list(zip(operands, letters, strict=True))
    weights = [pair for pair in pairs if is_parameter(pair[0])]
    values = [pair for pair in pairs if pair not in weights]
    if len(weights) != 1 or not is_tensor(values[0][0]):
        return None
    equation = Equation(values[0][1], weights[0][1], out)
    return (values[0][0], weights[0][0], equation) if equation.is_product else None


def product(graph: fx.Graph, at: fx.Node, x: fx.Node, weight: fx.Node, told: Equation) -> fx.Node:
    """The nodes of a product, in the order of axes that the equation asks for."""

    def flat(node: fx.Node, first: int, count: int) -> fx.Node:
        return (
            node if count == 1 else made(graph, at, aten.flatten.using_ints, node, first, first + count - 1)
        )

    count, width = len(told.stack), len(told.channels)
    rows = turned(graph, at, x, told.x, list(told.stack + told.rows + told.summed))
    rows = flat(rows, count + len(told.rows), len(told.summed))
    is_turned = told.weight == told.stack + told.summed + told.channels
    first, second = (told.summed, told.channels) if is_turned else (told.channels, told.summed)
    # A view of the weight, where it can be one.
    matrix = turned(graph, at, weight, told.weight, list(told.stack + first + second))
    matrix = flat(flat(matrix, count, len(first)), count + 1, len(second))
    if count:
        matrix = matrix if is_turned else made(graph, at, aten.transpose.int, matrix, -1, -2)
        y = made(graph, at, aten.bmm.default, rows, matrix)
    else:
        matrix = made(graph, at, aten.t.default, matrix) if is_turned else matrix
        y = made(graph, at, aten.linear.default, rows, matrix)
    if width > 1:
        sizes = [shape(weight)[told.weight.index(each)] for each in told.channels]
        assert prod(sizes) == value(y).shape[-1]
        y = made(graph, at, aten.unflatten.int, y, -1, sizes)
    return turned(graph, at, y, told.stack + told.rows + told.channels, list(told.out))
