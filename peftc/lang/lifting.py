"""Whether a section that is written for one matrix can act on a stack of them: a site with one axis more.

At such a site every port has the axis of the stack besides its own, and so has every parameter that is a site's own.
Since axes line up by name, the equations then hold for each matrix by itself, unless something in them would mix the
matrices. That is proved here, by the walk that proves rules and rewrites graphs.
"""

from __future__ import annotations

from collections.abc import Mapping

from peftc.errors import RuleError
from peftc.lang.axes import ANY, Axes, AxesError, Constant, Term
from peftc.lang.document import Rule, Section
from peftc.lang.lengths import Check, proving_scope
from peftc.lang.operations import Operation
from peftc.lang.roles import ROLES
from peftc.lang.scope import expressions
from peftc.lang.signature import signature


class Lifted(Check):
    """Proves that the axis of a stack goes through every operation: what comes out has it where something had."""

    def __init__(self, stack: str) -> None:
        self.stack = stack

    def call(
        self, operation: Operation, terms: tuple[Term, ...], settings: Mapping[str, Constant], axes: Axes
    ) -> object:
        """The lengths of the operands."""
        held = [term.axes for term in terms if self.stack in term.axes]
        if held and (self.stack not in axes or not all(map(self.leads, (*held, axes)))):
            raise AxesError(f"{operation.name} would mix the {self.stack}")
        return super().call(operation, terms, settings, axes)

    def contract(self, left: Term, right: Term, axes: Axes) -> object:
        """The lengths of the axes that are kept."""
        if left.axes[-1] == self.stack:
            raise AxesError(f"@ would mix the {self.stack}")
        return super().contract(left, right, axes)

    def leads(self, axes: Axes) -> bool:
        """Whether the axis stands in front, where operations over the last axes leave it alone."""
        return axes.index(self.stack) == (ANY in axes)


def lift_problem(
    rule: Rule, section: Section, role: str, stack: str, options: Mapping[str, Constant]
) -> str | None:
    """Why a section cannot act on a stack of matrices, or None. `options` are those that it acts with."""
    if section.loss or section.schedule:
        what = "adds to the loss" if section.loss else "follows a schedule"
        return f"it is a stack of {stack}, and what {what} is for single matrices"
    told = signature(section, role, stack)
    read = expressions(rule, section).values()
    named = {name for expression in read for name in expression.names} | {*section.rewrite}
    taken = (
        named
        | {*signature(section, role).sizes}
        | {d.axis for p in section.parameters.values() for d in p.dimensions}
    )
    if stack in taken:
        return f"it is a stack of {stack}, which is the name of something else here"
    if missing := sorted(port for port in ROLES[role].ports if port in named and port not in told.ports):
        return f"it is a stack of {stack}: the rows of {', '.join(missing)} stand in no order that has names"
    scope = proving_scope(rule, section, told, options, Lifted(stack))
    try:
        for port in section.rewrite:
            scope.rewrite(port)
        for port in section.merge:
            scope.merge(port)
        for name, parameter in section.parameters.items():
            if parameter.initial.expression is not None:
                scope.initial(name)
    except RuleError as error:
        return f"it is a stack of {stack}: {error.message}"
    return None
