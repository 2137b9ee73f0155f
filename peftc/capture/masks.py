"""The pass that gives attention its fast path back.

Under tracing, models build the mask they would have left out in eager code. A mask that is proved to depend on
nothing but plain comparisons of positions is computed here for several sizes, and taken away where it hides
nothing or is exactly causal.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from math import ceil, isfinite
from typing import ClassVar

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from peftc.capture.mask_forms import Forms
from peftc.graphs.evaluating import evaluate
from peftc.graphs.reading import (
    DYNAMIC_SIZE,
    ancestors,
    hint,
    is_attention,
    is_tensor,
    operator_name,
    value,
)
from peftc.passes import setting

HIDING = 1e4  # a float beyond this is what a mask adds to hide a key

# These read the size of their input and not its content.
SIZES_ONLY = frozenset(
    [
        "sym_size",
        "new_ones",
        "new_zeros",
        "new_full",
        "new_empty",
        "ones_like",
        "zeros_like",
        "full_like",
        "empty_like",
    ]
)


@dataclass(frozen=True)
class FoldMasks:
    """Attention without a mask where there is nothing to hide, `is_causal` where the mask is exactly causal.

    Attributes:
        longest: the greatest length that is tried.
        ones: inputs that are known to be all ones.
    """

    optional: ClassVar[bool] = True
    longest: int = setting(
        2048, "A mask whose constants ask for more tokens than this to be told apart is not tried.", min=1
    )
    ones: tuple[str, ...] = ()

    def run(self, graph: fx.Graph) -> int:
        """Fold every mask that can be folded."""
        known: dict[fx.Node, str] = {}
        changed = 0
        for node in list(graph.nodes):
            mask = node.kwargs.get("attn_mask") if is_attention(node) else None
            if not isinstance(mask, fx.Node) or node.kwargs.get("is_causal"):
                continue
            if mask not in known:
                known[mask] = self.kind(mask)
            if known[mask] == "other" or (known[mask] == "causal" and not square(node)):
                continue
            node.kwargs = {**node.kwargs, "attn_mask": None, "is_causal": known[mask] == "causal"}
            changed += 1
        return changed

    def kind(self, mask: fx.Node) -> str:
        """ "open" (hides nothing), "causal", or "other"."""
        nodes = set(ancestors(mask))
        if (
            content_of(mask, nodes, self.ones)
            or value(mask).dim() < 2
            or not Forms(nodes, self.ones).is_plain(mask)
        ):
            return "other"
        # Comparisons of plain sums: beyond all constants together, no length shows anything new.
        beyond = 4 * sum(c for node in nodes for c in numbers(node) if c < DYNAMIC_SIZE // 2) + 5
        if beyond > self.longest:
            return "other"
        try:
            kinds = {self.kind_at(mask, nodes, batch_of(nodes), length) for length in (3, 8, beyond)}
        except Exception:  # noqa: BLE001 - any node may fail outside the trace: leave the mask as it is
            return "other"
        return kinds.pop() if len(kinds) == 1 else "other"

    def kind_at(self, mask: fx.Node, nodes: set[fx.Node], batch: int, length: int) -> str:
        """What the mask is for one size of the inputs."""
        return kind_of(evaluate(mask, nodes, (batch, length), self.no_state))

    def no_state(self, path: str) -> Tensor:
        """Masks that are made of parameters or buffers are not folded."""
        raise LookupError(path)


def batch_of(nodes: Set[fx.Node]) -> int:
    """The batch that was traced: a model may divide it, so that a smaller one would leave nothing of a mask."""
    inputs = [node for node in nodes if node.op == "placeholder" and is_tensor(node) and value(node).dim()]
    return max((hint(value(node).shape[0]) for node in inputs), default=2)


def square(attention: fx.Node) -> bool:
    """Whether an attention has as many keys as queries, provably."""
    query, key = attention.args[0], attention.args[1]
    return is_tensor(query) and is_tensor(key) and str(value(query).shape[-2]) == str(value(key).shape[-2])


def content_of(mask: fx.Node, nodes: Set[fx.Node], ones: tuple[str, ...] = ()) -> list[fx.Node]:
    """The inputs whose content goes into a mask, and not only their size; without those among `ones`.

    Args:
        mask: what an attention is given.
        nodes: the mask and all it is computed from.
        ones: inputs that are known to be all ones.
    """
    return [
        node
        for node in nodes
        if node.op == "placeholder"
        and node.name not in ones
        and (
            node is mask
            or any(user in nodes and operator_name(user) not in SIZES_ONLY for user in node.users)
        )
    ]


def numbers(node: fx.Node) -> list[int]:
    """Sizes of the constants among a node's arguments: windows, chunks, offsets, whatever their sign or type.

    Numbers as large as what hides a key are no lengths.
    """
    leaves = pytree.tree_leaves((node.args, node.kwargs))
    finite = [
        leaf
        for leaf in leaves
        if isinstance(leaf, (int, float)) and not isinstance(leaf, bool) and isfinite(leaf)
    ]
    return [ceil(abs(leaf)) for leaf in finite if isinstance(leaf, int) or abs(leaf) < HIDING]


def kind_of(mask: Tensor) -> str:
    """Tell what a mask [..., queries, keys] is: boolean ones hide where False, others are added to scores."""
    if not mask.numel():
        return "other"  # of no elements all can be said
    if mask.dtype == torch.bool:
        seen = mask
    else:
        hidden = mask <= torch.finfo(mask.dtype).min / 2
        if not bool(((mask == 0) | hidden).all()):
            return "other"
        seen = ~hidden
    if bool(seen.all()):
        return "open"
    queries, keys = seen.shape[-2:]
    causal = torch.ones(queries, keys, dtype=torch.bool).tril()
    return "causal" if queries == keys and bool((seen == causal).all()) else "other"
