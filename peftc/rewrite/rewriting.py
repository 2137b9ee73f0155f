"""Puts a plan into a graph, application by application, in the plan's order."""

from __future__ import annotations

from types import MappingProxyType

from torch import fx

from peftc.analyse import Analysis, Located
from peftc.graphs.program import copy_graph
from peftc.match.growing import rows_of
from peftc.match.plan import Application, Plan
from peftc.quantised.weight import HOME
from peftc.rewrite.locating import locate
from peftc.rewrite.losses import add_losses
from peftc.rewrite.rewriter import Folded, Rewriter

ORIGINAL = "original"  # below HOME: the model's own values of parameters that train


def rewrite(
    graph: fx.Graph,
    analysis: Analysis,
    plan: Plan,
    root: str = "",
    *,
    training: bool = False,
    continued: bool = False,
    folded: Folded = MappingProxyType({}),
) -> fx.Graph:
    """A copy of `graph` with every application of the plan that it has a place for.

    Args:
        graph, analysis: a normalised graph and its sites.
        root: path of the module that the graph was captured from.
        training: whether what rules add to the loss is added to the one that the graph gives back.
        continued: whether a cache comes in: no rows are put in front of what is read to go on from it.
        folded: bindings to read instead of computing them.

    Raises:
        ProgramError: a site of the plan lies in `root`, but the graph does not show it.
    """
    copied, moved = copy_graph(graph)
    rewriter = Rewriter(copied, moved, folded)
    places: list[tuple[Application, Located]] = []
    room: dict[str, tuple[Located, int]] = {}
    for application in plan.applications:
        if not plan.section(application).rewrite and not application.inserted:
            continue
        located = locate(analysis, application, root)
        if located is None:
            continue
        if rows := rows_of(plan, application):
            if continued and application.site.scope != "encoder":
                continue
            _, before = room.get(application.site.id, (located, 0))
            room[application.site.id] = (located, before + rows)
        places.append((application, located))
    for located, count in room.values():
        rewriter.make_room(located, count, cut=not root and located.site.scope != "encoder")
    for application, located in places:
        rewriter.apply(plan.bound(application.rule), plan.section(application), application, located)
    rewriter.drop_dead_parameters()
    if training and not root:
        add_losses(copied, plan)
    return copied


def without_adapters(graph: fx.Graph, plan: Plan) -> fx.Graph:
    """A copy of `graph` that reads the model's own values where parameters of the model train."""
    copied, _ = copy_graph(graph)
    trained = set(plan.trained)
    for node in copied.nodes:
        if node.op == "get_attr" and node.target in trained:
            node.target = original_path(str(node.target))
    return copied


def original_path(path: str) -> str:
    """Where the untrained value of a parameter is kept."""
    owner, _, name = path.rpartition(".")
    return ".".join(part for part in (owner, HOME, ORIGINAL, name) if part)
