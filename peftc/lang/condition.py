"""Conditions of a `where`: whether options and axis sizes allow a site, and if not, why not."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from peftc.lang.axes import Constant
from peftc.lang.document import Rule, Section
from peftc.lang.expression import Expression, parse

_ARITHMETIC: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: Mapping[type[ast.cmpop], tuple[str, Callable[[float, float], bool]]] = {
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
}


@dataclass(frozen=True)
class Condition:
    """One line of a `where`."""

    expression: Expression
    of_options: bool
    """Whether it reads options alone, so that it holds or not for the whole model."""

    def unmet(self, known: Mapping[str, Constant]) -> str | None:
        """None where it holds, else the reason: `rank < d_in is not so (40 against 32)`.

        Raises RuleCheckError where it cannot be computed.
        """
        tree = self.expression.tree
        if self._value(tree, known):
            return None
        said = f"{self.expression.text} is not so"
        if isinstance(tree, ast.Compare) and len(tree.ops) == 1:
            left, right = self._value(tree.left, known), self._value(tree.comparators[0], known)
            return f"{said} ({left} against {right})"
        values = ", ".join(f"{name} = {known[name]}" for name in self.expression.names if name in known)
        return f"{said} ({values})"

    def _value(self, node: ast.expr, known: Mapping[str, Constant]) -> Constant:
        match node:
            case ast.Constant(value=value):
                return cast("Constant", value)
            case ast.Name(id=name):
                if name in known:
                    return known[name]
                raise self.expression.fault("R027", node, f"{name!r} is not known at this site")
            case ast.BoolOp(op=op, values=values):
                each = (bool(self._value(value, known)) for value in values)
                return all(each) if isinstance(op, ast.And) else any(each)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._value(operand, known)
            case ast.UnaryOp(operand=operand):
                return -self._number(operand, known)
            case ast.BinOp(left=left, op=op, right=right):
                return self._reckon(node, op, self._number(left, known), self._number(right, known))
            case ast.Compare(left=first, ops=ops, comparators=others):
                values_ = [self._value(value, known) for value in (first, *others)]
                pairs = zip(values_, ops, values_[1:], strict=False)
                return all(self._compare(node, left, op, right) for left, op, right in pairs)
        raise self.expression.fault("R008", node, f"{type(node).__name__} is not part of a condition")

    def _number(self, node: ast.expr, known: Mapping[str, Constant]) -> float:
        value = self._value(node, known)
        if isinstance(value, (bool, str)):
            raise self.expression.fault("R027", node, f"{value!r} is no number")
        return value

    def _reckon(self, node: ast.AST, op: ast.operator, left: float, right: float) -> float:
        try:
            return _ARITHMETIC[type(op)](left, right)
        except ArithmeticError as error:
            raise self.expression.fault("R045", node, f"cannot be computed: {error}") from None

    def _compare(self, node: ast.AST, left: Constant, op: ast.cmpop, right: Constant) -> bool:
        if isinstance(left, str) != isinstance(right, str):
            raise self.expression.fault("R027", node, f"{left!r} and {right!r} cannot be compared")
        if isinstance(left, str) and not isinstance(op, (ast.Eq, ast.NotEq)):
            raise self.expression.fault(
                "R027", node, "texts are equal or not; they have no order", "there is: ==, !="
            )
        return _COMPARISONS[type(op)][1](cast("float", left), cast("float", right))


def conditions(rule: Rule, section: Section) -> tuple[Condition, ...]:
    """The conditions of one section of a rule. Raises RuleSyntaxError."""
    found = []
    for index, text in enumerate(section.match.where):
        place = rule.source.place(*rule.keys(section), "match", "where", index)
        expression = parse(text, place, condition=True)
        found.append(Condition(expression, set(expression.names) <= set(rule.options)))
    return tuple(found)


def is_on(rule: Rule, section: Section, options: Mapping[str, Constant]) -> bool:
    """Whether a section is on with these options: what its conditions say of options alone.

    A section that is off is no skip: it is not part of the rule that the user asked for.
    """
    return off(rule, section, options) is None


def by_default(rule: Rule) -> tuple[Section, ...]:
    """The sections that act with the rule's defaults."""
    usual = {name: option.default for name, option in rule.options.items()}
    return tuple(each for each in rule.sections if not each.asked and is_on(rule, each, usual))


def off(rule: Rule, section: Section, options: Mapping[str, Constant]) -> str | None:
    """The first condition on options alone that keeps a section off, with what they are; None where it is on."""
    reasons = (condition.unmet(options) for condition in conditions(rule, section) if condition.of_options)
    return next((reason for reason in reasons if reason is not None), None)


def unmet(
    rule: Rule, section: Section, options: Mapping[str, Constant], sizes: Mapping[str, int]
) -> str | None:
    """The first reason why a site with axes of these sizes is left out, or None."""
    known = {**options, **sizes}
    reasons = (condition.unmet(known) for condition in conditions(rule, section) if not condition.of_options)
    return next((reason for reason in reasons if reason is not None), None)
