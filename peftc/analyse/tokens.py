"""Which input of a graph says what is a token and what is padding, from what its attention masks are made of."""

from __future__ import annotations

from torch import fx

from peftc.analyse.attention import AttentionCore
from peftc.capture.masks import content_of
from peftc.graphs.reading import ancestors, is_tensor, shape, value


def token_inputs(cores: list[AttentionCore]) -> tuple[fx.Node, ...]:
    """The inputs [batch seq], of 1 and 0, whose content goes into a mask of an attention."""
    masks = [core.node.kwargs.get("attn_mask") for core in cores]
    found: dict[fx.Node, None] = {}
    for mask in dict.fromkeys(mask for mask in masks if isinstance(mask, fx.Node)):
        for node in content_of(mask, set(ancestors(mask))):
            if is_tensor(node) and value(node).dim() == 2 and not value(node).dtype.is_floating_point:
                found.setdefault(node)
    return tuple(found)


def tokens_of(inputs: tuple[fx.Node, ...], x: object) -> fx.Node | None:
    """The one that has the batch and the length of a value [batch seq …], or None where there is none or several."""
    if not is_tensor(x) or value(x).dim() < 3:
        return None
    # Export gives each input sizes of its own, so that those of the example decide; equal names settle a tie.
    fitting = [node for node in inputs if shape(node) == shape(x)[:2]]
    if len(fitting) > 1:
        fitting = [node for node in fitting if str(value(node).shape[1]) == str(value(x).shape[1])]
    return fitting[0] if len(fitting) == 1 else None
