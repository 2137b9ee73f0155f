"""Generated forwards, kept by what they compute: blocks that compute the same share one function."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import fx


@dataclass
class Templates:
    """The functions generated for one compiled module, numbered in the order in which they were made."""

    functions: list[Callable[..., Any]] = field(default_factory=list)
    numbers: dict[Hashable, int] = field(default_factory=dict)

    def number(self, graph: fx.Graph, label: str) -> int:
        """The number of the function that a graph computes; made if no graph like it was seen.

        Two graphs are alike if they do the same with inputs and state of the same relative names.
        """
        key = structure(graph)
        if key not in self.numbers:
            self.numbers[key] = len(self.functions)
            self.functions.append(function_of(graph, f"{label} {len(self.functions)}"))
        return self.numbers[key]


def structure(graph: fx.Graph) -> Hashable:
    """What a graph computes, with its nodes numbered in order."""
    number: dict[fx.Node, int] = {}
    rows = []
    for node in graph.nodes:
        number[node] = len(number)
        target = (
            node.target
            if node.op in ("get_attr", "call_module", "placeholder")
            else f"{id(node.target)} {node.target}"
        )
        if node.op == "placeholder":
            target = ""
        args = fx.map_arg((node.args, dict(node.kwargs)), lambda source: Reference(number[source]))
        rows.append((node.op, target, repr(args)))
    return tuple(rows)


class Reference:
    """Stands for an earlier node in a structure."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"%{self.number}"


def function_of(graph: fx.Graph, label: str) -> Callable[..., Any]:
    """The Python function of a graph; its source shows in tracebacks and debuggers under `label`."""
    code = graph.python_code(root_module="self")
    filename = f"<peftc {label}>"
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(keepends=True), filename)
    scope: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, filename, "exec"), scope)
    function: Callable[..., Any] = scope["forward"]
    return function
