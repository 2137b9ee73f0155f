"""The one walk over an expression: it works out the axes, and a backend makes what the term holds.

Checking a rule and putting it into a graph are this same walk with two backends, so that what is checked
is what runs.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from typing import Literal, Protocol, TypeAlias, cast

from peftc.errors import RuleError, instead
from peftc.lang.axes import Axes, AxesError, Constant, Term, Unknown, contract, meet, show
from peftc.lang.expression import Expression
from peftc.lang.limits import LARGEST_NUMBER, LENGTH_NAME
from peftc.lang.operations import OPERATIONS, Operation, setting_problem
from peftc.lang.sizes import FUNCTIONS, PRODUCT, over, times

Sign: TypeAlias = Literal["+", "-", "*", "/"]
_SIGNS: Mapping[type[ast.operator], Sign] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


class Backend(Protocol):
    """What makes the held part of a term. Axes are worked out before it is asked."""

    def negate(self, term: Term) -> object:
        """`-term`, of the same axes."""

    def pointwise(self, op: Sign, left: Term, right: Term, axes: Axes) -> object:
        """`left op right`, each side lined up with `axes` by name; either side may be a number."""

    def contract(self, left: Term, right: Term, axes: Axes) -> object:
        """`left @ right`: left's last axis is summed with right's of that name; others are a batch."""

    def call(
        self, operation: Operation, terms: tuple[Term, ...], settings: Mapping[str, Constant], axes: Axes
    ) -> object:
        """The operation on these terms, giving `axes`."""


class MissingNameError(KeyError):
    """A look-up found nothing of a name; `known` holds the names there are."""

    def __init__(self, known: tuple[str, ...]) -> None:
        super().__init__("no such name")
        self.known = known


class Walk:
    """Evaluates one expression against named terms. Raises RuleCheckError, with carets."""

    def __init__(
        self,
        backend: Backend,
        look_up: Callable[[str], Term],
        expression: Expression,
        words: Mapping[str, Operation] = OPERATIONS,
    ) -> None:
        self._words = words
        self._backend = backend
        self._look_up = look_up
        self._expression = expression

    def run(self) -> Term:
        """The term that the expression stands for."""
        return self._visit(self._expression.tree)

    def _fault(self, code: str, node: ast.AST, message: str, hint: str | None = None) -> RuleError:
        return self._expression.fault(code, node, message, hint)

    def _visit(self, node: ast.expr) -> Term:
        match node:
            case ast.Constant(value=value):
                return Term((), value)
            case ast.Name(id=name):
                return self._name(node, name)
            case ast.UnaryOp(operand=operand):
                return self._negate(node, self._visit(operand))
            case ast.BinOp(left=left, op=ast.MatMult(), right=right):
                return self._contract(node, self._visit(left), self._visit(right))
            case ast.BinOp(left=left, op=op, right=right):
                return self._pointwise(node, _SIGNS[type(op)], self._visit(left), self._visit(right))
            case ast.Call(func=ast.Name(id=name)):
                return self._call(node, name)
        raise self._fault("R008", node, f"{type(node).__name__} is not part of the rule language")

    def _name(self, node: ast.AST, name: str) -> Term:
        try:
            return self._look_up(name)
        except MissingNameError as missing:
            raise self._fault(
                "R028", node, f"nothing here is called {name!r}", instead(name, missing.known)
            ) from None

    def _negate(self, node: ast.AST, term: Term) -> Term:
        self._refuse_text(node, term)
        if isinstance(term.held, Unknown) or not term.is_number:
            return Term(term.axes, Unknown("?") if term.is_number else self._backend.negate(term))
        return Term((), -cast("float", term.held))

    def _pointwise(self, node: ast.BinOp, sign: Sign, left: Term, right: Term) -> Term:
        self._refuse_text(node.left, left)
        self._refuse_text(node.right, right)
        if left.is_number and right.is_number:
            return Term((), self._fold(node, sign, left.held, right.held))
        try:
            axes = meet(left.axes, right.axes)
            return Term(axes, self._backend.pointwise(sign, left, right, axes))
        except AxesError as error:
            raise self._fault("R031", node, str(error)) from None

    def _contract(self, node: ast.BinOp, left: Term, right: Term) -> Term:
        try:
            axes = contract(left.axes, right.axes)
            return Term(axes, self._backend.contract(left, right, axes))
        except AxesError as error:
            raise self._fault("R031", node, str(error)) from None

    def _fold(self, node: ast.AST, sign: Sign, left: object, right: object) -> object:
        if sign == "/" and isinstance(right, (int, float)) and right == 0:
            raise self._fault("R045", node, "this divides by zero")
        if isinstance(left, Unknown) or isinstance(right, Unknown):
            return Unknown(_symbol(sign, left, right))
        if sign == "/" and isinstance(left, int) and isinstance(right, int) and left % right == 0:
            return left // right  # a size stays whole
        one, other = cast("float", left), cast("float", right)
        value = {"+": one + other, "-": one - other, "*": one * other, "/": one / other if other else 0}[sign]
        return self._bounded(node, value)

    def _bounded(self, node: ast.AST, value: float) -> float:
        if not math.isfinite(value) or abs(value) >= LARGEST_NUMBER:
            raise self._fault("R045", node, "this number is too large")
        return value

    def _call(self, node: ast.Call, name: str) -> Term:
        if name not in self._words:
            raise self._fault(
                "R029", node.func, f"there is no operation {name!r}", instead(name, self._words)
            )
        operation = self._words[name]
        terms = (*self._positional(node, operation), *self._optional(node, operation))
        settings = self._settings(node, operation)
        if operation.number is not None and all(term.is_number for term in terms):
            return Term((), self._reckon(node, operation, terms))
        try:
            axes = operation.axes(terms, settings)
            return Term(axes, self._backend.call(operation, terms, settings, axes))
        except AxesError as error:
            raise self._fault("R031", node, str(error)) from None

    def _positional(self, node: ast.Call, operation: Operation) -> tuple[Term, ...]:
        if len(node.args) != len(operation.takes):
            count = len(operation.takes)
            values = f"{count} value{'s' if count != 1 else ''} without a name"
            message = f"{operation.name} takes {values}, not {len(node.args)}"
            raise self._fault("R030", node, message, f"it is {operation.call}")
        terms = tuple(self._visit(argument) for argument in node.args)
        for argument, term, (name, kind) in zip(node.args, terms, operation.takes, strict=True):
            if kind == "number" and not term.is_number:
                raise self._fault(
                    "R030", argument, f"{operation.name} takes a number as {name}, not {show(term.axes)}"
                )
            if kind == "value" and term.is_constant:
                raise self._fault(
                    "R030", argument, f"{operation.name} takes a value as {name}, not a constant"
                )
            if kind == "any" and term.is_constant and not term.is_number:
                raise self._fault(
                    "R030", argument, f"{operation.name} takes a value or a number as {name}, not a text"
                )
        return terms

    def _reckon(self, node: ast.Call, operation: Operation, terms: tuple[Term, ...]) -> object:
        """What an operation makes of numbers; a number that only a site knows has the name of a size, if it is one."""
        assert operation.number is not None
        held = [term.held for term in terms]
        if any(isinstance(each, Unknown) for each in held):
            words = [each.name if isinstance(each, Unknown) else str(each) for each in held]
            named = operation.name in FUNCTIONS and all(
                word.isidentifier() or word.isdigit() for word in words
            )
            return Unknown(f"{operation.name}({','.join(words)})" if named else "?")
        try:
            value = operation.number(*held)
        except (ArithmeticError, ValueError) as error:
            raise self._fault("R045", node, f"cannot be computed: {error}") from None
        return self._bounded(node, value)

    def _optional(self, node: ast.Call, operation: Operation) -> list[Term]:
        found = []
        for keyword in node.keywords:
            if keyword.arg in operation.optional:
                found.append(self._visit(keyword.value))
                if found[-1].is_constant:
                    raise self._fault("R030", keyword, f"{operation.name} takes a value as {keyword.arg}")
        return found

    def _settings(self, node: ast.Call, operation: Operation) -> dict[str, Constant]:
        given: dict[str, Constant] = {
            name: setting.default
            for name, setting in operation.settings.items()
            if setting.default is not None
        }
        for keyword in node.keywords:
            key = keyword.arg or ""
            if key in operation.optional:
                continue
            if key not in operation.settings:
                message = f"{operation.name} has no setting {key!r}"
                hint = instead(key, (*operation.settings, *operation.optional))
                raise self._fault("R030", keyword, message, hint)
            term = self._visit(keyword.value)
            problem = setting_problem(operation.settings[key], term.held if term.is_constant else None)
            if problem:
                raise self._fault("R030", keyword, f"{operation.name}'s {key} {problem}")
            given[key] = cast("Constant", term.held)
        if missing := [key for key in operation.settings if key not in given]:
            message = f"{operation.name} needs its setting {missing[0]!r}"
            raise self._fault("R030", node, message, f"it is {operation.call}")
        return given

    def _refuse_text(self, node: ast.AST, term: Term) -> None:
        if term.is_constant and not term.is_number:
            raise self._fault(
                "R031", node, f"{term.held!r} is no number; it can only be a setting of an operation"
            )


def _symbol(sign: Sign, left: object, right: object) -> str:
    """What a product or a quotient of sizes is called, or `?`."""
    words = [each.name if isinstance(each, Unknown) else str(each) for each in (left, right)]
    if sign not in ("*", "/") or not all(PRODUCT.match(word) for word in words):
        return "?"
    symbol = times(*words) if sign == "*" else over(*words)
    return symbol if len(symbol) <= LENGTH_NAME else "?"
