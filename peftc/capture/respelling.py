"""The passes that give graphs one spelling: one for each file of spellings, made from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, make_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import fx

from peftc.capture.attention import attention_call
from peftc.capture.matcher import Dropped, Matcher, Miss, State
from peftc.capture.spelling import NONE, Pattern, Spelling, read_spelling
from peftc.graphs import operations
from peftc.graphs.reading import AUTOCAST, MODULES, place, value
from peftc.passes import Pass, PassResult

FOLDER = Path(__file__).parent / "spellings"
MOST_MISSES = 5
NEAR = 1
"""Nodes that an attempt must have covered, at least one more, to count as a near miss."""


@dataclass(frozen=True)
class Respelling:
    """Finds every way to write one thing, and puts the one spelling in its place."""

    optional: ClassVar[bool] = True
    file: ClassVar[str] = ""

    @property
    def spelling(self) -> Spelling:
        """What is found, and what replaces it."""
        return read_spelling(FOLDER / f"{self.file}.toml")

    def run(self, graph: fx.Graph) -> PassResult:
        """Replace what matches, way by way; tells what nearly matched."""
        return respell(graph, self.spelling)


def respell(graph: fx.Graph, spelling: Spelling) -> PassResult:
    """Replace every match of a spelling in a graph, in place. What was covered is left for `RemoveDeadCode`."""
    changed, replaced = 0, set[fx.Node]()
    missed: dict[fx.Node, Miss] = {}
    for pattern, target in spelling.ways:
        for node in list(graph.nodes):
            if node.op != "call_function" or node in replaced or not node.users:
                continue
            matcher = Matcher(spelling, pattern)
            state = matcher.at(node)
            if state is not None and put_in(graph, node, target, state):
                changed += 1
                replaced |= {node, *state.inside}
            elif matcher.miss.depth > (missed[node].depth if node in missed else NEAR):
                missed[node] = matcher.miss
    near = sorted((node for node in missed if node not in replaced), key=lambda node: -missed[node].depth)
    told = dict.fromkeys(f"{node.name} {missed[node]}" for node in near)
    return PassResult(changed, tuple(told)[:MOST_MISSES])


def put_in(graph: fx.Graph, root: fx.Node, target: Pattern, state: State) -> bool:
    """Put the replacement in the place of a match; False where it would have another shape."""
    tree: Any = target.tree
    arguments = [argument_of(each, state.found) for each in tree.args]
    orders = [target.axes.get(id(each), ()) for each in tree.args]
    with graph.inserting_before(root):
        new = MAKERS[tree.func.id](graph, root, arguments, orders)
    if new is None:
        return False
    new.meta = {key: root.meta[key] for key in ("val", MODULES, AUTOCAST, "stack_trace") if key in root.meta}
    root.replace_all_uses_with(new)
    return True


def argument_of(tree: Any, found: Mapping[str, Any]) -> Any:
    """What an argument of a replacement stands for."""
    name = str(getattr(tree, "id", NONE))
    return None if name == NONE else found[name]


Maker = Callable[[fx.Graph, fx.Node, list[Any], list[tuple[str, ...]]], fx.Node | None]


def make_rms_norm(graph: fx.Graph, _: fx.Node, given: list[Any], __: Any) -> fx.Node:
    """The norm; without casts it computes in the format of its input."""
    x, weight, eps, compute = given
    return graph.call_function(
        operations.rms_norm, (x, weight, eps), {} if compute is None else {"compute": compute}
    )


def make_layer_norm(graph: fx.Graph, root: fx.Node, given: list[Any], _: Any) -> fx.Node | None:
    """The norm, whose statistics are taken in single precision at least; all is of one number format."""
    x, weight, bias, eps = given
    if len({value(each).dtype for each in (x, weight, bias, root) if each is not None}) > 1:
        return None
    width = [int(value(weight).shape[0])]
    return graph.call_function(torch.ops.aten.layer_norm.default, (x, width, weight, bias, eps))


def make_attention(graph: fx.Graph, _: fx.Node, given: list[Any], __: Any) -> fx.Node:
    """The fused call; the chance of its dropout is 0 in evaluation."""
    query, key, values, mask, scale, dropped = given
    told = (dropped.p, dropped.mode) if isinstance(dropped, Dropped) else None
    return attention_call(graph, (query, key, values), mask, scale, told)


def make_linear(
    graph: fx.Graph, root: fx.Node, given: list[Any], orders: list[tuple[str, ...]]
) -> fx.Node | None:
    """The product; a matrix that is stored the other way round is turned."""
    x, weight, bias = given
    lead = [str(size) for size in value(x).shape[:-1]]
    if [str(size) for size in value(root).shape[:-1]] != lead:
        return None  # reshaped to something else than it was
    if bias is not None and str(value(bias).shape[0]) != str(value(root).shape[-1]):
        return None  # one number for all channels
    if orders[1][0] == orders[0][-1]:
        turned = graph.call_function(torch.ops.aten.t.default, (weight,))
        turned.meta = {"val": value(weight).t(), **place(root)}
        weight = turned
    return graph.call_function(torch.ops.aten.linear.default, (x, weight, bias))


MAKERS: Mapping[str, Maker] = {
    "rms_norm": make_rms_norm,
    "layer_norm": make_layer_norm,
    "attention": make_attention,
    "linear": make_linear,
    "softmax": lambda graph, _, given, __: graph.call_function(torch.ops.aten.softmax.int, (given[0], -1)),
    "quick_gelu": lambda graph, _, given, __: graph.call_function(operations.quick_gelu, (given[0],)),
    "gelu_tanh": lambda graph, _, given, __: graph.call_function(
        torch.ops.aten.gelu.default, (given[0],), {"approximate": "tanh"}
    ),
}
"""What each word of a replacement becomes."""


@lru_cache(maxsize=64)
def recognise(file: str) -> type[Pass]:
    """The pass of one file of spellings: `recognise_` and the file's name."""
    words = "".join(word.capitalize() for word in file.split("_"))
    made = make_dataclass(f"Recognise{words}", [], bases=(Respelling,), frozen=True, namespace={"file": file})
    spelling = read_spelling(FOLDER / f"{file}.toml")
    made.__doc__ = f"{spelling.data.summary} Equal {spelling.data.law}."
    return made
