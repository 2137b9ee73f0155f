"""Products of a value with a weight of the model: the linear sites, before they have a part."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from peftc.graphs.reading import is_call, shape


@dataclass(frozen=True)
class Projection:
    """One `linear(x, W, b)`.

    Attributes:
        node: the product.
        x: what is multiplied.
        weight: path of the weight; bias: path of the bias [d_out], or None.
        turned: whether the weight is stored [d_in d_out], not [d_out d_in].
    """

    node: fx.Node
    x: fx.Node
    weight: str
    bias: str | None
    turned: bool = False

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
    found: dict[fx.Node, Projection] = {}
    for node in graph.nodes:
        if not is_call(node, "linear"):
            continue
        x, weight = node.args[0], node.args[1]
        bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        turned = is_call(weight, "t")
        weight = weight.args[0] if is_call(weight, "t") else weight
        if isinstance(weight, fx.Node) and weight.op == "get_attr" and isinstance(x, fx.Node):
            path = str(bias.target) if isinstance(bias, fx.Node) and bias.op == "get_attr" else None
            found[node] = Projection(node, x, str(weight.target), path, turned)
    return found
