"""What must hold of a graph between any two passes. Raises; never repairs."""

from __future__ import annotations

from torch import fx

from peftc.errors import InvalidGraphError


def verify(graph: fx.Graph) -> None:
    """Check order of definition, one output, unique names and users that agree with arguments.

    Raises:
        InvalidGraphError: names the node.
    """
    seen: set[fx.Node] = set()
    names: set[str] = set()
    outputs = 0
    for node in graph.nodes:
        for source in node.all_input_nodes:
            if source not in seen:
                raise InvalidGraphError(f"{node.name} uses {source.name} before it is made")
            if node not in source.users:
                raise InvalidGraphError(f"{source.name} does not know its user {node.name}")
        if node.name in names:
            raise InvalidGraphError(f"two nodes are named {node.name}")
        names.add(node.name)
        seen.add(node)
        outputs += node.op == "output"
    if outputs != 1:
        raise InvalidGraphError(f"a graph has one output, this has {outputs}")
