"""How parameters start: by a law, such as `normal(std=0.02)`, or by an expression over what there is already.

Read here; laws are checked here too, expressions by the proof. Drawn and computed elsewhere.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from peftc.errors import RuleError, instead
from peftc.lang.axes import Constant
from peftc.lang.codes import fault
from peftc.lang.expression import Expression, parse
from peftc.lang.operations import OPERATIONS
from peftc.lang.source import Place


@dataclass(frozen=True)
class Law:
    """How a parameter can start, and its settings with what they are when not given (None: must be given)."""

    name: str
    doc: str
    settings: Mapping[str, float | None]
    axes: int = 0
    """How many axes the parameter must have at least."""
    named: bool = False
    """Whether a name stands in its brackets: that of a parameter of saved adapters."""


def _law(name: str, doc: str, axes: int = 0, *, named: bool = False, **settings: float | None) -> Law:
    return Law(name, doc, MappingProxyType(settings), axes, named)


LAWS: Mapping[str, Law] = MappingProxyType(
    {
        law.name: law
        for law in (
            _law("zeros", "All 0."),
            _law("ones", "All 1."),
            _law("constant", "All `value`.", value=None),
            _law("normal", "Normal, mean 0.", std=None),
            _law("truncated_normal", "Normal, mean 0, redrawn outside two `std`.", std=None),
            _law("uniform", "Uniform from `low` to `high`.", low=None, high=None),
            _law("kaiming_uniform", "Uniform within √(6 / ((1 + slope²) · last axis)).", 2, slope=5**0.5),
            _law("xavier_uniform", "Uniform within √(6 / (first + last axis)).", 2),
            _law("orthogonal", "Orthogonal rows or columns.", 2),
            _law("identity", "1 on the diagonal of the last two axes, `off` elsewhere.", 2, off=0.0),
            _law(
                "saved",
                "As it is in adapters that the user names, one behind the other along the first axis, whose size is an "
                "option: the number of them. In brackets stands what the parameter is called there: `saved(down_w)`.",
                1,
                named=True,
            ),
        )
    }
)


@dataclass(frozen=True)
class Initial:
    """A law, with each of its settings a number or the name of an option; or an expression, and then no law.

    `saved` is what a parameter is called in the adapters that it is read from, if it is.
    """

    law: str
    settings: tuple[tuple[str, float | str], ...] = ()
    expression: Expression | None = None
    saved: str = ""

    def resolve(self, options: Mapping[str, Constant]) -> dict[str, float]:
        """Every setting of the law as a number."""
        if self.expression is not None:
            return {}
        found = {name: value for name, value in LAWS[self.law].settings.items() if value is not None}
        for name, value in self.settings:
            number = options[value] if isinstance(value, str) else value
            found[name] = float(number)
        return found


def read_initial(text: str, place: Place) -> Initial:
    """Read an initial law, or an expression. Raises RuleSyntaxError."""
    try:
        return _read_once(text)
    except RuleError:
        return _read(text, place)  # raises the same, and knows where


@lru_cache(maxsize=512)
def _read_once(text: str) -> Initial:
    return _read(text, Place("", "parameters", "init"))


def _read(text: str, place: Place) -> Initial:
    expression = parse(text, place)
    tree = expression.tree
    name = law_named(tree)
    if name is None:
        return Initial("", expression=expression)
    given = tree.keywords if isinstance(tree, ast.Call) else []
    if name not in LAWS:
        hint = instead(name, {*LAWS, *OPERATIONS})
        raise expression.fault("R011", tree, f"there is no initial law or operation {name!r}", hint)
    if LAWS[name].named:
        return Initial(name, saved=_named(expression, tree, name))
    if isinstance(tree, ast.Call) and tree.args:
        raise expression.fault(
            "R011", tree, "an initial law is a name with named settings, as in normal(std=0.02)"
        )
    law = LAWS[name]
    settings: dict[str, float | str] = {}
    for keyword in given:
        key = keyword.arg or ""
        if key not in law.settings:
            raise expression.fault(
                "R011", keyword, f"{name} has no setting {key!r}", instead(key, law.settings)
            )
        settings[key] = _setting(expression, keyword.value)
    for key, value in law.settings.items():
        if value is None and key not in settings:
            raise expression.fault("R011", tree, f"{name} needs its setting {key!r}")
    return Initial(name, tuple(settings.items()))


def _named(expression: Expression, tree: ast.expr, law: str) -> str:
    """The one name in the brackets of a law."""
    match tree:
        case ast.Call(args=[ast.Name(id=name)], keywords=[]):
            return name
    raise expression.fault(
        "R011", tree, f"{law} takes one name in brackets: what the parameter is called in saved adapters"
    )


def law_named(tree: ast.expr) -> str | None:
    """The law that a text names, or a name that is neither one nor an operation; None for an expression."""
    if isinstance(tree, ast.Name):
        return tree.id if tree.id in LAWS else None
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name):
        return None if tree.func.id in OPERATIONS and tree.func.id not in LAWS else tree.func.id
    return None


def _setting(expression: Expression, node: ast.expr) -> float | str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
        return -_number(expression, node.operand)
    return _number(expression, node)


def _number(expression: Expression, node: ast.expr) -> float:
    if (
        isinstance(node, ast.Constant)
        and isinstance(node.value, (int, float))
        and not isinstance(node.value, bool)
    ):
        return float(node.value)
    raise expression.fault("R011", node, "a setting is a number or the name of an option")


def known_initial(text: str, place: Place, axes: int) -> Initial:
    """`read_initial`, for a parameter of so many axes."""
    initial = read_initial(text, place)
    if initial.expression is not None:
        return initial
    if axes < LAWS[initial.law].axes:
        needs = LAWS[initial.law].axes
        raise fault("R011", place, f"{initial.law} needs {needs} axes, the parameter has {axes}", text=text)
    return initial
