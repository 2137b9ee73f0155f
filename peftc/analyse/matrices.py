"""The matrix, or the stack of matrices, that a product reads of a parameter: which rows of it, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from peftc.analyse.views import View, view_of
from peftc.graphs.reading import shape

Ranges: TypeAlias = tuple[tuple[int, int], ...]
EXPERTS = "experts"
"""The axis of a stack."""


@dataclass(frozen=True)
class Matrix:
    """What a product reads of a parameter.

    Attributes:
        weight: path of the parameter.
        stored: its axes in the order in which it is stored.
        first: the first of the output channels in it that are read here; all are if `whole`.
        count: how many matrices it holds; 0 where it is one, not a stack.
        number: the one of a stack that is read here; None where all are.
        refolded: whether the parameter has another shape than these axes.
    """

    weight: str
    stored: tuple[str, ...]
    first: int = 0
    whole: bool = True
    count: int = 0
    number: int | None = None
    refolded: bool = False

    @property
    def is_turned(self) -> bool:
        """Whether it is stored with its output channels last."""
        return self.stored[-1] == "d_out"

    def rows(self, channels: Ranges | None, d_out: int) -> Ranges | None:
        """Which rows of the parameter make some of the channels of a product with it; None where it is all of them."""
        if channels is None:
            return None if self.whole else ((self.first, self.first + d_out),)
        return tuple((start + self.first, stop + self.first) for start, stop in channels)


def matrix_of(operand: object) -> Matrix | None:
    """What an operand [d_out d_in] is of a parameter [d_out d_in], turned or not, or of a stack of such."""
    view = view_of(operand)
    if view is None or len(view.sizes) != 2:
        return None
    path, held = str(view.parameter.target), shape(view.parameter)
    if len(held) not in (2, 3) or (len(held) == 3 and prod(view.sizes) == prod(held)):
        folded = [view, View(view.parameter, view.sizes[::-1], view.steps[::-1], view.start)]
        orders = (("d_out", "d_in"), ("d_in", "d_out"))
        stored = next((order for each, order in zip(folded, orders, strict=True) if each.is_whole), None)
        return None if stored is None else Matrix(path, stored, refolded=True)
    rows, columns = held[-2:]
    number, start = divmod(view.start, rows * columns)
    placed = place(View(view.parameter, view.sizes, view.steps, start), rows, columns)
    if placed is None:
        return None
    turned, first, whole = placed
    stored = ("d_in", "d_out") if turned else ("d_out", "d_in")
    if len(held) == 2:
        return Matrix(path, stored, first, whole)
    return Matrix(path, (EXPERTS, *stored), first, whole, held[0], number)


def stack_of(operand: object) -> Matrix | None:
    """What an operand [experts d_in d_out] is of a stack of matrices, which may be stored one below the other."""
    view = view_of(operand)
    if view is None or len(view.sizes) != 3:
        return None
    held, count = shape(view.parameter), view.sizes[0]
    if len(held) not in (2, 3) or (len(held) == 3 and held[0] != count) or held[0] % count:
        return None
    rows, columns = (held[0] // count, held[1]) if len(held) == 2 else held[1:]
    if view.steps[0] != rows * columns:
        return None
    each = View(view.parameter, view.sizes[:0:-1], view.steps[:0:-1], view.start)
    placed = place(each, rows, columns)
    if placed is None:
        return None
    turned, first, whole = placed
    stored = (EXPERTS, *(("d_in", "d_out") if turned else ("d_out", "d_in")))
    return Matrix(str(view.parameter.target), stored, first, whole, count, None, len(held) == 2)


def place(view: View, rows: int, columns: int) -> tuple[bool, int, bool] | None:
    """Whether a view [d_out d_in] of a matrix [rows columns] is turned, its first output channel, and whether it is all."""
    (d_out, d_in), steps = view.sizes, view.steps
    if steps == (columns, 1) and d_in == columns and view.start % columns == 0:
        return False, view.start // columns, d_out == rows
    if steps == (1, columns) and d_in == rows and view.start + d_out <= columns:
        return True, view.start, d_out == columns
    return None


def bias_of(operand: object, matrix: Matrix) -> str | None:
    """The path of a bias that an operand reads of the same channels as its matrix; None for any other."""
    view = view_of(operand)
    if view is None:
        return None
    held = shape(view.parameter)
    stacked = matrix.count > 0
    if len(held) != 1 + stacked or (stacked and held[0] != matrix.count):
        return None
    start = matrix.first + (matrix.number or 0) * held[-1]
    whole = matrix.whole == (view.sizes[-1] == held[-1])
    return str(view.parameter.target) if view.start == start and view.steps[-1] == 1 and whole else None
