"""The names of one section at one site, each found when it is first read. The backend decides what a value
holds.

The check of a rule and its rewrite of a graph share this scope, so that a rule means one thing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

from peftc.lang.axes import Axes, Constant, Term, Unknown, show
from peftc.lang.codes import fault
from peftc.lang.document import Parameter, Rule, Section
from peftc.lang.expression import Expression, parse
from peftc.lang.limits import DEEPEST
from peftc.lang.sizes import names_of, size_at
from peftc.lang.source import Place
from peftc.lang.walk import Backend, MissingNameError, Walk

NewParameter: TypeAlias = Callable[[str, Parameter, tuple[int, ...]], Term]
"""Makes the parameter of this name with these sizes, one for each of its axes, when it is first read."""


class Scope:
    """Options, axis sizes, values, parameters and bindings of one section at one site.

    `given` holds the site's ports by name, with the axes the section gives them (`signature`), and its axis
    sizes as numbers; `stack` is the axis that the site has besides, if it is many matrices in one. Right sides
    see the values as they were before any rewrite. `used` collects the names that were read.
    """

    def __init__(
        self,
        rule: Rule,
        options: Mapping[str, Constant],
        given: Mapping[str, Term],
        backend: Backend,
        new_parameter: NewParameter,
        *,
        section: Section | None = None,
        stack: str = "",
    ) -> None:
        self.rule = rule
        self.stack = stack
        self.section: Section = section if section is not None else rule
        self.used: set[str] = set()
        self._options = options
        self._given = given
        self._backend = backend
        self._new_parameter = new_parameter
        self._made: dict[str, Term] = {}
        self._open: list[str] = []

    def rewrite(self, port: str) -> Term:
        """The new value of a port, its axes a reordering of the port's. Raises RuleCheckError."""
        return self._edit("rewrite", port, self.section.rewrite[port])

    def merge(self, port: str) -> Term:
        """The new value of a weight. Raises RuleCheckError."""
        return self._edit("merge", port, self.section.merge[port])

    def loss(self, name: str) -> Term:
        """The term of the loss of this name at this site: a single number. Raises RuleCheckError."""
        text = self.section.loss[name].value
        term = self.evaluate(text, "loss", name, "value")
        if term.axes:
            message = f"the loss {name!r} must be a single number, but this is {show(term.axes)}"
            raise fault("R057", self._place("loss", name, "value"), message, text=text)
        return term

    def initial(self, name: str) -> Term:
        """What a parameter starts as, where an expression says so. Raises RuleCheckError."""
        made = self.section.parameters[name]
        term = self.evaluate(made.init, "parameters", name, "init")
        want = made.named_in(self.stack)
        alike = set(term.axes) == set(made.named)  # in a stack too, where every matrix starts alike
        if term.is_constant or not (alike or set(term.axes) == set(want)):
            said = "a number alone" if term.is_constant else show(term.axes)
            message = f"{name} must start as {show(want)}, but this is {said}"
            raise fault("R060", self._place("parameters", name, "init"), message, text=made.init)
        return term

    def binding(self, name: str) -> Term:
        """The term of a name: the seam by which one rule reaches into another. Raises RuleCheckError."""
        return self.evaluate(name, "let", name)

    def evaluate(self, text: str, *keys: str) -> Term:
        """The term that a text stands for; `keys` say where in the section it is written."""
        return self.run(parse(text, self._place(*keys)))

    def run(self, expression: Expression) -> Term:
        """The term that an expression stands for. Raises RuleCheckError."""
        return Walk(self._backend, self._look_up, expression).run()

    def _edit(self, kind: Literal["rewrite", "merge"], port: str, text: str) -> Term:
        term = self.evaluate(text, kind, port)
        want: Axes = self._given[port].axes
        if set(term.axes) == set(want) and not (term.is_constant and want == ()):
            return term
        place = self._place(kind, port)
        if term.is_constant:
            raise fault("R039", place, f"{port} must be {show(want)}, but this is a number alone", text=text)
        raise fault("R039", place, f"{port} must be {show(want)}, but this is {show(term.axes)}", text=text)

    def _look_up(self, name: str) -> Term:
        self.used.add(name)
        if name in self._made:
            return self._made[name]
        if name in self._given:
            return self._given[name]
        if name in self._options:
            return Term((), self._options[name])
        if name in self.section.parameters:
            self._made[name] = self._parameter(name, self.section.parameters[name])
        elif name in self.section.let:
            self._made[name] = self._bind(name, self.section.let[name])
        else:
            raise MissingNameError(
                (*self._given, *self._options, *self.section.parameters, *self.section.let)
            )
        return self._made[name]

    def _bind(self, name: str, text: str) -> Term:
        if name in self._open:
            circle = [*self._open[self._open.index(name) :], name]
            message = f"{' → '.join(circle)} goes round in a circle"
            raise fault("R037", self._place("let", name), message, text=text)
        if len(self._open) >= DEEPEST:
            message = f"bindings need each other more than {DEEPEST} deep, from {self._open[0]!r} on"
            raise fault("R009", self._place("let", name), message, text=text)
        self._open.append(name)
        try:
            return self.evaluate(text, "let", name)
        finally:
            self._open.pop()

    def _parameter(self, name: str, parameter: Parameter) -> Term:
        sizes = tuple(self._size(name, parameter, dimension.size) for dimension in parameter.dimensions)
        return self._new_parameter(name, parameter, sizes)

    def _size(self, name: str, parameter: Parameter, size: str | int) -> int:
        held = {each: self._number(name, parameter, each) for each in names_of(size)}
        if any(isinstance(number, Unknown) for number in held.values()):
            return 1  # only while checking: the parameter made there reads no size
        found = size_at(size, held)
        if found is None:
            values = ", ".join(f"{each} = {number}" for each, number in held.items())
            place = self._place("parameters", name, "axes")
            message = f"the size {size} is no whole number above 0 ({values})"
            raise fault("R032", place, message, text=parameter.axes)
        return found

    def _number(self, name: str, parameter: Parameter, size: str) -> object:
        """The number that a name in a size stands for; Unknown while checking."""
        self.used.add(size)
        held: object = self._options.get(size)
        if size in self._given and not self._given[size].axes:
            held = self._given[size].held
        if isinstance(held, (Unknown, int)) and not isinstance(held, bool):
            return held
        place = self._place("parameters", name, "axes")
        said = "not known" if held is None else f"{held!r}, not a whole number"
        raise fault("R032", place, f"the size of {size!r} is {said}", text=parameter.axes)

    def _place(self, *keys: str) -> Place:
        return self.rule.source.place(*self.rule.keys(self.section), *keys)


def expressions(rule: Rule, section: Section) -> dict[tuple[str, str], Expression]:
    """Every expression of a section by its table and key: bindings, rewrites, merges, losses, initial values."""
    tables: tuple[tuple[str, tuple[str, ...], Mapping[str, str]], ...] = (
        ("let", (), section.let),
        ("rewrite", (), section.rewrite),
        ("merge", (), section.merge),
        ("loss", ("value",), {name: term.value for name, term in section.loss.items()}),
        (
            "parameters",
            ("init",),
            {name: made.init for name, made in section.parameters.items() if made.initial.expression},
        ),
    )
    return {
        (table, key): parse(text, rule.source.place(*rule.keys(section), table, key, *inner))
        for table, inner, texts in tables
        for key, text in texts.items()
    }


def names_behind(found: Mapping[tuple[str, str], Expression], table: str, key: str) -> set[str]:
    """Every name that one expression of a section depends on, through bindings."""
    read: set[str] = set()
    waiting = list(found[table, key].names)
    while waiting:
        name = waiting.pop()
        if name not in read:
            read.add(name)
            if ("let", name) in found:
                waiting.extend(found["let", name].names)
    return read
