"""Passes that take away what tracing added and that computes nothing: asserts, no-op casts, dead code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from peftc.capture.recipes import WRITES
from peftc.graphs.branches import expect
from peftc.graphs.reading import AUTOCAST, DYNAMIC_SIZE, argument, is_tensor, operator_name, schema_of, value

ASSERTS = (
    "_assert_tensor_metadata",
    "_assert_scalar",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
)


@dataclass(frozen=True)
class RemoveAsserts:
    """Asserts of tracing bake in dtypes and devices, and keep dead code alive."""

    def run(self, graph: fx.Graph) -> int:
        """Erase them."""
        found = [node for node in graph.nodes if operator_name(node) in ASSERTS]
        for node in found:
            graph.erase_node(node)
        return len(found)


@dataclass(frozen=True)
class RemoveNoOps:
    """Casts to the same dtype, slices of everything, expansions to the same shape, additions of integer 0."""

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> int:
        """Replace each by its input."""
        changed = 0
        for node in list(graph.nodes):
            source = unchanged(node)
            if source is not None:
                node.replace_all_uses_with(source)
                graph.erase_node(node)
                changed += 1
        return changed


def unchanged(node: fx.Node) -> fx.Node | None:
    """The input that a node only hands on, if that is all it does."""
    name = operator_name(node)
    if not is_tensor(node) or not node.args or not is_tensor(node.args[0]):
        return None
    source: fx.Node = node.args[0]
    before, after = value(source), value(node)
    if before.dtype != after.dtype or before.device != after.device or before.dim() != after.dim():
        return None
    if name == "to" and AUTOCAST in node.meta and source.op != "get_attr":
        return None  # under another autocast around the model it does something
    if name == "to" and not argument(node, "copy", False):
        return source if argument(node, "memory_format") is None else None
    if name == "alias" or (name == "lift_fresh_copy" and not mutated(node)):
        return source
    if name == "slice":
        whole = argument(node, "start") in (0, None) and argument(node, "end") in (DYNAMIC_SIZE, None)
        return source if whole and argument(node, "step", 1) == 1 else None
    if name == "expand":
        return source if same_shape(before, after) else None
    if name in ("add", "sub") and not after.dtype.is_floating_point and argument(node, "other") in (0,):
        return source if not isinstance(argument(node, "other"), (fx.Node, bool)) else None
    return None


def same_shape(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether two shapes are provably the same, whatever the symbols stand for."""
    pairs = zip(before.shape, after.shape, strict=True)
    return all(str(one) == str(other) for one, other in pairs)


def mutated(node: fx.Node) -> bool:
    """Whether some user writes into the value of a node."""
    return any(writes(user) and user.args[0] is node for user in node.users)


def writes(node: fx.Node) -> bool:
    """Whether a node calls an operator, or an `updater`, that writes into its arguments."""
    schema = schema_of(node)
    return schema.is_mutable if schema is not None else hasattr(node.target, WRITES)


@dataclass(frozen=True)
class RemoveEmptyParts:
    """Concatenations with an empty tensor, as a fresh cache makes them, lose it; one part is itself."""

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> int:
        """Rewrite them."""
        changed = 0
        for node in list(graph.nodes):
            if operator_name(node) != "cat" or not isinstance(node.args[0], (list, tuple)):
                continue
            kept = [part for part in node.args[0] if not is_empty(part)]
            if len(kept) == len(node.args[0]) or not kept:
                continue
            if len(kept) == 1 and isinstance(kept[0], fx.Node) and value(kept[0]).dtype == value(node).dtype:
                node.replace_all_uses_with(kept[0])
                graph.erase_node(node)
            else:
                node.args = (kept, *node.args[1:])
            changed += 1
        return changed


def is_empty(node: object) -> bool:
    """Whether a node is the one-dimensional tensor of no elements, which `cat` skips."""
    if not is_tensor(node) or value(node).dim() != 1:
        return False
    size = value(node).shape[0]
    return isinstance(size, int) and size == 0  # a symbol may be told by data: it cannot be asked


@dataclass(frozen=True)
class RemoveDeadCode:
    """Calls whose value nobody uses. Random ones count as dead too: what is not read need not be drawn."""

    def run(self, graph: fx.Graph) -> int:
        """Erase them, last first."""
        changed = 0
        for node in reversed(list(graph.nodes)):
            if node.users or node.op in ("placeholder", "output"):
                continue
            if writes(node) or node.target is expect:
                continue
            graph.erase_node(node)
            changed += 1
        return changed
