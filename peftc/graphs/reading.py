"""Questions one asks of an fx node: which operator, argument or shape. Answers only; never edits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import fx
from torch._ops import OpOverload

STATE = "peftc_state"  # meta of get_attr nodes: "parameter", "buffer" or a kind of constant
MODULES = "peftc_modules"  # meta of calls: (path, call) of the modules around them
AUTOCAST = "peftc_autocast"  # meta of calls: regions of torch.autocast around them, outermost first
CONSTANT = (
    "peftc_constant"  # meta of get_attr nodes: the tensor itself, of small constants of the model's code
)
ADDED = "peftc_added"  # meta of calls that a rule added: (rule, site)

SORTED = ("grouped_mm", "_grouped_mm", "grouped_mm_fallback")
"""Products of rows that are sorted by which of several matrices each is multiplied with."""
BY_NUMBER = (*SORTED, "numbered_linear")
"""The same, and those of rows that each have the number of their matrix."""

UNKNOWN_SIZE = 29  # stands for a size that only the data tells
DYNAMIC_SIZE = 9223372036854775807  # what ATen writes for "to the end" in a slice


def schema_of(node: fx.Node) -> torch.FunctionSchema | None:
    """The schema of the torch operator a node calls: name, arguments, what it writes; else None."""
    if not isinstance(node.target, OpOverload):
        return None
    return node.target._schema  # noqa: SLF001 - torch has no public way to an operator's schema


def operator_name(node: fx.Node) -> str:
    """The bare operator a node calls ("linear", "add"), whatever its overload; "" for anything else."""
    if node.op != "call_function":
        return ""
    schema = schema_of(node)
    if schema is not None:
        return str(schema.name).rpartition("::")[2]
    return str(getattr(node.target, "__name__", node.target))


def is_call(node: object, *names: str) -> TypeGuard[fx.Node]:
    """Whether `node` calls one of the named operators."""
    return isinstance(node, fx.Node) and operator_name(node) in names


def is_pointwise(node: fx.Node) -> bool:
    """Whether a node calls an operator of torch that computes each number from those at its own place."""
    return isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags


def is_attention(node: object) -> TypeGuard[fx.Node]:
    """Whether `node` is a softmax attention in the one spelling."""
    return is_call(node, "scaled_dot_product_attention", "capped_attention")


def argument(node: fx.Node, name: str, default: Any = None) -> Any:
    """The argument of an ATen call that its schema calls `name`, however it was passed."""
    if name in node.kwargs:
        return node.kwargs[name]
    schema = schema_of(node)
    for position, parameter in enumerate(() if schema is None else schema.arguments):
        if parameter.name == name:
            if position < len(node.args) and not parameter.kwarg_only:
                return node.args[position]
            return parameter.default_value if parameter.has_default_value() else default
    return default


def value(node: fx.Node) -> Any:
    """What tracing saw at a node: a fake tensor, a symbolic integer, a tuple of them, or None."""
    return node.meta.get("val")


def is_write(node: fx.Node) -> bool:
    """Whether a node calls an operator that writes into what it is given first."""
    schema = schema_of(node)
    return schema is not None and schema.is_mutable


def storage(node: fx.Node) -> int | None:
    """A number for the memory that a node's tensor had while tracing: nodes with one number share it."""
    seen = value(node)
    if not isinstance(seen, torch.Tensor) or seen.layout is not torch.strided:
        return None
    return int(seen.untyped_storage()._cdata)  # noqa: SLF001 - fake tensors have no address


def is_tensor(node: object) -> TypeGuard[fx.Node]:
    """Whether tracing saw one tensor at a node."""
    return isinstance(node, fx.Node) and isinstance(value(node), torch.Tensor)


def hint(size: Any) -> int:
    """The size that a symbolic dimension had while tracing; an integer is itself.

    One that the trace could not know, because it is computed from data, is given a number that no other size has.
    """
    if not isinstance(size, torch.SymInt):
        return int(size)
    return UNKNOWN_SIZE if size.node.hint is None else int(size.node.hint)


def shape(node: fx.Node) -> tuple[int, ...]:
    """The shape a node's tensor had while tracing."""
    seen = value(node)
    if not isinstance(seen, torch.Tensor):
        raise TypeError(f"{node.name} is not a tensor")
    return tuple(hint(size) for size in seen.shape)


def is_parameter(node: fx.Node) -> bool:
    """Whether a node reads a parameter of the model, and not a buffer or constant."""
    return node.op == "get_attr" and node.meta.get(STATE) == "parameter"


def module_stack(node: fx.Node) -> tuple[tuple[str, str], ...]:
    """(path, call) of every module around a node, outermost first."""
    stack: tuple[tuple[str, str], ...] = node.meta.get(MODULES, ())
    return stack


def place(node: fx.Node) -> dict[str, Any]:
    """The metadata of a call in the same place of the model's code as a node: modules and autocast around it."""
    return {MODULES: module_stack(node)} | {key: node.meta[key] for key in (AUTOCAST,) if key in node.meta}


def module_path(node: fx.Node) -> str:
    """Path of the innermost module a node was traced in; "" for the root."""
    stack = module_stack(node)
    return stack[-1][0] if stack else ""


def ancestors(node: fx.Node) -> Iterator[fx.Node]:
    """Every node that `node` is computed from, itself first, each once."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        yield current
        stack.extend(current.all_input_nodes)
