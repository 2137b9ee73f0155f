"""Feed-forward networks: projection, activation (times another projection), projection back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import fx

from peftc.analyse.channels import MOVES, POINTWISE, ChannelFlow, downstream
from peftc.analyse.projections import Projection
from peftc.graphs.reading import is_call, operator_name

ACTIVATIONS = frozenset(
    "silu gelu relu tanh sigmoid leaky_relu elu hardswish mish relu6 softplus hardsigmoid celu selu erf"
    " prelu".split()
)


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward network; `gate` is None where nothing is multiplied with the activation."""

    up: fx.Node
    down: fx.Node
    gate: fx.Node | None
    activation: str


def feed_forwards(
    graph: fx.Graph, projections: Mapping[fx.Node, Projection], flow: ChannelFlow, taken: Collection[fx.Node]
) -> list[FeedForward]:
    """Every feed-forward network whose projections are not `taken` by attention.

    Its way back must end at the width where it began: that tells it from a pooler before a classifier.
    """
    found: dict[fx.Node, FeedForward] = {}
    for node in graph.nodes:
        if operator_name(node) not in ACTIVATIONS:
            continue
        origins = [origin for origin in flow.of(node.args[0]) if origin not in taken]
        readers = downstream(node, projections)
        if len(origins) != 1 or not readers or readers[0] in taken or readers[0] in found:
            continue
        first, down = origins[0], readers[0]
        if projections[first].d_in != projections[down].d_out:
            continue
        other = factor(node, first, flow, taken)
        if other is None and operator_name(node) in ("sigmoid", "softplus", "hardsigmoid"):
            continue  # a router's probabilities, not an activation
        if other is None:
            found[down] = FeedForward(first, down, None, operator_name(node))
        elif projections[other].d_in == projections[first].d_in:
            found[down] = FeedForward(other, down, first, operator_name(node))
    return list(found.values())


def factor(
    activation: fx.Node, own: fx.Node, flow: ChannelFlow, taken: Collection[fx.Node]
) -> fx.Node | None:
    """The projection whose output an activation is multiplied with on its way down, if there is one."""
    queue, seen = [activation], {activation}
    while queue:
        current = queue.pop(0)
        for user in current.users:
            if is_call(user, "mul"):
                for side in user.all_input_nodes:
                    if side is current:
                        continue
                    for origin in flow.of(side):
                        if origin is not own and origin not in taken:
                            return origin
            if user not in seen and operator_name(user) in MOVES | POINTWISE:
                seen.add(user)
                queue.append(user)
    return None
