"""A graph as text: one line a node, the same from run to run. Reads the graph only."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from peftc.graphs.reading import DYNAMIC_SIZE, operator_name, schema_of, value

SYMBOL = re.compile(r"\b[su]\d+\b")


def lines(graph: fx.Graph) -> dict[fx.Node, str]:
    """The line of each node, in the graph's order.

    `name: dtype[sizes] = operator(arguments)`; a size that changes from call to call is `n` and a
    number, counted in the order in which they come up.
    """
    symbols: dict[str, str] = {}

    def rename(match: re.Match[str]) -> str:
        return symbols.setdefault(match[0], f"n{len(symbols)}")

    return {node: line(node, lambda size: SYMBOL.sub(rename, str(size))) for node in graph.nodes}


def text(graph: fx.Graph) -> str:
    """The whole graph."""
    return "\n".join(lines(graph).values()) + "\n"


def line(node: fx.Node, size: Callable[[Any], str] = str) -> str:
    """One node; `size` says how its sizes are written."""
    if node.op == "output":
        return f"return {shown(node.args[0])}"
    name = node.name + kind(node, size)
    if node.op == "placeholder":
        return f"{name} = input"
    if node.op == "get_attr":
        return f"{name} = state {node.target}"
    arguments = [shown(argument) for argument in node.args]
    arguments += [f"{key}={shown(argument)}" for key, argument in node.kwargs.items()]
    return f"{name} = {called(node)}({', '.join(arguments)})"


def kind(node: fx.Node, size: Callable[[Any], str]) -> str:
    """`: float32[n0 48]` for a tensor; "" where tracing saw none."""
    seen = value(node)
    if not isinstance(seen, torch.Tensor):
        return ""
    return f": {str(seen.dtype).removeprefix('torch.')}[{' '.join(map(size, seen.shape))}]"


def called(node: fx.Node) -> str:
    """What a node calls: `aten.linear` for an operator, the bare name of any other function."""
    schema = schema_of(node)
    if schema is not None:
        return schema.name.replace("::", ".")
    return operator_name(node) or str(node.target)


def shown(argument: Any) -> str:
    """An argument."""
    if isinstance(argument, fx.Node):
        return argument.name
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(map(shown, argument))}]"
    if isinstance(argument, dict):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in argument.items()) + "}"
    if isinstance(argument, slice):
        bounds = (argument.start, argument.stop, argument.step)
        return ":".join("" if part is None else shown(part) for part in bounds)
    if argument is Ellipsis:
        return "..."
    if isinstance(argument, int) and argument == DYNAMIC_SIZE:
        return "end"
    if isinstance(argument, (torch.dtype, torch.layout)):
        return str(argument).removeprefix("torch.")
    return repr(argument)
