"""Encoder, decoder, or across: which side of a model with two sequences a node is on, from what its values are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import fx

from peftc.analyse.attention import AttentionCore
from peftc.analyse.projections import Projection
from peftc.graphs.reading import ancestors, is_tensor, value


def is_crossed(core: AttentionCore, projections: Mapping[fx.Node, Projection]) -> bool:
    """Whether the queries of an attention are made of another sequence than its keys.

    Some of what the queries are made of then has nothing to do with the keys. It is not enough that both are read from
    different values: those may be two projections of one.
    """
    query, key = core.projection("q"), core.projection("k")
    if query is None or key is None or projections[query].x is projections[key].x:
        return False
    of_query = set(ancestors(projections[query].x))
    of_key = {node for node in ancestors(projections[key].x) if is_of_tokens(node)} | {projections[key].x}
    mixed: set[fx.Node] = set()
    for node in core.node.graph.nodes:  # in order: sources come first
        if node not in of_query:
            continue
        if node in of_key or any(source in mixed for source in node.all_input_nodes):
            mixed.add(node)
        elif is_of_tokens(node):
            return True
    return False


def is_of_tokens(node: fx.Node) -> bool:
    """Whether a node computes numbers for each of some tokens: [batch seq d], or with more axes."""
    if not is_tensor(node) or not value(node).dtype.is_floating_point:
        return False
    axes: int = value(node).dim()
    if node.op == "placeholder":  # tokens that are embedded already: masks and caches have more axes
        return axes == 3
    return node.op == "call_function" and axes > 2


class Scopes:
    """The side of each node of one graph."""

    def __init__(self, cores: Iterable[AttentionCore], projections: Mapping[fx.Node, Projection]) -> None:
        crossed = [core for core in cores if is_crossed(core, projections)]
        self.crossed = {core.node for core in crossed}
        self.encoder: set[fx.Node] = set()
        for core in crossed:
            key = core.projection("k")
            if key is not None and projections[key].x not in self.encoder:
                self.encoder.update(ancestors(projections[key].x))

    def of(self, node: fx.Node) -> str:
        """ "encoder" for what keys of attentions across are made of, else "decoder"; "" where none is across."""
        if not self.crossed:
            return ""
        return "encoder" if node in self.encoder else "decoder"

    def of_core(self, core: AttentionCore) -> str:
        """The side of an attention, or "cross"."""
        return "cross" if core.node in self.crossed else self.of(core.node)
