"""Residual sums: what attentions and feed-forward networks make, added to what they were computed from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import fx

from peftc.analyse.channels import MOVES, is_elementwise
from peftc.analyse.norms import CASTS, NORMS
from peftc.analyse.site import Origin
from peftc.analyse.streams import is_stream, other_side
from peftc.analyse.structure import block_of
from peftc.graphs.reading import is_call, is_tensor, operator_name


@dataclass(frozen=True)
class Seed:
    """What begins a way to a residual sum.

    Attributes:
        result: what an attention or a network makes.
        reads: the product that reads what it is computed from.
        part: "attention" or "ffn".
        path: of the module around it.
        made_of: the weight of the product that makes it.
        scope: "cross" where it is an attention between two sequences, else "".
    """

    result: fx.Node
    reads: fx.Node
    part: str
    path: str
    made_of: Origin
    scope: str = ""


@dataclass(frozen=True)
class Residual:
    """One residual sum, and what is added to the stream by it.

    Attributes:
        sum: the node that adds.
        key: which of its arguments is not the stream.
        seeds: what that argument is made of.
        norm: the result of the norm of the same block that takes the sum, and nothing else does; None in other blocks.
    """

    sum: fx.Node
    key: int
    seeds: tuple[Seed, ...] = field(hash=False)
    norm: fx.Node | None


def residuals(
    seeds: Iterable[Seed],
    results: Mapping[fx.Node, fx.Node],
    blocks: Mapping[str, int],
    order: Mapping[fx.Node, int],
) -> list[Residual]:
    """Every residual sum that one of the seeds reaches, in graph order; a sum of several is one.

    Args:
        results: a norm → the node that has its scale.
        blocks: path of each block.
        order: the place of each node in its graph.
    """
    found: dict[fx.Node, tuple[int, list[Seed]]] = {}
    for seed in seeds:
        for node, key in sums_of(seed.result, order):
            found.setdefault(node, (key, []))[1].append(seed)
    return [
        Residual(node, key, tuple(own), norm_behind(node, results, blocks))
        for node, (key, own) in sorted(found.items(), key=lambda item: order[item[0]])
    ]


def sums_of(result: fx.Node, order: Mapping[fx.Node, int]) -> list[tuple[fx.Node, int]]:
    """The sums of what is made of a value with what that was computed from, and our side's place in their arguments."""
    found: list[tuple[fx.Node, int]] = []
    queue, seen = [result], {result}
    while queue:
        current = queue.pop(0)
        for user in current.users:
            if user in seen or not is_tensor(user):
                continue
            if operator_name(user) not in MOVES and not is_elementwise(user):
                continue
            seen.add(user)
            other = other_side(user, current)
            if other is not None and is_stream(other, result, order):
                found.append((user, 1 - user.args.index(other)))
            else:
                queue.append(user)
    return found


def norm_behind(
    node: fx.Node, results: Mapping[fx.Node, fx.Node], blocks: Mapping[str, int]
) -> fx.Node | None:
    """The result of the norm that alone takes a sum, in its own block: not that behind a model's last one."""
    readers = [user for user in node.users if user.op != "output"]
    while len(readers) == 1 and operator_name(readers[0]) in CASTS:
        readers = list(readers[0].users)
    if len(readers) != 1 or not is_call(readers[0], *NORMS):
        return None
    return (
        results.get(readers[0], readers[0])
        if block_of(readers[0], blocks) == block_of(node, blocks)
        else None
    )


def between(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The nodes on the ways from one node to another, both among them, in graph order."""
    behind = {first}
    found: list[fx.Node] = []
    node = first
    while True:
        if node is first or any(source in behind for source in node.all_input_nodes):
            behind.add(node)
            found.append(node)
        if node is last:
            break
        node = node.next
    needed, kept = {last}, []
    for each in reversed(found):
        if each in needed:
            kept.append(each)
            needed.update(source for source in each.all_input_nodes if source in behind)
    return kept[::-1]
