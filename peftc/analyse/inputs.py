"""What a model reads: its embedded tokens, from their table or from the call itself. Tells encoders from decoders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from peftc.analyse.attention import AttentionCore
from peftc.analyse.positions import State
from peftc.analyse.projections import Projection
from peftc.analyse.scopes import is_crossed
from peftc.analyse.tables import content
from peftc.capture.arguments import is_decoders, kind_of
from peftc.graphs.evaluating import evaluate
from peftc.graphs.reading import ancestors, is_call, is_tensor, module_stack, operator_name, shape, value

GIVEN = "rows that a call gives"  # evidence of an input that comes without its table


@dataclass(frozen=True)
class Input:
    """One input of a graph.

    Attributes:
        node: the rows [batch seq d], scaled.
        gather: what takes them from their table; None where the call gives them.
        part: "source" or "target".
        scope: "encoder" or "decoder" where a model has both, else "".
        factor: what rows of the table are multiplied by.
    """

    node: fx.Node
    gather: fx.Node | None
    part: str
    scope: str
    factor: float

    @property
    def path(self) -> str:
        """Path of the module around the table: that of a table itself may be shared by two inputs."""
        stack = module_stack(self.gather) if self.gather is not None else ()
        return stack[-2][0] if len(stack) > 1 else ""


def inputs(
    graph: fx.Graph,
    tables: Mapping[fx.Node, str],
    cores: Iterable[AttentionCore],
    projections: Mapping[fx.Node, Projection],
    state: State,
) -> tuple[Input, ...]:
    """Every input of a graph, in order. Rows that do not stand [batch seq d], as the ids do, are none.

    Args:
        tables: each gather of rows with the part of its table.
    """
    rows: dict[fx.Node, fx.Node | None] = {}
    taken: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" and kind_of(node.name) == "rows" and is_tensor(node):
            rows[node] = None
        elif tables.get(node) == "embedding" and (ids := ids_of(node)) is not None and ids not in taken:
            taken.add(ids)
            if value(node).dim() == 3 and shape(node)[1] == shape(ids)[-1]:
                rows[node] = node
    asking, asked = crossing(cores, projections)
    targets = {
        node
        for node, gather in rows.items()
        if (node in asking and node not in asked) or (gather is None and is_decoders(node.name))
    }
    found = []
    for node, gather in rows.items():
        last, factor = scaled(node, state)
        scope = ("decoder" if node in targets else "encoder") if targets else ""
        found.append(Input(last, gather, "target" if node in targets else "source", scope, factor))
    return tuple(found)


def ids_of(gather: fx.Node) -> fx.Node | None:
    """The input of whole numbers, in rows, that a gather's ids are made of."""
    found = [
        node
        for node in content(gather.args[1])
        if node.op == "placeholder" and not value(node).dtype.is_floating_point and value(node).dim() > 1
    ]
    return found[0] if len(found) == 1 else None


def crossing(
    cores: Iterable[AttentionCore], projections: Mapping[fx.Node, Projection]
) -> tuple[set[fx.Node], set[fx.Node]]:
    """All that the queries of the first attention between two sequences are made of, and all that its keys are."""
    for core in cores:
        if is_crossed(core, projections):
            query, key = core.projection("q"), core.projection("k")
            assert query is not None
            assert key is not None
            return set(ancestors(query)), set(ancestors(key))
    return set(), set()


def scaled(node: fx.Node, state: State) -> tuple[fx.Node, float]:
    """Rows as they are when all that multiplies them by one number has done so, and the number."""
    factor = 1.0
    while len(node.users) == 1:
        user = next(iter(node.users))
        number = 1.0 if is_call(user, "to") else scale_of(user, node, state)
        if number is None or not is_tensor(user) or value(user).dim() != value(node).dim():
            break
        node, factor = user, factor * number
    return node, factor


def scale_of(node: fx.Node, rows: fx.Node, state: State) -> float | None:
    """The number that a node multiplies some rows by, or None."""
    if operator_name(node) not in ("mul", "div") or len(node.args) < 2:
        return None
    one, other = node.args[:2]
    if other is rows and operator_name(node) == "mul":
        one, other = other, one
    if one is not rows:
        return None
    number = number_of(other, state)
    if number is None or operator_name(node) == "mul":
        return number
    return 1 / number if number else None


def number_of(held: object, state: State) -> float | None:
    """A number, or the only one in a tensor that no call changes."""
    if isinstance(held, (int, float)):
        return float(held)
    if not is_tensor(held) or value(held).numel() != 1:
        return None
    nodes = set(ancestors(held))
    if len(nodes) > 8 or any(node.op == "placeholder" for node in nodes):
        return None
    try:
        with torch.no_grad():
            return float(evaluate(held, nodes, (2, 7), state))
    except Exception:  # noqa: BLE001 - any node may fail outside the trace: then it is no known number
        return None
