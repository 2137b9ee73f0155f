"""Binds what a graph reads of quantised weights to the operators that read them. Runs last, on a graph of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from peftc.graphs.reading import ADDED, MODULES, STATE, is_call, module_stack
from peftc.quantised import QuantisedWeight
from peftc.quantised.weight import statistics_path

aten = torch.ops.aten


def bind(graph: fx.Graph, quantised: Mapping[str, QuantisedWeight]) -> fx.Graph:
    """The graph, in which every read of a quantised weight is one of its codes and statistics.

    Products with the weight become one operator, which keeps nothing unpacked for its backward. Whatever else reads
    the weight gets it unpacked, just before.
    """
    for node in list(graph.nodes):
        held = quantised.get(str(node.target)) if node.op == "get_attr" else None
        if held is not None:
            Binding(graph, node, held).run()
    return graph


class Binding:
    """One quantised weight in one graph; `codes` is the node that read the weight."""

    def __init__(self, graph: fx.Graph, codes: fx.Node, held: QuantisedWeight) -> None:
        self.graph, self.codes, self.held = graph, codes, held
        self.added = (held.packing.format, str(codes.target))
        codes.meta.pop("val", None)  # it showed the weight, not its codes
        with graph.inserting_after(codes):
            self.statistics = [self.state(name) for name in reversed(held.statistics)][::-1]

    def state(self, name: str) -> fx.Node:
        """The node that reads a statistic."""
        node = self.graph.get_attr(statistics_path(str(self.codes.target), name))
        node.meta.update({STATE: "buffer", ADDED: self.added})
        return node

    def run(self) -> None:
        """Bind every use."""
        users = list(self.codes.users)
        others = []
        for user in users:
            if self.held.turned and is_call(user, "t"):
                rest = [each for each in user.users if not self.is_product(each, user)]
                for product in list(user.users):
                    if product not in rest:
                        self.product(product)
                if rest:
                    others.append(user)
                else:
                    self.graph.erase_node(user)
            elif not self.held.turned and self.is_product(user, self.codes):
                self.product(user)
            else:
                others.append(user)
        self.unpack(others)

    @staticmethod
    def is_product(node: fx.Node, weight: fx.Node) -> bool:
        """Whether a node multiplies something by a weight, and does nothing else with it."""
        others = [*node.args[:1], *node.args[2:], *node.kwargs.values()]
        return is_call(node, "linear") and node.args[1] is weight and weight not in others

    def product(self, node: fx.Node) -> None:
        """Turn a `linear` into the operator, in its place."""
        bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        node.target = torch.ops.peftc.quantised_linear.default
        node.args = (node.args[0], *self.packed(), self.held.compute, bias)
        node.kwargs = {}

    def packed(self) -> tuple[Any, ...]:
        """The arguments that stand for the weight."""
        return self.codes, self.statistics, list(self.held.shape), self.held.packing.text

    def unpack(self, users: list[fx.Node]) -> None:
        """Give users the weight itself: one in the same modules shares it, no other, so that it lives briefly."""
        made: dict[object, fx.Node] = {}
        for user in sorted(users):
            place = tuple(module_stack(user))
            if place not in made:
                with self.graph.inserting_before(user):
                    made[place] = self.weight(user)
            user.replace_input_with(self.codes, made[place])

    def weight(self, at: fx.Node) -> fx.Node:
        """The unpacked weight, as the model has it."""
        node = self.graph.call_function(
            torch.ops.peftc.dequantise.default, (*self.packed(), self.held.like.dtype)
        )
        node.meta.update({MODULES: module_stack(at), ADDED: self.added})
        if not self.held.turned:
            return node
        turned = self.graph.call_function(aten.t.default, (node,))
        turned.meta.update({MODULES: module_stack(at), ADDED: self.added})
        return turned
