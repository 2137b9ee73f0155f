"""The record that passes between stages: one captured graph, and how a call's arguments meet its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import fx

from peftc.graphs.sizes import SizeConditions


@dataclass(frozen=True)
class Program:
    """One captured call.

    Attributes:
        graph: placeholders are the call's tensors in order of `inputs`, then what is `given`; `get_attr` nodes name parameters,
            buffers and constants of `root`'s model by full path; the output is what the model returns.
        root: path of the module that was called; "" for the whole model.
        inputs: name of every tensor of the call ("input_ids", "past_key_values.3").
        sizes: what it asks of the sizes of its inputs.
        ones: inputs that must be all ones for this program to hold.
        training: whether the model was in training mode.
        mixed: whether some of its modules were in the other mode.
        answers: what data must say at each branch that the code takes by it, for this program to hold.
        given: arguments that it changes or returns as the objects that they are: placeholders after the tensors'.
        lengths: class → attributes of what it returns or changes that are numbers which change from call to call.
    """

    graph: fx.Graph
    root: str
    inputs: tuple[str, ...]
    sizes: SizeConditions = field(default_factory=SizeConditions)
    ones: tuple[str, ...] = ()
    training: bool = False
    mixed: bool = False
    answers: tuple[bool, ...] = ()
    given: tuple[str, ...] = ()
    lengths: Mapping[type, frozenset[str]] = field(default_factory=dict, hash=False)

    def with_graph(self, graph: fx.Graph, **changes: object) -> Program:
        """The same call with another graph."""
        return replace(self, graph=graph, **changes)  # type: ignore[arg-type]


def copy_graph(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy that keeps names and metadata, and where each node went."""
    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copied = new.node_copy(node, lambda source: env[source])
        copied.meta = dict(node.meta)
        env[node] = copied
    return new, env
