"""The projections that make a model's output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import fx
from torch.utils import _pytree as pytree

from peftc.analyse.channels import MOVES
from peftc.analyse.projections import Projection
from peftc.analyse.structure import block_of
from peftc.graphs.reading import is_call, is_tensor, operator_name


def is_scaled(node: fx.Node) -> bool:
    """Whether a value is another times a number."""
    return is_call(node, "mul", "div") and isinstance(node.args[1], (int, float))


def is_shifted(node: fx.Node) -> bool:
    """Whether a value is another and a bias of the model's own."""
    return is_call(node, "add") and any(
        isinstance(each, fx.Node) and each.op == "get_attr" for each in node.args
    )


def is_capped(node: fx.Node) -> bool:
    """Whether a value is the middle of a cap: a tanh between a quotient and a product. Poolers end with a tanh alone."""
    return is_call(node, "tanh") and all(is_scaled(each) for each in (*node.users, *node.all_input_nodes))


def is_given(node: object) -> bool:
    """Whether a value is an input of the graph, at most moved."""
    while isinstance(node, fx.Node) and operator_name(node) in MOVES:
        node = node.args[0]
    return isinstance(node, fx.Node) and node.op == "placeholder"


def head_nodes(
    graph: fx.Graph, projections: Mapping[fx.Node, Projection], blocks: Mapping[str, int]
) -> Iterator[fx.Node]:
    """Projections outside any block whose product is an output of the model, at most moved, scaled, capped or shifted."""
    output = next(node for node in graph.nodes if node.op == "output")
    leaves = [leaf for leaf in pytree.tree_leaves(output.args) if isinstance(leaf, fx.Node)]
    seen: set[fx.Node] = set()
    while leaves:
        leaf = leaves.pop()
        if leaf in seen:
            continue
        seen.add(leaf)
        if leaf in projections:
            if block_of(leaf, blocks) is None:
                yield leaf
        elif (
            not is_tensor(leaf)
            or operator_name(leaf) in MOVES
            or any(is_so(leaf) for is_so in (is_scaled, is_shifted, is_capped))
        ):
            leaves.extend(leaf.all_input_nodes)
