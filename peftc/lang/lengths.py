"""The backend that proves: it holds no tensors, only what the length of each axis is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from peftc.lang.axes import Axes, AxesError, Constant, Term, Unknown
from peftc.lang.document import Parameter, Rule, Section
from peftc.lang.limits import LENGTH_NAME
from peftc.lang.operations import Lengths, Operation
from peftc.lang.scope import Scope
from peftc.lang.signature import Signature
from peftc.lang.sizes import canonical, names_of, times
from peftc.lang.walk import Sign


class Check:
    """Backend that holds lengths: two axes of one name meet only if they are of one length."""

    def negate(self, term: Term) -> object:
        """The lengths as they are."""
        return term.held

    def pointwise(self, op: Sign, left: Term, right: Term, axes: Axes) -> object:
        """The lengths of both."""
        return self._joined(left, right, axes, skip="", said=op)

    def contract(self, left: Term, right: Term, axes: Axes) -> object:
        """The lengths of the axes that are kept."""
        return self._joined(left, right, axes, skip="", said="@")

    def call(
        self, operation: Operation, terms: tuple[Term, ...], settings: Mapping[str, Constant], axes: Axes
    ) -> object:
        """The lengths of the operands; an operation that makes an axis longer adds them up."""
        longer = str(settings[operation.longer]) if operation.longer else ""
        values = [term for term in terms if not term.is_constant] if operation.meets else []
        lengths: Lengths = {}
        for value in values:  # axes that are summed are compared too
            every = (*axes, *lengths, *value.axes)
            lengths = self._joined(Term((), lengths), value, every, skip=longer, said=operation.name)
        lengths = {axis: length for axis, length in lengths.items() if axis in axes}
        if longer:
            # What is in front is told first: a number is a count of new keys, which always go in front.
            in_front = sorted(terms, key=lambda term: not term.is_constant)
            lengths[longer] = _sum([_length(term, longer) for term in in_front])
            if (
                len(lengths[longer]) > LENGTH_NAME
            ):  # joined to itself again and again it would fill the memory
                raise AxesError(f"{operation.name}: the axis {longer!r} is joined too often")
        return operation.lengths(terms, settings, lengths) if operation.lengths else lengths

    def _joined(self, left: Term, right: Term, axes: Axes, *, skip: str, said: str) -> Lengths:
        one, other = lengths_of(left), lengths_of(right)
        for axis in one:
            if axis in other and axis != skip and one[axis] != other[axis]:
                raise AxesError(
                    f"{said}: the axis {axis!r} is {one[axis]} long on one side, {other[axis]} on the other"
                )
        return {axis: length for axis, length in {**one, **other}.items() if axis in axes}


def _sum(pieces: list[str]) -> str:
    """What pieces in a row are long; equal ones are counted, so that the whole can be the size of a parameter."""
    if len(set(pieces)) == 1 and "+" not in pieces[0]:
        return times(str(len(pieces)), pieces[0])
    return "+".join(pieces)


def lengths_of(term: Term) -> Lengths:
    return cast("Lengths", term.held) if isinstance(term.held, dict) else {}


def _length(term: Term, axis: str) -> str:
    if isinstance(term.held, Unknown):
        return term.held.name
    return lengths_of(term).get(axis, axis) if not term.is_constant else str(term.held)


def defaults(rule: Rule) -> dict[str, Constant]:
    """The options of a rule as nobody set them."""
    return {name: option.typed(option.default) for name, option in rule.options.items()}


def proving_scope(
    rule: Rule,
    section: Section,
    role: Signature,
    options: Mapping[str, Constant],
    backend: Check | None = None,
) -> Scope:
    """The names of a section at any site of a role: ports and sizes stand for themselves."""
    given = {port: Term(axes, {axis: axis for axis in axes}) for port, axes in role.ports.items()}
    given |= {axis: Term((), Unknown(axis)) for axis in role.sizes}
    sizes = {name for p in section.parameters.values() for d in p.dimensions for name in names_of(d.size)}
    # An option that is a size stands for itself: 8 and 8 are not one length by chance.
    symbols = {name: Unknown(name) if name in sizes else value for name, value in options.items()}

    def new_parameter(_name: str, parameter: Parameter, _sizes: tuple[int, ...]) -> Term:
        lengths = {d.axis: canonical(str(d.size)) for d in parameter.dimensions}
        axes = parameter.named_in(role.stack)
        return Term(axes, {axis: lengths.get(axis, axis) for axis in axes})

    named = cast("Mapping[str, Constant]", symbols)
    return Scope(rule, named, given, backend or Check(), new_parameter, section=section, stack=role.stack)
