"""What leaves a softmax as it is, and the score of no key that some put beside the others: a sink of weight.

Weights of a softmax do not change where all scores of a query move alike, as where their maximum is taken off. A sink is
one more score for each query, whose weight is left out behind the softmax: it is that of a key of zeros, with a value of
zeros, to whose score the sink is added as a mask is.
"""

from __future__ import annotations

from torch import fx

from peftc.graphs.reading import argument, is_call, is_tensor, shape, value


def maximum_of(node: fx.Node) -> fx.Node | None:
    """The call that takes the maximum of a query's scores, where a node takes it off the same scores; else nothing."""
    if not is_call(node, "sub") or argument(node, "alpha", 1) != 1:
        return None
    other = node.args[1]
    while is_call(other, "detach", "unsqueeze", "getitem") and is_last_or_first(other):
        other = other.args[0]
    if not is_call(other, "max", "amax") or other.args[0] is not node.args[0] or len(other.args) < 2:
        return None
    scores: fx.Node = node.args[0]  # type: ignore[assignment]
    dims = other.args[1] if isinstance(other.args[1], (list, tuple)) else [other.args[1]]
    last = value(scores).dim() - 1
    kept = shape(node) == shape(scores) and shape(node.args[1])[-1] == 1  # type: ignore[arg-type]
    return other if kept and [int(dim) % (last + 1) for dim in dims] == [last] else None  # type: ignore[arg-type]


def is_last_or_first(node: fx.Node) -> bool:
    """Whether a node adds an axis behind all others, or takes the first of several results, or changes no number."""
    if is_call(node, "unsqueeze"):
        return node.args[1] in (-1, value(node).dim() - 1)
    return not is_call(node, "getitem") or bool(node.args[1] == 0)


def sink_of(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Scores and the one more score behind them that a node lays beside them, along the last axis; else nothing."""
    if not is_call(node, "cat") or not isinstance(node.args[0], (list, tuple)) or len(node.args[0]) != 2:
        return None
    scores, sink = node.args[0]
    last = value(node).dim() - 1
    dim = argument(node, "dim", 0)
    if not is_tensor(scores) or not is_tensor(sink) or int(dim) % (last + 1) != last:
        return None
    return (scores, sink) if value(sink).shape[-1] == 1 else None


def leaves_out_the_last(node: fx.Node) -> bool:
    """Whether a node is all of its source but the last along the last axis."""
    if not is_call(node, "slice"):
        return False
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    last = value(source).dim() - 1
    begins, ends = argument(node, "start", None) or 0, argument(node, "end", None)
    along = int(argument(node, "dim", 0)) % (last + 1) == last
    return along and begins == 0 and ends == -1 and argument(node, "step", 1) == 1
