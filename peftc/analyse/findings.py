"""What the other modules here find out of one graph, together: sites are made of it."""

from __future__ import annotations

from torch import Tensor, fx, nn

from peftc.analyse.attention import attention_cores
from peftc.analyse.channels import ChannelFlow
from peftc.analyse.experts import mixtures
from peftc.analyse.feedforward import feed_forwards, without_taken
from peftc.analyse.numbering import rows_of
from peftc.analyse.outputs import Heads
from peftc.analyse.paths import lookup
from peftc.analyse.projections import projections
from peftc.analyse.scopes import Scopes
from peftc.analyse.site import Origin, Port
from peftc.analyse.streams import order_of
from peftc.analyse.structure import block_of, block_paths
from peftc.analyse.tables import table_parts
from peftc.analyse.tokens import token_inputs, tokens_of
from peftc.graphs.reading import CONSTANT, module_path
from peftc.graphs.shared_modules import SharedModules


class Findings:
    """All of it, and where a node of the graph belongs in the model."""

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.graph, self.root = graph, root
        self.shared = SharedModules(root)
        self.blocks = block_paths(root)
        self.order = order_of(graph)
        self.projections = projections(graph)
        self.flow = ChannelFlow(self.projections, self.order)
        cores = attention_cores(graph, self.projections, self.flow)
        self.feed_forwards = feed_forwards(graph, self.projections, self.flow, cores)
        self.cores = without_taken(cores, self.feed_forwards)
        self.mixtures = mixtures(graph, self.projections)
        chosen = [node for mixture in self.mixtures for node in mixture.routers]
        others = [*chosen, *(core.o for core in self.cores if core.o is not None)]
        self.heads = set(Heads(graph, self.projections, self.blocks, self.order, others).found())
        self.windows: dict[object, int] = {}
        self.names: dict[int, str] = {}
        for name, parameter in root.named_parameters(remove_duplicate=False):
            self.names.setdefault(id(parameter), name)
        self.scopes = Scopes(self.cores, self.projections)
        self.token_inputs = token_inputs(self.cores, self.scopes)
        self.tables = table_parts(graph, lambda path: lookup(self.root, path))

    def layer(self, node: fx.Node) -> int | None:
        """Number of the block around a node."""
        block = block_of(node, self.blocks)
        return None if block is None else self.blocks[block[0]]

    def owner(self, node: fx.Node, weight: str) -> str:
        """Path of the module that owns a weight where `node` uses it: the one around the node if it has it."""
        path = module_path(node)
        try:
            module = self.root.get_submodule(path)
            tensor = lookup(self.root, weight)
        except AttributeError:
            return weight.rpartition(".")[0]
        if any(own is tensor for own in module.parameters(recurse=False)):
            return path
        return weight.rpartition(".")[0]

    def origin(self, node: fx.Node, channels: Tensor | None = None) -> Origin:
        """What a projection reads of which weight: a tied one by the first of its names, the same in all programs."""
        projection = self.projections[node]
        rows = None if channels is None else rows_of(channels, projection.d_out)
        return self.own_name(projection.matrix.weight), projection.matrix.rows(rows, projection.d_out)

    def own_name(self, weight: str) -> str:
        """The first of the names that the model has for a weight."""
        return self.names.get(id(lookup(self.root, weight)), weight)

    def with_tokens(self, ports: dict[str, Port], of: str) -> dict[str, Port]:
        """The ports, and what says which of the tokens of one of them are real, where the call has it."""
        source = ports[of].source if of in ports else None
        if not isinstance(source, fx.Node):
            return ports
        # Both texts may be of one length: only a mask of this side's keys tells of its tokens.
        node = tokens_of(self.token_inputs.get(self.scopes.of(source), ()), source)
        return ports if node is None else {**ports, "tokens": Port("value", node)}

    def held(self, path: str) -> Tensor:
        """The tensor at a path, or the small constant of the model's code that a graph has there."""
        for node in self.graph.nodes:
            if node.op == "get_attr" and node.target == path and CONSTANT in node.meta:
                return node.meta[CONSTANT]  # type: ignore[no-any-return]
        return lookup(self.root, path)
