"""Regions of `torch.autocast` in a model's own code: the calls that were traced in one run in one again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from peftc.graphs.reading import AUTOCAST, is_tensor, schema_of, value

Region = tuple[str, torch.dtype, bool]
"""Type of device, dtype in which it computes, and whether it does."""


def enter_regions(graph: fx.Graph) -> int:
    """Let each call that stood in regions run in them, in place; says how many do."""
    changed = 0
    for node in graph.nodes:
        regions = [each for each in node.meta.get(AUTOCAST, ()) if acts_on(each, node)]
        for region in reversed(regions if node.op == "call_function" else []):
            node.target = inside(node.target, region)
        changed += bool(regions)
    return changed


def acts_on(region: Region, node: fx.Node) -> bool:
    """Whether a region may change what a call computes: one of its devices, which is no view."""
    schema = schema_of(node)
    if schema is not None and any(each.alias_info is not None for each in schema.returns):
        return schema.is_mutable
    tensors = [each for each in (node, *node.all_input_nodes) if is_tensor(each)]
    return not tensors or any(
        value(each).device.type == region[0] and value(each).is_floating_point() for each in tensors
    )


@functools.cache
def inside(function: Callable[..., Any], region: Region) -> Callable[..., Any]:
    """A function that runs another one in a region; the same one for the same, so that equal blocks stay equal."""
    device, dtype, enabled = region

    def in_autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, dtype, enabled):
            return function(*args, **kwargs)

    name = str(getattr(function, "__name__", "call")).replace(".", "_")
    in_autocast.__name__ = in_autocast.__qualname__ = f"{name}_in_autocast"
    return in_autocast
