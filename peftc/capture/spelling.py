"""Spellings as data: patterns of operations in the rule language, and what stands for them in a normalised graph.

A file is proved when it is read: every name bound, the axes of both sides equal, every wildcard used. Nothing here
looks at a graph.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from peftc.capture.words import TARGETS, WORDS
from peftc.errors import instead
from peftc.lang.axes import Axes, AxesError, Term, Unknown, read_axes, show
from peftc.lang.codes import fault
from peftc.lang.document import NAME, Data, RuleName, Texts
from peftc.lang.expression import Expression, parse
from peftc.lang.lengths import Check
from peftc.lang.limits import DEEPEST
from peftc.lang.operations import Operation
from peftc.lang.reading import read_data
from peftc.lang.source import Source
from peftc.lang.walk import MissingNameError, Walk

NONE = "none"
"""What a replacement writes for what is absent."""
Name = Annotated[str, Field(pattern=NAME)]


class Wild(Data):
    """What a name of a pattern may stand for."""

    kind: Literal["value", "parameter", "mask", "number", "dropout", "dtype"] = Field(
        default="value",
        description="A tensor, a parameter of the model, a mask (which may lack leading axes), a number, the chance of "
        "a dropout with its mode, or a number format.",
    )
    optional: bool = Field(default=False, description="Whether the pattern also matches without it.")
    default: float | None = Field(default=None, description="The number that it is where it is not written.")
    min: float | None = Field(default=None, description="The least number.")


class Spelled(Data):
    """One way to write it, and what to put in its place."""

    find: str = Field(description="The pattern: an expression over wildcards and bindings.")
    replace: str = Field(
        description="The call that takes its place; `none` stands for what this way to write it does not have."
    )


class SpellingData(Data):
    """One file: one thing that models write in several ways."""

    format: Literal[1] = Field(description="The version of the file format.")
    name: RuleName = Field(description="Its name, and the file's; its pass is called `recognise_` and this.")
    summary: str = Field(description="What is recognised, in one sentence.")
    law: Literal["bit for bit", "within rounding"] = Field(description="How equal the replacement is.")
    values: dict[Name, str] = Field(
        description="The tensors that a pattern is made of, with their named axes; `*` stands for any leading ones."
    )
    wild: dict[Name, Wild] = Field(
        default_factory=dict, description="What names may stand for, where it is not any tensor."
    )
    let: dict[Name, Texts] = Field(
        default_factory=dict, description="Named parts of patterns; a list is several ways to write one."
    )
    spelling: tuple[Spelled, ...] = Field(
        strict=False, description="The ways to write it; the first that matches holds."
    )


@dataclass(frozen=True)
class Pattern:
    """One expression of a spelling, with the axes of each of its nodes."""

    expression: Expression
    axes: Mapping[int, Axes]

    @property
    def tree(self) -> ast.expr:
        """What is matched."""
        return self.expression.tree

    def text(self, node: ast.AST) -> str:
        """What the author wrote there."""
        return ast.get_source_segment(self.expression.text, node) or self.expression.text


@dataclass(frozen=True)
class Spelling:
    """A proved file.

    Attributes:
        let: name → ways to write it.
        ways: (what is found, what replaces it).
    """

    data: SpellingData
    source: Source
    axes: Mapping[str, Axes]
    let: Mapping[str, tuple[Pattern, ...]]
    ways: tuple[tuple[Pattern, Pattern], ...]

    def wild(self, name: str) -> Wild:
        """What a wildcard may stand for."""
        return self.data.wild.get(name, Wild())

    @cached_property
    def wildcards(self) -> frozenset[str]:
        """Every name that stands for something of the graph."""
        return frozenset({*self.data.values, *self.data.wild})


@lru_cache(maxsize=64)
def read_spelling(path: Path) -> Spelling:
    """The spelling in a file, proved. Raises RuleError."""
    return spelling_of(path.read_text(encoding="utf-8"), path.name)


def spelling_of(text: str, file: str) -> Spelling:
    """The spelling in a TOML text, proved. Raises RuleError."""
    source = Source(file, text)
    data = read_data(SpellingData, text, source)
    return Proof(data, source).run()


class Proof:
    """Proves one file."""

    def __init__(self, data: SpellingData, source: Source) -> None:
        self.data, self.source = data, source
        self.axes: dict[str, Axes] = {}
        self.used: set[str] = set()
        self.open: list[str] = []
        self.terms: dict[str, Term] = {}
        self.let: dict[str, tuple[Pattern, ...]] = {}

    def run(self) -> Spelling:
        """Check everything. Raises RuleError."""
        for name, text in self.data.values.items():
            try:
                self.axes[name] = read_axes(text)
            except AxesError as error:
                raise fault("R010", self.source.place("values", name), str(error), text=text) from None
        self._names()
        ways = []
        for index, way in enumerate(self.data.spelling):
            self.reached: set[str] = set()
            place = self.source.place("spelling", index, "find")
            found, term = self._walk(parse(way.find, place), WORDS)
            reached = set(self.reached)
            replaced, other = self._walk(
                parse(way.replace, self.source.place("spelling", index, "replace")), TARGETS
            )
            for name in replaced.expression.names:
                if name != NONE and name not in reached:
                    node = next(
                        n for n in ast.walk(replaced.tree) if isinstance(n, ast.Name) and n.id == name
                    )
                    raise replaced.expression.fault(
                        "R028", node, f"{name!r} is not found by the pattern", instead(name, {*reached, NONE})
                    )
            if not isinstance(replaced.tree, ast.Call):
                raise replaced.expression.fault("R030", replaced.tree, "a replacement is one call", _calls())
            if set(term.axes) != set(other.axes):
                message = f"the pattern is {show(term.axes)}, its replacement {show(other.axes)}"
                raise replaced.expression.fault("R039", replaced.tree, message)
            ways.append((found, replaced))
        for table, names in (("values", self.data.values), ("wild", self.data.wild), ("let", self.data.let)):
            for name in names:
                if name not in self.used:
                    raise fault("R035", self.source.place(table, name), f"{name!r} is never used")
        return Spelling(self.data, self.source, self.axes, self.let, tuple(ways))

    def _names(self) -> None:
        for name, wild in self.data.wild.items():
            needs_axes = wild.kind in ("value", "parameter", "mask")
            if needs_axes != (name in self.axes):
                said = "needs axes, under values" if needs_axes else f"is a {wild.kind}, which has no axes"
                raise fault("R032", self.source.place("wild", name), f"{name!r} {said}")
        for name in (*self.data.let, *self.axes, *self.data.wild):
            taken = [name in self.data.let and name in {*self.axes, *self.data.wild}, name == NONE]
            if any(taken):
                raise fault("R020", self.source.place("let", name), f"{name!r} is taken")

    def _walk(self, expression: Expression, words: Mapping[str, Operation]) -> tuple[Pattern, Term]:
        walk = Recording(Check(), self._look_up, expression, words)
        term = walk.run()
        return Pattern(expression, walk.axes), term

    def _look_up(self, name: str) -> Term:
        self.used.add(name)
        if name in self.axes:
            self.reached.add(name)
            return Term(self.axes[name], {axis: axis for axis in self.axes[name]})
        if name in self.data.wild or name == NONE:
            self.reached.add(name)
            return Term((), Unknown(name))
        if name in self.data.let:
            return self._bind(name)
        raise MissingNameError((*self.axes, *self.data.wild, *self.data.let))

    def _bind(self, name: str) -> Term:
        """A named part: all the ways to write it have the same axes. Walked anew each time, for what it reaches."""
        if name in self.open or len(self.open) > DEEPEST:
            circle = " → ".join([*self.open[self.open.index(name) :], name]) if name in self.open else name
            raise fault("R037", self.source.place("let", name), f"{circle} goes round in a circle")
        self.open.append(name)
        patterns, terms = [], []
        for text in self.data.let[name]:
            pattern, term = self._walk(parse(text, self.source.place("let", name)), WORDS)
            patterns.append(pattern)
            terms.append(term)
            if set(term.axes) != set(terms[0].axes):
                message = f"one way to write {name!r} is {show(terms[0].axes)}, another {show(term.axes)}"
                raise fault("R031", self.source.place("let", name), message, text=text)
        self.open.pop()
        self.let[name] = tuple(patterns)
        return terms[0]


class Recording(Walk):
    """A walk that keeps the axes of every node."""

    axes: dict[int, Axes]

    def run(self) -> Term:
        """The term, as of any walk."""
        self.axes = {}
        return super().run()

    def _visit(self, node: ast.expr) -> Term:
        term = super()._visit(node)
        self.axes[id(node)] = term.axes
        return term


def _calls() -> str:
    return "there is: " + ", ".join(operation.call for operation in TARGETS.values())
