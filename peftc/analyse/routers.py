"""Routers of experts that are networks of their own: what each of them makes is weighed by one number of a projection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import fx

from peftc.analyse.channels import MOVES, is_side_by_side
from peftc.analyse.feedforward import FeedForward
from peftc.analyse.projections import Projection
from peftc.graphs.reading import is_call, is_tensor, operator_name

CHOOSES = ("softmax", "_softmax", "sigmoid")


def routers(networks: Iterable[FeedForward], projections: Mapping[fx.Node, Projection]) -> list[fx.Node]:
    """The projections whose probabilities weigh what several networks make, each by numbers of its own."""
    weighed: dict[fx.Node, set[fx.Node]] = {}
    for network in networks:
        for router in choosers(projections[network.down].result, projections):
            weighed.setdefault(router, set()).add(network.down)
    return [router for router, several in weighed.items() if 1 < len(several) <= projections[router].d_out]


def choosers(result: fx.Node, projections: Mapping[fx.Node, Projection]) -> set[fx.Node]:
    """The projections of whose probabilities a value is multiplied with, through what moves it only."""
    found: set[fx.Node] = set()
    queue = [result]
    for node in queue:
        for user in node.users:
            if is_call(user, "mul"):
                for side in user.all_input_nodes:
                    if side is not node and is_tensor(side):
                        found |= probabilities_of(side, projections)
            elif (operator_name(user) in MOVES or is_side_by_side(user)) and user not in queue:
                queue.append(user)
    return found


def probabilities_of(node: fx.Node, projections: Mapping[fx.Node, Projection]) -> set[fx.Node]:
    """The nearest projections behind a value on whose way back there is a probability."""
    found: set[fx.Node] = set()
    queue = [(node, False)]
    for current, chosen in queue:
        if current in projections:
            found |= {current} if chosen else set()
            continue
        before = chosen or is_call(current, *CHOOSES)
        queue += [(each, before) for each in current.all_input_nodes if (each, before) not in queue]
    return found


__all__ = ["routers"]
