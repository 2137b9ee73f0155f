"""Activations: what bends the numbers of a projection, number by number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from peftc.analyse.channels import ChannelFlow, is_elementwise
from peftc.analyse.numbering import channels_of
from peftc.graphs.reading import argument, is_call, is_tensor, operator_name, schema_of

ACTIVATIONS = frozenset(
    "silu gelu quick_gelu relu tanh sigmoid leaky_relu elu hardswish mish relu6 softplus hardsigmoid celu"
    " selu erf prelu log_sigmoid hardtanh glu".split()
)
"""Operators that are there for nothing else."""
STRAIGHT = frozenset(
    "add sub rsub mul div true_divide neg positive clone lerp addcmul addcdiv dropout masked_fill"
    " nan_to_num type_as _to_copy rms_norm layer_norm round floor ceil trunc frac fmod remainder sign sgn".split()
)
"""Operators that scale, shift, mix, round or cast: what they are between makes no network."""
PROBABILITIES = ("sigmoid", "softplus", "hardsigmoid")
"""Activations that routers and gates have too."""


@dataclass(frozen=True)
class Activation:
    """One activation.

    Attributes:
        channels: projection → the numbers of its channels that are bent.
        factors: the same of those that the operator itself multiplies with them.
    """

    node: fx.Node
    channels: Mapping[fx.Node, Tensor] = field(hash=False)
    factors: Mapping[fx.Node, Tensor] = field(hash=False, default_factory=dict)

    @property
    def name(self) -> str:
        """What it is called."""
        return operator_name(self.node)


def activations(graph: fx.Graph, flow: ChannelFlow) -> Iterator[Activation]:
    """Every activation: those that are nothing else first, for others may be a part of how one is written."""
    for sure in (True, False):
        for node in graph.nodes:
            if (operator_name(node) in ACTIVATIONS) is not sure or not (sure or is_elementwise(node)):
                continue
            if operator_name(node) == "glu":
                factors, channels = map(channels_of, flow.halves(node))
                yield Activation(node, channels, factors)
            elif sure or bends(node, flow):
                yield Activation(node, bent(node, flow))


def bent(node: fx.Node, flow: ChannelFlow) -> dict[fx.Node, Tensor]:
    """The channels that reach any operand of a call."""
    found: dict[fx.Node, Tensor] = {}
    for source in node.all_input_nodes:
        for origin, index in flow.of(source).items():
            found[origin] = torch.unique(torch.cat([found[origin], index])) if origin in found else index
    return found


def bends(node: fx.Node, flow: ChannelFlow) -> bool:
    """Whether a call that works number by number is no straight line in what a projection makes."""
    if is_call(node, "where"):
        return any(flow.of(side) for side in node.args[0].all_input_nodes)  # type: ignore[union-attr]
    schema = schema_of(node)
    if schema is not None and any(each.name == "min" for each in schema.arguments):
        return bool(argument(node, "min") == 0)  # other limits keep large numbers from overflowing
    return operator_name(node) not in STRAIGHT


def is_times_itself(node: fx.Node, origin: fx.Node, flow: ChannelFlow) -> bool:
    """Whether an activation is multiplied with what it is computed of."""
    products = [user for user in node.users if is_call(user, "mul")]
    return any(
        origin in flow.of(side)
        for product in products
        for side in product.all_input_nodes
        if side is not node and is_tensor(side)
    )
