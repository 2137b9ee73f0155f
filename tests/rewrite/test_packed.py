"""Reads of quantised weights in graphs: products become one operator, everything else gets the weight just before."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

import peftc
from peftc.graphs.program import copy_graph
from peftc.graphs.reading import ADDED, operator_name
from peftc.lang import Packing
from peftc.quantised import quantise, quantised_in, standing_in
from peftc.rewrite import bind
from tests.models import llama
from tests.rules.test_stored import conv
from tests.runtime.test_starting import DORA

NF4 = Packing("nf4", {"blocksize": 32, "double": True})


def count(graph: fx.Graph, name: str) -> int:
    return sum(operator_name(node) == name for node in graph.nodes)


def rewritten(compiled: Any) -> fx.Graph:
    graph: fx.Graph = compiled._peftc.latest().rewritten
    return graph


def test_products_are_one_operator_under_their_own_names() -> None:
    compiled: Any = peftc.compile(llama(), ["nf4", "lora:q,v"])
    entry = compiled._peftc.latest()
    assert count(entry.rewritten, "quantised_linear") == 14
    assert count(entry.rewritten, "dequantise") == 0
    plain = {node.name for node in entry.program.graph.nodes if operator_name(node) == "linear"}
    assert {node.name for node in entry.rewritten.nodes if operator_name(node) == "quantised_linear"} < plain
    added = {node.meta[ADDED] for node in entry.rewritten.nodes if str(node.target).endswith("weight.scales")}
    assert ("nf4", "model.layers.0.self_attn.q_proj.weight") in added


def test_blocks_still_share_their_functions() -> None:
    compiled: Any = peftc.compile(llama(), ["nf4", "lora:q,v"])
    numbers = compiled._peftc.latest().emitted.blocks
    assert len({tuple(each) for each in numbers.values()}) == 1


def test_an_expression_gets_the_weight_right_before_it() -> None:
    compiled: Any = peftc.compile(llama(), ["nf4", DORA], defaults=False)
    graph = rewritten(compiled)
    assert count(graph, "dequantise") == 4  # q and v of two layers
    nodes = list(graph.nodes)
    for node in nodes:
        if operator_name(node) == "dequantise":
            first = min(nodes.index(user) for user in node.users)
            assert first - nodes.index(node) <= 2
            paths = {user.meta[ADDED][1].partition(":")[0] for user in node.users if ADDED in user.meta}
            assert len(paths) == 1


def test_a_turned_weight_is_turned_back_for_whoever_else_reads_it() -> None:
    compiled: Any = peftc.compile(conv(), ["nf4", DORA], defaults=False)
    graph = rewritten(compiled)
    assert count(graph, "quantised_linear") == 8
    assert all(
        operator_name(user) == "t"
        for node in graph.nodes
        if operator_name(node) == "dequantise"
        for user in node.users
    )


class Twice(nn.Module):
    """Multiplies by one matrix twice, and looks at it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        linear = nn.functional.linear
        return linear(linear(x, self.weight), self.weight) + self.weight.sum()


def test_any_use_is_bound() -> None:
    torch.manual_seed(0)
    module = Twice()
    quantise(module, "weight", NF4)
    with standing_in(module):
        graph, _ = copy_graph(fx.symbolic_trace(module).graph)
    bind(graph, quantised_in(module))
    assert count(graph, "quantised_linear") == 2
    assert count(graph, "dequantise") == 1
    x, weight = torch.randn(3, 32), quantised_in(module)["weight"].read(module.weight)
    want = x @ weight.T @ weight.T + weight.sum()
    assert torch.allclose(fx.GraphModule(module, graph)(x), want, atol=1e-5)


def test_stand_ins_take_no_memory_and_are_gone_afterwards() -> None:
    module = nn.Sequential(nn.Linear(64, 32, dtype=torch.bfloat16), nn.Linear(32, 32))
    quantise(module, "0.weight", NF4)
    codes = module[0].weight
    try:
        with standing_in(module):
            assert type(module[0]) is not nn.Linear
            assert isinstance(module[0], nn.Linear)
            assert (module[0].weight.shape, module[0].weight.dtype) == ((32, 64), torch.bfloat16)
            assert module[0].weight.untyped_storage().nbytes() == 0
            raise KeyError
    except KeyError:
        pass
    assert module[0].weight is codes
    assert type(module[0]) is nn.Linear
