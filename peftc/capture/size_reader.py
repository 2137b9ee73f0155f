"""Reads from a trace what its branches and operators asked of the inputs' sizes."""

from __future__ import annotations

from collections.abc import Sequence

import sympy
import torch
from torch import fx
from torch.utils._sympy.printers import PythonPrinter

from peftc.graphs.reading import value
from peftc.graphs.sizes import SizeConditions


def size_conditions(placeholders: Sequence[fx.Node]) -> SizeConditions:
    """The conditions under which a program of these inputs is right.

    Equal symbols are equal sizes: where two inputs share one (an input and its mask have one length), that is a
    condition. That a size is at least 2 is none: captures are exact at 1 too, or have it as a fixed dimension.
    """
    fixed: list[tuple[int, int, int]] = []
    symbols: dict[str, tuple[int, int]] = {}
    asked: list[sympy.Basic] = []
    environment = None
    aliases = 0
    for position, node in enumerate(placeholders):
        for dimension, size in enumerate(value(node).shape):
            if not isinstance(size, torch.SymInt):
                fixed.append((position, dimension, int(size)))
                continue
            environment = size.node.shape_env
            expression = environment.replace(size.node.expr)
            if expression.is_Integer:
                fixed.append((position, dimension, int(expression)))
                continue
            if expression.is_Symbol and str(expression) not in symbols:
                symbols[str(expression)] = (position, dimension)
                continue
            alias = sympy.Symbol(f"size_{aliases}", integer=True)
            aliases += 1
            symbols[str(alias)] = (position, dimension)
            asked.append(sympy.Eq(expression, alias))
    if environment is not None:
        asked += [environment.simplify(environment.replace(guard.expr)) for guard in environment.guards]
    known = [
        condition
        for condition in asked
        if condition not in (True, sympy.true)
        and {str(symbol) for symbol in condition.free_symbols} <= set(symbols)
    ]
    printed = tuple(dict.fromkeys(PythonPrinter().doprint(condition) for condition in known))
    used = {str(symbol) for condition in known for symbol in condition.free_symbols}
    return SizeConditions(
        tuple(fixed), {name: place for name, place in symbols.items() if name in used}, printed
    )
