"""Norms with a scale of the model, and a shift where they have one; also a scale that is computed from a parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import fx

from peftc.graphs.reading import argument, is_call, is_parameter, operator_name, shape

CASTS = frozenset(["to", "_to_copy", "type_as"])
NORMS = ("layer_norm", "rms_norm", "group_norm", "batch_norm")


@dataclass(frozen=True)
class Norm:
    """One use of a norm.

    Attributes:
        node: what normalises.
        result: the normalised value with its scale, which is the same node where that takes the scale.
        weights: port → parameter.
        computed: ports whose value is computed from the parameter, such as 1 + w.
        axis: the axis of `result` along which scales differ.
        said: the evidence.
    """

    node: fx.Node
    result: fx.Node
    weights: Mapping[str, str] = field(hash=False)
    computed: tuple[str, ...]
    axis: int
    said: str


def norms(graph: fx.Graph) -> Iterator[Norm]:
    """Every use of a norm that has a scale, in graph order."""
    for node in graph.nodes:
        if not is_call(node, *NORMS):
            continue
        root_mean_square = is_call(node, "rms_norm")
        scale = node.args[1] if root_mean_square else argument(node, "weight")
        shift = None if root_mean_square else argument(node, "bias")
        result = node
        if scale is None and shift is None:
            scale, result = scaled(node)
        found = {"W": parameter_of(scale), "b": parameter_of(shift)}
        weights = {port: str(origin.target) for port, (origin, _) in found.items() if origin is not None}
        computed = tuple(port for port, (origin, plain) in found.items() if origin is not None and not plain)
        if "W" in weights:
            said = operator_name(node) + (f", then {result.name}" if result is not node else "")
            axis = 1 if is_call(node, "group_norm", "batch_norm") else -1
            yield Norm(node, result, weights, computed, axis, said)


def scaled(norm: fx.Node) -> tuple[object, fx.Node]:
    """What the one reader of a bare norm multiplies it with, and the product; nothing, and the norm itself."""
    readers = list(norm.users)
    while len(readers) == 1 and operator_name(readers[0]) in CASTS:
        readers = list(readers[0].users)
    if len(readers) == 1 and is_call(readers[0], "mul"):
        product = readers[0]
        for side in product.args:
            origin, _ = parameter_of(side)
            if origin is not None and shape(origin) == shape(norm)[-1:]:
                return side, product
    return None, norm


def parameter_of(side: object) -> tuple[fx.Node | None, bool]:
    """The parameter that a value is, or is a sum of with a number; and whether it is the parameter itself."""
    plain = True
    while isinstance(side, fx.Node):
        if is_parameter(side):
            return side, plain
        if is_call(side, "add") and isinstance(side.args[1], (int, float)):
            side, plain = side.args[0], False
        elif operator_name(side) in CASTS:
            side = side.args[0]
        else:
            break
    return None, True
