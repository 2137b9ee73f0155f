"""The pass that writes every look-up of rows of a parameter by ids as `embedding`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from peftc.capture.calls import made, replace_each
from peftc.graphs.reading import (
    BY_NUMBER,
    ancestors,
    argument,
    is_call,
    is_parameter,
    is_tensor,
    value,
)

WHOLE = (torch.int64, torch.int32)


@dataclass(frozen=True)
class SpellGathers:
    """`weight[ids]` and `index_select(weight, 0, ids)` become `embedding(weight, ids)`, bit for bit.

    Left alone: ids that are computed from anything but whole numbers, as those of experts are; those that a model keeps,
    as it does for its biases by distance; biases of experts; and those that may be below 0, which indexing counts from the
    last row.
    """

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> int:
        """Replace them."""
        return replace_each(graph, embedding)


def embedding(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """The look-up as such, for a node that is one."""
    ids = ids_of(node)
    return None if ids is None else made(graph, node, torch.ops.aten.embedding.default, node.args[0], ids)


def ids_of(node: fx.Node) -> fx.Node | None:
    """The ids by which a node takes rows of a matrix of the model; None for any other node."""
    ids: Any = None
    if is_call(node, "index"):
        indices: Any = node.args[1]
        ids = indices[0] if len(indices) == 1 else None
    elif is_call(node, "index_select") and argument(node, "dim") == 0:
        ids = argument(node, "index")
    if not is_tensor(ids) or value(ids).dtype not in WHOLE:
        return None
    table = node.args[0]
    if not isinstance(table, fx.Node) or not is_parameter(table) or value(table).dim() != 2:
        return None
    return ids if not is_experts_bias(node) and all(is_whole(each) for each in ancestors(ids)) else None


def is_experts_bias(rows: fx.Node) -> bool:
    """Whether rows are only added to what several matrices make, of which a number picks one for each row."""
    return bool(rows.users) and all(
        is_call(user, "add") and any(is_call(each, *BY_NUMBER) for each in user.args) for user in rows.users
    )


def is_whole(node: fx.Node) -> bool:
    """Whether a node on the way to ids keeps them whole numbers that are not below 0."""
    if not is_tensor(node):
        return True
    if value(node).dtype not in (*WHOLE, torch.bool) or node.op == "get_attr":
        return False
    lowers = is_call(node, "sub", "rsub", "neg", "bitwise_not")
    numbers = [each for each in node.args if isinstance(each, (int, float))]
    return not lowers and not (is_call(node, "add", "mul") and any(number < 0 for number in numbers))
