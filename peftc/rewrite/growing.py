"""Makes room in a graph for rows in front of what a model reads: a call that was grown comes in, its own length goes out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, fx

from peftc.analyse import Site
from peftc.capture.arguments import is_decoders, is_next_calls, kind_of
from peftc.graphs import operations
from peftc.graphs.reading import ADDED, MODULES, is_tensor, module_stack, shape, value

ROOM = "room"  # stands for the rules in the names of these nodes


def take_out(graph: fx.Graph, rows: fx.Node, count: int, site: Site) -> fx.Node:
    """The rows behind the first so many, which all that read the rows read from now on: rules put others in front."""
    nodes = iter(graph.nodes)
    after = (
        rows.next
        if rows.op != "placeholder"
        else next(n for n in nodes if n.op not in ("placeholder", "get_attr"))
    )
    with graph.inserting_before(after):
        real = graph.create_node(
            "call_function",
            operations.behind,
            (rows, count, 1),
            name=f"{site.path.replace('.', '_') or 'model'}__{ROOM}",
        )
    real.meta = {MODULES: module_stack(rows), ADDED: (ROOM, site.id)}
    rows.replace_all_uses_with(real, delete_user_cb=lambda user: user is not real)
    return real


def cut_outputs(graph: fx.Graph, count: int, site: Site, lengths: Collection[str]) -> None:
    """Let what a graph gives back be as long as what it was given, without the first so many tokens.

    What can be given to the next call, as a cache or an encoder's output, stays as it is.

    Args:
        lengths: what the graph calls the number of tokens of the input.
    """
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    cuts: dict[fx.Node, fx.Node] = {}

    def cut(leaf: fx.Node) -> fx.Node:
        if leaf not in cuts:
            cuts[leaf] = leaf
            for axis, size in enumerate(value(leaf).shape):
                if str(size) in lengths and (not isinstance(size, int) or axis == 1):
                    with graph.inserting_after(cuts[leaf]):
                        node = graph.create_node(
                            "call_function",
                            operations.behind,
                            (cuts[leaf], count, axis),
                            name=f"{leaf.name}__{ROOM}",
                        )
                    node.meta = {MODULES: (), ADDED: (ROOM, site.id)}
                    cuts[leaf] = node
        return cuts[leaf]

    def within(held: Any, name: str = "") -> Any:
        if is_next_calls(name):
            return held
        if isinstance(held, fx.Node):
            if is_tensor(held):
                return cut(held)
            if held.op == "call_function" and isinstance(held.target, type):
                held.kwargs = {key: within(item, key) for key, item in held.kwargs.items()}
            return held
        if isinstance(held, Mapping):
            return {key: within(item, str(key)) for key, item in held.items()}
        if isinstance(held, (list, tuple)):
            items = [within(item) for item in held]
            return type(held)(*items) if hasattr(held, "_fields") else type(held)(items)
        return held

    output.args = (within(output.args[0]),)


def token_lengths(graph: fx.Graph, site: Site, length: int) -> Iterator[str]:
    """What a graph calls the number of tokens of an input: each argument that comes with them has its own name for it."""
    for node in graph.nodes:
        if node.op != "placeholder" or not isinstance(value(node), Tensor):
            continue
        kind = kind_of(node.name)
        # Both texts may be of one length: only what comes with this side's tokens has its names.
        other_side = site.scope in ("encoder", "decoder") and is_decoders(node.name) != (
            site.scope == "decoder"
        )
        if kind is None or kind == "points" or other_side or value(node).dim() < 2:
            continue
        axis = -2 if kind == "rows" else -1
        if shape(node)[axis] == length:
            yield str(value(node).shape[axis])
