"""Heads that lie flat in the batch: [batch·heads length width], as products of three axes want them."""

from __future__ import annotations

from torch import fx

from peftc.graphs.reading import is_call, is_tensor, shape, value

LAYOUT = ("view", "reshape", "_unsafe_view")


def flat_heads(query: fx.Node) -> int | None:
    """Number of heads in queries [batch·heads length width], whatever one number they are multiplied by; or None."""
    while is_call(query, "mul", "div") and not isinstance(query.args[1], fx.Node):
        query = query.args[0]  # type: ignore[assignment]
    source = source_of_flat(query)
    return heads_beside_batch(query) if source is None else shape(source)[1]


def source_of_flat(node: fx.Node) -> fx.Node | None:
    """x [batch heads length width] of which a node [batch·heads length width] is the flat form, or None."""
    after = value(node)
    current = node
    while is_call(current, *LAYOUT, "contiguous", "clone"):
        current = current.args[0]  # type: ignore[assignment]
        before = value(current)
        if before.dim() == 4:
            flat = (str(before.shape[0] * before.shape[1]), str(before.shape[2]), str(before.shape[3]))
            return current if flat == tuple(map(str, after.shape)) else None
    return None


def heads_beside_batch(node: fx.Node) -> int | None:
    """Number of heads in a value [batch·heads length width] that was made of one [length batch d]; or None."""
    if not is_call(node, "transpose", "swapaxes") or {node.args[1], node.args[2]} not in ({0, 1}, {-3, -2}):
        return None
    view = node.args[0]
    if not is_call(view, *LAYOUT) or not is_tensor(view.args[0]) or value(view.args[0]).dim() != 3:
        return None
    (length, batch, d), after = value(view.args[0]).shape, value(view).shape
    if len(after) != 3 or not isinstance(d, int) or not isinstance(after[2], int) or d % after[2]:
        return None
    heads = d // after[2]
    same = (str(length), str(batch * heads)) == (str(after[0]), str(after[1]))
    return heads if same and heads > 1 else None
