"""Cuts a graph at block borders and generates the functions that run it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from peftc.capture.modes import MODE
from peftc.emit.regions import Region, regions
from peftc.emit.templates import Templates
from peftc.graphs.shared_modules import SharedModules

TEMPLATE = "peftc_template"  # keyword by which the outer function tells a block which of its forwards to run


@dataclass(frozen=True)
class Emitted:
    """A graph as functions.

    Attributes:
        function: takes the root module and the call's tensors.
        outer: the graph of that function, with a call of each block's module in it.
        blocks: path of each block that is called, with the numbers of its templates.
    """

    function: Callable[..., Any]
    outer: fx.Graph
    blocks: Mapping[str, tuple[int, ...]]


def emit(
    graph: fx.Graph, blocks: Mapping[str, int], templates: Templates, shared: SharedModules, root: str = ""
) -> Emitted:
    """Generate the functions of a rewritten graph.

    Args:
        graph: state is read by full path.
        blocks: full path of every repeated block.
        templates: where generated functions are kept and shared.
        shared: the modules of the model that have several paths.
        root: path of the module that will run the outer function.
    """
    return Emission(graph, blocks, templates, shared, root).run()


class Emission:
    """Builds the outer graph, block by block."""

    def __init__(
        self,
        graph: fx.Graph,
        blocks: Mapping[str, int],
        templates: Templates,
        shared: SharedModules,
        root: str,
    ) -> None:
        self.graph, self.templates, self.shared, self.root = graph, templates, shared, root
        inside = {path: number for path, number in blocks.items() if shared.below(path, root)}
        self.assigned, self.order = regions(graph, inside)
        self.outer = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.state: dict[str, fx.Node] = {}
        self.used: dict[str, list[int]] = {}

    def run(self) -> Emitted:
        """Emit everything in order."""
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.env[node] = self.outer.placeholder(node.name)
        done: set[Region] = set()
        for node in self.order:
            region = self.assigned.get(node)
            if region is None:
                self.env[node] = self.outer.node_copy(node, self.outside)
            elif region not in done:
                done.add(region)
                self.block(region, [other for other in self.order if self.assigned.get(other) == region])
        output = next(node for node in self.graph.nodes if node.op == "output")
        self.outer.output(fx.map_arg(output.args[0], self.outside))
        number = self.templates.number(self.outer, self.root or "model")
        return Emitted(
            self.templates.functions[number],
            self.outer,
            {path: tuple(numbers) for path, numbers in self.used.items()},
        )

    def outside(self, node: fx.Node) -> fx.Node:
        """A node's counterpart in the outer graph; state is read where it is first needed."""
        if node.op == "get_attr":
            target = str(node.target)
            path = target if target == MODE else self.shared.below(target, self.root)
            assert path is not None, f"{target} lies outside of {self.root}"
            if path not in self.state:
                self.state[path] = self.outer.get_attr(path)
            return self.state[path]
        return self.env[node]

    def block(self, region: Region, nodes: list[fx.Node]) -> None:
        """Emit one block: its own graph, and its call in the outer one."""
        path, _ = region
        inside, inputs, outputs = set(nodes), [], []
        for node in nodes:
            for source in node.all_input_nodes:
                own = source.op == "get_attr" and (
                    source.target == MODE or self.shared.below(str(source.target), path) is not None
                )
                if source not in inside and source not in inputs and not own:
                    inputs.append(source)
            if any(user not in inside for user in node.users):
                outputs.append(node)
        body = fx.Graph()
        env: dict[fx.Node, fx.Node] = {source: body.placeholder(source.name) for source in inputs}

        def within(source: fx.Node) -> fx.Node:
            if source not in env:
                target = str(source.target)
                relative = target if target == MODE else self.shared.below(target, path)
                assert source.op == "get_attr"
                assert relative is not None
                env[source] = body.get_attr(relative)
            return env[source]

        for node in nodes:
            env[node] = body.node_copy(node, within)
        body.output(env[outputs[0]] if len(outputs) == 1 else tuple(env[node] for node in outputs))
        number = self.templates.number(body, path)
        self.used.setdefault(path, []).append(number)
        relative = self.shared.below(path, self.root)
        assert relative is not None
        call = self.outer.call_module(relative, tuple(map(self.outside, inputs)), {TEMPLATE: number})
        if len(outputs) == 1:
            self.env[outputs[0]] = call
            return
        for position, node in enumerate(outputs):
            self.env[node] = self.outer.call_function(operator.getitem, (call, position))


__all__ = ["TEMPLATE", "Emitted", "emit"]
