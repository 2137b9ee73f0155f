"""Writes out what `torch.vmap` did while a model was traced: levels of batching become plain operators.

Tracing leaves the function as it was called for one item, between calls that open and close a level. Such calls act on
the state of torch, so that no pass could move, copy or drop one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._functorch import predispatch
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

OPENS, CLOSES = "_vmap_increment_nesting", "_vmap_decrement_nesting"


def write_out_batching(module: fx.GraphModule) -> None:
    """Replace every region of batching in a module's graph, in place."""
    for region in regions(module.graph):
        replace(module, region)
    for node in list(module.graph.nodes):
        if node.target is predispatch.lazy_load_decompositions:
            module.graph.erase_node(node)


def regions(graph: fx.Graph) -> list[list[fx.Node]]:
    """The nodes from each outermost opening to its closing."""
    found: list[list[fx.Node]] = []
    depth = 0
    for node in graph.nodes:
        name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        if name == OPENS:
            depth += 1
            if depth == 1:
                found.append([])
        if depth:
            found[-1].append(node)
        if name == CLOSES:
            depth -= 1
    return found


def replace(module: fx.GraphModule, region: Sequence[fx.Node]) -> None:
    """Put plain operators in the place of one region."""
    graph, first = module.graph, region[0]
    # What is read of the module stays: only the calls are batched.
    inside = {node for node in region if node.op == "call_function" or not is_tensor_of(module, node)}
    for node in region:
        if node not in inside:
            first.prepend(node)
    given = list(
        dict.fromkeys(
            arg for node in region if node in inside for arg in node.all_input_nodes if arg not in inside
        )
    )
    wanted = [node for node in region if node in inside and any(user not in inside for user in node.users)]
    traced = plain(module, [node for node in region if node in inside], given, wanted)
    env: dict[fx.Node, Any] = dict(
        zip([node for node in traced.graph.nodes if node.op == "placeholder"], given, strict=True)
    )
    with graph.inserting_before(first):
        for node in traced.graph.nodes:
            if node.op == "call_function":
                env[node] = graph.node_copy(node, lambda source: env[source])
                env[node].meta = {**first.meta, "val": node.meta.get("val")}
    (results,) = (node.args[0] for node in traced.graph.nodes if node.op == "output")
    for node, result in zip(wanted, results, strict=True):
        node.replace_all_uses_with(env[result])
    for node in reversed(region):
        if node in inside:
            graph.erase_node(node)


def plain(
    module: fx.GraphModule, region: Sequence[fx.Node], given: Sequence[fx.Node], wanted: Sequence[fx.Node]
) -> fx.GraphModule:
    """The calls of a region traced below batching, as a function of what goes into it."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {node: graph.placeholder(node.name) for node in given}
    for node in region:
        env[node] = graph.node_copy(node, lambda source: env[source])
    graph.output(tuple(env[node] for node in wanted))
    body = fx.GraphModule(module, graph)
    mode = next(node.meta["val"].fake_mode for node in given if isinstance(node.meta.get("val"), FakeTensor))
    values = [value_of(module, node, mode) for node in given]
    with mode, torch.no_grad():
        traced: fx.GraphModule = make_fx(body)(*values)
    traced.graph.eliminate_dead_code()
    return traced


def is_tensor_of(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node reads a tensor of its module."""
    return node.op == "get_attr" and isinstance(getattr(module, str(node.target), None), Tensor)


def value_of(module: fx.GraphModule, node: fx.Node, mode: FakeTensorMode) -> Any:
    """What tracing saw at a node; of a constant, one like it."""
    seen = node.meta.get("val")
    if seen is None and is_tensor_of(module, node):
        return mode.from_tensor(getattr(module, str(node.target)))
    return seen
