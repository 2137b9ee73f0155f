"""Which input of a graph says what is a token and what is padding, from what its attention masks are made of."""

from __future__ import annotations

from torch import fx

from peftc.analyse.attention import AttentionCore
from peftc.analyse.scopes import Scopes
from peftc.capture.masks import content_of
from peftc.graphs.reading import ancestors, is_call, is_tensor, shape, value


def token_inputs(cores: list[AttentionCore], scopes: Scopes) -> dict[str, tuple[fx.Node, ...]]:
    """The inputs [batch seq], of 1 and 0, whose content goes into a mask of an attention, by the side of its keys.

    Where what is added to scores depends on the text, so do masks; ids, by which rows are looked up, are no such input.
    """
    sides = [(core.node.kwargs.get("attn_mask"), scopes.of_core(core)) for core in cores]
    found: dict[str, dict[fx.Node, None]] = {}
    for mask, scope in dict.fromkeys(sides):
        if not isinstance(mask, fx.Node):
            continue
        of_side = found.setdefault("encoder" if scope == "cross" else scope, {})
        for node in content_of(mask, set(ancestors(mask))):
            if not is_tensor(node) or value(node).dim() != 2 or value(node).dtype.is_floating_point:
                continue
            if not any(is_call(user, "embedding") and user.args[1] is node for user in node.users):
                of_side.setdefault(node)
    return {side: tuple(nodes) for side, nodes in found.items()}


def tokens_of(inputs: tuple[fx.Node, ...], x: object) -> fx.Node | None:
    """The one that has the batch and the length of a value [batch seq …], or None where there is none or several."""
    if not is_tensor(x) or value(x).dim() < 3:
        return None
    # Export gives each input sizes of its own, so that those of the example decide; equal names settle a tie.
    fitting = [node for node in inputs if shape(node) == shape(x)[:2]]
    if len(fitting) > 1:
        fitting = [node for node in fitting if str(value(node).shape[1]) == str(value(x).shape[1])]
    return fitting[0] if len(fitting) == 1 else None


def begins_a_text(cores: list[AttentionCore]) -> bool:
    """Whether the tokens of a call are the first of their text: no attention has keys of a cache before them.

    A cache that was made as long as a text can become holds keys from its first call on: there, one token is a next one.
    """
    for core in cores:
        query, key = core.node.args[:2]
        if not is_tensor(query) or not is_tensor(key):
            continue
        queries, (_, heads, keys, width) = shape(query)[-2], shape(key)
        caches = [
            shape(node)[2]
            for node in ancestors(key)
            if node.op == "placeholder" and is_tensor(node) and value(node).dim() == 4
            and (shape(node)[1], shape(node)[3]) == (heads, width)
        ]  # fmt: skip
        if caches and keys > queries and (queries == 1 or keys not in caches):
            return False
    return True
