"""The pass that gives root-mean-square norms one spelling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from peftc.graphs.operations import rms_norm
from peftc.graphs.reading import MODULES, argument, is_call, is_tensor, value


@dataclass(frozen=True)
class RecogniseRmsNorm:
    """`w * (x * rsqrt(mean(x², -1) + eps))`, with or without a cast up before and down after: `rms_norm`."""

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> int:
        """Replace every spelling that computes exactly this."""
        changed = 0
        for node in list(graph.nodes):
            if is_call(node, "rsqrt") and self.rewrite(graph, node):
                changed += 1
        return changed

    def rewrite(self, graph: fx.Graph, root: fx.Node) -> bool:
        """Rewrite the norm around one `rsqrt`."""
        found = statistics(root)
        if found is None:
            return False
        wide, eps = found
        scaled = only_user(root)
        if scaled is None or not is_call(scaled, "mul") or set(scaled.all_input_nodes) != {wide, root}:
            return False
        last, x, compute = scaled, wide, None
        if is_call(wide, "to") and is_tensor(wide.args[0]):
            cast = only_user(scaled)
            narrow: Any = wide.args[0]
            if cast is not None and is_call(cast, "to") and value(cast).dtype == value(narrow).dtype:
                last, x, compute = cast, narrow, value(wide).dtype
        weight = None
        outer = only_user(last)
        if outer is not None and is_call(outer, "mul"):
            other = outer.args[0] if outer.args[1] is last else outer.args[1]
            if isinstance(other, fx.Node) and other.op == "get_attr" and value(other).dim() == 1:
                weight, last = other, outer
        with graph.inserting_before(last):
            new = graph.call_function(
                rms_norm, (x, weight, eps), {} if compute is None else {"compute": compute}
            )
        new.meta = {key: last.meta[key] for key in ("val", MODULES, "stack_trace") if key in last.meta}
        last.replace_all_uses_with(new)
        return True


def statistics(root: fx.Node) -> tuple[fx.Node, float] | None:
    """x and eps of `rsqrt(mean(x², -1, keepdim) + eps)`."""
    shifted = root.args[0]
    if not is_call(shifted, "add") or not isinstance(argument(shifted, "other"), float):
        return None
    if argument(shifted, "alpha", 1) != 1:
        return None
    mean = shifted.args[0]
    if not isinstance(mean, fx.Node) or not is_call(mean, "mean"):
        return None
    if argument(mean, "dim") != [-1] or argument(mean, "keepdim") is not True:
        return None
    square = mean.args[0]
    if not isinstance(square, fx.Node):
        return None
    if (is_call(square, "pow") and argument(square, "exponent") == 2) or (
        is_call(square, "mul") and square.args[0] is square.args[1]
    ):
        x = square.args[0]
    else:
        return None
    return (x, argument(shifted, "other")) if isinstance(x, fx.Node) else None


def only_user(node: fx.Node) -> fx.Node | None:
    """The one user of a node, or None where there are more or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None
