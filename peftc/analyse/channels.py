"""Which output channels of which projections a value is made of.

A tensor that numbers what a projection makes, token by token, is sent through the graph's own data movement (views,
transposes, slices, rotations), so a fused projection yields the exact slice of each part, contiguous or interleaved,
and a value tells of which tokens it is made.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from peftc.analyse.numbering import Layers, channels_of, laid, laid_all
from peftc.analyse.projections import Projection
from peftc.analyse.streams import is_residual
from peftc.analyse.writing import PUTS, WRITES, put, writes, written
from peftc.graphs.reading import (
    CONSTANT,
    STATE,
    argument,
    hint,
    is_call,
    is_pointwise,
    is_tensor,
    operator_name,
    shape,
    value,
)

MOVES = frozenset(
    "view _unsafe_view reshape transpose permute t numpy_T slice select unsqueeze squeeze expand flatten unflatten"
    " narrow contiguous clone movedim swapaxes repeat repeat_interleave roll flip expand_as view_as alias detach"
    " to mT mH adjoint swapdims".split()
)
SPLITS = frozenset("split split_with_sizes chunk unbind tensor_split unsafe_split unsafe_chunk".split())
POINTWISE = frozenset(
    "add sub mul div neg rsub dropout silu gelu relu tanh sigmoid where masked_fill clamp pow rms_norm"
    " layer_norm type_as _to_copy leaky_relu elu softplus hardswish mish relu6 quick_gelu celu selu hardsigmoid prelu"
    " log_sigmoid".split()
)
"""Operators that work number by number, in their last axis at most; torch tells of more: see `is_elementwise`."""

MOST_LAYERS = 16  # a value with more is mixed of so many numbers that where they stand is no evidence


class ChannelFlow:
    """Answers, for any value, which channels reach it; each value is worked out once."""

    def __init__(self, projections: Mapping[fx.Node, Projection], order: Mapping[fx.Node, int]) -> None:
        self.projections, self.order = projections, order
        self.known: dict[fx.Node, dict[fx.Node, Layers]] = {}
        self.told: dict[fx.Node, dict[fx.Node, Tensor]] = {}
        self.steps: Mapping[str, Callable[[fx.Node], dict[fx.Node, Layers]]] = {
            "view_as_complex": self.paired,
            "view_as_real": self.doubled,
            "index": self.picked,
            **dict.fromkeys(("slice_scatter", "select_scatter"), self.scattered),
            **dict.fromkeys((*PUTS, *WRITES), self.put_over),
            **dict.fromkeys(("cat", "stack"), self.joined),
            "glu": self.folded,
        }

    def of(self, node: object) -> dict[fx.Node, Tensor]:
        """Numbers of the channels of projections that reach a node without passing through another projection.

        Nor through a residual sum: what a layer leaves in the stream is no part of what the next one reads from it.
        """
        if not isinstance(node, fx.Node):
            return {}
        if node not in self.told:
            self.told[node] = channels_of(self.layers(node))
        return self.told[node]

    def layers(self, node: object) -> dict[fx.Node, Layers]:
        """What each projection makes, where it stands in a value."""
        if not isinstance(node, fx.Node) or (node.op != "call_function" and node.meta.get(STATE) != "buffer"):
            return {}
        if node not in self.known:
            self.known[node] = {}  # a value under construction is made of nothing: graphs have no cycles
            # Numbers that cannot follow the data, whose sizes are told by data, are no evidence.
            with suppress(RuntimeError, IndexError, TypeError):
                self.known[node] = self.work_out(node)
        return self.known[node]

    def work_out(self, node: fx.Node) -> dict[fx.Node, Layers]:
        """One step."""
        if node in self.projections:
            sizes = shape(node)
            return {node: (torch.arange(prod(sizes)).view(sizes),)}
        if node.op != "call_function":
            return self.held(node)
        name = operator_name(node)
        if name == "getitem" and operator_name(node.args[0]) in SPLITS:  # type: ignore[arg-type]
            source: Any = node.args[0]
            return self.moved(source, lambda index: rerun(source, index)[node.args[1]])
        if not is_tensor(node):
            return {}
        if name in MOVES:
            return self.moved(node, lambda index: rerun(node, index))
        if step := self.steps.get(name):
            return step(node)
        if is_elementwise(node) and not is_residual(node, self.order):
            return self.spread(node)
        return {}

    def moved(self, node: fx.Node, step: Callable[[Tensor], Tensor]) -> dict[fx.Node, Layers]:
        """Channels of what a node only moves, each layer moved in the same way."""
        return {origin: tuple(map(step, layers)) for origin, layers in self.layers(node.args[0]).items()}

    def paired(self, node: fx.Node) -> dict[fx.Node, Layers]:
        """Channels of complex numbers, each of which is made of two that stand side by side."""
        return {
            origin: tuple(part for layer in layers for part in layer.unbind(-1))
            for origin, layers in self.layers(node.args[0]).items()
        }

    def doubled(self, node: fx.Node) -> dict[fx.Node, Layers]:
        """Channels of pairs of numbers, both made of what a complex number is made of."""
        return self.moved(node, lambda index: index.unsqueeze(-1).expand(shape(node)))

    def folded(self, node: fx.Node) -> dict[fx.Node, Layers]:
        """Channels of a gated linear unit: those of both halves."""
        return laid_all(pair for half in self.halves(node) for pair in half.items())

    def put_over(self, node: fx.Node) -> dict[fx.Node, Layers]:
        """Channels of a tensor into which others are written."""
        return laid_all([*self.layers(node.args[0]).items(), *self.put_in(node, node)])

    def picked(self, node: fx.Node) -> dict[fx.Node, Layers]:
        """Channels of what is picked by lists of numbers that are known before anything runs."""
        indices: Any = node.args[1]
        known = tuple(slice(None) if each is None else constant_of(each) for each in indices)
        if any(each is None for each in known):
            return {}
        return self.moved(node, lambda index: index[known])

    def scattered(self, node: fx.Node) -> dict[fx.Node, Layers]:
        """Channels of a tensor one part of which is put in."""
        rest = [hint(value(arg)) if isinstance(arg, fx.Node) else arg for arg in node.args[2:]]
        return self.beside(node.args[:2], lambda base, part: node.target(base, part, *rest))  # type: ignore[operator]

    def held(self, buffer: fx.Node) -> dict[fx.Node, Layers]:
        """Channels that calls write into a tensor of the model."""
        return laid_all(pair for call, views in writes(buffer) for pair in self.put_in(call, buffer, views))

    def put_in(
        self, call: fx.Node, base: fx.Node, views: tuple[fx.Node, ...] = ()
    ) -> Iterator[tuple[fx.Node, Layers]]:
        """Channels that a call puts into some views of a tensor, where they stand in it."""
        for origin, layers in self.layers(written(call)).items():
            for layer in layers:
                whole = torch.full(shape(base), -1)
                place = whole
                for view in views:
                    place = rerun(view, place)
                put(call, place, layer)
                yield origin, (whole,)

    def joined(self, node: fx.Node) -> dict[fx.Node, Layers]:
        """Channels of a concatenation, part by part."""
        parts: Any = node.args[0]
        return self.beside(parts, lambda *filled: node.target(filled, *node.args[1:], **node.kwargs))  # type: ignore[operator]

    def beside(self, parts: Sequence[Any], join: Callable[..., Tensor]) -> dict[fx.Node, Layers]:
        """Channels of what some values make side by side: the first layers of all, then the second."""
        each = [self.layers(part) for part in parts]
        result = {}
        for origin in dict.fromkeys(origin for channels in each for origin in channels):
            held = [channels.get(origin, ()) for channels in each]
            filled = [
                [*layers, *[torch.full(shape(part), -1)] * (max(map(len, held)) - len(layers))]
                for layers, part in zip(held, parts, strict=True)
            ]
            result[origin] = tuple(join(*level) for level in zip(*filled, strict=True))
        return result

    def spread(self, node: fx.Node) -> dict[fx.Node, Layers]:
        """Channels of an elementwise operation: those of all its operands, where they stand."""
        sizes = shape(node)
        result: dict[fx.Node, Layers] = {}
        for source in node.all_input_nodes:
            if not is_tensor(source):
                continue
            for origin, layers in self.layers(source).items():
                for layer in layers:
                    result[origin] = laid(result.get(origin, ()), layer.expand(sizes))
        return {origin: layers for origin, layers in result.items() if len(layers) <= MOST_LAYERS}

    def halves(self, node: fx.Node) -> tuple[dict[fx.Node, Layers], dict[fx.Node, Layers]]:
        """Channels of what a gated linear unit multiplies, and of what it puts into the sigmoid that it multiplies with."""
        held, dim = self.layers(node.args[0]), argument(node, "dim")
        first, second = (
            {origin: tuple(layer.chunk(2, dim)[at] for layer in layers) for origin, layers in held.items()}
            for at in (0, 1)
        )
        return first, second

    def is_token_wise(self, node: fx.Node, origin: fx.Node) -> bool:
        """Whether each token of a value [… d] is made of the same token, and no other, of what a projection makes."""
        layers = self.layers(node).get(origin, ())
        if not layers or bool((torch.stack(layers).amax(0) < 0).any()):
            return False
        lead, before = shape(node)[:-1], shape(origin)[:-1]
        tokens = (
            torch.stack(layers)[:, None].flatten(1, -2) // shape(origin)[-1]
        )  # no axis of tokens is one token
        first = tokens.amax((0, 2))
        if not bool(((tokens == first[:, None]) | (tokens < 0)).all()):
            return False
        if lead == before:
            return torch.equal(first, torch.arange(len(first)))
        return len(first) == prod(before) == len(first.unique())  # axes may have changed places


def is_elementwise(node: fx.Node) -> bool:
    """Whether each number of a value is made of those at its own place.

    What compares says of numbers which is larger, and is made of none.
    """
    if operator_name(node) in POINTWISE:
        return True
    return (
        is_pointwise(node)
        and is_tensor(node)
        and (value(node).is_floating_point() or value(node).is_complex())
    )


def is_side_by_side(node: fx.Node) -> bool:
    """Whether a node puts the channels of some values side by side, as those of heads; tokens in a row are not meant."""
    if is_call(node, "stack"):
        return True
    return is_call(node, "cat") and argument(node, "dim") in (-1, value(node).dim() - 1)


def constant_of(node: fx.Node) -> Tensor | None:
    """The whole numbers that a node holds, where they are a constant of the model's code."""
    while is_call(node, "detach", "to", "lift_fresh_copy", "clone", "alias"):
        node = node.args[0]  # type: ignore[assignment]
    held = node.meta.get(CONSTANT)
    return held if isinstance(held, Tensor) else None


def rerun(node: fx.Node, index: Tensor) -> Any:
    """Do to channel numbers what a node does to its input, at the sizes of the trace."""

    def concrete(arg: fx.Node) -> Any:
        if arg is node.args[0]:
            return index
        seen = value(arg)
        return hint(seen) if isinstance(seen, (int, torch.SymInt)) else torch.zeros(shape(arg))

    if operator_name(node) in ("to", "contiguous", "clone", "alias", "detach"):
        return index
    if operator_name(node) in ("view", "_unsafe_view"):
        return index.reshape(shape(node))
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), concrete)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def downstream(
    node: fx.Node, projections: Mapping[fx.Node, Projection], order: Mapping[fx.Node, int]
) -> list[fx.Node]:
    """The projections that read a value first, alone or beside others: through data movement and elementwise operations.

    Through no residual sum.
    """
    found: list[fx.Node] = []
    queue, seen = [node], {node}
    while queue:
        current = queue.pop(0)
        for user in current.users:
            if user in projections:
                if projections[user].x is current and user not in found:
                    found.append(user)
            elif (
                user not in seen
                and (
                    operator_name(user) in MOVES | SPLITS
                    or is_elementwise(user)
                    or user.target is operator.getitem
                    or is_side_by_side(user)
                )
                and not is_residual(user, order)
            ):
                seen.add(user)
                queue.append(user)
        if found:
            break
    return found
