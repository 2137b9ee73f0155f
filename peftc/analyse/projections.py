"""Products of a value with a weight of the model: the linear sites, before they have a part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from peftc.analyse.matrices import Matrix, bias_of, matrix_of, stack_of
from peftc.analyse.site import Routing
from peftc.graphs.reading import SORTED, is_call, is_tensor, shape

BATCHED = ("bmm", "baddbmm", "matmul")


@dataclass(frozen=True)
class Projection:
    """One `linear(x, W, b)`, or the like with a stack of matrices.

    Attributes:
        node: the product.
        at: which of its arguments is x, what is multiplied.
        matrix: what of which weight it is multiplied with.
        bias: path of the bias [d_out], or None.
        result: the product with its bias.
        routing: how rows find their matrices, in a stack.
    """

    node: fx.Node
    at: int
    matrix: Matrix
    bias: str | None
    result: fx.Node
    routing: Routing | None = None

    @property
    def x(self) -> fx.Node:
        """What is multiplied."""
        held: Any = self.node.args[self.at]
        assert isinstance(held, fx.Node)
        return held

    @property
    def d_out(self) -> int:
        """Number of output channels."""
        return shape(self.node)[-1]

    @property
    def d_in(self) -> int:
        """Number of input channels."""
        return shape(self.x)[-1]


def projections(graph: fx.Graph) -> dict[fx.Node, Projection]:
    """Every product of a value with a weight, in graph order."""
    return {projection.node: projection for projection in found(graph)}


def found(graph: fx.Graph) -> Iterator[Projection]:
    """Each of them."""
    for node in graph.nodes:
        projection = plain(node) if is_call(node, "linear") else stacked(node)
        if projection is not None:
            yield projection


def plain(node: fx.Node) -> Projection | None:
    """A product with one matrix, which may be one of a stack."""
    matrix = matrix_of(node.args[1])
    if matrix is None or not isinstance(node.args[0], fx.Node):
        return None
    bias = bias_of(node.args[2] if len(node.args) > 2 else node.kwargs.get("bias"), matrix)
    routing = Routing("single", node, number=matrix.number) if matrix.number is not None else None
    return Projection(node, 0, matrix, bias, node, routing)


def stacked(node: fx.Node) -> Projection | None:
    """A product of rows with a stack of matrices."""
    if is_call(node, *SORTED):
        ends: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("offs")
        return with_bias(node, 0, 1, Routing("sorted", node, ends)) if is_tensor(ends) else None
    if is_call(node, "numbered_linear"):
        numbers: Any = node.args[2]
        return with_bias(node, 0, 1, Routing("numbered", node, numbers))
    if is_call(node, *BATCHED):
        first = int(is_call(node, "baddbmm"))
        return with_bias(node, first, first + 1, Routing("batched", node))
    return None


def with_bias(node: fx.Node, at: int, weight_at: int, routing: Routing) -> Projection | None:
    """A product with a stack, and the bias that is added to it before anything else is done."""
    matrix, x = stack_of(node.args[weight_at]), node.args[at]
    if matrix is None or not is_tensor(x):
        return None
    if routing.kind == "batched" and (len(shape(x)) < 3 or shape(x)[-3] != matrix.count):
        return None  # the matrices are broadcast over more, or the rows over them
    if is_call(node, "baddbmm"):
        return Projection(node, at, matrix, bias_of(node.args[0], matrix), node, routing)
    user = next(iter(node.users), None)
    if user is not None and len(node.users) == 1 and is_call(user, "add") and not user.kwargs:
        bias: Any = next((each for each in user.args if each is not node), None)
        if is_call(bias, "index") and routing.kind != "batched":
            bias = bias.args[0]
        if path := bias_of(bias, matrix):
            return Projection(node, at, matrix, path, user, routing)
    return Projection(node, at, matrix, None, node, routing)
