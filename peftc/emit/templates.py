"""Generated forwards, kept by what they compute: blocks that compute the same share one function."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from peftc.emit.bindings import bound


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
        rows.append((node.op, target, spell((node.args, dict(node.kwargs)), number)))
    return tuple(rows)


def spell(argument: object, number: Mapping[fx.Node, int]) -> str:
    """An argument as text, with nodes by number."""
    if isinstance(argument, fx.Node):
        return f"%{number[argument]}"
    if isinstance(argument, dict):
        return ",".join(f"{key}={spell(item, number)}" for key, item in argument.items())
    if isinstance(argument, (list, tuple)):
        return f"({','.join(spell(item, number) for item in argument)})"
    return repr(argument)


def function_of(graph: fx.Graph, label: str) -> Callable[..., Any]:
    """The Python function of a graph; its source shows in tracebacks and debuggers under `label`."""
    code = bound(graph).python_code(root_module="self")
    filename = f"<peftc {label}>"
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(keepends=True), filename)
    scope: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, filename, "exec"), scope)
    function: Callable[..., Any] = scope["forward"]
    return function
