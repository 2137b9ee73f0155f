"""What the tables of a model are of: tokens, places, or anything else. Told by where their ids come from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from peftc.analyse.channels import MOVES, POINTWISE
from peftc.analyse.positions import State, counts_up
from peftc.graphs.reading import is_call, is_tensor, operator_name, shape, value


def table_parts(graph: fx.Graph, state: State) -> Mapping[fx.Node, str]:
    """Each gather of rows of a parameter, with its part.

    Ids that count up are places. Of the tables whose rows are added together, the one with the most rows is that of
    tokens, if its ids come with the call. All others are tables of something else, such as token types.
    """
    gathers = [node for node in graph.nodes if is_gather(node)]
    places = {node for node in gathers if counts_up(node.args[1], state)}
    met = {node: reached(node) for node in gathers}
    found: dict[fx.Node, str] = {}
    for node in gathers:
        group = [each for each in gathers if each not in places and met[each] & met[node]]
        largest = max((rows(each) for each in group), default=0)
        is_tokens = told_by_call(node) and rows(node) == largest
        found[node] = "position" if node in places else "embedding" if is_tokens else "table"
    return found


def is_gather(node: fx.Node) -> bool:
    """Whether a node takes rows of a parameter."""
    table = node.args[0] if is_call(node, "embedding") else None
    return isinstance(table, fx.Node) and table.op == "get_attr"


def rows(gather: fx.Node) -> int:
    """How many rows its table has."""
    return shape(gather.args[0])[0]  # type: ignore[arg-type]


def reached(gather: fx.Node) -> set[fx.Node]:
    """What rows come to by being moved, scaled, normed and added, up to the first product or attention."""
    found, queue = {gather}, [gather]
    while queue:
        for user in queue.pop().users:
            moved = user not in found and is_tensor(user) and operator_name(user) in MOVES | POINTWISE
            if moved and value(user).dim() == value(gather).dim():
                found.add(user)
                queue.append(user)
    return found


def told_by_call(gather: fx.Node) -> bool:
    """Whether its ids are made of what a call gives, not of sizes alone."""
    return any(
        node.op == "placeholder" and is_tensor(node) and not value(node).dtype.is_floating_point
        for node in content(gather.args[1])
    )


def content(node: object) -> set[fx.Node]:
    """Every tensor that another is computed from; what only tells a size is none."""
    if not isinstance(node, fx.Node):
        return set()
    found, queue = {node}, [node]
    while queue:
        for source in queue.pop().all_input_nodes:
            if source not in found and is_tensor(source):
                found.add(source)
                queue.append(source)
    return found
