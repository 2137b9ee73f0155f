"""The pass that gives attention its fast path back.

Under tracing, models build the mask they would have left out in eager code. A mask that depends on nothing
but sizes is computed here for several sizes, and taken away where it hides nothing or is exactly causal.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from peftc.graph.evaluating import evaluate
from peftc.graph.reading import DYNAMIC_SIZE, ancestors, is_call, is_tensor, operator_name, value

LONGEST = 4096  # a mask whose constants go beyond this length is not tried
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
        ones: inputs that are known to be all ones.
    """

    ones: tuple[str, ...] = ()

    def run(self, graph: fx.Graph) -> int:
        """Fold every mask that can be folded."""
        known: dict[fx.Node, str] = {}
        changed = 0
        for node in list(graph.nodes):
            mask = node.kwargs.get("attn_mask") if is_call(node, "scaled_dot_product_attention") else None
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
        if any(reads_content(node, nodes, self.ones) for node in nodes if node.op == "placeholder"):
            return "other"
        if any(node.op == "get_attr" and value(node) is not None and value(node).dim() > 1 for node in nodes):
            return "other"
        if value(mask).dim() < 2:
            return "other"
        constants = {c for node in nodes for c in numbers(node) if 1 < c < DYNAMIC_SIZE // 2}
        lengths = [3, 8, *[c + 2 for c in constants]]
        if max(lengths) > LONGEST:
            return "other"
        try:
            kinds = {self.kind_at(mask, nodes, 2, length) for length in lengths}
        except Exception:  # noqa: BLE001 - any node may fail outside the trace: leave the mask as it is
            return "other"
        return kinds.pop() if len(kinds) == 1 else "other"

    def kind_at(self, mask: fx.Node, nodes: set[fx.Node], batch: int, length: int) -> str:
        """What the mask is for one size of the inputs."""
        return kind_of(evaluate(mask, nodes, (batch, length), self.no_state))

    def no_state(self, path: str) -> Tensor:
        """Masks that are made of parameters or buffers are not folded."""
        raise LookupError(path)


def square(attention: fx.Node) -> bool:
    """Whether an attention has as many keys as queries, provably."""
    query, key = attention.args[0], attention.args[1]
    return is_tensor(query) and is_tensor(key) and str(value(query).shape[-2]) == str(value(key).shape[-2])


def reads_content(placeholder: fx.Node, nodes: set[fx.Node], ones: tuple[str, ...] = ()) -> bool:
    """Whether an input's content goes into the nodes, and not only its size; not if it is among `ones`."""
    if placeholder.name in ones:
        return False
    return any(user in nodes and operator_name(user) not in SIZES_ONLY for user in placeholder.users)


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
