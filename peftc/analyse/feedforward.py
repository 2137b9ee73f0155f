"""Feed-forward networks: projection, activation (times another projection), projection back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, fx

from peftc.analyse.activations import PROBABILITIES, Activation, activations, is_times_itself
from peftc.analyse.attention import AttentionCore
from peftc.analyse.channels import MOVES, ChannelFlow, downstream, is_elementwise
from peftc.analyse.projections import Projection
from peftc.analyse.residuals import between
from peftc.analyse.streams import is_before, is_residual
from peftc.graphs.reading import (
    ancestors,
    argument,
    is_call,
    is_pointwise,
    is_tensor,
    operator_name,
    value,
)

EMPTY = frozenset(
    "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full".split()
)
"""Operators that read the form of a value and nothing of what is in it."""
ALIKE = frozenset(["to", "contiguous", "alias", "detach", "glu"])
"""Operators that work number by number, which torch does not tell of them."""


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward network; `gate` is None where nothing is multiplied with the activation.

    Attributes:
        channels: part → channel numbers, where one projection is gate and up at once.
    """

    up: fx.Node
    down: fx.Node
    gate: fx.Node | None
    activation: str
    channels: Mapping[str, Tensor] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Factor:
    """What an activation is multiplied with: a projection's channels, or something else that depends on the tokens."""

    origin: fx.Node | None
    channels: Tensor | None = None


def feed_forwards(
    graph: fx.Graph,
    projections: Mapping[fx.Node, Projection],
    flow: ChannelFlow,
    cores: Iterable[AttentionCore],
) -> list[FeedForward]:
    """Every feed-forward network whose channels are not taken by attention.

    Its way back must end at the width where it began: that tells it from a pooler before a classifier. One projection
    may be an attention's and a network's at once, each of other channels of it.
    """
    cores = list(cores)
    outputs = {core.o for core in cores}
    taken: dict[fx.Node, set[int]] = {}
    for core in cores:
        for projection, parts in core.parts.items():
            taken.setdefault(projection, set()).update(*(index.tolist() for index in parts.values()))
        if core.o is not None and not widens(core, projections):
            taken[core.o] = set(range(projections[core.o].d_out))

    def is_free(origin: fx.Node, index: Tensor | None) -> bool:
        return origin not in taken or (index is not None and taken[origin].isdisjoint(index.tolist()))

    found: dict[fx.Node, FeedForward] = {}
    for activation in activations(graph, flow):
        node, name = activation.node, activation.name
        activated = {origin: index for origin, index in activation.channels.items() if is_free(origin, index)}
        readers = downstream(node, projections, flow.order) if len(activated) == 1 else []
        if not readers or readers[0] in taken or readers[0] in outputs or readers[0] in found:
            continue
        (first, channels), down = next(iter(activated.items())), readers[0]
        if projections[first].d_in != projections[down].d_out:
            continue
        other = factor(activation, first, channels, flow, projections)
        if other is None and name in PROBABILITIES and not is_times_itself(node, first, flow):
            continue  # a router's probabilities, not an activation
        if other is None:
            found[down] = FeedForward(first, down, None, name, {"up": channels})
        elif other.origin is first and other.channels is not None:
            if not is_free(first, other.channels):
                continue
            found[down] = FeedForward(first, down, first, name, {"gate": channels, "up": other.channels})
        elif (
            other.origin is not None
            and is_free(other.origin, other.channels)
            and projections[other.origin].d_in == projections[first].d_in
        ):
            played = {"gate": channels} | ({} if other.channels is None else {"up": other.channels})
            found[down] = FeedForward(other.origin, down, first, name, played)
    return [
        network
        for network in found.values()
        if is_token_wise(network, projections, flow) and not is_excitation(network, projections, flow)
    ]


def widens(core: AttentionCore, projections: Mapping[fx.Node, Projection]) -> bool:
    """Whether what reads an attention's result makes another width than its queries are made of.

    Behind an attention that has no output projection, a network's own first product does.
    """
    query = core.projection("q")
    return None not in (core.o, query) and projections[core.o].d_out != projections[query].d_in  # type: ignore[index]


def without_taken(cores: Iterable[AttentionCore], networks: Iterable[FeedForward]) -> list[AttentionCore]:
    """The attentions, without an output projection where that begins a feed-forward network."""
    begun = {node for network in networks for node in (network.up, network.gate)}
    return [replace(core, o=None) if core.o in begun else core for core in cores]


def is_excitation(network: FeedForward, projections: Mapping[fx.Node, Projection], flow: ChannelFlow) -> bool:
    """Whether what a network makes says, by a sigmoid, how much of what it is computed from is let through."""
    x = projections[network.up].x
    queue = [(projections[network.down].result, False)]
    for node, squashed in queue:
        for user in node.users:
            if squashed and is_call(user, "mul"):
                others = [side for side in user.all_input_nodes if side is not node and is_tensor(side)]
                if any(is_before(other, x, flow.order) for other in others):
                    return True
            after = (user, squashed or is_call(user, "sigmoid", "hardsigmoid"))
            passes = operator_name(user) in MOVES or is_elementwise(user)
            if passes and after not in queue and not is_residual(user, flow.order):
                queue.append(after)
    return False


def is_token_wise(network: FeedForward, projections: Mapping[fx.Node, Projection], flow: ChannelFlow) -> bool:
    """Whether each token goes through a network on its own: a scan has the form of one, but mixes tokens on the way."""
    x = projections[network.down].x
    return all(
        flow.is_token_wise(x, origin) and not any(may_mix(node, origin, flow) for node in between(origin, x))
        for origin in (network.up, network.gate)
        if origin is not None
    )


def may_mix(node: fx.Node, origin: fx.Node, flow: ChannelFlow) -> bool:
    """Whether tokens of what a projection makes may be mixed at a node, or were so before it and are no more told."""
    if not is_tensor(node) or origin in flow.layers(node) or operator_name(node) in EMPTY:
        return False
    pointwise = is_pointwise(node) or is_elementwise(node) or operator_name(node) in ALIKE
    if not pointwise and not is_along_last(node):
        return True
    sources = [source for source in node.all_input_nodes if origin in flow.layers(source)]
    return not all(flow.is_token_wise(source, origin) for source in sources)


def is_along_last(node: fx.Node) -> bool:
    """Whether a node works along the last axis alone, such as a mean of it that is kept as one of length 1.

    Or is one of several results of such a node: the largest along it, or where they are.
    """
    worker = node.all_input_nodes[0] if is_call(node, "getitem") else node
    dim = argument(worker, "dim")
    dims = list(dim) if isinstance(dim, (list, tuple)) else [dim]
    rank = value(node).dim()
    sources = worker.all_input_nodes
    same = bool(sources) and is_tensor(sources[0]) and value(sources[0]).dim() == rank
    return same and dims in ([-1], [rank - 1])


def factor(
    activation: Activation,
    own: fx.Node,
    channels: Tensor,
    flow: ChannelFlow,
    projections: Mapping[fx.Node, Projection],
) -> Factor | None:
    """What an activation is multiplied with on its way down, other than itself; None for nothing."""
    for origin, index in activation.factors.items():
        return Factor(origin, index)
    queue, seen = [activation.node], {activation.node}
    mine = set(channels.unique().tolist())
    while queue:
        current = queue.pop(0)
        for user in current.users:
            if is_call(user, "mul"):
                for side in user.all_input_nodes:
                    if side is current or side in seen or not is_tensor(side):
                        continue
                    for origin, index in flow.of(side).items():
                        if origin is not own or not set(index.unique().tolist()) & mine:
                            return Factor(origin, index)
                    if not flow.of(side) and any(node in projections for node in ancestors(side)):
                        return Factor(
                            None
                        )  # a scan or a pooled value: the product is no feed-forward network
            if user not in seen and (operator_name(user) in MOVES or is_elementwise(user)):
                seen.add(user)
                queue.append(user)
    return None
