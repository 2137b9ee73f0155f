"""Backends for values that are held otherwise than their axes say: what a convolution reads, and rows of a stack.

A rule's equations are those of one matrix; here is how they are computed where there is no plain product.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from peftc.analyse import Convolution, Form, Gather, Routing, Site
from peftc.graphs import operations
from peftc.graphs.reading import operator_name, shape
from peftc.lang import ANY, Axes, Constant, Operation, Term
from peftc.lang.walk import Sign
from peftc.rewrite.backend import GraphBackend


def backend_for(graph: fx.Graph, name: str, meta: Mapping[str, Any], site: Site, form: Form) -> GraphBackend:
    """The backend for a use of a site."""
    match form:
        case Convolution(call):
            return ConvolutionBackend(graph, name, meta, call, site)
        case Gather(call):
            return GatherBackend(graph, name, meta, call)
        case Routing():
            return StackBackend(graph, name, meta, form, site.stack)
    backend = GraphBackend(graph, name, meta)
    backend.window = site.window
    return backend


@dataclass(frozen=True)
class Patches:
    """All that a convolution reads of a value for each number that it makes, not laid out: [* d_in]."""

    source: Any


class ConvolutionBackend(GraphBackend):
    """A convolution is a matrix times what it reads at each place: so is what a rule puts beside it.

    A product of x with a matrix is a convolution like the site's own. Dropout takes numbers of the input away, not of
    each patch by itself. Whatever else reads x lays the patches out. y has its channels last.
    """

    def __init__(
        self, graph: fx.Graph, name: str, meta: Mapping[str, Any], call: fx.Node, site: Site
    ) -> None:
        super().__init__(graph, name, meta)
        kernel: Any = call.args[1]
        self.node, self.kernel = call, shape(kernel)[1:]
        self.stack, self.groups = site.stack, site.sizes.get(site.stack, 1)

    def held(self, port: str, node: Any) -> Any:
        """The patches of x; the other ports with their channels last."""
        return Patches(node) if port == "x" else self.channels_last(node)

    def put_back(self, new: Any, current: fx.Node) -> Any:
        """Channels second, in the layout of what is replaced."""
        return self.make(operations.channels_second, new, current, bool(self.stack))

    def negate(self, term: Term) -> object:
        """`-term`."""
        return super().negate(self.solid(term))

    def pointwise(self, op: Sign, left: Term, right: Term, axes: Axes) -> object:
        """`left op right`."""
        return super().pointwise(op, self.solid(left), self.solid(right), axes)

    def contract(self, left: Term, right: Term, axes: Axes) -> object:
        """`left @ right`: a convolution where the left side is what the site's own reads."""
        if isinstance(left.held, Patches):
            others = [axis for axis in right.axes if axis not in (left.axes[-1], self.stack)]
            if len(others) == 1 and ANY not in right.axes:
                return self.slid(left.held, right, (others[0], left.axes[-1]))
        return super().contract(self.solid(left), self.solid(right), axes)

    def call(
        self, operation: Operation, terms: tuple[Term, ...], settings: Mapping[str, Constant], axes: Axes
    ) -> object:
        """One operation of the vocabulary."""
        if operation.lower == "peftc.dropout" and isinstance(terms[0].held, Patches):
            return Patches(super().call(operation, (Term(axes, terms[0].held.source),), settings, axes))
        return super().call(operation, tuple(map(self.solid, terms)), settings, axes)

    def align(self, term: Term, axes: Axes) -> Any:
        """What a term holds, to stand against `axes`."""
        return super().align(self.solid(term), axes)

    def slid(self, patches: Patches, matrix: Term, ends: Axes) -> Any:
        """The convolution with a matrix [d_out d_in] for a kernel, or with one for each group of channels."""
        held = self.align(matrix, (self.stack, *ends) if self.stack in matrix.axes else ends)
        if self.stack and self.stack not in matrix.axes:
            held = self.make(operations.repeat_first, held, self.groups)
        return self.convolved(patches, self.make(torch.reshape, held, (-1, *self.kernel)))

    def solid(self, term: Term) -> Term:
        """A term with its patches laid out: a convolution with a kernel for each number that is read."""
        if not isinstance(term.held, Patches):
            return term
        source = term.held.source
        return Term(
            term.axes,
            self.convolved(
                term.held, self.make(operations.one_hot_kernels, source, self.kernel, self.groups)
            ),
        )

    def convolved(self, patches: Patches, kernels: Any) -> Any:
        """The site's convolution with other kernels and no bias, its channels last."""
        target: Any = self.node.target
        given = {key: value for key, value in self.node.kwargs.items() if key not in ("weight", "bias")}
        return self.channels_last(
            self.make(target, patches.source, kernels, None, *self.node.args[3:], **given)
        )

    def channels_last(self, node: Any) -> Any:
        """[batch channels place…] as [batch place… channels], those of a group apart."""
        return self.make(operations.channels_last, node, self.groups if self.stack else 0)


class GatherBackend(GraphBackend):
    """A gather of rows by the site's ids treats its own rows as the site does: the one of the padding never trains."""

    def __init__(self, graph: fx.Graph, name: str, meta: Mapping[str, Any], call: fx.Node) -> None:
        super().__init__(graph, name, meta)
        self.node = call

    def lower_rows(self, terms: tuple[Term, ...], settings: Mapping[str, Constant], axes: Axes) -> object:
        """Rows of a table, by the site's ids or by others."""
        table, ids = terms
        if ids.held is not self.node.args[1] or len(table.axes) != 2:
            return super().lower_rows(terms, settings, axes)
        held = self.align(table, (str(settings["axis"]), axes[-1]))
        target: Any = self.node.target
        return self.make(target, held, ids.held, *self.node.args[2:], **self.node.kwargs)


class StackBackend(GraphBackend):
    """Rows that each meet one matrix of a stack. The axis of the stack is in the names of their axes alone.

    What has rows has `*` among its axes, at such a site. Whatever has the axis of the stack and no rows is brought to
    the rows before both meet; but a product of rows with a stack of matrices is one like the site's own.
    """

    def __init__(
        self, graph: fx.Graph, name: str, meta: Mapping[str, Any], routing: Routing, stack: str
    ) -> None:
        super().__init__(graph, name, meta)
        self.routing, self.stack = routing, stack

    def pointwise(self, op: Sign, left: Term, right: Term, axes: Axes) -> object:
        """`left op right`, row by row."""
        left, right = self.together(left, right)
        return super().pointwise(op, left, right, self.bare(axes))

    def contract(self, left: Term, right: Term, axes: Axes) -> object:
        """`left @ right`, each row with its own."""
        others = [axis for axis in right.axes if axis not in (left.axes[-1], self.stack)]
        flat = len(self.bare(left.axes)) == 2 and ANY in left.axes
        if flat and self.stack in right.axes and ANY not in right.axes and len(others) == 1:
            return self.product(left.held, self.align(right, (self.stack, left.axes[-1], others[0])))
        left, right = self.together(left, right)
        return super().contract(left, right, self.bare(axes))

    def call(
        self, operation: Operation, terms: tuple[Term, ...], settings: Mapping[str, Constant], axes: Axes
    ) -> object:
        """One operation of the vocabulary."""
        return super().call(operation, self.together(*terms), settings, self.bare(axes))

    def align(self, term: Term, axes: Axes) -> Any:
        """What a term holds, to stand against `axes`."""
        return super().align(Term(self.bare(term.axes), term.held), self.bare(axes))

    def bare(self, axes: Axes) -> Axes:
        """Axes as they are held."""
        return tuple(axis for axis in axes if axis != self.stack) if ANY in axes else axes

    def together(self, *terms: Term) -> tuple[Term, ...]:
        """Terms as they are held; if some are rows, those of a stack are brought to the rows."""
        rows = next((term for term in terms if ANY in term.axes), None)
        if rows is None:
            return terms
        return tuple(
            self.spread(term, rows)
            if self.stack in term.axes and ANY not in term.axes
            else Term(self.bare(term.axes), term.held)
            for term in terms
        )

    def spread(self, term: Term, rows: Term) -> Term:
        """For each row, what its own matrix has."""
        rest = tuple(axis for axis in term.axes if axis != self.stack)
        held = self.align(self.present(term), (self.stack, *rest))
        match self.routing:
            case Routing("sorted", by=ends):
                held = self.make(operations.rows_of_groups, held, ends, rows.held)
            case Routing("numbered", by=numbers):
                held = self.make(operations.rows_of, held, numbers)
            case Routing("single", number=number):
                held = self.make(operator.getitem, held, number)
            case _:
                held = self.make(torch.unsqueeze, held, 1)
        return Term((ANY, *rest), held)

    def product(self, rows: Any, matrices: Any) -> Any:
        """Rows [rows d_in] times the matrices [stack d_in d_out] that are theirs."""
        routing = self.routing
        match routing:
            case Routing("sorted", call, ends):
                product: Callable[..., Any] = (
                    operations.grouped_product if operator_name(call) in NEEDS_ALIGNMENT else call.target  # type: ignore[assignment]
                )
                return self.make(product, rows, matrices, ends)
            case Routing("numbered", by=numbers):
                return self.make(operations.numbered_linear, rows, matrices, numbers)
            case Routing("single", number=number):
                matrices = self.make(operator.getitem, matrices, number)
        return self.make(torch.matmul, rows, matrices)


NEEDS_ALIGNMENT = ("grouped_mm", "_grouped_mm")
"""Products whose kernels ask for widths that a rank need not have."""
