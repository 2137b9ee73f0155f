"""What calls write into tensors of a model, such as a cache of keys: where the channels of a projection come to stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from peftc.graphs.reading import CONSTANT, is_call, operator_name, shape

VIEWS = frozenset(
    ["slice", "select", "narrow", "view", "transpose", "permute", "unsqueeze", "squeeze", "detach", "alias"]
)
PUTS = ("index_put", "index_copy")
WRITES = ("copy_", "index_put_", "index_copy_")


def writes(held: fx.Node) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...]]]:
    """The calls that write into a tensor, each with the views through which it does."""
    queue: list[tuple[fx.Node, tuple[fx.Node, ...]]] = [(held, ())]
    for node, views in queue:
        for user in node.users:
            if not user.args or user.args[0] is not node:
                continue
            if is_call(user, *WRITES):
                yield user, views
            elif operator_name(user) in VIEWS:
                queue.append((user, (*views, user)))


def written(call: fx.Node) -> object:
    """What a call writes."""
    return (
        call.args[1]
        if is_call(call, "copy_")
        else call.args[3 if is_call(call, "index_copy_", "index_copy") else 2]
    )


def put(call: fx.Node, place: Tensor, numbers: Tensor) -> None:
    """Write channel numbers into a place as a call does. Where only data says where, they go to its front."""
    arguments: Any = call.args
    if is_call(call, "copy_"):
        place.copy_(numbers.expand(place.shape))
    elif is_call(call, "index_copy", "index_copy_"):
        dim, at = arguments[1:3]
        place.index_copy_(dim, places(at, place.shape[dim]), numbers)
    else:
        index = [
            slice(None) if each is None else places(each, place.shape[axis])
            for axis, each in enumerate(arguments[1])
        ]
        place[tuple(index)] = numbers


def places(node: fx.Node, size: int) -> Tensor:
    """The places along an axis of some length that a node says."""
    known = node.meta.get(CONSTANT)
    if isinstance(known, Tensor):
        return known
    form = shape(node)
    return torch.arange(torch.Size(form).numel()).view(form) % size
