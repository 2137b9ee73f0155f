"""In which order rules act, and whether they can act together: a directed graph of rules, and its circles."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from peftc.errors import ConflictError
from peftc.lang import Bound
from peftc.lang.scope import expressions, names_behind
from peftc.match.plan import Plan


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


def refuse_overwriting(plan: Plan) -> None:
    """Raise if a rule would throw away what an earlier one wrote to a port of the same site.

    Rules on one port compose: the later one reads what the earlier one made. One that does not read the port puts its
    own value in the other's place.
    """
    writers: dict[tuple[str, str, str], str] = {}
    for application in plan.applications:
        section = plan.section(application)
        found = expressions(plan.bound(application.rule).rule, section)
        for port in section.rewrite:
            key = (application.site.role, application.site.id, port)
            earlier = writers.get(key)
            if earlier is not None and port not in names_behind(found, "rewrite", port):
                raise ConflictError(
                    f"{application.rule} would overwrite what {earlier} makes of {port} at {application.site.id}",
                    hint=f"give {application.rule} before {earlier}, or let its {port} read {port}",
                )
            writers[key] = application.rule
