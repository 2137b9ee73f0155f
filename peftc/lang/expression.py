"""Expressions of the rule language: a checked subset of Python's syntax, parsed, never evaluated by it."""

from __future__ import annotations

import ast
import keyword
import re
import warnings
from dataclasses import dataclass
from functools import cached_property, lru_cache

from peftc.errors import RuleError
from peftc.lang.codes import fault
from peftc.lang.limits import DEEPEST, LARGEST_NUMBER, TEXT
from peftc.lang.source import Place

EXPRESSION_WORDS = "names, numbers, + - * / @ and calls of operations"
CONDITION_WORDS = "names, numbers, + - * /, comparisons, and, or, not"

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,40}\Z")

_VALUES: tuple[type[ast.AST], ...] = (
    *(
        ast.Expression,
        ast.Name,
        ast.Load,
        ast.Constant,
        ast.Call,
        ast.keyword,
        ast.UnaryOp,
        ast.USub,
        ast.BinOp,
    ),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.MatMult),
)
_CONDITIONS: tuple[type[ast.AST], ...] = (
    *(ast.Expression, ast.Name, ast.Load, ast.Constant, ast.UnaryOp, ast.USub, ast.Not, ast.BinOp),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.BoolOp, ast.And, ast.Or),
    *(ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
)
_SPOKEN = {
    ast.Pow: "the power **",
    ast.MatMult: "the product @",
    ast.Attribute: "an attribute",
    ast.Subscript: "an index",
    ast.Lambda: "a lambda",
    ast.Call: "a call",
    ast.Compare: "a comparison",
    ast.BoolOp: "and/or",
    ast.Not: "not",
    ast.IfExp: "if/else",
    ast.FloorDiv: "the division //",
    ast.Mod: "the remainder %",
    ast.Starred: "a star argument",
    ast.NamedExpr: "an assignment",
}


@dataclass(frozen=True)
class Expression:
    """A text that was read, with its tree and the place it stands at."""

    text: str
    tree: ast.expr
    place: Place
    condition: bool = False

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """Every node of its tree, from the outside in."""
        return tuple(ast.walk(self.tree))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names it reads, not those of the operations it calls, in order."""
        called = {id(node.func) for node in self.nodes if isinstance(node, ast.Call)}
        found = [n for n in self.nodes if isinstance(n, ast.Name) and id(n) not in called]
        return tuple(dict.fromkeys(node.id for node in sorted(found, key=lambda node: node.col_offset)))

    def fault(self, code: str, node: ast.AST, message: str, hint: str | None = None) -> RuleError:
        """A rule error that points at `node`."""
        return fault(code, self.place, message, text=self.text, span=span_of(self.text, node), hint=hint)


def parse(text: str, place: Place, *, condition: bool = False) -> Expression:
    """Read one expression, or one condition of a `where`. Raises RuleSyntaxError."""
    try:
        read = _read_once(text, condition)
    except RuleError:
        return _read(text, place, condition)  # raises the same, and knows where
    expression = Expression(read.text, read.tree, place, condition)
    # What was found out of the tree is handed on: composites read a text again and again, at other places.
    expression.__dict__.update(nodes=read.nodes, names=read.names)
    return expression


@lru_cache(maxsize=1024)
def _read_once(text: str, condition: bool) -> Expression:
    return _read(text, Place(""), condition)


def _read(text: str, place: Place, condition: bool) -> Expression:
    if len(text) > TEXT:
        raise fault("R006", place, f"an expression has at most {TEXT} characters, this has {len(text)}")
    text = re.sub(r"[\r\n\t]", " ", text).strip()
    expression = Expression(text, _tree(text, place), place, condition)
    _refuse_deep(expression)
    allowed = _CONDITIONS if condition else _VALUES
    for node in expression.nodes:
        _refuse_foreign(expression, node, allowed)
    return expression


def is_name(text: str) -> bool:
    """Whether a rule may call something of its own so: a plain word, no keyword, no `__`."""
    return bool(NAME.match(text)) and "__" not in text and not keyword.iskeyword(text)


def _tree(text: str, place: Place) -> ast.expr:
    strange = next((at for at, sign in enumerate(text) if not " " <= sign <= "~" or sign == "\\"), None)
    if strange is not None:
        # Python would read ｘ as x: a letter that looks like another must not be one.
        message = "an expression is written in letters, digits and signs of ASCII, without backslashes"
        raise fault("R007", place, message, text=text, span=(strange, strange + 1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Python only warns of `1if x`; here it is refused
            return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        start = min(max((error.offset or 1) - 1, 0), len(text))
        said = (error.msg or "it is not an expression").removeprefix("invalid syntax. ")
        raise fault("R007", place, f"cannot be read: {said}", text=text, span=(start, start + 1)) from None
    except (RecursionError, MemoryError, ValueError, Warning) as error:
        raise fault("R007", place, f"cannot be read: {error}", text=text) from None


def _refuse_deep(expression: Expression) -> None:
    if len(expression.nodes) <= DEEPEST:
        return
    level: list[ast.AST] = [expression.tree]
    for _ in range(DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return
    raise expression.fault(
        "R009", level[0], f"this is nested more than {DEEPEST} deep", "move a part of it to [let]"
    )


def _refuse_foreign(expression: Expression, node: ast.AST, allowed: tuple[type[ast.AST], ...]) -> None:
    kind = "a condition" if expression.condition else "an expression"
    if not isinstance(node, allowed):
        parent = _parent(expression.tree, node)
        spoken = _SPOKEN.get(type(node), f"Python's {type(node).__name__}")
        can = CONDITION_WORDS if expression.condition else EXPRESSION_WORDS
        raise expression.fault(
            "R008", parent, f"{spoken} is not part of {kind} of the rule language", f"there are: {can}"
        )
    if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
        raise expression.fault("R008", node, "only an operation can be called, by its name")
    if isinstance(node, ast.keyword) and node.arg is None:
        raise expression.fault(
            "R008", node, "settings are named one by one; ** is not part of the rule language"
        )
    if isinstance(node, ast.Constant):
        _refuse_constant(expression, node)


def _refuse_constant(expression: Expression, node: ast.Constant) -> None:
    value = node.value
    if not isinstance(value, (bool, int, float, str)):
        raise expression.fault("R008", node, "constants are numbers, texts, True and False")
    if isinstance(value, (int, float)) and not abs(value) < LARGEST_NUMBER:
        raise expression.fault("R045", node, "this number is too large")


def _parent(tree: ast.AST, node: ast.AST) -> ast.AST:
    """`node`, or for an operator (which has no column of its own) the expression around it."""
    if hasattr(node, "col_offset"):
        return node
    return next((up for up in ast.walk(tree) if node in ast.iter_child_nodes(up)), tree)


def span_of(text: str, node: ast.AST) -> tuple[int, int]:
    """The characters of `text` that `node` covers; ast counts in bytes."""
    raw = text.encode()
    start = len(raw[: getattr(node, "col_offset", 0)].decode(errors="ignore"))
    stop = len(raw[: getattr(node, "end_col_offset", None) or start + 1].decode(errors="ignore"))
    return start, stop
