"""Parameters as a product reads them: whole or in part, turned or folded. Told by strides; reads no parameter."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from peftc.graphs.reading import hint, operator_name, shape, value

VIEWS = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "transpose",
        "permute",
        "t",
        "mT",
        "numpy_T",
        "slice",
        "select",
        "unsqueeze",
        "squeeze",
        "narrow",
        "expand",
        "flatten",
        "unflatten",
        "movedim",
        "swapaxes",
        "view_as",
        "alias",
        "detach",
    ]
)
SAME = ("contiguous", "to", "clone", "lift_fresh_copy")
PIECES = frozenset(["split", "split_with_sizes", "chunk", "unbind", "tensor_split"])


@dataclass(frozen=True)
class View:
    """What of a parameter a value is.

    Attributes:
        parameter: the node that reads the parameter.
        sizes: of the value.
        steps: how far apart in the parameter, row after row, neighbours along each axis of the value stand.
        start: where in it the first number stands.
    """

    parameter: fx.Node
    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    start: int

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the parameter in the parameter's own order, whatever its shape."""
        step, steps = 1, list[int]()
        for size in reversed(self.sizes):
            steps.insert(0, step)
            step *= size
        alike = all(
            one == other for size, one, other in zip(self.sizes, self.steps, steps, strict=True) if size > 1
        )
        return alike and step == value(self.parameter).numel()


def view_of(node: object) -> View | None:
    """What of a parameter of the model a node is; None for what is computed."""
    if not isinstance(node, fx.Node):
        return None
    chain: list[fx.Node] = []
    while node.op != "get_attr":
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or operator_name(node) not in VIEWS | PIECES | {*SAME, "getitem"}:
            return None
        if operator_name(node) == "to" and value(node).dtype != value(source).dtype:
            return None
        chain.append(node)
        node = source
    held: Any = torch.empty(shape(node), device="meta")
    storage = held.untyped_storage()._cdata  # noqa: SLF001 - torch tells in no other way what shares memory
    with suppress(RuntimeError, IndexError, TypeError):
        for each in reversed(chain):
            held = moved(each, held)
        if held.untyped_storage()._cdata == storage:  # noqa: SLF001
            return View(node, tuple(held.shape), tuple(held.stride()), int(held.storage_offset()))
    return None


def moved(node: fx.Node, held: Any) -> Any:
    """What a node makes of its input."""
    name = operator_name(node)
    if name in SAME:
        return held
    if name == "getitem":
        return held[node.args[1]]

    def concrete(argument: fx.Node) -> Any:
        return held if argument is node.args[0] else hint(value(argument))

    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), concrete)
    return node.target(*args, **kwargs)  # type: ignore[operator]
