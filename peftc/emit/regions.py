"""Which nodes of a graph go into which block. A block whose nodes cannot be run together is left in the open."""

from __future__ import annotations

from collections.abc import Mapping

import networkx as nx
from torch import fx

from peftc.analyse.structure import block_of

Region = tuple[str, str]
"""(path, call) of a block."""


def regions(graph: fx.Graph, blocks: Mapping[str, int]) -> tuple[dict[fx.Node, Region], list[fx.Node]]:
    """Assign calls to blocks.

    Returns:
        node → region, and all calls in an order in which the nodes of a region follow one another.
    """
    assigned: dict[fx.Node, Region] = {}
    calls = [node for node in graph.nodes if node.op == "call_function"]
    for node in calls:
        block = block_of(node, blocks)
        if block is not None:
            assigned[node] = block
    while True:
        contracted = contract(calls, assigned)
        tangled = [part for part in nx.strongly_connected_components(contracted) if len(part) > 1]
        if not tangled:
            break
        # A value leaves a block and comes back into it: such blocks cannot be one call each.
        loose = {key for part in tangled for key in part if isinstance(key, tuple)}
        assigned = {node: region for node, region in assigned.items() if region not in loose}
    first: dict[object, int] = {}
    members: dict[object, list[fx.Node]] = {}
    for position, node in enumerate(calls):
        key: object = assigned.get(node, node)
        first.setdefault(key, position)
        members.setdefault(key, []).append(node)
    order = nx.lexicographical_topological_sort(contracted, key=lambda key: first[key])
    return assigned, [node for key in order for node in members[key]]


def contract(calls: list[fx.Node], assigned: Mapping[fx.Node, Region]) -> nx.DiGraph[object]:
    """The graph of calls with each region as one node."""
    contracted: nx.DiGraph[object] = nx.DiGraph()
    for node in calls:
        key: object = assigned.get(node, node)
        contracted.add_node(key)
        for source in node.all_input_nodes:
            if source.op != "call_function":
                continue
            other: object = assigned.get(source, source)
            if other != key:
                contracted.add_edge(other, key)
    return contracted
