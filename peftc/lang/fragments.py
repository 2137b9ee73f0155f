"""Fragments: every call of what is under `define` becomes bindings and parameters of the section it stands in.

The axes of a call's arguments are worked out by the same walk that proves rules, so that a fragment's
parameters get the sizes of what it is called with.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace

from peftc.errors import RuleError, instead
from peftc.lang.axes import ANY, Axes, AxesError, Term, read_axes, read_dimensions, show
from peftc.lang.codes import fault
from peftc.lang.document import Define, Option, Rule
from peftc.lang.draft import Draft, assemble
from peftc.lang.expression import Expression, is_name, span_of
from peftc.lang.lengths import defaults, lengths_of, proving_scope
from peftc.lang.limits import DEEPEST
from peftc.lang.operations import OPERATIONS
from peftc.lang.renaming import Line, calls_in, renamed_parameter
from peftc.lang.signature import Signature, signature
from peftc.lang.sizes import names_of
from peftc.lang.source import Key, Place

MOST_CALLS = 100


class Fragments:
    """Puts the fragments of one rule into its sections. Raises RuleError."""

    def __init__(self, rule: Rule, options: Mapping[str, tuple[Option, Place]], drafts: list[Draft]) -> None:
        self.rule, self.options, self.drafts = rule, options, drafts
        self.called: set[str] = set()

    def put_in(self) -> None:
        """Every call in every section."""
        for name, define in self.rule.define.items():
            self._check(name, define)
        self._refuse_circles()
        if self.rule.define:
            for draft in self.drafts:
                Calls(self, draft).put_in()
        for name in self.rule.define:
            if name not in self.called:
                raise fault("R055", self.place(name), f"the fragment {name!r} is never called")

    def place(self, name: str, *keys: Key) -> Place:
        """A place inside a fragment."""
        return self.rule.source.place("define", name, *keys)

    def lines(self, name: str) -> dict[str, Line]:
        """The expressions of a fragment: its bindings, and under "" what it gives."""
        define = self.rule.define[name]
        let = {key: Line(text, self.place(name, "let", key)) for key, text in define.let.items()}
        return {**let, "": Line(define.gives, self.place(name, "gives"))}

    def _check(self, name: str, define: Define) -> None:
        """Names and axes; the rest is proved where it is called."""
        taken = {**dict.fromkeys(OPERATIONS, "an operation"), **dict.fromkeys(self.options, "an option")}
        if name in taken or not is_name(name):
            raise fault("R020", self.place(name), f"{name!r} is {taken.get(name, 'no name')} and a fragment")
        seen: dict[str, str] = dict.fromkeys(self.options, "an option")
        for what, table, names in (
            ("an argument", "takes", define.takes),
            ("a parameter", "parameters", define.parameters),
            ("a binding", "let", define.let),
        ):
            for key in names:
                if key in seen or not is_name(key):
                    raise fault(
                        "R020",
                        self.place(name, table, key),
                        f"{key!r} is {seen.get(key, 'no name')} and {what}",
                    )
                seen[key] = what
        for key, text in define.takes.items():
            self._axes(name, "takes", key, text)
        for key, parameter in define.parameters.items():
            self._axes(name, "parameters", key, parameter.axes)
        known = {*seen, *self.options}
        read: set[str] = set()
        for line in self.lines(name).values():
            line.check_names(known.__contains__, lambda node, e: _unknown(node, e, known))
            read |= set(line.expression.names)
        for table, given in (("takes", define.takes), ("parameters", define.parameters), ("let", define.let)):
            if unread := [key for key in given if key not in read]:
                code = "R034" if table == "parameters" else "R035"
                raise fault(code, self.place(name, table, unread[0]), f"{unread[0]!r} is never used")

    def _axes(self, name: str, table: str, key: str, text: str) -> None:
        try:
            if table == "takes":
                read_axes(text)
            else:
                read_dimensions(text)
        except AxesError as error:
            raise fault("R010", self.place(name, table, key), str(error), text=text) from None

    def _refuse_circles(self) -> None:
        calls = {
            name: {_called(call) for line in self.lines(name).values() for call in self.calls(line)}
            for name in self.rule.define
        }
        proved: set[str] = set()

        def walk(name: str, above: tuple[str, ...]) -> None:
            if name in above:
                circle = " → ".join([*above[above.index(name) :], name])
                raise fault("R054", self.place(name), f"{circle} goes round in a circle")
            if len(above) > DEEPEST:
                message = f"fragments call each other more than {DEEPEST} deep, from {above[0]!r} on"
                raise fault("R009", self.place(name), message)
            for other in sorted(calls[name] - proved):
                walk(other, (*above, name))
            proved.add(name)

        for name in calls:
            walk(name, ())

    def calls(self, line: Line) -> list[ast.Call]:
        """The calls of fragments in a line, each after those in its own arguments."""
        return calls_in(line.expression, self.rule.define)


class Calls:
    """Puts the fragments that one section calls into it."""

    def __init__(self, fragments: Fragments, draft: Draft) -> None:
        self.fragments, self.draft = fragments, draft
        self.define = fragments.rule.define
        self.open: set[str] = set()
        self.done: set[str] = set()
        self.count: dict[str, int] = {}

    def put_in(self) -> None:
        """Replace every call by the name of a new binding."""
        if not self._readable():
            self.fragments.called |= set(self.define)  # `check` tells what is wrong with the section itself
            return
        ends = (self.draft.rewrite, self.draft.merge, self.draft.loss)
        for line in (line for table in (self.draft.let, *ends) for line in table.values()):
            self._refuse_unknown(line)
        for name in list(self.draft.let):
            self._binding(name)
        for table in ends:
            for port in list(table):
                self._replace_all(table, port)

    def _readable(self) -> bool:
        """Whether the section's roles, values and parameters can be read at all."""
        try:
            section = self._whole().sections[0]
            self.roles = [signature(section, role) for role in self.draft.role]
            return bool(self.roles) and all(p.dimensions for p in section.parameters.values() if p.axes)
        except (AxesError, KeyError):
            return False

    def _refuse_unknown(self, line: Line) -> None:
        """Raise for a call that is neither of an operation nor of a fragment."""
        for call in line.expression.nodes:
            if isinstance(call, ast.Call) and _called(call) not in {*OPERATIONS, *self.define}:
                message = f"there is no operation or fragment {_called(call)!r}"
                hint = instead(_called(call), {*OPERATIONS, *self.define})
                raise line.expression.fault("R029", call, message, hint)

    def _binding(self, name: str) -> None:
        if name in self.done or name in self.open:
            return  # a circle of bindings is told by `check`
        self.open.add(name)
        self._replace_all(self.draft.let, name)
        self.open.discard(name)
        self.done.add(name)

    def _replace_all(self, table: dict[str, Line], key: str) -> None:
        while calls := self.fragments.calls(table[key]):
            line, call = table[key], calls[0]
            apart = table is self.draft.merge or table is self.draft.loss
            if apart and self.define[_called(call)].parameters:
                message = f"{_called(call)} would have parameters here that the rewrite does not have"
                hint = "call it in a binding that both read"
                raise line.expression.fault("R056", call, message, hint)
            name = self._put_in(line, call)
            table[key] = line.replaced([(span_of(line.expression.text, call), name)])

    def _put_in(self, line: Line, call: ast.Call) -> str:
        """One call: the name of the binding that stands for it."""
        name = _called(call)
        define, expression = self.define[name], line.expression
        self.fragments.called.add(name)
        if len(call.args) != len(define.takes) or call.keywords:
            said = "no settings" if call.keywords else f"{len(define.takes)}, not {len(call.args)}"
            message = f"{name} takes {said}"
            raise expression.fault("R030", call, message, f"it is {name}({', '.join(define.takes)})")
        self.count[name] = self.count.get(name, 0) + 1
        if sum(self.count.values()) > MOST_CALLS:
            raise expression.fault("R050", call, f"a section calls fragments more than {MOST_CALLS} times")
        here = name if self.count[name] == 1 else f"{name}_{self.count[name]}"
        arguments: dict[str, str] = {}
        lined = Lined(here)
        for (key, text), node in zip(define.takes.items(), call.args, strict=True):
            term = self._term(line, node)
            if problem := lined.up(read_axes(text), term):
                raise expression.fault("R031", node, f"{key} of {name} is {show(read_axes(text))}, {problem}")
            arguments[key] = self._argument(line, node, f"{here}_{key}")
        self._add(name, here, line, arguments, lined)
        return here

    def _argument(self, line: Line, node: ast.expr, name: str) -> str:
        """The name of an argument: its own, or that of a new binding."""
        if isinstance(node, ast.Name):
            return node.id
        self._free(name, line)
        self.draft.let[name] = line.piece(node)
        return name

    def _add(self, name: str, here: str, line: Line, arguments: Mapping[str, str], lined: Lined) -> None:
        define = self.define[name]
        own = {key: f"{here}_{key}" for key in (*define.parameters, *define.let)}
        names = {**arguments, **own}
        for key, parameter in define.parameters.items():
            place = self.fragments.place(name, "parameters", key)
            axes = {d.axis: lined.axes.get(d.axis, f"{here}_{d.axis}") for d in parameter.dimensions}
            for dimension in parameter.dimensions:
                for size in names_of(dimension.size):
                    if size not in lined.sizes and size not in self.fragments.options:
                        known = {*lined.sizes, *self.fragments.options}
                        message = f"{size!r} is neither an axis that {name} takes nor an option"
                        raise fault("R032", place, message, text=parameter.axes, hint=instead(size, known))
            self._free(own[key], line)
            self.draft.parameters[own[key]] = renamed_parameter(
                parameter,
                place.taken_by(line.place),
                lambda size: lined.sizes.get(size, size),
                {},
                {**lined.axes, **axes},
                names,
            )
        renamed_axes = {**lined.axes}
        for parameter in define.parameters.values():
            renamed_axes |= {d.axis: lined.axes.get(d.axis, f"{here}_{d.axis}") for d in parameter.dimensions}
        for key, text in self.fragments.lines(name).items():
            binding = own[key] if key else here
            self._free(binding, line)
            taken = replace(text, place=text.place.taken_by(line.place))
            self.draft.let[binding] = taken.renamed(names, renamed_axes)
        for binding in (here, *(own[key] for key in define.let)):
            self._binding(binding)

    def _free(self, name: str, line: Line) -> None:
        taken = {*self.draft.let, *self.draft.parameters, *self.draft.ports, *self.draft.axes}
        if name in taken or name in self.fragments.options:
            raise fault(
                "R020", line.place, f"a call makes {name!r} here, which there is already", text=line.text
            )

    def _term(self, line: Line, node: ast.expr) -> Term:
        """The axes and lengths of an argument."""
        while (
            isinstance(node, ast.Name) and node.id in self.draft.let
        ):  # a name for something else, often a port
            inner = self.draft.let[node.id].expression.tree
            if not isinstance(inner, ast.Name):
                break
            node = inner
        if isinstance(node, ast.Name) and node.id in self.roles[0].ports:
            axes = self.roles[0].ports[node.id]
            return Term(axes, {axis: axis for axis in axes})
        waiting, seen = [each.id for each in ast.walk(node) if isinstance(each, ast.Name)], set[str]()
        while waiting:  # what the argument depends on must be free of calls before it can be worked out
            name = waiting.pop()
            if name in self.draft.let and name not in seen:
                seen.add(name)
                self._binding(name)
                waiting += self.draft.let[name].expression.names
        whole = self._whole()
        section = whole.sections[0]
        role: Signature = self.roles[0]
        scope = proving_scope(whole, section, role, defaults(whole))
        return scope.run(Expression(line.expression.text, node, line.place))

    def _whole(self) -> Rule:
        """The section as it is now, as a rule of its own."""
        return assemble(self.fragments.rule, self.fragments.options, [self.draft], {}, 1)


class Lined:
    """The axes of a fragment's arguments against those of one call's."""

    def __init__(self, here: str) -> None:
        self.here = here
        self.axes: dict[str, str] = {}
        self.sizes: dict[str, str] = {}

    def up(self, takes: Axes, term: Term) -> str | None:
        """Line one argument up; why that cannot be, or None."""
        given = term.axes
        if term.is_constant:
            return "this is a constant"
        if takes[:1] == (ANY,):
            takes, given = takes[1:], given[len(given) - len(takes) + 1 :]
        if ANY in given:
            return f"this is {show(term.axes)}: name the axes that * stands for, under match.values"
        if len(takes) != len(given):
            return f"this is {show(term.axes)}"
        for axis, other in zip(takes, given, strict=True):
            if self.axes.setdefault(axis, other) != other:
                return f"but {axis!r} is {self.axes[axis]} already, and {other} here"
            self.sizes[axis] = lengths_of(term).get(other, other)
        if len(set(self.axes.values())) < len(self.axes):
            return f"but {show(term.axes)} has one axis for two of them"
        return None


def _called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _unknown(node: ast.Name, expression: Expression, known: set[str]) -> RuleError:
    return expression.fault("R028", node, f"nothing here is called {node.id!r}", instead(node.id, known))
