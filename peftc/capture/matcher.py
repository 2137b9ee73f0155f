"""Matches a spelling against a graph, with all its ways to write a thing, and keeps the nearest miss.

A pattern's axes have names, a graph's have places: the matcher works out in which order a tensor's axes must stand
where it is used, and looks through the transposes that put them so. It edits nothing. Longer than most files here: one
case for each form that an expression can have.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isclose
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from peftc.capture.spelling import Pattern, Spelling
from peftc.graphs.reading import argument, is_call, is_parameter, is_tensor, operator_name, value
from peftc.lang.axes import ANY, Axes, show

UNARY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"rsqrt": ("rsqrt",), "sqrt": ("sqrt",), "sigmoid": ("sigmoid",), "tanh": ("tanh",), "exp": ("exp",)}
)
ALONG: Mapping[str, tuple[tuple[str, ...], str]] = MappingProxyType(
    {
        "mean_along": (("mean",), "mean"),
        "sum_along": (("sum",), "sum"),
        "max_along": (("amax", "max"), "maximum"),
    }
)
"""Word → its operators, and what their result is called."""
CASTS = ("to", "_to_copy", "type_as")
RESHAPES = ("view", "reshape", "_unsafe_view", "flatten")


@dataclass(frozen=True)
class Dropped:
    """A dropout that was found: its chance, and the mode that it asks (a node, or a truth value)."""

    p: float
    mode: object


@dataclass(frozen=True)
class Product:
    """Two factors of a matrix product that has no node of its own: it is part of `addmm`."""

    left: fx.Node
    right: fx.Node
    whole: fx.Node

    @property
    def name(self) -> str:
        """That of the node which holds it."""
        return self.whole.name


@dataclass(frozen=True)
class State:
    """What is known in the middle of a match.

    Attributes:
        found: name of a wildcard or a binding → what it stands for.
        inside: nodes that the pattern covers.
        formats: name of a value → the number format that it must have.
    """

    found: Mapping[str, Any]
    inside: tuple[fx.Node, ...] = ()
    formats: tuple[tuple[str, torch.dtype], ...] = ()

    def having(self, name: str, thing: Any) -> State:
        """With one more name known."""
        return replace(self, found={**self.found, name: thing})

    def covering(self, node: Any) -> State:
        """With one more node covered."""
        return replace(self, inside=(*self.inside, node)) if isinstance(node, fx.Node) else self


@dataclass(frozen=True)
class Miss:
    """How far an attempt came, and why no further: at which part of the pattern, and what was there instead."""

    depth: float
    pattern: Pattern
    tree: ast.AST
    at: Any
    reason: str

    def __str__(self) -> str:
        """In one line. Most misses are never read, so it is made when it is."""
        named = self.at.name if isinstance(self.at, (fx.Node, Product)) else repr(self.at)
        return f"at `{self.pattern.text(self.tree)}`: {named} {self.reason}"


class Matcher:
    """Matches one way to write a spelling at one node."""

    def __init__(self, spelling: Spelling, pattern: Pattern) -> None:
        self.spelling, self.pattern = spelling, pattern
        self.miss = Miss(-1, pattern, pattern.tree, None, "")

    def at(self, root: fx.Node) -> State | None:
        """The first match whose result is this node, or None; then `miss` tells why."""
        layout = self.pattern.axes[id(self.pattern.tree)]
        for state in self.match(self.pattern, self.pattern.tree, root, layout, State({})):
            if self.is_whole(root, state):
                return state
        return None

    def is_whole(self, root: fx.Node, state: State) -> bool:
        """Whether nothing else reads what the pattern covers, and number formats are as they must be."""
        covered = set(state.inside)
        for node in covered - {root}:
            other = next((user for user in node.users if user not in covered), None)
            if other is not None and not is_call(node, *CASTS):
                self.fail(state, self.pattern, self.pattern.tree, node, f"is also read by {other.name}")
                return False
        for name, dtype in state.formats:
            if value(state.found[name]).dtype != dtype:
                self.fail(state, self.pattern, self.pattern.tree, root, f"is {dtype}, which {name} is not")
                return False
        return True

    def fail(
        self, state: State, pattern: Pattern, tree: ast.AST, at: Any, reason: str, *, close: bool = False
    ) -> None:
        """Remember a failed attempt if it came further than those before it; `close`: it is the right operator."""
        depth = len(state.inside) + (0.5 if close else 0)
        if depth > self.miss.depth:
            self.miss = Miss(depth, pattern, tree, at, reason)

    def match(self, pattern: Pattern, tree: ast.expr, at: Any, layout: Axes, state: State) -> Iterator[State]:
        """Every way in which a part of a pattern matches at a node whose axes stand as in `layout`."""
        match tree:
            case ast.Constant(value=number):
                if isinstance(at, (int, float)) and isclose(at, float(str(number)), rel_tol=1e-6):
                    yield state
                else:
                    self.fail(
                        state, pattern, tree, at, f"is not {number!r}", close=isinstance(at, (int, float))
                    )
            case ast.Name(id=name) if name in self.spelling.wildcards:
                yield from self.wild(pattern, tree, name, at, layout, state)
            case ast.Name(id=name):
                yield from self.binding(pattern, tree, name, at, layout, state)
            case ast.BinOp(op=ast.MatMult()):
                yield from self.product(pattern, tree, at, layout, state)
            case ast.BinOp(op=ast.Add()):
                yield from self.sum(pattern, tree, at, layout, state)
            case ast.BinOp(op=ast.Mult()):
                yield from self.times(pattern, tree, at, layout, state)
            case ast.BinOp(op=ast.Sub() | ast.Div()):
                yield from self.ordered(pattern, tree, at, layout, state)
            case ast.Call(func=ast.Name(id=name)):
                yield from self.call(pattern, tree, name, at, layout, state)
            case _:
                self.fail(state, pattern, tree, at, "is of a form that no spelling has")

    def binding(
        self, pattern: Pattern, tree: ast.Name, name: str, at: Any, layout: Axes, state: State
    ) -> Iterator[State]:
        """A named part: the same node wherever it is named."""
        if name in state.found:
            if state.found[name] is at:
                yield state
            else:
                self.fail(state, pattern, tree, at, f"is not {state.found[name].name}, as elsewhere")
            return
        for way in self.spelling.let[name]:
            for inner in self.match(way, way.tree, at, layout, state):
                yield inner.having(name, at)

    def wild(
        self, pattern: Pattern, tree: ast.Name, name: str, at: Any, layout: Axes, state: State
    ) -> Iterator[State]:
        """A wildcard: what it is of the right kind, its axes in the right order."""
        wild = self.spelling.wild(name)
        if wild.kind == "number":
            least = -float("inf") if wild.min is None else wild.min
            is_number = isinstance(at, (int, float)) and not isinstance(at, bool)
            if not is_number or at < least:
                self.fail(
                    state, pattern, tree, at, "is no number" if not is_number else f"is below {least:g}"
                )
            elif name not in state.found or state.found[name] == at:
                yield state.having(name, at)
            return
        if not is_tensor(at):
            self.fail(state, pattern, tree, at, "is no tensor")
            return
        node = self.in_order(self.spelling.axes[name], at, layout, wild.kind)
        if isinstance(node, str):
            self.fail(state, pattern, tree, at, node)
        elif wild.kind == "parameter" and not is_parameter(node):
            self.fail(state, pattern, tree, node, "is no parameter of the model")
        elif state.found.get(name, node) is not node:
            self.fail(state, pattern, tree, node, f"is not {state.found[name].name}, as elsewhere")
        else:
            yield state.having(name, node)

    def in_order(self, axes: Axes, node: fx.Node, layout: Axes, kind: str) -> fx.Node | str:
        """The node whose axes stand as a wildcard names them, behind a transpose if need be; or why there is none."""
        rank = value(node).dim()
        if kind == "mask":
            if not value(node).dtype.is_floating_point:
                return "is added as whole numbers, which no mask is"
            return node if 2 <= rank <= len(axes) else f"has {rank} axes, not 2 to {len(axes)}"
        want = tuple(axis for axis in layout if axis in axes)
        named = tuple(axis for axis in axes if axis != ANY)
        if set(want) != set(axes):
            return f"has not the axes {show(axes)}"
        if (rank < len(named)) if ANY in axes else (rank != len(named)):
            return f"has {rank} axes, not those of {show(axes)}"
        if want == axes:
            return node
        moved = permutation(node)
        source = node.args[0] if moved else None
        if moved and ANY not in axes and tuple(axes[place] for place in moved) == want and is_tensor(source):
            return source
        return f"has its axes in the order {show(axes)}, not {show(want)}"

    def product(
        self, pattern: Pattern, tree: ast.BinOp, at: Any, layout: Axes, state: State
    ) -> Iterator[State]:
        """A matrix product: the left side's last axis is summed with the right side's of that name."""
        at, state = self.plain(at, state)
        if isinstance(at, Product):
            left, right = at.left, at.right
        elif is_call(at, "matmul", "bmm", "mm"):
            left, right = at.args[0], at.args[1]  # type: ignore[assignment]
        else:
            self.fail(state, pattern, tree, at, "is no matrix product")
            return
        one, other = pattern.axes[id(tree.left)], pattern.axes[id(tree.right)]
        summed = one[-1]
        new = [axis for axis in other if axis not in (summed, *one)]
        if len(new) != 1 or layout[-1] != new[0]:
            self.fail(state, pattern, tree, at, f"has another order of axes than {show(layout)}")
            return
        rows = layout[:-1]
        batch = tuple(axis for axis in rows[:-1] if axis in other)
        covered = state.covering(at)
        for inner in self.match(pattern, tree.left, left, (*rows, summed), covered):
            yield from self.match(pattern, tree.right, right, (*batch, summed, new[0]), inner)

    def sum(self, pattern: Pattern, tree: ast.BinOp, at: Any, layout: Axes, state: State) -> Iterator[State]:
        """A sum, its sides in either order; `addmm` is one too. An optional side may be absent."""
        at, state = self.plain(at, state)
        if is_call(at, "add") and argument(at, "alpha", 1) == 1:
            one, other = at.args[0], argument(at, "other")
            for first, second in ((one, other), (other, one)):
                yield from self.both(pattern, tree, first, second, layout, state.covering(at))
        elif is_call(at, "addmm") and argument(at, "alpha", 1) == 1 and argument(at, "beta", 1) == 1:
            bias, left, right = at.args[:3]
            product = Product(left, right, at)  # type: ignore[arg-type]
            for first, second in ((bias, product), (product, bias)):
                yield from self.both(pattern, tree, first, second, layout, state.covering(at))
        else:
            self.fail(state, pattern, tree, at, "is no plain sum")
        yield from self.without_optional(pattern, tree, at, layout, state)

    def ordered(
        self, pattern: Pattern, tree: ast.BinOp, at: Any, layout: Axes, state: State
    ) -> Iterator[State]:
        """A difference or a quotient of two values."""
        at, state = self.plain(at, state)
        name, said = ("sub", "difference") if isinstance(tree.op, ast.Sub) else ("div", "quotient")
        if is_call(at, name) and not at.kwargs and len(at.args) == 2:
            yield from self.both(pattern, tree, at.args[0], at.args[1], layout, state.covering(at))
        else:
            self.fail(state, pattern, tree, at, f"is no plain {said}")

    def both(
        self, pattern: Pattern, tree: ast.BinOp, left: Any, right: Any, layout: Axes, state: State
    ) -> Iterator[State]:
        """Both sides of an operator that lines its sides up by the axes of its result."""
        for inner in self.match(pattern, tree.left, left, layout, state):
            yield from self.match(pattern, tree.right, right, layout, inner)

    def without_optional(
        self, pattern: Pattern, tree: ast.BinOp, at: Any, layout: Axes, state: State
    ) -> Iterator[State]:
        """The other side alone, where one side is a wildcard that may be absent."""
        for side, other in ((tree.left, tree.right), (tree.right, tree.left)):
            if isinstance(side, ast.Name) and self.spelling.wild(side.id).optional:
                yield from self.match(pattern, other, at, layout, state.having(side.id, None))

    def times(
        self, pattern: Pattern, tree: ast.BinOp, at: Any, layout: Axes, state: State
    ) -> Iterator[State]:
        """A product number by number, its sides in either order. A factor that is any number may be a quotient, too,
        or several factors in a row.
        """
        at, state = self.plain(at, state)
        for side, other in ((tree.left, tree.right), (tree.right, tree.left)):
            if isinstance(side, ast.Name) and self.spelling.wild(side.id).kind == "number":
                yield from self.scaled(pattern, tree, side.id, other, at, layout, state)
                return
        if not is_call(at, "mul"):
            self.fail(state, pattern, tree, at, "is no product")
            return
        one, other_side = at.args[0], at.args[1]
        for first, second in ((one, other_side), (other_side, one)):
            yield from self.both(pattern, tree, first, second, layout, state.covering(at))

    def scaled(
        self,
        pattern: Pattern,
        tree: ast.BinOp,
        name: str,
        rest: ast.expr,
        at: Any,
        layout: Axes,
        state: State,
    ) -> Iterator[State]:
        """A value times a number: the longest row of factors first, then shorter ones, then none."""
        chain: list[tuple[Any, float, State]] = []
        default = self.spelling.wild(name).default
        if default is not None:
            chain.append((at, default, state))
        factor, current = 1.0, at
        while is_call(current, "mul", "div") and not current.kwargs:
            number = argument(current, "other")
            if not isinstance(number, (int, float)) or isinstance(number, bool) or number == 0:
                self.fail(state, pattern, tree, current, "has a factor that is no number")
                break
            factor = factor * number if is_call(current, "mul") else factor / number
            state = state.covering(current)
            current = current.args[0]
            chain.append((current, factor, state))
        for inner, number, so_far in reversed(chain):
            yield from self.match(pattern, rest, inner, layout, so_far.having(name, number))

    def call(
        self, pattern: Pattern, tree: ast.Call, name: str, at: Any, layout: Axes, state: State
    ) -> Iterator[State]:
        """One word of the vocabulary."""
        inner = tree.args[0]
        if name == "dropout":
            yield from self.dropout(pattern, tree, at, layout, state)
            return
        if name == "cast":
            yield from self.cast(pattern, tree, at, layout, state)
            return
        at, state = self.plain(at, state)
        source = self.operand(name, tree, at, layout)
        if isinstance(source, str):
            self.fail(state, pattern, tree, at, source, close=not source.startswith("is no "))
            return
        yield from self.match(pattern, inner, source, layout, state.covering(at))

    def operand(self, name: str, tree: ast.Call, at: Any, layout: Axes) -> Any:
        """What a word's operator works on, or as a text why a node is no such call."""
        if not isinstance(at, fx.Node):
            return f"is no {name}"
        if name in UNARY:
            return at.args[0] if operator_name(at) in UNARY[name] else f"is no {name}"
        if name in ("square", "cube"):
            return power(at, 2 if name == "square" else 3)
        if name == "reshape":
            return reshaped(at)
        axis = next(
            k.value.value for k in tree.keywords if k.arg == "axis" and isinstance(k.value, ast.Constant)
        )
        place = layout.index(str(axis)) - len(layout) if axis in layout else None
        if name == "softmax":
            if not is_call(at, "softmax", "_softmax") or value(at).dtype != value(at.args[0]).dtype:  # type: ignore[arg-type]
                return "is no softmax in one number format"
            dims = [argument(at, "dim")]
        else:
            operators, said = ALONG[name]
            taken = largest(at)
            if not is_call(taken, *operators) or value(at).dtype != value(taken.args[0]).dtype:  # type: ignore[arg-type]
                return f"is no {said} in one number format"
            if argument(taken, "keepdim") is not True:
                return f"does not keep the axis of its {said}"
            dim = argument(taken, "dim")
            dims = [dim] if isinstance(dim, int) else list(dim or [])
        rank = value(at).dim()
        if place is None or [dim - rank if dim >= 0 else dim for dim in dims] != [place]:
            return f"works along {dims}, not along {axis!r}"
        if ANY not in layout and rank != len(layout):
            return f"has {rank} axes, not those of {show(layout)}"
        return largest(at).args[0]

    def dropout(
        self, pattern: Pattern, tree: ast.Call, at: Any, layout: Axes, state: State
    ) -> Iterator[State]:
        """A dropout, or none where its chance is optional."""
        name = next(key.value.id for key in tree.keywords if isinstance(key.value, ast.Name))
        at, state = self.plain(at, state)
        if is_call(at, "dropout"):
            found = Dropped(float(at.args[1]), at.args[2])  # type: ignore[arg-type]
            covered = state.covering(at).having(name, found)
            yield from self.match(pattern, tree.args[0], at.args[0], layout, covered)
        elif self.spelling.wild(name).optional:
            yield from self.match(pattern, tree.args[0], at, layout, state.having(name, None))
        else:
            self.fail(state, pattern, tree, at, "is no dropout")

    def cast(self, pattern: Pattern, tree: ast.Call, at: Any, layout: Axes, state: State) -> Iterator[State]:
        """A change of number format; its target is kept, or compared with that of a value in the end."""
        source = at.args[0] if is_call(at, *CASTS) else None
        if not is_tensor(at) or not is_tensor(source) or value(at).dtype == value(source).dtype:
            self.fail(state, pattern, tree, at, "is no change of number format")
            return
        to, dtype = tree.args[1], value(at).dtype
        assert isinstance(to, ast.Name)
        covered = state.covering(at)
        if self.spelling.wild(to.id).kind == "dtype":
            covered = covered.having(to.id, dtype)
        else:
            covered = replace(covered, formats=(*covered.formats, (to.id, dtype)))
        yield from self.match(pattern, tree.args[0], source, layout, covered)

    def plain(self, at: Any, state: State) -> tuple[Any, State]:
        """What is behind casts that change nothing."""
        while is_call(at, *CASTS) and is_tensor(at.args[0]) and value(at).dtype == value(at.args[0]).dtype:
            state = state.covering(at)
            at = at.args[0]
        return at, state


def largest(node: fx.Node) -> fx.Node:
    """The call that gives the largest numbers together with their places, where a node is the numbers of it."""
    pair = node.args[0] if is_call(node, "getitem") and node.args[1] == 0 else None
    return pair if is_call(pair, "max") else node


def permutation(node: fx.Node) -> tuple[int, ...] | None:
    """For a node that only reorders axes: which axis of its source stands at each place."""
    rank = value(node).dim()
    places = list(range(rank))
    if is_call(node, "transpose", "swapaxes", "swapdims"):
        one, other = (int(axis) % rank for axis in node.args[1:3])  # type: ignore[arg-type]
        places[one], places[other] = places[other], places[one]
    elif is_call(node, "permute"):
        places = [int(axis) % rank for axis in argument(node, "dims")]
    elif is_call(node, "t", "numpy_T"):
        places.reverse()
    elif is_call(node, "mT", "adjoint", "matrix_H"):
        places[-2:] = reversed(places[-2:])
    else:
        return None
    return tuple(places)


def power(node: fx.Node, exponent: int) -> Any:
    """x of x · x or x³, however it is written; else why it is not."""
    if is_call(node, "pow") and argument(node, "exponent") == exponent:
        return node.args[0]
    if exponent == 2 and (is_call(node, "square") or (is_call(node, "mul") and node.args[0] is node.args[1])):
        return node.args[0]
    return f"is not the power {exponent} of anything"


def reshaped(node: fx.Node) -> Any:
    """x of a reshaping that leaves the last axis as it is; else why it is none."""
    source = node.args[0] if is_call(node, *RESHAPES) else None
    if not is_tensor(source) or not value(source).dim() or not value(node).dim():
        return "is no reshaping of a tensor with axes"
    if str(value(source).shape[-1]) != str(value(node).shape[-1]):
        return "is no reshaping of the leading axes"
    return source
