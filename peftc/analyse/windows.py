"""How far back an attention with a sliding window looks, told by computing its mask at a few small sizes.

A window of thousands of tokens is not computed as it is: the large constants of a mask are made smaller by one number,
and its edge must then move by that number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, fx

from peftc.capture.masks import numbers
from peftc.graphs.evaluating import evaluate
from peftc.graphs.reading import DYNAMIC_SIZE, ancestors, is_tensor, value

State = Callable[[str], Tensor]

SMALL, LARGE = 128, 2048  # what is computed as it is: of constants, and of tables that a mask is read from
SHRUNK = 8  # what the least of some large constants becomes


def window_of(mask: object, state: State) -> int:
    """How many keys a query sees at most, back from its own place and with it; 0 where that is no fixed number.

    Args:
        mask: what an attention is given.
        state: gives the buffer or constant of a path.
    """
    if not isinstance(mask, fx.Node) or not is_tensor(mask) or value(mask).dim() < 2:
        return 0
    nodes = set(ancestors(mask))
    at = partial(edge, mask, nodes, state)
    found = sorted({number for node in nodes for number in numbers(node) if number < DYNAMIC_SIZE // 2})
    small = [number for number in found if number < SMALL]
    held = [value(node) for node in nodes if node.op == "get_attr" and is_tensor(node)]
    tables = [tensor.shape[-1] for tensor in held if tensor.dim() > 1]
    if window := at(max([2 * SMALL, *(size for size in tables if size <= LARGE)]), {}):
        return window
    for least in found[len(small) :]:
        near = [number for number in found if least <= number < least + SHRUNK]
        one, other = ({number: number - least + start for number in near} for start in (SHRUNK, SHRUNK + 1))
        first, second = at(2 * SMALL, one), at(2 * SMALL, other)
        if first and second == first + 1:
            return first + least - SHRUNK
    return 0


def edge(mask: fx.Node, nodes: set[fx.Node], state: State, length: int, instead: Mapping[int, int]) -> int:
    """The window at one length, with other constants `instead` of some; 0 where the mask has none."""
    try:
        held = evaluate(mask, nodes, (2, length), state, instead=instead)
    except Exception:  # noqa: BLE001 - any node may fail outside the trace: that is no evidence
        return 0
    if held.shape[-2:] != (length, length):
        return 0
    held = held.reshape(-1, length, length)[0]
    seen = held if held.dtype == torch.bool else held > torch.finfo(held.dtype).min / 2
    first = seen.int().argmax(-1)
    back = int((torch.arange(length) - first).max())
    if not bool(seen.any(-1).all()) or back >= length - 1:
        return 0
    straight = torch.equal(first, (torch.arange(length) - back).clamp(min=0))
    return back + 1 if straight else 0
