"""Passes that give softmax attention one spelling: `scaled_dot_product_attention`, key heads unexpanded."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from peftc.capture.heads import flat_heads
from peftc.graphs.operations import capped_attention
from peftc.graphs.reading import (
    MODULES,
    argument,
    is_attention,
    is_call,
    is_tensor,
    module_stack,
    place,
    shape,
    value,
)

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default


def attention_call(
    graph: fx.Graph,
    operands: tuple[fx.Node, fx.Node, fx.Node],
    mask: fx.Node | None,
    scale: float | None,
    dropped: tuple[float, object] | None,
    cap: float | None = None,
) -> fx.Node:
    """The fused call at the insertion point, as `SpellAttention` leaves one.

    Args:
        operands: queries, keys and values.
        dropped: chance of dropout of the weights, and the mode that says whether it acts; 0 in evaluation.
        cap: what scores are capped at, where they are.
    """
    p: Any = dropped[0] if dropped and dropped[1] is not False else 0.0
    if p and dropped and isinstance(dropped[1], fx.Node):
        p = graph.call_function(operator.mul, (dropped[1], p))
        p.meta[MODULES] = module_stack(operands[0])
    kwargs = {"attn_mask": mask, "dropout_p": p, "is_causal": False, "scale": scale, "enable_gqa": False}
    if cap is None:
        return graph.call_function(ATTENTION, operands, kwargs)
    return graph.call_function(capped_attention, operands, {**kwargs, "cap": cap})


@dataclass(frozen=True)
class SpellAttention:
    """Every attention call has q, k and v as its arguments, and all else as keywords."""

    def run(self, graph: fx.Graph) -> int:
        """Rewrite the arguments."""
        found = [node for node in graph.nodes if node.target is ATTENTION]
        for node in found:
            if all(value(operand).dim() == 3 for operand in node.args[:3]):
                give_heads(node)
            kwargs = {
                "attn_mask": argument(node, "attn_mask"),
                "dropout_p": argument(node, "dropout_p", 0.0),
                "is_causal": argument(node, "is_causal", False),
                "scale": argument(node, "scale"),
                "enable_gqa": argument(node, "enable_gqa", False),
            }
            node.args, node.kwargs = (node.args[0], node.args[1], node.args[2]), kwargs
        return len(found)


def give_heads(node: fx.Node) -> None:
    """Give an attention [batch places width] an axis for its heads: those that lie flat in the batch, or one.

    A mask [1 places places] is one for all of them.
    """
    heads = flat_heads(node.args[0])  # type: ignore[arg-type]
    one: Any = (aten.unsqueeze.default, 1)
    own: Any = one if heads is None else (aten.unflatten.int, 0, [-1, heads])
    drop: Any = (aten.squeeze.dim, 1) if heads is None else (aten.flatten.using_ints, 0, 1)
    mask = argument(node, "attn_mask")
    operands: Any = node.args[:3]
    lifted: list[Any] = [*operands, *([mask] if is_tensor(mask) and value(mask).dim() == 3 else [])]
    for operand in dict.fromkeys(lifted):
        lift, *how = one if operand is mask and shape(operand)[0] == 1 else own
        with node.graph.inserting_before(node):
            new = node.graph.call_function(lift, (operand, *how))
        new.meta = {"val": lift(value(operand), *how), **place(node)}
        node.replace_input_with(operand, new)
    with node.graph.inserting_after(node):
        result = node.graph.call_function(drop[0], (node, *drop[1:]))
    result.meta = {**node.meta}
    node.replace_all_uses_with(result, delete_user_cb=lambda user: user is not result)
    lift, *how = own
    node.meta["val"] = lift(value(node), *how)


@dataclass(frozen=True)
class GroupHeads:
    """Key heads that are repeated for the query heads of their group are handed over unrepeated."""

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> int:
        """Undo `repeat_kv` before each attention."""
        changed = 0
        for node in list(graph.nodes):
            if not is_attention(node) or node.kwargs["enable_gqa"]:
                continue
            key, val = unrepeated(node.args[1]), unrepeated(node.args[2])
            if key is None or val is None:
                continue
            node.args = (node.args[0], key, val)
            node.kwargs = {**node.kwargs, "enable_gqa": True}
            changed += 1
        return changed


def unrepeated(node: Any) -> fx.Node | None:
    """x of `reshape(expand(unsqueeze(x, 2)))` if that repeats each head of x [batch heads keys width]."""
    if not is_call(node, "reshape", "view", "_unsafe_view", "clone"):
        return None
    expanded = node.args[0]
    if is_call(expanded, "clone", "contiguous"):
        expanded = expanded.args[0]
    if not is_call(expanded, "expand") or not is_call(expanded.args[0], "unsqueeze"):
        return None
    lifted = expanded.args[0]
    x = lifted.args[0]
    if not is_tensor(x) or value(x).dim() != 4 or lifted.args[1] not in (2, -3):
        return None
    before, after, wide = shape(x), shape(node), shape(expanded)
    if len(after) != 4 or len(wide) != 5 or wide[:2] + wide[3:] != before:
        return None
    return x if after == (before[0], before[1] * wide[2], *before[2:]) else None


__all__ = ["ATTENTION", "GroupHeads", "SpellAttention", "attention_call"]
