"""The pass manager: names, options, order, verification, records, printing, and a failing pass that is named."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import pytest
import torch
from torch import fx

import peftc
from peftc.capture.masks import FoldMasks
from peftc.capture.normalise import CATALOGUE, passes
from peftc.errors import OptionValueError, PassFailedError, SpecError, UnknownOptionError
from peftc.passes import (
    PassRecord,
    PassSettings,
    Pipeline,
    is_optional,
    name_of,
    options_of,
    read_settings,
    setting,
)
from tests.models import bert, llama, tokens

OPTIONAL = [name_of(kind) for kind in CATALOGUE if is_optional(kind)]


@dataclass(frozen=True)
class DoubleAdds:
    """`x + y` becomes `x + y + y`, as often as it is told."""

    times: int = setting(1, "How often.", min=1, max=3)

    def run(self, graph: fx.Graph) -> int:
        adds = [node for node in graph.nodes if node.target is operator.add]
        for node in adds * self.times:
            with graph.inserting_after(node):
                more = graph.call_function(operator.add, (node, node.args[1]))
            node.replace_all_uses_with(more)
            more.args = (node, node.args[1])
        return len(adds)


@dataclass(frozen=True)
class Break:
    """Raises, or leaves a graph that cannot be right."""

    raises: bool = True

    def run(self, graph: fx.Graph) -> int:
        if self.raises:
            raise RuntimeError("out of luck")
        first, *_, last = graph.nodes
        first.append(last)  # the output before what it reads
        return 1


def sum_graph() -> fx.Graph:
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    graph.output(graph.call_function(operator.add, (x, y)))
    return graph


def run(graph: fx.Graph, *values: float) -> float:
    result: float = fx.GraphModule({}, graph)(*values)
    return result


def test_a_pass_is_named_for_its_class_and_its_settings_are_its_options() -> None:
    assert name_of(DoubleAdds) == "double_adds"
    assert options_of(DoubleAdds)["times"].default == 1
    assert "ones" not in options_of(FoldMasks)  # a fact of the program, which no person sets


def test_settings_reach_their_pass() -> None:
    graph = sum_graph()
    settings = read_settings(["double_adds(times=2)"], (DoubleAdds,))
    (record,) = settings.pipeline([DoubleAdds()]).run(graph)
    assert run(graph, 1, 10) == 31
    assert (record.name, record.changed, record.nodes) == ("double_adds", 1, len(graph.nodes))
    assert record.seconds >= 0


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("double_add", UnknownOptionError, "did you mean 'double_adds'"),
        ("double_adds(time=2)", UnknownOptionError, "did you mean 'times'"),
        ("double_adds(times=4)", OptionValueError, "at most 3"),
        ("double_adds(times=two)", OptionValueError, "a whole number"),
        ("double_adds:2", SpecError, r"name\(option=value\)"),
        ("-double_adds", SpecError, "cannot be turned off"),
        ("-double_adds(times=2)", SpecError, "-name to turn it off"),
        ("double_adds times", SpecError, "left over|names no"),
    ],
)
def test_wrong_settings_are_refused(spec: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        read_settings([spec], (DoubleAdds,))


def test_a_pass_that_raises_is_named_with_those_before_it() -> None:
    with pytest.raises(PassFailedError, match=r"(?s)break failed: out of luck.*before it: double_adds"):
        Pipeline((DoubleAdds(), Break())).run(sum_graph())


def test_a_pass_that_leaves_a_wrong_graph_is_named() -> None:
    with pytest.raises(PassFailedError, match="pass break failed"):
        Pipeline((Break(raises=False),)).run(sum_graph())


def test_a_watch_sees_every_pass_and_its_graph() -> None:
    seen: list[tuple[str, int]] = []
    settings = PassSettings(watch=lambda record, graph: seen.append((record.name, len(graph.nodes))))
    records = settings.pipeline([DoubleAdds(), DoubleAdds()]).run(sum_graph())
    assert seen == [(record.name, record.nodes) for record in records]
    assert [count for _, count in seen] == [5, 7]


@pytest.mark.parametrize("name", OPTIONAL)
@pytest.mark.parametrize("model", [bert(), llama()], ids=["bert", "llama"])
def test_without_an_optional_pass_the_model_is_the_same(name: str, model: torch.nn.Module) -> None:
    ids = tokens()
    seen: list[PassRecord] = []
    compiled = peftc.compile(
        model, ["lora:q"], passes=f"-{name}", watch=lambda record, _: seen.append(record)
    ).eval()
    assert name not in {record.name for record in seen}
    assert len(seen) >= len(passes()) - 2
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(input_ids=ids)[0], model.eval()(input_ids=ids)[0], atol=1e-6, rtol=1e-5
        )


def masks_of(compiled: torch.nn.Module) -> set[bool]:
    """Whether the attentions of the latest program have masks."""
    nodes = [node for node in peftc.graph(compiled).graph.nodes if "attn_mask" in node.kwargs]
    assert nodes
    return {node.kwargs["attn_mask"] is not None for node in nodes}


def test_options_hold_for_later_captures_too() -> None:
    unfolded = peftc.compile(llama(), ["lora:q"], passes=["fold_masks(longest=1)"]).eval()
    folded = peftc.compile(llama(), ["lora:q"]).eval()
    for compiled in (unfolded, folded):
        compiled(input_ids=tokens(), use_cache=False)
    assert (masks_of(unfolded), masks_of(folded)) == ({True}, {False})
