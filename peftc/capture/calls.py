"""New calls in a graph, with what tracing would have seen of them, and the loop in which passes put them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from peftc.graphs.reading import place, value

aten = torch.ops.aten


def replace_each(graph: fx.Graph, make: Callable[[fx.Graph, fx.Node], fx.Node | None]) -> int:
    """Put in the place of every node what `make` makes of it; how many were replaced.

    Args:
        make: what stands for a node, made in front of it; None, and nothing made, for a node that stays.
    """
    changed = 0
    for node in list(graph.nodes):
        with graph.inserting_before(node):
            new = make(graph, node)
        if new is None:
            continue
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        changed += 1
    return changed


def made(graph: fx.Graph, at: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """One call at the insertion point, with what tracing would have seen of it."""
    new = graph.call_function(target, args, kwargs)
    seen_args, seen_kwargs = fx.map_arg((args, kwargs), value)
    new.meta = {"val": target(*seen_args, **seen_kwargs), **place(at)}
    return new


def size_of(graph: fx.Graph, at: fx.Node, x: fx.Node, axis: int) -> Any:
    """The length of an axis: a number, or the node that tells it in each call."""
    size = value(x).shape[axis]
    return size if isinstance(size, int) else made(graph, at, aten.sym_size.int, x, axis)
