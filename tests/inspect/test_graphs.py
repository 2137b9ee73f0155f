"""The rewritten graph: runs, prints, and differs from the model's own in the inserted nodes and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from peftc import api
from peftc.graphs.printing import lines, text
from peftc.graphs.reading import ADDED
from peftc.inspect.difference import compare
from tests.models import bert, llama, padding, randomise, tokens

MODELS: dict[str, Callable[[], Any]] = {"bert_tiny": bert, "llama_tiny": llama}


@pytest.fixture(scope="module", params=MODELS)
def named(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """A model's name, and it compiled with adapters that act."""
    compiled = api.compile(MODELS[request.param](), ["lora:q,v"])
    randomise(compiled)
    return request.param, compiled


def test_graph_computes_what_the_module_does(named: tuple[str, Any]) -> None:
    _, compiled = named
    ids = tokens()
    with torch.no_grad():
        assert torch.equal(api.graph(compiled)(ids).logits, compiled(ids).logits)
        plain = api.graph(compiled, enabled=False)
        with compiled.disable_adapter():
            expected = compiled(ids).logits
        assert torch.equal(plain(ids).logits, expected)
        assert not torch.equal(expected, compiled(ids).logits)


def test_graph_prints_and_shares_parameters(named: tuple[str, Any]) -> None:
    _, compiled = named
    graph = api.graph(compiled)
    assert "lora_add" in graph.print_readable(print_output=False)
    path = compiled.peftc_plan.new_parameters[0].path
    assert graph.get_parameter(path) is compiled.get_parameter(path)
    graph.graph.erase_node(
        next(node for node in graph.graph.nodes if node.op == "output")
    )  # a copy: harmless
    assert api.graph(compiled)(tokens()) is not None


def test_graph_is_that_of_the_latest_program() -> None:
    compiled: Any = api.compile(bert(), "lora:q,v")
    ids, mask, labels = tokens(), padding(), torch.tensor([0, 1, 2])
    output = compiled(input_ids=ids, attention_mask=mask, labels=labels)
    graph = api.graph(compiled)
    again = graph(input_ids=ids, attention_mask=mask, labels=labels)
    assert torch.equal(again.loss, output.loss)


def test_training_graph_drops() -> None:
    torch.manual_seed(0)
    compiled: Any = api.compile(bert(dropout=0.5).train(), "lora:q,v")
    graph = api.graph(compiled)
    assert graph.training
    assert not torch.equal(graph(tokens()).logits, graph(tokens()).logits)


def test_diff_marks_exactly_the_inserted_nodes(named: tuple[str, Any]) -> None:
    _, compiled = named
    engine = compiled._peftc
    entry = engine.latest()
    diff = api.diff(compiled)
    before = {node.name for node in entry.program.graph.nodes}
    expected = [node.name for node in entry.rewritten.nodes if node.name not in before]
    assert [each.node for each in diff.inserted] == expected
    stamped = {node.name: node.meta[ADDED] for node in entry.rewritten.nodes if ADDED in node.meta}
    assert {each.node: (each.rule, each.site) for each in diff.inserted if each.node in stamped} == stamped
    sites = {application.site.id for application in compiled.peftc_plan.of("lora")}
    assert {each.site for each in diff.inserted} == sites
    marked = [line for line in str(diff).splitlines() if line.startswith("+ ")]
    assert [line.split()[1].rstrip(":") for line in marked] == expected


def test_diff_of_a_rule_that_only_trains() -> None:
    diff = api.diff(api.compile(bert(), "bitfit"))
    assert diff.inserted == ()
    assert "trains: bitfit" in str(diff)
    assert not [line for line in str(diff).splitlines() if line.startswith(("+", "-"))]


def test_golden_text(named: tuple[str, Any], golden: Callable[[str, str], None]) -> None:
    name, compiled = named
    golden(f"lora/{name}.graph.txt", text(compiled._peftc.entries[0].rewritten))


def test_golden_diff(named: tuple[str, Any], golden: Callable[[str, str], None]) -> None:
    name, compiled = named
    entry = compiled._peftc.entries[0]
    found = compare(entry.program.graph, entry.rewritten, compiled.peftc_plan)
    golden(f"lora/{name}.diff.txt", str(found))


def test_every_node_has_one_line(named: tuple[str, Any]) -> None:
    _, compiled = named
    rewritten = compiled._peftc.latest().rewritten
    printed = lines(rewritten)
    assert list(printed) == list(rewritten.nodes)
    assert not any("\n" in line or " object at 0x" in line for line in printed.values())


def test_only_compiled_modules_have_graphs() -> None:
    with pytest.raises(TypeError, match="Linear is not a compiled module"):
        api.graph(nn.Linear(1, 1))
