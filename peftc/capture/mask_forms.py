"""Proves of a mask that it compares positions in no way but plainly, so that a few sizes tell all sizes.

A mask is a function of the indices of its axes and of the sizes of the inputs. Where it is made of comparisons
between sums of those (each taken once or twice, with whole constants), every threshold in it lies within the sum of
its constants; a length well beyond that sum shows every case there is. Anything else (a division, a root, a length
that is halved, an index of the batch) has no form here, and the mask is left as it is.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import fx

from peftc.graphs.reading import argument, is_tensor, operator_name, value

MOST_TERMS = 3  # indices and sizes on the two sides of one comparison: j <= i + past has three


@dataclass(frozen=True)
class Sum:
    """A sum of `terms` indices and sizes and a constant; of none: the same number everywhere.

    Attributes:
        batch: whether an index or the size of the batch is among them.
        ramp: whether it is the index of the last axis and a constant: one more from element to element.
        start: the constant, of a ramp or of no terms, where it is known.
    """

    terms: int = 0
    batch: bool = False
    ramp: bool = False
    start: int | None = None

    @property
    def known(self) -> int | None:
        """The one number that it is everywhere, if that is known."""
        return self.start if self.terms == 0 else None


class Choice:
    """One of a few constants, chosen by comparisons of sums."""


CHOICE = Choice()
Form = Sum | Choice | None

MOVES = {"unsqueeze", "squeeze", "expand", "view", "reshape", "permute", "transpose", "clone", "contiguous"}
FILLED = {"ones", "zeros", "full", "ones_like", "zeros_like", "full_like", "scalar_tensor"}
FILLED |= {"new_ones", "new_zeros", "new_full"}
FILL_AT = {"full": 1, "new_full": 2, "full_like": 1, "scalar_tensor": 0}
COMPARISONS = {"le", "lt", "ge", "gt", "eq", "ne"}
POINTWISE = {"__and__", "__or__", "__xor__", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not"}
POINTWISE |= {"logical_and", "logical_or", "logical_xor", "logical_not", "where", "masked_fill"}
POINTWISE |= {"mul", "add", "sub", "rsub", "neg", "minimum", "maximum"}
EXACT = {torch.int32, torch.int64, torch.float32, torch.float64}


class Forms:
    """The forms of the nodes that a mask is computed from.

    Args:
        nodes: the mask and all it is computed from.
        ones: placeholders that are known to hold ones.
    """

    def __init__(self, nodes: Set[fx.Node], ones: tuple[str, ...]) -> None:
        self.nodes, self.ones = nodes, ones
        self.known: dict[fx.Node, Form] = {}
        self.batch = {
            symbol
            for node in nodes
            if node.op == "placeholder" and is_tensor(node) and value(node).dim()
            for symbol in symbols(value(node).shape[0])
        }

    def is_plain(self, mask: fx.Node) -> bool:
        """Whether the mask is a choice by comparisons of sums, with one length in it beside the batch."""
        for node in mask.graph.nodes:  # in order, so that no recursion is as deep as a graph
            if node in self.nodes:
                self.known[node] = self.read(node)
        form = self.known[mask]
        sizes = [node.meta.get("val") for node in self.nodes if operator_name(node) == "sym_size"]
        lengths = {symbol for size in sizes for symbol in symbols(size)} - self.batch
        return len(lengths) <= 1 and (form is CHOICE or (isinstance(form, Sum) and form.terms == 0))

    def read(self, node: fx.Node) -> Form:
        """The form of a node whose inputs are known."""
        name = operator_name(node) if node.op == "call_function" else node.op
        if name == "placeholder":
            return Sum() if node.name in self.ones else None
        if name == "sym_size":
            return self.size(node.meta.get("val"))
        if name in FILLED:
            fill = (
                self.of(argument(node, "fill_value", node.args[FILL_AT[name]])) if name in FILL_AT else Sum()
            )
            return replace(fill, start=None) if isinstance(fill, Sum) else fill  # its dtype may change it
        if name == "arange":
            return self.arange(node)
        if name in MOVES:
            return self.moved(node, name)
        if name in ("diff", "cumsum"):
            return self.difference(node) if name == "diff" else self.cumulated(node)
        if name in ("to", "_to_copy"):
            return self.cast(node)
        if name == "slice":
            return self.part(node)
        if name in ("add", "sub", "rsub", "neg") and not node.kwargs and (total := self.total(node)):
            return total
        return self.comparison(node) if name in COMPARISONS else self.choice(node, name)

    def choice(self, node: fx.Node, name: str) -> Form:
        """What is made of choices element by element, by a triangle, or by picking from equal numbers."""
        if name in POINTWISE:
            return CHOICE if all(self.is_chosen(arg) for arg in node.args) else None
        if name in ("tril", "triu"):
            return CHOICE if self.is_chosen(node.args[0]) else None
        inner = self.of(node.args[0]) if name == "index" else None
        if not isinstance(inner, Sum) or (inner.terms and not inner.ramp):
            return None
        if inner.terms == 0:
            return inner
        # Only the last axis tells elements of a ramp apart: picking from it gives the index it is picked by.
        picked: Any = node.args[1]
        at = self.of(picked[-1]) if len(picked) == value(node.args[0]).dim() else None  # type: ignore[arg-type]
        return Sum(at.terms, at.batch) if isinstance(at, Sum) else None

    def moved(self, node: fx.Node, name: str) -> Form:
        """The same numbers at other places; the last axis stays the last where axes come in front of it."""
        form = self.of(node.args[0])
        if not isinstance(form, Sum) or not form.ramp:
            return form
        source: Any = node.args[0]
        before, after = value(source), value(node)
        in_front = name == "unsqueeze" and node.args[1] not in (-1, before.dim())
        kept = in_front or (name == "expand" and str(before.shape[-1]) == str(after.shape[-1]))
        return form if kept else Sum(form.terms, form.batch)

    def part(self, node: fx.Node) -> Form:
        """A slice by constants; of a ramp's last axis the first element alone is its start."""
        form = self.of(node.args[0])
        if not all(isinstance(arg, int) for arg in node.args[1:]):
            return None
        if not isinstance(form, Sum) or not form.ramp:
            return form
        last = value(node).dim() - 1
        if node.args[1] in (last, -1):
            first = tuple(node.args[2:]) == (0, 1)
            return Sum(0, start=form.start) if first else Sum(form.terms, form.batch)
        return form

    def difference(self, node: fx.Node) -> Form:
        """From element to element of a ramp, with its start less one in front: 1 everywhere."""
        form, before = self.of(node.args[0]), self.of(argument(node, "prepend"))
        if not isinstance(form, Sum) or not isinstance(before, Sum) or form.start is None or not form.ramp:
            return None
        if argument(node, "n", 1) != 1 or argument(node, "dim", -1) not in (-1, value(node).dim() - 1):
            return None
        if argument(node, "append") is not None or str(value(node).shape) != str(
            value(node.args[0]).shape  # type: ignore[arg-type]
        ):
            return None
        return Sum(start=1) if before.known == form.start - 1 else None

    def cumulated(self, node: fx.Node) -> Form:
        """Running sums of zeros."""
        form = self.of(node.args[0])
        return Sum(start=0) if isinstance(form, Sum) and form.known == 0 else None

    def of(self, arg: Any) -> Form:
        """The form of an argument: a node's, or a constant's."""
        if isinstance(arg, fx.Node):
            return self.known.get(arg)
        if isinstance(arg, (bool, int)):
            return Sum(start=int(arg))
        return Sum() if isinstance(arg, float) else None

    def is_chosen(self, arg: Any) -> bool:
        """Whether an argument is a choice, or the same number everywhere."""
        form = self.of(arg)
        return form is CHOICE or (isinstance(form, Sum) and form.terms == 0)

    def size(self, size: Any) -> Form:
        """A size: a sum of symbols, each once."""
        if isinstance(size, int):
            return Sum()
        if not isinstance(size, torch.SymInt):
            return None
        summands = sympy.Add.make_args(size.node.expr)
        if not all(part.is_Integer or part.is_Symbol or (-part).is_Symbol for part in summands):
            return None
        found = symbols(size)
        return Sum(len(found), bool(found & self.batch))

    def arange(self, node: fx.Node) -> Form:
        """An index, with what it starts at."""
        bounds = [self.of(arg) for arg in node.args]
        if len(bounds) > 2 and node.args[2] != 1:
            return None
        if not all(isinstance(bound, Sum) for bound in bounds):
            return None
        sums = [bound for bound in bounds if isinstance(bound, Sum)]
        first = sums[0] if len(sums) > 1 else Sum(start=0)
        batch = any(bound.batch for bound in sums)
        return Sum(1 + first.terms, batch, ramp=not batch and first.known is not None, start=first.known)

    def cast(self, node: fx.Node) -> Form:
        """A conversion that loses nothing, or one to a truth value."""
        form = self.of(node.args[0])
        dtype = value(node).dtype
        if form is CHOICE or dtype in EXACT:
            return form
        return Sum() if isinstance(form, Sum) and form.terms == 0 else None

    def total(self, node: fx.Node) -> Form:
        """The sum or difference of sums."""
        forms = [self.of(arg) for arg in node.args[:2]]
        if not all(isinstance(form, Sum) for form in forms):
            return None
        sums = [form for form in forms if isinstance(form, Sum)]
        terms, batch = sum(form.terms for form in sums), any(form.batch for form in sums)
        if operator_name(node) == "sub" and len(sums) == 2 and terms == 0:
            left, right = sums[0].known, sums[1].known
            return Sum(start=None if left is None or right is None else left - right)
        return Sum(terms, batch)

    def comparison(self, node: fx.Node) -> Form:
        """Two sums compared, or two choices."""
        forms = [self.of(arg) for arg in node.args[:2]]
        sums = [form for form in forms if isinstance(form, Sum)]
        if operator_name(node) == "ne" and len(sums) == 2 and None not in (sums[0].known, sums[1].known):
            return Sum(start=int(sums[0].known != sums[1].known))
        if all(self.is_chosen(arg) for arg in node.args[:2]):
            return CHOICE
        if not all(isinstance(form, Sum) and not form.batch for form in forms):
            return None
        terms = sum(form.terms for form in forms if isinstance(form, Sum))
        return CHOICE if terms <= MOST_TERMS else None


def symbols(size: Any) -> set[str]:
    """Names of the symbols in a size."""
    if not isinstance(size, torch.SymInt):
        return set()
    return {str(symbol) for symbol in size.node.expr.free_symbols}
