"""Passes that give softmax attention one spelling: `scaled_dot_product_attention`, key heads unexpanded."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from peftc.graphs.reading import MODULES, argument, is_call, is_tensor, module_stack, shape, value

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class SpellAttention:
    """Every attention call has q, k and v as its arguments, and all else as keywords."""

    def run(self, graph: fx.Graph) -> int:
        """Rewrite the arguments."""
        found = [node for node in graph.nodes if node.target is ATTENTION]
        for node in found:
            kwargs = {
                "attn_mask": argument(node, "attn_mask"),
                "dropout_p": argument(node, "dropout_p", 0.0),
                "is_causal": argument(node, "is_causal", False),
                "scale": argument(node, "scale"),
                "enable_gqa": argument(node, "enable_gqa", False),
            }
            node.args, node.kwargs = (node.args[0], node.args[1], node.args[2]), kwargs
        return len(found)


@dataclass(frozen=True)
class GroupHeads:
    """Key heads that are repeated for the query heads of their group are handed over unrepeated."""

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> int:
        """Undo `repeat_kv` before each attention."""
        changed = 0
        for node in list(graph.nodes):
            if node.target is not ATTENTION or node.kwargs["enable_gqa"]:
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


@dataclass(frozen=True)
class RecogniseAttention:
    """`softmax(q kᵀ · scale + mask) v` becomes `scaled_dot_product_attention`, where it is exactly that.

    Equal within rounding (1e-6 in float32), not bit for bit. A softmax that is kept for the output, or that
    anything but a sum with a mask goes into (a soft cap), is left alone; a bias that is a function of a
    parameter stays a mask.
    """

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> int:
        """Rewrite every written-out attention."""
        changed = 0
        for node in list(graph.nodes):
            if is_call(node, "softmax", "_softmax") and rewrite_softmax(graph, node):
                changed += 1
        return changed


@dataclass(frozen=True)
class Scores:
    """What goes into a softmax: `query keyᵀ · scale + mask`."""

    query: fx.Node
    key: fx.Node
    scale: float
    mask: fx.Node | None


def rewrite_softmax(graph: fx.Graph, softmax: fx.Node) -> bool:
    """Rewrite the attention around one softmax."""
    if value(softmax).dim() != 4 or argument(softmax, "dim") not in (-1, 3):
        return False
    gathered, scores = gathering(softmax), scoring(softmax.args[0])
    if gathered is None or scores is None:
        return False
    product, dropout = gathered
    operands = (scores.query, scores.key, product.args[1])
    if any(not is_tensor(operand) or value(operand).dim() != 4 for operand in operands):
        return False
    p: Any = 0.0 if dropout is None else dropout.args[1]
    with graph.inserting_before(product):
        if dropout is not None and p and isinstance(dropout.args[2], fx.Node):
            p = graph.call_function(operator.mul, (dropout.args[2], p))
            p.meta[MODULES] = module_stack(product)
        kwargs = {
            "attn_mask": scores.mask,
            "dropout_p": p,
            "is_causal": False,
            "scale": scores.scale,
            "enable_gqa": False,
        }
        new = graph.call_function(ATTENTION, operands, kwargs)
    new.meta = {key: product.meta[key] for key in ("val", MODULES, "stack_trace") if key in product.meta}
    product.replace_all_uses_with(new)
    return True


def gathering(softmax: fx.Node) -> tuple[fx.Node, fx.Node | None] | None:
    """The matmul that reads a softmax and nothing else does, and the dropout before it if there is one."""
    weights, dropout = softmax, None
    while True:
        user = sole_user(weights)
        if is_call(user, "dropout"):
            dropout = user
        elif not is_call(user, "to", "type_as") or value(user).dtype != value(softmax).dtype:
            break
        weights = user
    if not is_call(user, "matmul") or user.args[0] is not weights:
        return None
    return user, dropout


def scoring(scores: Any) -> Scores | None:
    """What goes into a softmax, taken apart; None where it is more than a scaled product and a mask."""
    mask, scale = None, 1.0
    if is_call(scores, "add") and sole_user(scores) is not None and not scores.kwargs:
        scores, mask = masked(scores)
    if mask is not None and (not is_tensor(mask) or value(mask).dim() < 2):
        return None
    while is_call(scores, "mul", "div") and sole_user(scores) is not None and not scores.kwargs:
        factor = argument(scores, "other")
        if not isinstance(factor, (int, float)):
            return None
        scale = scale * factor if is_call(scores, "mul") else scale / factor
        scores = scores.args[0]
    if not is_call(scores, "matmul") or sole_user(scores) is None:
        return None
    query, turned = scores.args
    if not is_call(turned, "transpose") or not last_two(turned) or not is_tensor(query):
        return None
    key = turned.args[0]
    return Scores(query, key, scale, mask) if isinstance(key, fx.Node) else None


def masked(scores: fx.Node) -> tuple[Any, Any]:
    """Scores and mask of their sum: the mask is the side that is no scaled matmul."""
    left, right = scores.args[0], scores.args[1]
    if not is_tensor(right):
        return scores, None
    for one, other in ((left, right), (right, left)):
        inner: Any = one
        while is_call(inner, "mul", "div"):
            inner = inner.args[0]
        if is_call(inner, "matmul"):
            return one, other
    return scores, None


def last_two(node: fx.Node) -> bool:
    """Whether a transpose exchanges the last two of four axes."""
    return {int(axis) % 4 for axis in node.args[1:3]} == {2, 3}  # type: ignore[arg-type]


def sole_user(node: Any) -> fx.Node | None:
    """The one user of a node, or None."""
    return next(iter(node.users)) if isinstance(node, fx.Node) and len(node.users) == 1 else None


__all__ = ["ATTENTION", "GroupHeads", "RecogniseAttention", "SpellAttention"]
