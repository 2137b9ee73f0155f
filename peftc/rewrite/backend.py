"""The backend of the rule language that makes fx nodes: what was proved at load is what is put in here.

Longer than most files here: one short lowering for each operation that is no torch function.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx
from torch.nn import functional

from peftc.capture.modes import mode_node
from peftc.graphs import operations
from peftc.lang import ANY, Axes, Constant, Operation, Term
from peftc.lang.walk import Sign

Terms = tuple[Term, ...]
Settings = Mapping[str, Constant]
Lowering = Callable[[Terms, Settings, Axes], object]

SIGNS: Mapping[Sign, Callable[..., Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


@dataclass(frozen=True)
class AbsentMask:
    """Stands for the mask of an attention that has none: all keys are seen, or the earlier ones if `causal`."""

    causal: bool
    query: fx.Node
    key: fx.Node


@dataclass(frozen=True)
class AbsentWeight:
    """Stands for a weight that a site has not: all one number. Where it changes nothing, nothing is computed."""

    value: float
    shape: tuple[int, ...]
    like: Any

    def changes(self, sign: Sign) -> bool:
        """Whether `x sign self` is another value than x."""
        return self.value != (0.0 if sign in ("+", "-") else 1.0)


class GraphBackend:
    """Adds nodes to a graph at the caller's insertion point.

    Args:
        graph: where nodes go.
        name: prefix of new nodes' names.
        meta: what every new node carries.

    Attributes:
        window: that of the attention around, if it has one.
    """

    window = 0

    def __init__(self, graph: fx.Graph, name: str, meta: Mapping[str, Any]) -> None:
        self.graph, self.prefix, self.meta = graph, name, meta

    def make(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """One call."""
        name = f"{self.prefix}_{getattr(function, '__name__', 'call').partition('.')[0]}"
        node = self.graph.create_node("call_function", function, args, kwargs, name=name)
        node.meta.update(self.meta)
        return node

    def mode(self) -> Any:
        """Whether the module trains, as it is when the graph runs."""
        return mode_node(self.graph)

    def held(self, _port: str, node: Any) -> Any:
        """What stands for the value of a port that a node holds."""
        return node

    def put_back(self, new: Any, _current: fx.Node) -> Any:
        """A new value of a result, held as the node is that it takes the place of."""
        return new

    def present(self, term: Term) -> Term:
        """The term, its tensor made where it stands for a weight that is absent."""
        held = term.held
        if not isinstance(held, AbsentWeight):
            return term
        return Term(term.axes, self.make(operations.filled, held.like, held.shape, held.value))

    def negate(self, term: Term) -> object:
        """`-term`."""
        return self.make(operator.neg, self.present(term).held)

    def pointwise(self, op: Sign, left: Term, right: Term, axes: Axes) -> object:
        """`left op right`, lined up by name."""
        if isinstance(right.held, AbsentWeight) and not right.held.changes(op) and left.axes == axes:
            return left.held
        return self.make(SIGNS[op], self.align(left, axes), self.align(right, axes))

    def contract(self, left: Term, right: Term, axes: Axes) -> object:
        """`left @ right`: a linear map where the right side is a matrix with the summed axis last, else an einsum."""
        left, right = self.present(left), self.present(right)
        summed = left.axes[-1]
        is_matrix = len(right.axes) == 2 and ANY not in right.axes  # `*` stands for any number of axes
        if is_matrix and right.axes[1] == summed and right.axes[0] not in left.axes:
            return self.make(functional.linear, left.held, right.held)
        if is_matrix and right.axes[0] == summed and right.axes[1] not in left.axes:
            return self.make(torch.matmul, left.held, right.held)
        return self.einsum(left, right, axes)

    def einsum(self, left: Term, right: Term, axes: Axes) -> fx.Node:
        """The product of both, summed over the axes that are not in `axes`."""
        letters = {
            axis: chr(97 + i) for i, axis in enumerate(dict.fromkeys(left.axes + right.axes)) if axis != ANY
        }

        def spell(names: Axes) -> str:
            return "".join("..." if axis == ANY else letters[axis] for axis in names)

        equation = f"{spell(left.axes)},{spell(right.axes)}->{spell(axes)}"
        return self.make(torch.einsum, equation, left.held, right.held)

    def call(
        self, operation: Operation, terms: tuple[Term, ...], settings: Mapping[str, Constant], axes: Axes
    ) -> object:
        """One operation of the vocabulary: a peftc lowering, or a torch function on the same axes."""
        terms = tuple(self.present(term) for term in terms)
        space, _, name = operation.lower.rpartition(".")
        if space == "peftc":
            lower: Lowering = getattr(self, f"lower_{name}")
            return lower(terms, settings, axes)
        function = getattr(importlib.import_module(space), name)
        positions = (
            {"dim": terms[0].axes.index(str(settings["axis"])) - len(terms[0].axes)}
            if "axis" in settings
            else {}
        )
        return self.make(function, *(term.held for term in terms), **positions)

    def align(self, term: Term, axes: Axes) -> Any:
        """What a term holds, permuted and with axes of size 1 put in, to stand against `axes`."""
        term = self.present(term)
        if term.is_constant or not term.axes or term.axes == axes:
            return term.held
        if ANY in axes and ANY in term.axes and term.axes != axes:
            raise NotImplementedError(f"{term.axes} against {axes}")
        named = axes[1:] if ANY in axes else axes
        held, have = term.held, term.axes
        want = tuple(axis for axis in named if axis in have)
        if want != have:
            held = self.make(torch.permute, held, tuple(have.index(axis) for axis in want))
        first = next((position for position, axis in enumerate(named) if axis in have), len(named))
        for position in range(first, len(named)):  # axes in front of the first are broadcast as they are
            if named[position] not in have:
                held = self.make(torch.unsqueeze, held, position - first)
        return held

    def lower_dropout(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """Dropout that asks for the mode when it runs."""
        if not settings["p"]:
            return terms[0].held
        return self.make(torch.ops.aten.dropout.default, terms[0].held, settings["p"], self.mode())

    def lower_activate(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """The activation that an option names."""
        kind = str(settings["kind"])
        if kind == "identity":
            return terms[0].held
        own = {"quick_gelu": operations.quick_gelu, "gelu_tanh": operations.gelu_tanh}
        return self.make(own.get(kind) or getattr(functional, kind), terms[0].held)

    def lower_gelu_tanh(self, terms: Terms, _: Settings, __: Axes) -> object:
        """The approximation of gelu with tanh."""
        return self.make(operations.gelu_tanh, terms[0].held)

    def lower_quick_gelu(self, terms: Terms, _: Settings, __: Axes) -> object:
        """torch has none of this name."""
        return self.make(operations.quick_gelu, terms[0].held)

    def lower_mean(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """The mean along an axis, over all or over those that count."""
        return self.gathered(terms, settings, torch.mean, operations.mean_over)

    def lower_sum(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """The sum along an axis, of all or of those that count."""
        return self.gathered(terms, settings, torch.sum, operations.sum_over)

    def gathered(
        self, terms: Terms, settings: Settings, plain: Callable[..., Any], over: Callable[..., Any]
    ) -> object:
        """Along an axis: `plain`, or `over` what the second term says."""
        axis = self.place(terms[0], settings)
        if len(terms) == 1:
            return self.make(plain, terms[0].held, dim=axis)
        return self.make(over, terms[0].held, self.align(terms[1], terms[0].axes), axis)

    def lower_clamp(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """Between two numbers."""
        return self.make(torch.clamp, terms[0].held, settings["min"], settings["max"])

    def lower_rename(self, terms: Terms, _: Settings, __: Axes) -> object:
        """The value as it is: axes are names, not numbers."""
        return terms[0].held

    def lower_cayley(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """The rotation of a square parameter, or a series that comes near it."""
        if count := int(settings["terms"]):
            return self.make(operations.cayley_series, terms[0].held, count)
        return self.make(operations.cayley, terms[0].held)

    def lower_skew(self, terms: Terms, _: Settings, __: Axes) -> object:
        """A matrix of the numbers above its diagonal."""
        return self.make(operations.skew, terms[0].held, terms[1].held)

    def lower_dot(self, terms: Terms, settings: Settings, axes: Axes) -> object:
        """A contraction over any axis."""
        one, other = terms
        return (
            self.contract(one, other, axes)
            if one.axes[-1] == settings["axis"]
            else self.einsum(one, other, axes)
        )

    def lower_softmax(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """Along an axis, of all or of those that count."""
        return self.gathered(terms, settings, torch.softmax, operations.softmax_over)

    def lower_identity_like(self, terms: Terms, _: Settings, __: Axes) -> object:
        """1 on the diagonal."""
        return self.make(operations.identity_like, terms[0].held)

    def lower_kron(self, terms: Terms, _: Settings, axes: Axes) -> object:
        """Rows of rows, columns of columns."""
        one, other = terms
        both = axes[:-2]
        own = [tuple(axis for axis in term.axes if axis not in both) for term in terms]
        blocks = (*both, own[0][0], own[1][0], own[0][1], own[1][1])
        return self.make(operations.close_pairs, self.einsum(one, other, blocks))

    def lower_split(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """One axis as two."""
        return self.make(operations.split_axis, terms[0].held, self.place(terms[0], settings), terms[1].held)

    def lower_join(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """Two axes as one."""
        outer = terms[0].axes.index(str(settings["outer"])) - len(terms[0].axes)
        return self.make(operations.join_axes, terms[0].held, outer)

    def lower_rows(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """Rows of a table by their numbers."""
        table, ids = terms
        first = (str(settings["axis"]), *(axis for axis in table.axes if axis != settings["axis"]))
        return self.make(operations.rows_of, self.align(table, first), ids.held)

    def lower_first(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """The first along an axis."""
        return self.make(torch.narrow, terms[0].held, self.place(terms[0], settings), 0, terms[1].held)

    def lower_at_ends(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """What stands first and last along an axis."""
        held, first, last = (term.held for term in terms)
        return self.make(operations.at_ends, held, first, last, self.place(terms[0], settings))

    def lower_sampled(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """Some along an axis, at random."""
        return self.make(operations.sampled, terms[0].held, terms[1].held, self.place(terms[0], settings))

    def lower_cycled(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """All along an axis that count, over and over again."""
        axis = terms[0].axes.index(str(settings["axis"]))
        over = None if len(terms) == 2 else self.align(terms[2], terms[0].axes[: axis + 1])
        return self.make(operations.cycled, terms[0].held, terms[1].held, axis, over)

    def lower_lstm(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """One layer in one direction."""
        held = [term.held for term in terms]
        return self.make(operations.lstm, *held, self.place(terms[0], settings), bool(settings["reverse"]))

    def lower_svd_u(self, terms: Terms, _: Settings, __: Axes) -> object:
        """Left singular vectors."""
        return self.make(operations.svd_u, terms[0].held, terms[1].held)

    def lower_svd_s(self, terms: Terms, _: Settings, __: Axes) -> object:
        """Singular values."""
        return self.make(operations.svd_s, terms[0].held, terms[1].held)

    def lower_svd_vh(self, terms: Terms, _: Settings, __: Axes) -> object:
        """Right singular vectors."""
        return self.make(operations.svd_vh, terms[0].held, terms[1].held)

    def lower_gram(self, terms: Terms, settings: Settings, axes: Axes) -> object:
        """A value against itself."""
        to, axis = str(settings["to"]), str(settings["axis"])
        other = Term(tuple(to if name == axis else name for name in terms[0].axes), terms[0].held)
        return self.einsum(terms[0], other, axes)

    def lower_orthogonal(self, terms: Terms, _: Settings, __: Axes) -> object:
        """The orthogonal factor of a matrix."""
        return self.make(operations.orthogonal, terms[0].held)

    def lower_masked(self, terms: Terms, _: Settings, __: Axes) -> object:
        """0 where the second term is."""
        return self.make(operations.masked, terms[0].held, self.align(terms[1], terms[0].axes))

    def lower_counted(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """The tokens, or ones in their place."""
        held = terms[0].held
        return held if settings["which"] == "tokens" else self.make(torch.ones_like, held)

    def lower_while_training(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """One of two values, by the mode when it runs."""
        return self.make(operations.by_mode, self.mode(), terms[0].held, settings["otherwise"])

    def lower_layer_norm(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """Mean 0 and variance 1 along an axis."""
        return self.make(
            operations.layer_normalize, terms[0].held, self.place(terms[0], settings), settings["eps"]
        )

    def lower_rms_norm(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """Mean square 1 along an axis."""
        return self.make(
            operations.rms_normalize, terms[0].held, self.place(terms[0], settings), settings["eps"]
        )

    def lower_concat(self, terms: Terms, settings: Settings, axes: Axes) -> object:
        """The first term in front of the second, repeated over the axes that it lacks."""
        first, second = terms
        held = self.align(first, axes)
        missing = tuple(position for position, axis in enumerate(axes) if axis not in first.axes)
        for position, axis in enumerate(axes):
            if axis in first.axes:
                break
            held = self.make(torch.unsqueeze, held, position)
        if missing:
            held = self.make(operations.repeat_like, held, second.held, missing)
        return self.make(torch.cat, (held, second.held), axes.index(str(settings["axis"])))

    def lower_repeat(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """One axis more."""
        term, like = terms
        axis = str(settings["axis"])
        if axis in term.axes:
            return term.held
        return self.make(operations.repeat_for, term.held, like.held, like.axes.index(axis))

    def lower_see_prefix(self, terms: Terms, settings: Settings, _: Axes) -> object:
        """A mask with keys in front that all queries see, or those that have them in their window.

        An absent one stays so, unless it means causal or there is a window.
        """
        mask, length = terms[0].held, cast(int, terms[1].held)
        window = (self.window,) if settings["visible"] == "window" and self.window else ()
        if isinstance(mask, AbsentMask):
            if not (mask.causal or window):
                return mask
            make = operations.causal_mask if mask.causal else operations.full_mask
            mask = self.make(make, mask.query, mask.key)
        return self.make(operations.open_mask, mask, length, *window)

    def place(self, term: Term, settings: Mapping[str, Constant]) -> int:
        """Position of the axis that a setting names, from the end."""
        return term.axes.index(str(settings["axis"])) - len(term.axes)
