"""Weights that a product or a recurrence reads in a form that no other module here knows: nothing passes them in silence.

Told by data flow: a weight of two or more axes that meets a value of the call in an operator that sums over what it
multiplies, with nothing before but data movement and what is computed of parameters alone. So what is added, or
multiplied number by number, is not meant: tables of positions, scales of layers, tokens of the model's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import fx

from peftc.analyse.channels import MOVES, SPLITS
from peftc.analyse.convolutions import CONVOLUTIONS
from peftc.analyse.findings import Findings
from peftc.analyse.paths import is_ours
from peftc.analyse.site import Site
from peftc.graphs.reading import BY_NUMBER, is_call, is_parameter, is_tensor, operator_name, shape, value
from peftc.lang.roles import CONV

Arguments = tuple[int, ...]
RECURRENCES = frozenset(
    ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
)
CONTRACTIONS: Mapping[str, Arguments] = {
    **dict.fromkeys(("mm", "bmm", "matmul", "mv", "dot", "inner", "einsum"), (0, 1)),
    **dict.fromkeys(("tensordot", "linalg_vecdot", "cosine_similarity", "cdist", "_cdist_forward"), (0, 1)),
    **dict.fromkeys(("linalg_multi_dot", "embedding_bag", "_embedding_bag"), (0,)),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv", "bilinear"), (1, 2)),
    **dict.fromkeys(("scaled_dot_product_attention", "capped_attention"), (1, 2)),
    **dict.fromkeys((*CONVOLUTIONS, "linear", "convolution", "_convolution", *BY_NUMBER), (1,)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), (1,)),
    **dict.fromkeys(RECURRENCES, (2, 3)),
}
"""Operators that sum over what they multiply → which of their arguments weights are, or lists of them."""
PICKS = frozenset(("index", "index_select", "gather", "take_along_dim", "where"))
"""Data movement by numbers that data may tell."""


def overlooked(findings: Findings, found: Iterable[Site]) -> Iterator[Site]:
    """A linear site of no part, or that of a convolution, for each such weight; it says what reads it."""
    known = {path for site in found if site.role != "tensor" for path in site.weights.values()}
    data = made_of_data(findings.graph)
    for node in findings.graph.nodes:
        path = str(node.target)
        if not is_parameter(node) or is_ours(path) or path in known or value(node).dim() < 2:
            continue
        readers = dict(reading(node, data, findings.projections))
        if readers:
            reader, owner = next(iter(readers)), path.rpartition(".")[0]
            convolved = all("conv" in operator_name(each) for each in readers)
            yield Site(
                "linear",
                CONV if convolved else "",
                owner,
                findings.layer(reader),
                weights={"W": path},
                sizes={},
                scope=findings.scopes.of(reader),
                evidence=f"its weight {' and '.join(dict.fromkeys(readers.values()))}",
                name=path.rpartition(".")[2],
            )


def made_of_data(graph: fx.Graph) -> set[fx.Node]:
    """The values that are computed from tensors of the call, not from their sizes alone."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        given = node.op == "placeholder" and is_tensor(node)
        made = not is_number(node) and any(each in found for each in node.all_input_nodes)
        if given or made:
            found.add(node)
    return found


def is_number(node: fx.Node) -> bool:
    """Whether a node is one number, such as a size."""
    return isinstance(value(node), (bool, int, float, torch.SymInt, torch.SymBool, torch.SymFloat))


def reading(
    parameter: fx.Node, data: Collection[fx.Node], known: Collection[fx.Node]
) -> Iterator[tuple[fx.Node, str]]:
    """What sums over a parameter times data, and how that is said; `known` are the products that are sites."""
    queue: list[tuple[fx.Node, tuple[str, ...]]] = [(parameter, ())]
    seen = {parameter}
    while queue:
        node, steps = queue.pop(0)
        for user in node.users:
            name = operator_name(user)
            if user in known or is_number(user) or (name in CONTRACTIONS and not is_weight(user, node)):
                continue  # what a known product multiplies, or adds, is no weight
            if meets(user, node, data):
                yield user, said(name, steps)
            elif user not in seen and (user not in data or moves(user, node)):
                seen.add(user)
                queue.append((user, steps if is_moved(name) else (*steps, name)))


def is_weight(user: fx.Node, node: fx.Node) -> bool:
    """Whether a node is among what a contraction multiplies, and not its bias, nor what it convolves."""
    places = CONTRACTIONS[operator_name(user)]
    return any(node is each for place in places for each in held(user, place))


def held(user: fx.Node, place: int) -> list[Any]:
    """The value, or the values of the list, at a place of a call's arguments."""
    argument: Any = user.args[place] if place < len(user.args) else None
    return list(argument) if isinstance(argument, (list, tuple)) else [argument]


def meets(user: fx.Node, node: fx.Node, data: Collection[fx.Node]) -> bool:
    """Whether a call sums over what it multiplies of a weight and of data."""
    if user not in data:
        return False
    name = operator_name(user)
    if name == "einsum":
        return sums(user, node)
    if name in CONTRACTIONS:
        return True
    return name == "mul" and any(
        is_call(each, "sum", "mean") and sums_over(each, user, node) for each in user.users
    )


def sums(user: fx.Node, node: fx.Node) -> bool:
    """Whether an einsum sums over an axis of a weight: else it multiplies number by number."""
    letters, _, out = str(user.args[0]).replace(" ", "").partition("->")
    each = dict(zip(held(user, 1), letters.split(","), strict=False))
    return any(letter.isalpha() and letter not in out for letter in each.get(node, ""))


def sums_over(total: fx.Node, product: fx.Node, weight: fx.Node) -> bool:
    """Whether a sum is over an axis that both factors of a product have: one of them alone is pooled."""
    axes: Any = total.args[1] if len(total.args) > 1 else None
    rank = len(shape(product))
    axes = range(rank) if axes is None else axes if isinstance(axes, (list, tuple)) else [axes]
    sizes = [
        (1,) * (rank - len(shape(each))) + shape(each)
        for each in (weight, *product.all_input_nodes)
        if is_tensor(each)
    ]
    return any(all(size[axis] > 1 for size in sizes) for axis in axes)


def moves(user: fx.Node, node: fx.Node) -> bool:
    """Whether a call with data only moves a weight, or picks of it."""
    if is_call(user, "where"):
        return node in user.args[1:]
    return is_moved(operator_name(user)) and bool(user.args) and user.args[0] is node


def is_moved(name: str) -> bool:
    """Whether an operator only moves what it is given."""
    return name in MOVES | SPLITS | PICKS or name in ("getitem", "cat", "stack", "lift_fresh_copy")


def said(reader: str, steps: tuple[str, ...]) -> str:
    """What becomes of a weight, in words."""
    into = "mul and sum" if reader == "mul" else reader
    if steps:
        computed = ", ".join(dict.fromkeys(step.strip("_") for step in steps))
        return f"is part of one that {computed} computes, which goes into {into}"
    if reader in RECURRENCES:
        return f"goes into {into}, a recurrence"
    return f"goes into {into} in a form that is no site"
