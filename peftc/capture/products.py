"""The pass that turns products with a matrix of the model on the left into `linear`, its input turned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from peftc.graphs.reading import MODULES, is_call, is_parameter, is_tensor, module_stack, value

aten = torch.ops.aten


@dataclass(frozen=True)
class TurnLeftProducts:
    """W x becomes (linear(xᵀ, W))ᵀ, x [... d_in length]: state-space models write their steps' sizes so."""

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> int:
        """Replace them."""
        changed = 0
        for node in list(graph.nodes):
            if not is_call(node, "matmul") or not isinstance(node.args[0], fx.Node):
                continue
            weight, x = node.args[0], node.args[1]
            if not is_parameter(weight) or value(weight).dim() != 2 or not is_tensor(x) or value(x).dim() < 3:
                continue
            with graph.inserting_before(node):
                rows = made(graph, node, aten.transpose.int, x, -1, -2)
                product = made(graph, node, aten.linear.default, rows, weight)
                new = made(graph, node, aten.transpose.int, product, -1, -2)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            changed += 1
        return changed


def made(graph: fx.Graph, at: fx.Node, target: Any, *args: Any) -> fx.Node:
    """One call at the insertion point, with what tracing would have seen of it."""
    new = graph.call_function(target, args)
    seen = fx.map_arg(args, value)
    new.meta = {"val": target(*seen), MODULES: module_stack(at)}
    return new
