"""Proves gates: at the zeros of such a parameter nothing is left, so that what stands there can be taken out.

The walk is the one that rewrites graphs; the backend here keeps of each value whether it is 0 where the gate is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from peftc.errors import RuleCheckError, RuleError
from peftc.lang.axes import Axes, AxesError, Constant, Term, Unknown
from peftc.lang.codes import fault
from peftc.lang.document import Parameter, Rule, Section
from peftc.lang.operations import Operation
from peftc.lang.results import drops, drops_over, keeps, keeps_over, same, within
from peftc.lang.scope import Scope
from peftc.lang.signature import Signature, signature
from peftc.lang.sizes import names_of
from peftc.lang.walk import Sign

HINT = "multiply by the gate whatever is summed over its axis, or all that is added to a port"
ENTRYWISE = (same, within)
ALONG_AN_AXIS = (keeps, keeps_over, drops, drops_over)


@dataclass(frozen=True)
class Held:
    """What is known of a value where the gate is 0: that it is 0, or that it is what a port held before."""

    zero: bool = False
    port: str = ""


class Gated:
    """Backend that proves one gate. Raises AxesError where something of its zeros would be left.

    Args:
        axis: the gate's axis, whose entries are taken out; None for a single number, with which all of the section is.
    """

    def __init__(self, axis: str | None) -> None:
        self.axis = axis

    def negate(self, term: Term) -> object:
        """0 stays 0."""
        return Held(held(term).zero)

    def pointwise(self, op: Sign, left: Term, right: Term, axes: Axes) -> object:
        """A product is 0 where either side is; a port plus 0 is the port."""
        one, other = held(left), held(right)
        if op == "*":
            return Held(one.zero or other.zero)
        if op == "/":
            return Held(one.zero)
        if (
            one.zero
            and other.zero
            and (self.axis is None or (self.axis in left.axes and self.axis in right.axes))
        ):
            return Held(zero=True)
        port = one.port if other.zero else (other.port if one.zero and op == "+" else "")
        return Held(port=port)

    def contract(self, left: Term, right: Term, axes: Axes) -> object:
        """A sum over the gate's axis must be of zeros where the gate is 0."""
        zero = held(left).zero or held(right).zero
        if self.axis is not None and left.axes[-1] == self.axis:
            self.refuse(not zero)
            return Held()
        return Held(zero)

    def call(
        self, operation: Operation, terms: tuple[Term, ...], settings: Mapping[str, Constant], axes: Axes
    ) -> object:
        """Operations that work entry by entry, or along another axis; of others only sums and lengths."""
        zero = held(terms[0]).zero and operation.keeps_zeros(settings)
        if self.axis is None or not (self.axis in axes or any(self.axis in term.axes for term in terms)):
            return Held(zero)
        if operation.axes in ENTRYWISE:
            return Held(zero)
        if operation.axes in ALONG_AN_AXIS and settings.get("axis") != self.axis:
            return Held(zero)
        self.refuse(not (zero and operation.ignores_zeros and settings.get("axis") == self.axis))
        return Held()

    def refuse(self, wrong: bool) -> None:
        """Raise AxesError if so."""
        if wrong:
            raise AxesError(f"entries of the axis {self.axis!r} count here even where the gate is 0")


def held(term: Term) -> Held:
    """What is known of a term; a number that is 0 is 0 everywhere."""
    return term.held if isinstance(term.held, Held) else Held(zero=term.is_constant and term.held == 0)


def prove_gates(rule: Rule, section: Section, role: Signature, options: Mapping[str, Constant]) -> None:
    """Raise RuleError for the first gate of a section at whose zeros something would be left."""
    for name, gate in section.parameters.items():
        if not gate.gate:
            continue
        place = rule.source.place(*rule.keys(section), "parameters", name)
        if len(gate.named) > 1:
            raise fault("R063", place, f"a gate has one axis or none, {name!r} has {len(gate.named)}")
        if not gate.named:
            if left := [*section.train, *remains(rule, section, role, options, name)]:
                message = f"where {name!r} is 0, something is left: {left[0]!r} is not as it was"
                raise fault("R063", place, message, hint=HINT)
            continue
        (axis,) = gate.named
        if axis in role.sizes or any(axis in axes for axes in role.ports.values()):
            raise fault("R063", place, f"{axis!r} is an axis of the model, of which nothing can be taken out")
        apart = [
            other
            for other, made in section.parameters.items()
            if axis in made.named and made.share != gate.share
        ]
        if apart:
            message = f"{name!r} is one for each {gate.share}, but {apart[0]!r} with its axis is not"
            raise fault("R063", place, message)
        walk(rule, section, role, options, name, Gated(axis))


def remains(
    rule: Rule, section: Section, role: Signature, options: Mapping[str, Constant], gate: str
) -> list[str]:
    """The ports and weights that are not as they were where a gate is 0 as a whole."""
    new = walk(rule, section, role, options, gate, Gated(None))
    return [port for port, of in new.items() if of.port != port]


def gone(rule: Rule, number: int, role: str, options: Mapping[str, Constant], gate: str) -> bool:
    """Whether nothing of a section is left at a site of this role where a gate is 0 as a whole."""
    section = rule.sections[number]
    return not section.train and not remains(rule, section, signature(section, role), options, gate)


def walk(
    rule: Rule,
    section: Section,
    role: Signature,
    options: Mapping[str, Constant],
    gate: str,
    backend: Gated,
) -> dict[str, Held]:
    """What is known of each port's new value and of each weight's merged one. Raises RuleError with code R063."""
    given = {port: Term(axes, Held(port=port)) for port, axes in role.ports.items()}
    given |= {axis: Term((), Unknown(axis)) for axis in role.sizes}
    sizes = {name for p in section.parameters.values() for d in p.dimensions for name in names_of(d.size)}
    symbols = {name: Unknown(name) if name in sizes else value for name, value in options.items()}

    def parameter(name: str, made: Parameter, _: tuple[int, ...]) -> Term:
        return Term(made.named, Held(zero=name == gate))

    known = cast("Mapping[str, Constant]", symbols)
    scope = Scope(rule, known, given, backend, parameter, section=section)
    try:
        found = {port: held(scope.rewrite(port)) for port in section.rewrite}
        found |= {port: held(scope.merge(port)) for port in section.merge if port in role.ports}
    except RuleError as error:
        message = f"the gate {gate!r} cannot be taken out: {error.message}"
        raise RuleCheckError(
            message, code="R063", where=error.where, detail=error.detail, hint=HINT
        ) from None
    return found
