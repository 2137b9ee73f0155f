"""The letters of an `einsum`, by what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from peftc.graphs.reading import is_call, is_parameter, is_tensor


@dataclass(frozen=True)
class Equation:
    """An einsum over x and a weight, or another value in its place: its letters by what becomes of them.

    Attributes:
        x, weight, out: the letters of each, in order.
    """

    x: str
    weight: str
    out: str

    @property
    def stack(self) -> str:
        """Letters of all three: a matrix for each."""
        return "".join(each for each in self.weight if each in self.x and each in self.out)

    @property
    def summed(self) -> str:
        """Letters that are summed."""
        return "".join(each for each in self.weight if each in self.x and each not in self.out)

    @property
    def rows(self) -> str:
        """Letters of x alone."""
        return "".join(each for each in self.x if each not in self.weight)

    @property
    def channels(self) -> str:
        """Letters of the weight alone."""
        return "".join(each for each in self.weight if each not in self.x)

    @property
    def order(self) -> tuple[int, ...]:
        """Where the axes of x stand that a product wants in turn: those of the stack, of rows, and those summed."""
        return tuple(self.x.index(each) for each in self.stack + self.rows + self.summed)

    @property
    def is_product(self) -> bool:
        """Whether it is one with a matrix, or with a stack of them, and nothing besides."""
        single = len(self.stack) <= 1 and (not self.stack or len(self.rows) >= 1)
        return self.is_plain and single and bool(self.summed) and bool(self.channels)

    @property
    def is_plain(self) -> bool:
        """Whether no letter stands twice in one value, and what is not summed comes out: no diagonal and no lone sum."""
        once = all(len(set(each)) == len(each) for each in (self.x, self.weight, self.out))
        return once and set(self.out) == {*self.stack, *self.rows, *self.channels}

    @property
    def spread(self) -> Equation | None:
        """The same where x is given to each matrix of a stack that makes something of its own of it; None for others."""
        stack = self.weight[0]
        if self.stack or len(self.channels) < 2 or stack not in self.channels:
            return None
        return Equation(stack + self.x, self.weight, self.out)


def letters_of(node: fx.Node) -> tuple[list[fx.Node], list[str], str] | None:
    """The operands of an einsum, the letters of each and those of what comes out; None for any other node."""
    if not is_call(node, "einsum") or len(node.args) < 2:
        return None
    text, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    if not isinstance(operands, (list, tuple)) or "." in text or "->" not in text:
        return None
    given, out = text.split("->")
    letters = given.split(",")
    nodes = [each for each in operands if isinstance(each, fx.Node)]
    return (nodes, letters, out) if len(nodes) == len(operands) == len(letters) else None


def operands_of(node: fx.Node) -> tuple[tuple[fx.Node, fx.Node], tuple[str, str], str] | None:
    """The same of an einsum of two operands."""
    told = letters_of(node)
    if told is None or len(told[0]) != 2:
        return None
    (first, second), (one, other), out = told
    return (first, second), (one, other), out


def read(node: fx.Node) -> tuple[fx.Node, fx.Node, Equation] | None:
    """The value, the weight and the letters of an einsum that is a product with a weight; None for any other."""
    told = operands_of(node)
    if told is None:
        return None
    operands, letters, out = told
    pairs = list(zip(operands, letters, strict=True))
    weights = [pair for pair in pairs if is_parameter(pair[0])]
    values = [pair for pair in pairs if pair not in weights]
    if len(weights) != 1 or not is_tensor(values[0][0]):
        return None
    equation = Equation(values[0][1], weights[0][1], out)
    return (values[0][0], weights[0][0], equation) if equation.is_product else None
