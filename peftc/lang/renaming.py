"""Names in texts of a rule, replaced where they stand, so that carets still find what the author wrote.

An expression is changed piece by piece, never written anew from its tree. Knows no composites.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from peftc.lang.axes import read_dimensions
from peftc.lang.document import Loss, Parameter, Quantise, Schedule
from peftc.lang.expression import Expression, parse, span_of
from peftc.lang.initial import LAWS, law_named
from peftc.lang.operations import OPERATIONS
from peftc.lang.sizes import renamed_size
from peftc.lang.source import Edit, Place, Spans

Replacement = tuple[Spans, str]
NAMED = frozenset(name for name, law in LAWS.items() if law.named)


@dataclass(frozen=True)
class Line:
    """One expression of a rule that is being put together, and the place it was written at."""

    text: str
    place: Place
    condition: bool = False

    @property
    def expression(self) -> Expression:
        """The text, read. Raises RuleSyntaxError."""
        return parse(self.text, self.place, condition=self.condition)

    def replaced(self, replacements: list[Replacement]) -> Line:
        """The line with some characters of its expression's text replaced."""
        before = self.expression.text
        after, pieces, last = "", list[tuple[Spans, Spans]](), 0
        for (start, stop), new in sorted(replacements):
            after += before[last:start] + new
            pieces.append(((start, stop), (len(after) - len(new), len(after))))
            last = stop
        after += before[last:]
        return Line(after, self.place.edited(Edit(before, after, tuple(pieces))), self.condition)

    def renamed(self, names: Mapping[str, str], axes: Mapping[str, str] | None = None) -> Line:
        """The line with names replaced, and where `axes` are given also the axes that settings name."""
        expression = self.expression
        found = [
            (span_of(expression.text, node), names[node.id])
            for node in names_in(expression)
            if names.get(node.id, node.id) != node.id
        ]
        found += [
            (span_of(expression.text, node), repr(axes[str(node.value)]))
            for node in axes_in(expression)
            if axes and str(node.value) in axes
        ]
        return self.replaced(found)

    def piece(self, node: ast.expr) -> Line:
        """A part of the line as a line of its own."""
        text = self.expression.text
        start, stop = span_of(text, node)
        return Line(text[start:stop], self.place.edited(Edit(text, text[start:stop], shift=start)))

    def check_names(
        self, known: Callable[[str], bool], say: Callable[[ast.Name, Expression], Exception]
    ) -> None:
        """Raise what `say` makes of the first name that is not known."""
        expression = self.expression
        for node in names_in(expression):
            if not known(node.id):
                raise say(node, expression)


def names_in(expression: Expression) -> Iterator[ast.Name]:
    """Every place where an expression reads a name, from left to right; names of operations are not read."""
    called = {id(node.func) for node in expression.nodes if isinstance(node, ast.Call)}
    found = [n for n in expression.nodes if isinstance(n, ast.Name) and id(n) not in called]
    return iter(sorted(found, key=lambda node: node.col_offset))


def axes_in(expression: Expression) -> Iterator[ast.Constant]:
    """Every text by which a setting of an operation names an axis."""
    for node in expression.nodes:
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        operation = OPERATIONS.get(node.func.id)
        for keyword in node.keywords if operation else ():
            setting = operation.settings.get(keyword.arg or "") if operation else None
            if setting and setting.kind == "axis" and isinstance(keyword.value, ast.Constant):
                yield keyword.value


def calls_in(expression: Expression, names: Mapping[str, object]) -> list[ast.Call]:
    """Calls of some names, each after those in its own arguments, from left to right."""
    found = [
        node
        for node in expression.nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
    ]
    return sorted(found, key=lambda node: node.end_col_offset or 0)


def renamed_parameter(
    parameter: Parameter,
    place: Place,
    sizes: Callable[[str], str],
    names: Mapping[str, str],
    axes: Mapping[str, str] | None = None,
    read: Mapping[str, str] | None = None,
) -> tuple[Parameter, Place]:
    """A parameter with the sizes of its axes, the options of its law and its axes renamed.

    Args:
        read: new names of what an initial value can read besides, where it is an expression.
    """
    words = []
    for dimension in read_dimensions(parameter.axes):
        axis = (axes or {}).get(dimension.axis, dimension.axis)
        size = renamed_size(dimension.size, sizes)
        words.append(axis if size == axis else f"{axis}={size}")
    line = Line(parameter.init, place)
    law = line.expression.tree
    if law_named(law) is None:
        init = line.renamed({**names, **(read or {})}, axes)
    elif isinstance(law, ast.Name) or law_named(law) in NAMED:
        init = line  # a law alone, or one whose name in brackets is another rule's
    else:
        init = line.renamed(names)
    text = " ".join(words)
    place = init.place.edited(Edit(parameter.axes, text))
    seed = names.get(parameter.seed, parameter.seed) if isinstance(parameter.seed, str) else parameter.seed
    lr = names.get(parameter.lr, parameter.lr) if isinstance(parameter.lr, str) else parameter.lr
    changed = parameter.model_copy(update={"axes": text, "init": init.text, "seed": seed, "lr": lr})
    return changed, place


def renamed_loss(term: Loss, names: Mapping[str, str]) -> Loss:
    """A term of the loss with the option of its weight renamed; its value is a `Line` of its own."""
    weight = names.get(term.weight, term.weight) if isinstance(term.weight, str) else term.weight
    return term.model_copy(update={"weight": weight})


def renamed_schedule(told: Schedule, parameters: Mapping[str, str], options: Mapping[str, str]) -> Schedule:
    """A schedule with the parameters that it changes and the options of its settings renamed."""
    changed = {
        "parameters": {target: parameters.get(name, name) for target, name in told.parameters.items()},
        "settings": {
            key: options.get(value, value) if isinstance(value, str) else value
            for key, value in told.settings.items()
        },
    }
    return told.model_copy(update=changed)


def renamed_quantise(told: Quantise, options: Mapping[str, str]) -> Quantise:
    """A quantised weight with the options that it reads renamed."""
    settings = {
        key: options.get(value, value) if isinstance(value, str) else value
        for key, value in told.settings.items()
    }
    compute = None if told.compute is None else options.get(told.compute, told.compute)
    return told.model_copy(
        update={"format": options.get(told.format, told.format), "settings": settings, "compute": compute}
    )
