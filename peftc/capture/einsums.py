"""The passes that turn an `einsum` of a value with a weight, or of the values of heads, into the product that it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, ClassVar

import torch
from torch import fx

from peftc.capture.calls import made, replace_each, size_of
from peftc.capture.equations import Equation, letters_of, operands_of, read
from peftc.capture.products import picked
from peftc.graphs.reading import is_parameter, is_pointwise, is_tensor, shape, value

aten = torch.ops.aten


@dataclass(frozen=True)
class SimplifyEinsums:
    """An `einsum` of more than two operands becomes several of two; one with picked matrices, a product for each row;
    one that weighs what it sums, a product by places and a sum.
    """

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> int:
        """Replace them."""
        return replace_each(graph, simplified)


def simplified(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """What stands for an einsum that is not in its simplest form."""
    told = letters_of(node)
    if told is None:
        return None
    last = two_by_two(graph, node, *told) if len(told[0]) > 2 else node
    new = each_row(graph, last) or weighed(graph, last)
    if last is node:
        return new
    if new is None:
        return last
    graph.erase_node(last)
    return new


def two_by_two(
    graph: fx.Graph, at: fx.Node, operands: list[fx.Node], letters: list[str], out: str
) -> fx.Node:
    """The einsums of two operands each that make one of several, first to last, as torch itself goes through them."""
    made_of, have = operands[0], letters[0]
    for count, (operand, own) in enumerate(zip(operands[1:], letters[1:], strict=True), 2):
        later = {*out, *"".join(letters[count:])}
        want = out if count == len(operands) else "".join(dict.fromkeys(e for e in have + own if e in later))
        made_of = made(graph, at, aten.einsum.default, f"{have},{own}->{want}", [made_of, operand])
        have = want
    return made_of


def each_row(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """`bmm` of each row of x with a matrix that is picked for it, for an einsum that is that."""
    told = operands_of(node)
    if told is None:
        return None
    for x, matrices, of in (
        (told[0][0], told[0][1], Equation(*told[1], told[2])),
        (told[0][1], told[0][0], Equation(*told[1][::-1], told[2])),
    ):
        counts = len(of.stack), len(of.summed), len(of.rows), len(of.channels)
        if counts != (1, 1, 0, 1) or picked(matrices) is None or of.weight[0] != of.stack:
            continue
        rows = turned(graph, node, x, of.x, [of.stack, of.summed])
        is_turned = of.weight[1] == of.summed
        right = matrices if is_turned else made(graph, node, aten.transpose.int, matrices, 1, 2)
        y = made(graph, node, aten.bmm.default, made(graph, node, aten.unsqueeze.default, rows, 1), right)
        y = made(graph, node, aten.squeeze.dim, y, 1)
        return turned(graph, node, y, of.stack + of.channels, list(of.out))
    return None


def weighed(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """The product by places and the sum, for an einsum that sums one axis of a value with a weight for each place."""
    told = operands_of(node)
    if told is None or any(map(is_parameter, told[0])):
        return None
    (one, other), (left, right), out = told
    if len(left) < len(right):
        one, other, left, right = other, one, right, left
    summed = [each for each in left if each not in out]
    once = len(set(left)) == len(left) and len(set(right)) == len(right)
    if not once or len(summed) != 1 or summed[0] not in right or not set(right) < set(left):
        return None
    if set(out) != set(left) - set(summed):
        return None
    weights = turned(graph, node, other, right, [each for each in left if each in right])
    for axis, each in enumerate(left):
        if each not in right:
            weights = made(graph, node, aten.unsqueeze.default, weights, axis)
    product = made(graph, node, aten.mul.Tensor, one, weights)
    total = made(graph, node, aten.sum.dim_IntList, product, [left.index(summed[0])])
    return turned(graph, node, total, left.replace(summed[0], ""), list(out))


@dataclass(frozen=True)
class SpellEinsums:
    """Becomes `linear`, or `bmm` with a stack of matrices; what is summed or made in several axes is flattened."""

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> int:
        """Replace them."""
        return replace_each(graph, partial(weight_product, {}))


def weight_product(laid: dict[Any, fx.Node], graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """The product with its weight that an einsum is.

    Args:
        laid: values that were laid out already. What several products read is laid out once: then it is seen that they
            read the same.
    """
    found = read(node)
    if found is None:
        return None
    x, weight, equation = found
    spread = equation.spread
    count = 0
    if spread is not None and is_of_a_stack(node, spread):
        equation, count = spread, shape(weight)[0]
    key = (x, count, equation.order, len(equation.rows))
    if key not in laid:
        laid[key] = rows_of(graph, node, x, equation, count)
    return product(graph, node, x, laid[key], weight, equation)


@dataclass(frozen=True)
class SpellHeadProducts:
    """An `einsum` that multiplies matrices for each row and head becomes `matmul`, as attention is written elsewhere.

    Where several query heads share a key head, they have an axis of their own that keys and values lack.
    """

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> int:
        """Replace them."""
        return replace_each(graph, head_product)


def head_product(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """The `matmul` for each row and head that an einsum is."""
    told = operands_of(node)
    if told is None or not all(is_tensor(each) and not is_parameter(each) for each in told[0]):
        return None
    (one, other), (left, right), out = told
    of = Equation(left, right, out)
    if not of.is_plain or (len(of.stack), len(of.summed), len(of.channels)) != (2, 1, 1):
        return None
    rows = group_first(one, left, of)
    if len(right) != 4 or len(rows) not in (1, 2):
        return None
    first = turned(graph, node, one, left, list(of.stack + rows + of.summed))
    is_turned = right[-1] == of.summed  # as that of keys is
    inner = of.channels + of.summed if is_turned else of.summed + of.channels
    second = turned(graph, node, other, right, list(of.stack + inner))
    if len(rows) == 2:
        second = made(graph, node, aten.unsqueeze.default, second, 2)
    if is_turned:
        second = made(graph, node, aten.transpose.int, second, -1, -2)
    y = made(graph, node, aten.matmul.default, first, second)
    return turned(graph, node, y, of.stack + rows + of.channels, list(out))


def group_first(queries: fx.Node, letters: str, of: Equation) -> str:
    """The letters of queries alone, that of the heads in a group in front: their number is known, that of tokens not.

    Where both are, heads in a group stand behind the groups.
    """
    known = [each for each in of.rows if isinstance(value(queries).shape[letters.index(each)], int)]
    if len(known) != 1:
        known = [each for each in of.rows if letters[letters.index(each) - 1] in of.stack[1:]]
    return known[0] + of.rows.replace(known[0], "") if len(known) == 1 else of.rows


def is_of_a_stack(node: fx.Node, told: Equation) -> bool:
    """Whether what a product makes by one axis of its weight goes on, as it is, to one matrix each of another stack.

    Only so are they experts: heads of queries are made by a weight of the same form, and are channels of one projection.
    """
    at, queue = told.out.index(told.stack), [node]
    for current in queue:
        for user in current.users:
            found = read(user)
            if found is not None and found[0] is current:
                if found[2].stack and found[2].x.index(found[2].stack) == at:
                    return True
            elif is_pointwise(user) and is_tensor(user) and value(user).shape == value(node).shape:
                queue += [] if user in queue else [user]
    return False


def turned(graph: fx.Graph, at: fx.Node, node: fx.Node, have: str, want: list[str]) -> fx.Node:
    """A value with its axes in another order."""
    if list(have) == want:
        return node
    return made(graph, at, aten.permute.default, node, [have.index(each) for each in want])


def rows_of(graph: fx.Graph, at: fx.Node, x: fx.Node, told: Equation, spread: int) -> fx.Node:
    """x [stack] rows by what is summed, as `bmm` and `linear` take them.

    Args:
        spread: to how many matrices of a stack x is given, which has no axis for them; 0 for others.
    """
    if spread:
        once = made(graph, at, aten.unsqueeze.default, x, 0)
        x = made(graph, at, aten.expand.default, once, [spread, *[-1] * value(x).dim()])
    rows = turned(graph, at, x, told.x, list(told.stack + told.rows + told.summed))
    rows = flat(graph, at, rows, len(told.stack + told.rows), len(told.summed))
    return flat(graph, at, rows, 1, len(told.rows)) if told.stack else rows


def product(
    graph: fx.Graph, at: fx.Node, x: fx.Node, rows: fx.Node, weight: fx.Node, told: Equation
) -> fx.Node:
    """The nodes of a product, in the order of axes that the equation asks for; `rows` is x, laid out."""
    count, width = len(told.stack), len(told.channels)
    is_turned = told.weight == told.stack + told.summed + told.channels
    first, second = (told.summed, told.channels) if is_turned else (told.channels, told.summed)
    # A view of the weight, where it can be one.
    matrix = turned(graph, at, weight, told.weight, list(told.stack + first + second))
    matrix = flat(graph, at, flat(graph, at, matrix, count, len(first)), count + 1, len(second))
    if count:
        matrix = matrix if is_turned else made(graph, at, aten.transpose.int, matrix, -1, -2)
        y = made(graph, at, aten.bmm.default, rows, matrix)
        if len(told.rows) > 1:
            letters = told.x[-value(x).dim() :]
            sizes = [-1, *(size_of(graph, at, x, letters.index(each)) for each in told.rows[1:])]
            y = made(graph, at, aten.unflatten.int, y, 1, sizes)
    else:
        matrix = made(graph, at, aten.t.default, matrix) if is_turned else matrix
        y = made(graph, at, aten.linear.default, rows, matrix)
    if width > 1:
        made_of = [shape(weight)[told.weight.index(each)] for each in told.channels]
        assert prod(made_of) == value(y).shape[-1]
        y = made(graph, at, aten.unflatten.int, y, -1, made_of)
    return turned(graph, at, y, told.stack + told.rows + told.channels, list(told.out))


def flat(graph: fx.Graph, at: fx.Node, node: fx.Node, first: int, count: int) -> fx.Node:
    """A value with so many axes as one."""
    return node if count == 1 else made(graph, at, aten.flatten.using_ints, node, first, first + count - 1)
