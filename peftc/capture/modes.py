"""Passes that undo what one mode of execution baked into a graph: dropout flags, low-precision contexts."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from peftc.graphs.reading import (
    MODULES,
    argument,
    is_attention,
    is_call,
    is_tensor,
    module_stack,
    operator_name,
    shape,
    value,
)

MODE = "training"  # the attribute of every module that says which mode it is in


def mode_node(graph: fx.Graph) -> fx.Node:
    """The node that reads the module's training flag; made on first use."""
    node: fx.Node
    for node in graph.nodes:
        if node.op == "get_attr" and node.target == MODE:
            return node
    first = next((node for node in graph.nodes if node.op != "placeholder"), None)
    with graph.inserting_before(first):
        return graph.get_attr(MODE)


@dataclass(frozen=True)
class ReadModeAtRunTime:
    """Dropout asks its module for the mode when it runs, as in the model's own code; `p = 0` is none at all.

    Attributes:
        training: the mode in which the graph was captured; dropouts that were off in training mode stay off,
            and those that were on in evaluation stay on.
        mixed: some modules were in the other mode. Then every flag stays as it was traced: the program serves
            calls in just these modes.
    """

    training: bool
    mixed: bool = False

    def run(self, graph: fx.Graph) -> int:
        """Rewrite the flags of dropouts and of attentions with dropout."""
        changed = 0
        for node in list(graph.nodes):
            if is_call(node, "dropout", "feature_dropout", "alpha_dropout"):
                if node.args[1] == 0 or ((self.training or self.mixed) and node.args[2] is False):
                    source = node.args[0]
                    assert isinstance(source, fx.Node)
                    node.replace_all_uses_with(source)
                    graph.erase_node(node)
                elif node.args[2] is True and (self.mixed or not self.training):
                    continue
                else:
                    node.args = (node.args[0], node.args[1], mode_node(graph))
                changed += 1
            elif is_attention(node):
                p = argument(node, "dropout_p", 0.0)
                if self.training and not self.mixed and isinstance(p, float) and p > 0:
                    mode = mode_node(graph)
                    with graph.inserting_before(node):
                        scaled = graph.call_function(operator.mul, (mode, p))
                    scaled.meta[MODULES] = module_stack(node)
                    node.args = node.args[:4]
                    node.kwargs = {**node.kwargs, "dropout_p": scaled}
                    changed += 1
        return changed


@dataclass(frozen=True)
class OuterProducts:
    """A matmul that sums over an axis of length 1 becomes a product: the same, and autocast leaves it.

    Rotary tables are made so, of position times frequency, under an autocast that is disabled only where one is on.
    """

    def run(self, graph: fx.Graph) -> int:
        """Replace them."""
        changed = 0
        for node in list(graph.nodes):
            if operator_name(node) not in ("matmul", "bmm") or not all(
                is_tensor(arg) for arg in node.args[:2]
            ):
                continue
            left, right = node.args[0], node.args[1]
            assert isinstance(left, fx.Node)
            assert isinstance(right, fx.Node)
            if value(left).dim() < 2 or value(right).dim() < 2:
                continue
            if (
                isinstance(value(left).shape[-1], torch.SymInt)
                or shape(left)[-1] != 1
                or shape(right)[-2] != 1
            ):
                continue
            node.target = torch.ops.aten.mul.Tensor
            changed += 1
        return changed
