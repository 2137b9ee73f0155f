"""The pass that turns in-place operators into their functional twins where no view tells the difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from peftc.graphs.reading import operator_name, schema_of

VIEWS = frozenset(
    "view _unsafe_view reshape transpose permute t numpy_T slice select unsqueeze squeeze expand split"
    " split_with_sizes chunk unbind narrow flatten unflatten alias detach diagonal view_as expand_as movedim"
    " swapaxes".split()
)


@dataclass(frozen=True)
class MakeFunctional:
    """`x.add_(y)` becomes `add(x, y)`, and later readers of `x` read the result.

    Left alone: writes to inputs, parameters and buffers, and those that are seen through a view.
    """

    def run(self, graph: fx.Graph) -> int:
        """Replace what can be replaced."""
        changed = 0
        order = {node: position for position, node in enumerate(graph.nodes)}
        for node in list(graph.nodes):
            twin = functional_twin(node)
            if twin is None:
                continue
            target = node.args[0]
            if not isinstance(target, fx.Node) or target.op != "call_function" or aliased(target):
                continue
            with graph.inserting_after(node):
                new = graph.call_function(twin, node.args, dict(node.kwargs))
            new.meta = dict(node.meta)
            order[new] = order[node]
            node.replace_all_uses_with(new)
            target.replace_all_uses_with(new, delete_user_cb=later_readers(order, new))
            graph.erase_node(node)
            changed += 1
        return changed


def later_readers(order: Mapping[fx.Node, int], new: fx.Node) -> Callable[[fx.Node], bool]:
    """Tells, of a user of what was written to, whether it stands behind the write that `new` replaces."""
    return lambda user: user is not new and order[user] > order[new]


def functional_twin(node: fx.Node) -> Callable[..., Any] | None:
    """The operator that computes what an in-place one writes; None for operators that write nothing."""
    schema = schema_of(node)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return None
    space, _, name = schema.name.partition("::")
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(getattr(torch.ops, space), name[:-1], None)
    overload = schema.overload_name or "default"
    if packet is None or overload not in packet.overloads():
        return None
    twin: Callable[..., Any] = getattr(packet, overload)
    return twin


def aliased(node: fx.Node) -> bool:
    """Whether a node's storage may be seen through another node."""
    if operator_name(node) in VIEWS or operator_name(node) == "getitem":
        return True
    return any(operator_name(user) in VIEWS for user in node.users)
