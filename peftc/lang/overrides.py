"""What a `use` says differently from the rule it uses: match, parameters, bindings, rewrites, no merge."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from peftc.errors import RuleError, instead
from peftc.lang.axes import AxesError
from peftc.lang.codes import fault
from peftc.lang.document import Parameter, Rule, Use
from peftc.lang.draft import Draft
from peftc.lang.expression import Expression
from peftc.lang.renaming import Line, renamed_loss, renamed_parameter, renamed_schedule
from peftc.lang.roles import ROLES
from peftc.lang.source import Place


class Overrides:
    """Puts what a `use` says differently into the sections of the used rule."""

    def __init__(
        self,
        rule: Rule,
        index: int,
        use: Use,
        used: Rule,
        label: str,
        options: Mapping[str, str],
        own_options: set[str],
        drafts: list[Draft],
    ) -> None:
        self.rule, self.index, self.use, self.used, self.drafts = rule, index, use, used, drafts
        self.label, self.options, self.own_options = label, options, own_options & set(rule.options)
        named = [name for s in used.sections for name in (*s.parameters, *s.let)]
        new = [*use.let, *use.parameters, *([use.added] if use.added else [])]
        self.names = {**options, **{name: f"{label}_{name}" for name in [*named, *new]}}
        self.written: dict[tuple[str, str], Line] = {}

    def place(self, *keys: str | int) -> Place:
        """A place inside the use."""
        return self.rule.source.place("use", self.index, *keys)

    def put_in(self) -> None:
        """All of them; then leave out what nothing reads any more. Raises RuleError."""
        if not self.use.merge:
            if not any(draft.merge for draft in self.drafts):
                raise fault("R052", self.place("merge"), f"{self.used.name} has no merge to leave out")
            for draft in self.drafts:
                draft.merge = {}
        self._match()
        self._where()
        self._refuse_taken()
        for port, text in self.use.rewrite.items():
            self._rewrite(port, Line(text, self.place("rewrite", port)))
        self._training(self.drafts[0])
        for draft in self.drafts:
            for name, parameter in self.use.parameters.items():
                draft.parameters[self.names[name]] = self._parameter(name, parameter)
            for name, text in self.use.let.items():
                self._let(draft, name, Line(text, self.place("let", name)))
            self._fold(draft)
            draft.prune()
            self._check_names(draft)
        for table, new in (("let", self.use.let), ("parameters", self.use.parameters)):
            for name in new:
                if not any(self.names[name] in getattr(draft, table) for draft in self.drafts):
                    code, what = ("R035", "binding") if table == "let" else ("R034", "parameter")
                    raise fault(code, self.place(table, name), f"the {what} {name!r} is never used")
        added = self.use.added
        if added is not None and not any(self.names[added] in draft.let for draft in self.drafts):
            raise fault("R035", self.place("added"), f"{added!r} is never used")

    def _match(self) -> None:
        change, draft = self.use.match, self.drafts[0]
        if not change.model_fields_set:
            return
        if self.used.made_of > 1:
            message = f"{self.used.name} is made of {self.used.made_of} rules; its match is not one"
            raise fault("R052", self.place("match"), message)
        for key in ("role", "part"):
            if (said := getattr(change, key)) is not None:
                setattr(draft, key, said)
                draft.places["match", key] = self.place("match", key)
        for port, text in change.values.items():
            draft.values[port] = text
            draft.places["match", "values", port] = self.place("match", "values", port)
        if change.where is not None:
            told = [
                Line(t, self.place("match", "where", i), condition=True) for i, t in enumerate(change.where)
            ]
            numbers = {number for role in draft.role if role in ROLES for number in ROLES[role].numbers}
            known = {*self.options, *self.own_options, *draft.axes, *numbers} - {"*"}

            def say(node: ast.Name, expression: Expression) -> RuleError:
                message = f"{node.id!r} is neither an option nor a size that a site has"
                return expression.fault("R027", node, message, instead(node.id, known))

            for line in told:
                line.check_names(known.__contains__, say)
            draft.where = [line.renamed(self.options) for line in told]

    def _where(self) -> None:
        """Conditions on the composite's own options, for all sections."""
        for index, text in enumerate(self.use.where):
            line = Line(text, self.place("where", index), condition=True)
            line.check_names(
                self.own_options.__contains__,
                lambda node, expression: expression.fault(
                    "R027", node, f"{node.id!r} is no option here", instead(node.id, self.own_options)
                ),
            )
            for draft in self.drafts:
                draft.where.append(line)
        if self.use.where:
            self.drafts[0].follows = True  # where it stands in for the first, the user's parts are for it

    def _refuse_taken(self) -> None:
        """A binding or a parameter can replace its like, and nothing else."""
        let = {name for section in self.used.sections for name in section.let}
        parameters = {name for section in self.used.sections for name in section.parameters}
        for table, given in (("let", self.use.let), ("parameters", self.use.parameters)):
            for name in given:
                what = "an option" if name in self.options else None
                what = "a parameter" if name in parameters and table == "let" else what
                what = "a binding" if name in let and table == "parameters" else what
                what = "a port" if any(name in draft.ports for draft in self.drafts) else what
                what = "an axis" if any(name in draft.axes for draft in self.drafts) else what
                if what:
                    has = sorted(let if table == "let" else parameters)
                    message = f"{name!r} of {self.used.name} is {what}"
                    raise fault("R052", self.place(table, name), message, hint=instead(name, has))

    def _rewrite(self, port: str, line: Line) -> None:
        having = [draft for draft in self.drafts if port in draft.rewrite]
        if len(having) > 1:
            raise fault(
                "R052", self.place("rewrite", port), f"{self.used.name} rewrites {port!r} at several places"
            )
        draft = having[0] if having else self.drafts[0]
        draft.rewrite[port] = line.renamed(self.names)
        self.written["rewrite", port] = line

    def _training(self, draft: Draft) -> None:
        """Terms of the loss and schedules; new ones go to the first section."""
        for name, term in self.use.loss.items():
            here, line = f"{self.label}_{name}", Line(term.value, self.place("loss", name, "value"))
            having = next((each for each in self.drafts if here in each.loss), draft)
            having.loss[here] = line.renamed(self.names)
            having.losses[here] = renamed_loss(term, self.options)
            self.written["loss", here] = line
        for name, told in self.use.schedule.items():
            here = f"{self.label}_{name}"
            having = next((each for each in self.drafts if here in each.schedule), draft)
            renamed = renamed_schedule(told, self.names, self.options)
            having.schedule[here] = (renamed, self.place("schedule", name))

    def _parameter(self, name: str, parameter: Parameter) -> tuple[Parameter, Place]:
        place = self.place("parameters", name)
        try:
            return renamed_parameter(
                parameter, place, lambda size: self.options.get(size, size), self.options, read=self.names
            )
        except AxesError as error:
            raise fault("R010", place, str(error), text=parameter.axes) from None

    def _let(self, draft: Draft, name: str, line: Line) -> None:
        """A binding in place of the old one, which it may read by the name of both."""
        here = self.names[name]
        old = _free(f"{here}_old", {*draft.let, *draft.parameters})
        names = {**self.names, name: old}
        if here in draft.let and name in line.expression.names:
            draft.let[old] = draft.let[here]
            draft.fold = tuple(old if name == here else name for name in draft.fold)
        elif name in line.expression.names:
            names = self.names
        draft.fold = tuple(name for name in draft.fold if name != here)
        draft.let[here] = line.renamed(names)
        self.written["let", here] = line

    def _fold(self, draft: Draft) -> None:
        """Bindings that are folded here, in the section that has them."""
        named = {self.names.get(name, name): name for name in self.use.fold}
        draft.fold = tuple(dict.fromkeys((*draft.fold, *(here for here in named if here in draft.let))))
        if draft.fold:
            draft.places["fold",] = self.place("fold")
        if draft is not self.drafts[0]:
            return
        for here, name in named.items():
            if not any(here in each.let for each in self.drafts):
                bindings = [*(key for section in self.used.sections for key in section.let), *self.use.let]
                message = f"there is no binding {name!r} to fold"
                raise fault("R065", self.place("fold"), message, hint=instead(name, bindings))

    def _check_names(self, draft: Draft) -> None:
        """The author of a use knows names as the used rule has them; so an unknown one is told in those."""
        known = {*self.names, *self.own_options, *draft.ports, *draft.axes} - {"*"}

        def say(node: ast.Name, expression: Expression) -> RuleError:
            return expression.fault(
                "R028", node, f"nothing here is called {node.id!r}", instead(node.id, known)
            )

        for (table, key), line in self.written.items():
            if key in getattr(draft, table):
                line.check_names(known.__contains__, say)


def _free(name: str, taken: set[str]) -> str:
    """`name`, with a number if need be."""
    return next(n for n in (name, *(f"{name}_{i}" for i in range(2, len(taken) + 3))) if n not in taken)
