"""In which order rules act, and whether they can act together: a directed graph of rules, and its circles."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from peftc.errors import ConflictError
from peftc.lang import Bound


def order(bounds: Sequence[Bound]) -> tuple[Bound, ...]:
    """The rules in an order that each one's `before` and `after` allow; otherwise as given.

    Raises:
        ConflictError: two rules that exclude each other, or a circle in what they say of their order.
    """
    refuse_conflicts(bounds)
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(bounds)))
    for index, bound in enumerate(bounds):
        for other, name in ((i, b.rule.name) for i, b in enumerate(bounds) if i != index):
            if name in bound.rule.before:
                graph.add_edge(index, other)
            if name in bound.rule.after:
                graph.add_edge(other, index)
    try:
        return tuple(bounds[index] for index in nx.lexicographical_topological_sort(graph))
    except nx.NetworkXUnfeasible:
        circle = [bounds[start].label for start, _ in nx.find_cycle(graph)]
        raise ConflictError(
            f"the order of rules goes round in a circle: {' before '.join([*circle, circle[0]])}",
            hint="take one of them out, or drop a `before` or `after` from its rule file",
        ) from None


def refuse_conflicts(bounds: Sequence[Bound]) -> None:
    """Raise if a rule names another one among its `conflicts`."""
    for bound in bounds:
        for other in bounds:
            if other.rule.name in bound.rule.conflicts and other is not bound:
                raise ConflictError(
                    f"{bound.label} and {other.label} cannot act together: {bound.rule.name} says so of {other.rule.name}",
                    hint="take one of them out",
                )
