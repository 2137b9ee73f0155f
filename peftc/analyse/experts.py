"""Mixtures of experts: tokens are sent to matrices of a stack [experts d_out d_in], and what these make is gathered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import fx

from peftc.analyse.channels import MOVES, is_elementwise
from peftc.analyse.projections import Projection
from peftc.graphs.reading import BY_NUMBER, ancestors, is_call, is_tensor, operator_name, shape, value

GROUPED = (*BY_NUMBER, "bmm", "baddbmm")
ON_THE_WAY = MOVES | frozenset(
    ["index", "sum", "getitem", "chunk", "split", "split_with_sizes", "index_add", "glu"]
)


@dataclass(frozen=True)
class Experts:
    """One mixture.

    Attributes:
        up, down: the first and the last product with a stack.
        reader: the node that takes the tokens to the experts, and reads `x` as its first argument.
        others: nodes that take the same tokens to them beside it, as a gate and an up projection may each have one.
        result: what is gathered, in the form of the tokens.
        weights: paths of the stacks.
        routers: projections that say which expert a token goes to.
    """

    up: fx.Node
    down: fx.Node
    reader: fx.Node
    result: fx.Node
    weights: tuple[str, str]
    routers: tuple[fx.Node, ...]
    others: tuple[fx.Node, ...] = ()


def mixtures(graph: fx.Graph, projections: Mapping[fx.Node, Projection]) -> list[Experts]:
    """Every mixture of experts of a normalised graph."""
    stacks = {node: path for node in graph.nodes if (path := stack_of(node)) is not None}
    found: list[Experts] = []
    for up, path in stacks.items():
        down = next_product(up, stacks)
        if down is None or down in (each.up for each in found):
            continue
        reader = reader_of(up)
        if reader is None:
            continue
        known = next((number for number, each in enumerate(found) if each.down is down), None)
        if known is not None:
            found[known] = with_reader(found[known], reader)
            continue
        result = gathered(down, reader.args[0])  # type: ignore[arg-type]
        if result is None:
            continue
        experts = shape(stack_node(up))[0]
        behind = set(ancestors(result))
        routers = tuple(
            node
            for node, projection in projections.items()
            if node in behind
            and projection.d_out == experts
            and reader.args[0] in set(ancestors(projection.x))
        )
        found.append(Experts(up, down, reader, result, (path, stacks[down]), routers))
    return found


def with_reader(known: Experts, reader: fx.Node) -> Experts:
    """A mixture one more of whose first products was met."""
    if reader in (known.reader, *known.others) or reader.args[0] is not known.reader.args[0]:
        return known
    return replace(known, others=(*known.others, reader))


def stack_node(product: fx.Node) -> fx.Node:
    """The parameter that a product takes one matrix of for each group of rows."""
    node = product.args[2] if is_call(product, "baddbmm") else product.args[1]
    while isinstance(node, fx.Node) and is_call(node, "transpose", "to", "contiguous", "permute"):
        node = node.args[0]
    assert isinstance(node, fx.Node)
    return node


def stack_of(node: fx.Node) -> str | None:
    """The path of the stack that a product reads; None for what is no such product."""
    if not is_call(node, *GROUPED) or not all(is_tensor(each) for each in node.args[:2]):
        return None
    held = stack_node(node)
    if held.op != "get_attr" or value(held).dim() != 3:
        return None
    return str(held.target)


def next_product(up: fx.Node, stacks: Mapping[fx.Node, str]) -> fx.Node | None:
    """The next product with a stack on the way of what one makes."""
    queue, seen = [up], {up}
    while queue:
        for user in queue.pop(0).users:
            if user in stacks:
                return user
            if user not in seen and (operator_name(user) in ON_THE_WAY or is_elementwise(user)):
                seen.add(user)
                queue.append(user)
    return None


def reader_of(up: fx.Node) -> fx.Node | None:
    """The node that takes the tokens [batch seq d_model] on their way to the experts."""
    node = up
    for _ in range(20):
        source = node.args[1] if is_call(node, "baddbmm") else node.args[0]
        if not is_tensor(source):
            return None
        # What is moved only has its maker at hand; what is made elsewhere is the tokens themselves.
        if value(source).dim() == 3 and operator_name(source) not in MOVES | {"index", "mul"}:
            return node
        if operator_name(source) not in MOVES | {"index", "mul", "to"}:
            return None
        node = source
    return None


def gathered(down: fx.Node, tokens: fx.Node) -> fx.Node | None:
    """The first value behind the experts that has the form of the tokens."""
    form = tuple(map(str, value(tokens).shape))
    queue, seen = [down], {down}
    while queue:
        node = queue.pop(0)
        if node is not down and is_tensor(node) and tuple(map(str, value(node).shape)) == form:
            return node
        for user in node.users:
            gathers = operator_name(user) in ON_THE_WAY | {"index_put", "scatter_add"}
            if user not in seen and (gathers or is_elementwise(user)):
                seen.add(user)
                queue.append(user)
    return None
