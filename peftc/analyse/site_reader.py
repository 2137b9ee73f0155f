"""Every use of every site of one graph, from the findings of the other modules here. Merges nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from peftc.analyse.attention import AttentionCore, attention_cores
from peftc.analyse.channels import MOVES, ChannelFlow, rows_of
from peftc.analyse.convolutions import GROUPS, convolutions
from peftc.analyse.experts import Experts, mixtures
from peftc.analyse.feedforward import FeedForward, feed_forwards
from peftc.analyse.inputs import GIVEN, inputs
from peftc.analyse.matrices import EXPERTS
from peftc.analyse.norms import norms
from peftc.analyse.parts import Part, parts_played, rest_of
from peftc.analyse.positions import first_place, position_ports
from peftc.analyse.projections import Projection, projections
from peftc.analyse.residuals import Residual, Seed, residuals
from peftc.analyse.scopes import Scopes
from peftc.analyse.site import Convolution, Gather, Port, Site, Use
from peftc.analyse.streams import order_of
from peftc.analyse.structure import block_of, block_paths
from peftc.analyse.tables import reached, table_parts
from peftc.analyse.tokens import begins_a_text, token_inputs, tokens_of
from peftc.analyse.windows import window_of
from peftc.graphs.reading import (
    CONSTANT,
    is_call,
    is_parameter,
    is_tensor,
    module_path,
    operator_name,
    shape,
    value,
)
from peftc.lang.roles import BOTH, CONV


def is_ours(path: str) -> bool:
    """Whether a parameter was put in by peftc."""
    return "peftc" in path.split(".")


def is_scaled(node: fx.Node) -> bool:
    """Whether a value is another times a number."""
    return is_call(node, "mul", "div") and isinstance(node.args[1], (int, float))


def is_shifted(node: fx.Node) -> bool:
    """Whether a value is another and a bias of the model's own."""
    return is_call(node, "add") and any(
        isinstance(each, fx.Node) and each.op == "get_attr" for each in node.args
    )


def is_capped(node: fx.Node) -> bool:
    """Whether a value is the middle of a cap: a tanh between a quotient and a product. Poolers end with a tanh alone."""
    return is_call(node, "tanh") and all(is_scaled(each) for each in (*node.users, *node.all_input_nodes))


def is_given(node: object) -> bool:
    """Whether a value is an input of the graph, at most moved."""
    while isinstance(node, fx.Node) and operator_name(node) in MOVES:
        node = node.args[0]
    return isinstance(node, fx.Node) and node.op == "placeholder"


SCOPED = frozenset({"linear", "attention", "ffn", "norm", "block", "embedding", "residual"})
"""The roles whose sites are on a side of a model with an encoder and a decoder."""


class SiteReader:
    """Walks one graph and yields (site, use) pairs."""

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.graph, self.root = graph, root
        self.blocks = block_paths(root)
        self.order = order_of(graph)
        self.projections = projections(graph)
        self.flow = ChannelFlow(self.projections, self.order)
        self.cores = attention_cores(graph, self.projections, self.flow)
        taken = {node for core in self.cores for node in core.parts} | {
            core.o for core in self.cores if core.o
        }
        self.feed_forwards = feed_forwards(graph, self.projections, self.flow, taken)
        self.mixtures = mixtures(graph, self.projections)
        self.heads = set(self.head_nodes())
        self.token_inputs = token_inputs(self.cores)
        self.windows: dict[object, int] = {}
        self.scopes = Scopes(self.cores, self.projections)
        self.tables = table_parts(graph, lambda path: lookup(self.root, path))

    def found(self) -> Iterator[tuple[Site, Use]]:
        """Every use of every site, in graph order within each role."""
        for site, use in self.unscoped():
            scope = site.scope or (self.scopes.of(use.anchor) if site.role in SCOPED else "")
            yield replace(site, scope=scope), use

    def unscoped(self) -> Iterator[tuple[Site, Use]]:
        """All of them; some know already which side of the model they are on."""
        yield from self.linears()
        yield from self.convolutions()
        for core in self.cores:
            yield self.attention(core)
        for network in self.feed_forwards:
            if self.projections[network.down].routing is None:  # of experts: a mixture's
                yield self.ffn(network)
        for mixture in self.mixtures:
            yield self.mixture(mixture)
        yield from self.residuals()
        yield from self.norms()
        yield from self.embeddings()
        yield from self.input_sites()
        yield from self.head_sites()
        yield from self.block_sites()
        yield from self.positions()
        yield from self.tensors()

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

    def linears(self) -> Iterator[tuple[Site, Use]]:
        """One site for each part that a projection plays."""
        played = parts_played(self.projections, self.cores, self.feed_forwards, self.scopes, self.mixtures)
        for node in self.projections:
            alone = Part("head", evidence="makes the model's output") if node in self.heads else Part("")
            played.setdefault(node, [alone])
            played[node] += rest_of(played[node], self.projections[node].d_out)
        found = [
            self.linear(self.projections[node], part) for node, parts in played.items() for part in parts
        ]
        yield from told_apart(one_part_each(sorted(found, key=lambda pair: self.order[pair[1].anchor])))

    def linear(self, projection: Projection, part: Part) -> tuple[Site, Use]:
        """One linear site."""
        node, matrix = projection.node, projection.matrix
        channels = None if part.channels is None else rows_of(part.channels, projection.d_out)
        rows = matrix.rows(channels, projection.d_out)
        d_out = projection.d_out if channels is None else sum(stop - start for start, stop in channels)
        site = Site(
            "linear",
            part.name,
            self.owner(node, matrix.weight),
            self.layer(node),
            {"d_in": projection.d_in, "d_out": d_out} | ({EXPERTS: matrix.count} if matrix.count else {}),
            {"W": matrix.weight} | ({"b": projection.bias} if projection.bias else {}),
            rows,
            part.scope,
            part.evidence,
            {"W": matrix.stored} if matrix.is_turned else {},
            EXPERTS if matrix.count else "",
            matrix.refolded,
        )
        ports = {"x": Port("operand", node, projection.at), "y": Port("result", projection.result)}
        ports = ports if matrix.count else self.with_tokens(ports, "x")
        return site, Use(projection.result, ports, projection.routing, channels)

    def convolutions(self) -> Iterator[tuple[Site, Use]]:
        """Linear sites that are convolutions."""
        for kernel in convolutions(self.graph):
            weights = {"W": kernel.weight} | ({"b": kernel.bias} if kernel.bias else {})
            site = Site(
                "linear",
                CONV,
                self.owner(kernel.node, kernel.weight),
                self.layer(kernel.node),
                kernel.sizes,
                weights,
                evidence=kernel.said,
                stack=GROUPS if kernel.groups > 1 else "",
                refolded=True,
            )
            ports = {"x": Port("operand", kernel.node, 0), "y": Port("result", kernel.node)}
            yield site, Use(kernel.node, ports, Convolution(kernel.node))

    def with_tokens(self, ports: dict[str, Port], of: str) -> dict[str, Port]:
        """The ports, and what says which of the tokens of one of them are real, where the call has it."""
        node = tokens_of(self.token_inputs, ports[of].source) if of in ports else None
        return ports if node is None else {**ports, "tokens": Port("value", node)}

    def attention(self, core: AttentionCore) -> tuple[Site, Use]:
        """The site of one attention core."""
        node = core.node
        q, k = shape(node.args[0]), shape(node.args[1])  # type: ignore[arg-type]
        v = shape(node.args[2])  # type: ignore[arg-type]
        sizes = {"heads": q[1], "kv_heads": k[1], "head_dim": q[3], "value_dim": v[3]}
        ports = {
            "q": Port("operand", node, 0),
            "k": Port("operand", node, 1),
            "v": Port("operand", node, 2),
            "mask": Port("operand", node, "attn_mask"),
            "y": Port("result", node),
        }
        query = core.projection("q")
        if query is not None:
            ports["h"] = Port("value", query, 0)
            sizes["d_model"] = self.projections[query].d_in
        mask = node.kwargs.get("attn_mask")
        if mask not in self.windows:
            self.windows[mask] = window_of(mask, lambda path: lookup(self.root, path))
        site = Site(
            "attention",
            "",
            module_path(node),
            self.layer(node),
            sizes,
            scope=self.scopes.of_core(core),
            evidence=f"softmax core {node.name}",
            window=self.windows[mask],
        )
        return site, Use(node, self.with_tokens(ports, "h"))

    def ffn(self, network: FeedForward) -> tuple[Site, Use]:
        """The site of one feed-forward network."""
        down, up = self.projections[network.down], self.projections[network.up]
        path = common_path(module_path(up.node), module_path(down.node))
        readers = [node for node in (network.gate, network.up) if node is not None]
        ports = {"x": Port("operand", readers[0], 0), "y": Port("result", down.node)}
        site = Site(
            "ffn",
            "",
            path,
            self.layer(down.node),
            {"d_model": down.d_out, "d_ff": down.d_in},
            evidence=f"{up.node.name}, {network.activation}, {down.node.name}",
        )
        return site, Use(down.node, self.with_tokens(ports, "x"))

    def mixture(self, experts: Experts) -> tuple[Site, Use]:
        """The site of a mixture of experts: one feed-forward network, whichever experts a token goes to."""
        ports = {"x": Port("operand", experts.reader, 0), "y": Port("result", experts.result)}
        site = Site(
            "ffn",
            "",
            common_path(module_path(experts.up), module_path(experts.result)),
            self.layer(experts.down),
            {"d_model": shape(experts.result)[-1]},
            evidence=f"rows sent to stacks of matrices, {experts.up.name} and {experts.down.name}",
        )
        return site, Use(experts.result, self.with_tokens(ports, "x"))

    def seeds(self) -> Iterator[Seed]:
        """What attentions and feed-forward networks make."""
        for core in self.cores:
            query = core.projection("q")
            if core.o is not None and query is not None:
                scope = "cross" if core.node in self.scopes.crossed else ""
                result = self.projections[core.o].result
                yield Seed(result, query, "attention", module_path(core.node), scope)
        for network in self.feed_forwards:
            down, up = self.projections[network.down], self.projections[network.up]
            if down.routing is None:
                path = common_path(module_path(up.node), module_path(down.node))
                yield Seed(down.result, network.gate or network.up, "ffn", path)
        for mixture in self.mixtures:
            path = common_path(module_path(mixture.up), module_path(mixture.result))
            yield Seed(mixture.result, mixture.reader, "ffn", path)

    def residuals(self) -> Iterator[tuple[Site, Use]]:
        """Residual sums."""
        results = {norm.node: norm.result for norm in norms(self.graph)}
        for found in residuals(self.seeds(), results, self.blocks, self.order):
            yield self.residual(found)

    def residual(self, found: Residual) -> tuple[Site, Use]:
        """The site of one residual sum."""
        parts = list(dict.fromkeys(seed.part for seed in found.seeds))
        path = found.seeds[0].path
        for seed in found.seeds[1:]:
            path = common_path(path, seed.path)
        site = Site(
            "residual",
            parts[0] if len(parts) == 1 else BOTH,
            path,
            self.layer(found.sum),
            {"d_model": shape(found.sum)[-1], "post_norms": int(found.norm is not None)},
            scope=found.seeds[0].scope,
            evidence=f"{found.sum.name} adds what is made of {found.seeds[0].result.name} to what that is made of",
        )
        ports = {
            "y": Port("operand", found.sum, found.key),
            "stream": Port("value", found.sum, 1 - found.key),
        }
        reads = found.seeds[0].reads
        ports["x"] = Port("value", reads, self.projections[reads].at if reads in self.projections else 0)
        if found.norm is not None:
            ports["normed"] = Port("value", found.norm, since=found.sum)
        return site, Use(found.sum, self.with_tokens(ports, "x"))

    def norms(self) -> Iterator[tuple[Site, Use]]:
        """Norms with a weight of the model."""
        for found in norms(self.graph):
            path = self.owner(found.node, found.weights["W"])
            sizes = {"d": shape(found.result)[found.axis]}
            site = Site(
                "norm", "", path, self.layer(found.node), sizes, found.weights, evidence=found.said,
                computed=found.computed,
            )  # fmt: skip
            ports = {"x": Port("operand", found.node, 0), "y": Port("result", found.result)}
            yield site, Use(found.result, ports)

    def embeddings(self) -> Iterator[tuple[Site, Use]]:
        """Gathers of a table's rows."""
        for node, part in self.tables.items():
            table: Any = node.args[0]
            sizes = dict(zip(("vocab", "d_model"), shape(table), strict=True))
            path = self.owner(node, str(table.target))
            site = Site(
                "embedding",
                part,
                path,
                self.layer(node),
                sizes,
                {"W": str(table.target)},
                evidence="gather of rows",
            )
            yield site, Use(node, {"ids": Port("value", node, 1), "y": Port("result", node)}, Gather(node))

    def input_sites(self) -> Iterator[tuple[Site, Use]]:
        """What the model reads."""
        for found in inputs(self.graph, self.tables, self.cores, self.projections, self.held):
            table: Any = None if found.gather is None else found.gather.args[0]
            vocab, weights = (
                ({}, {}) if table is None else ({"vocab": shape(table)[0]}, {"W": str(table.target)})
            )
            places = self.places(found.node)
            site = Site(
                "input",
                found.part,
                found.path,
                None,
                {"d_model": shape(found.node)[-1], **vocab, **({"places": places} if places else {})},
                weights,
                scope=found.scope,
                evidence=GIVEN if table is None else "rows of the tokens' table",
                factor=found.factor,
            )
            yield site, Use(found.node, self.with_tokens({"h": Port("result", found.node)}, "h"))

    def places(self, rows: fx.Node) -> int | None:
        """For how many tokens in a row there are places in the table whose rows are added to some rows."""
        met, counts = reached(rows), []
        for node, part in self.tables.items():
            if part == "position" and met & reached(node):
                first = first_place(node.args[1], lambda path: lookup(self.root, path))
                counts.append(shape(node.args[0])[0] - (first or 0))  # type: ignore[arg-type]
        return min(counts, default=None)

    def held(self, path: str) -> Tensor:
        """The tensor at a path, or the small constant of the model's code that a graph has there."""
        for node in self.graph.nodes:
            if node.op == "get_attr" and node.target == path and CONSTANT in node.meta:
                return node.meta[CONSTANT]  # type: ignore[no-any-return]
        return lookup(self.root, path)

    def head_nodes(self) -> Iterator[fx.Node]:
        """Projections outside any block whose product is an output of the model, at most moved, scaled, capped or shifted."""
        output = next(node for node in self.graph.nodes if node.op == "output")
        leaves = [leaf for leaf in pytree.tree_leaves(output.args) if isinstance(leaf, fx.Node)]
        seen: set[fx.Node] = set()
        while leaves:
            leaf = leaves.pop()
            if leaf in seen:
                continue
            seen.add(leaf)
            if leaf in self.projections:
                if block_of(leaf, self.blocks) is None:
                    yield leaf
            elif (
                not is_tensor(leaf)
                or operator_name(leaf) in MOVES
                or any(is_so(leaf) for is_so in (is_scaled, is_shifted, is_capped))
            ):
                leaves.extend(leaf.all_input_nodes)

    def head_sites(self) -> Iterator[tuple[Site, Use]]:
        """Heads, told apart by whether they are as wide as the table of the tokens.

        That is the largest that a call's own ids are looked up in: a table of positions may be larger still. A call that
        gives no ids says nothing, and the model's largest table stands for it.
        """
        tables = [
            shape(node.args[0])[0]  # type: ignore[arg-type]
            for node in self.graph.nodes
            if is_call(node, "embedding") and is_given(node.args[1])
        ] or [module.num_embeddings for module in self.root.modules() if isinstance(module, nn.Embedding)]
        for node in self.projections:
            if node not in self.heads:
                continue
            projection = self.projections[node]
            vocabulary = projection.d_out == max(tables, default=None)
            part = Part("vocabulary" if vocabulary else "task", evidence="makes the model's output")
            site, use = self.linear(projection, part)
            yield replace(site, role="head"), use

    def block_sites(self) -> Iterator[tuple[Site, Use]]:
        """Repeated blocks: the value that enters and the value that leaves."""
        members: dict[tuple[str, str], list[fx.Node]] = {}
        for node in self.graph.nodes:
            block = block_of(node, self.blocks)
            if block is not None and node.op == "call_function" and is_tensor(node):
                members.setdefault(block, []).append(node)
        for (path, _), nodes in members.items():
            inside = set(nodes)
            leaving = [
                node
                for node in nodes
                if any(user not in inside and user.op != "output" for user in node.users)
            ]
            # A model may end in a block; else what an output shows of one is no way on.
            leaving = leaving or [node for node in nodes if any(user.op == "output" for user in node.users)]
            if not leaving or value(leaving[-1]).dim() < 2:
                continue
            last = leaving[-1]
            site = Site(
                "block",
                "",
                path,
                self.blocks[path],
                {"d_model": shape(last)[-1]},
                evidence="one of a list of blocks",
            )
            begins = Port("value", last, number=int(begins_a_text(self.cores)))
            yield site, Use(last, self.with_tokens({"y": Port("result", last), "begins": begins}, "y"))

    def positions(self) -> Iterator[tuple[Site, Use]]:
        """Places that read where tokens stand."""
        for node, port in position_ports(self.graph, lambda path: lookup(self.root, path)):
            site = Site(
                "positions",
                "",
                module_path(node),
                self.layer(node),
                {},
                evidence="whole numbers that count up",
            )
            yield site, Use(node, {"p": port})

    def tensors(self) -> Iterator[tuple[Site, Use]]:
        """Every parameter that the graph reads."""
        for node in self.graph.nodes:
            if is_parameter(node) and not is_ours(str(node.target)):
                path = str(node.target)
                layer = next(
                    (number for block, number in self.blocks.items() if path.startswith(f"{block}.")), None
                )
                yield (
                    Site("tensor", "", path, layer, {}, {"W": path}, evidence="a parameter that is read"),
                    Use(node, {}),
                )


def one_part_each(found: list[tuple[Site, Use]]) -> Iterator[tuple[Site, Use]]:
    """Linear sites whose weight plays other parts in other places play the first of them in all: they are one site."""
    parts: dict[object, dict[fx.Node, list[str]]] = {}
    for site, use in found:
        parts.setdefault((site.weights["W"], site.rows), {}).setdefault(use.anchor, []).append(site.part)
    for site, use in found:
        by_node = parts[site.weights["W"], site.rows]
        own, first = by_node[use.anchor], next(iter(by_node.values()))[0]
        if all(each == own for each in by_node.values()):
            yield site, use
        elif own[0] == site.part:
            others = dict.fromkeys(
                part for each in by_node.values() for part in each if part and part != first
            )
            yield (
                replace(site, part=first, also=tuple(others), evidence=also_said(site.evidence, others)),
                use,
            )


def also_said(evidence: str, others: Iterable[str]) -> str:
    """The evidence of a site, with the parts that its weight plays elsewhere."""
    said = ", ".join(others)
    return f"{evidence}; elsewhere {said}" if said else evidence


def told_apart(found: Iterator[tuple[Site, Use]]) -> Iterator[tuple[Site, Use]]:
    """Linear sites, with the name of the weight where one module has several that play one part."""
    pairs = list(found)
    weights: dict[tuple[str, str], set[str]] = {}
    for site, _ in pairs:
        weights.setdefault((site.path, site.part), set()).add(site.weights["W"])
    for site, use in pairs:
        alone = len(weights[site.path, site.part]) == 1
        yield site if alone else replace(site, name=site.weights["W"].rpartition(".")[2]), use


def lookup(root: nn.Module, path: str) -> Tensor:
    """The tensor at a path."""
    owner, _, name = path.rpartition(".")
    tensor = getattr(root.get_submodule(owner), name)
    assert isinstance(tensor, Tensor)
    return tensor


def common_path(one: str, other: str) -> str:
    """The longest module path that two paths share."""
    shared = []
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        shared.append(a)
    return ".".join(shared)
