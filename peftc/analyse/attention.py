"""Softmax attention: its core, and the projections that play q, k, v and o in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from peftc.analyse.channels import ChannelFlow, downstream
from peftc.analyse.projections import Projection
from peftc.graphs.reading import is_attention, shape


@dataclass(frozen=True)
class AttentionCore:
    """One attention.

    Attributes:
        node: the core.
        parts: projection → part → channel numbers that reach the core in that part.
        o: the projection that reads what was gathered, if there is one.
    """

    node: fx.Node
    parts: Mapping[fx.Node, Mapping[str, Tensor]]
    o: fx.Node | None

    def projection(self, part: str) -> fx.Node | None:
        """The first projection of a part."""
        return next((node for node, parts in self.parts.items() if part in parts), None)


def attention_cores(
    graph: fx.Graph, projections: Mapping[fx.Node, Projection], flow: ChannelFlow
) -> list[AttentionCore]:
    """Every softmax attention of a normalised graph, over tokens: what is weighed in one over heads or channels is none."""
    cores = []
    for node in graph.nodes:
        if not is_attention(node) or not is_over_tokens(node.args[1], flow):  # type: ignore[arg-type]
            continue
        parts: dict[fx.Node, dict[str, Tensor]] = {}
        for part, operand in zip("qkv", node.args[:3], strict=True):
            for origin, index in flow.of(operand).items():
                parts.setdefault(origin, {})[part] = index
        readers = downstream(node, projections, flow.order)
        cores.append(AttentionCore(node, parts, readers[0] if readers else None))
    return cores


def is_over_tokens(keys: fx.Node, flow: ChannelFlow) -> bool:
    """Whether keys [batch heads keys width] are of several tokens, or of some that no projection here makes, as a cache's."""
    each = flow.layers(keys)
    if shape(keys)[2] < 2 or not each:
        return True
    tokens = torch.full((1,), -1)
    for origin, held in each.items():
        for layer in held:
            tokens = torch.where(tokens < 0, layer.div(shape(origin)[-1], rounding_mode="floor"), tokens)
    return bool((tokens < 0).any() or (tokens.amax(2) > tokens.amin(2)).any())
