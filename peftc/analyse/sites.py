"""Every use of every site of one graph, from the findings of the other modules here. Merges nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import fx

from peftc.analyse.findings import Findings
from peftc.analyse.inputs import GIVEN, inputs
from peftc.analyse.layer_sites import attention_site, ffn_site, mixture_site, residual_sites
from peftc.analyse.linear_sites import convolution_sites, head_sites, linears
from peftc.analyse.norms import norms
from peftc.analyse.paths import is_ours, lookup
from peftc.analyse.positions import first_place, position_ports
from peftc.analyse.site import Gather, Port, Site, Use
from peftc.analyse.structure import block_of
from peftc.analyse.tables import reached
from peftc.analyse.tokens import begins_a_text
from peftc.graphs.reading import is_parameter, is_tensor, module_path, shape, value

SCOPED = frozenset({"linear", "attention", "ffn", "norm", "block", "embedding", "residual", "positions"})
"""The roles whose sites are on a side of a model with an encoder and a decoder."""


def sites(findings: Findings) -> Iterator[tuple[Site, Use]]:
    """Every use of every site, in graph order within each role."""
    for site, use in unscoped(findings):
        scope = site.scope or (findings.scopes.of(use.anchor) if site.role in SCOPED else "")
        yield replace(site, scope=scope, path=findings.shared.first(site.path)), use


def unscoped(findings: Findings) -> Iterator[tuple[Site, Use]]:
    """All of them; some know already which side of the model they are on."""
    yield from linears(findings)
    yield from convolution_sites(findings)
    for core in findings.cores:
        yield attention_site(findings, core)
    for network in findings.feed_forwards:
        if findings.projections[network.down].routing is None:  # of experts: a mixture's
            yield ffn_site(findings, network)
    for mixture in findings.mixtures:
        yield mixture_site(findings, mixture)
    yield from residual_sites(findings)
    yield from norm_sites(findings)
    yield from embeddings(findings)
    yield from input_sites(findings)
    yield from head_sites(findings)
    yield from block_sites(findings)
    yield from positions(findings)
    yield from tensors(findings)


def norm_sites(findings: Findings) -> Iterator[tuple[Site, Use]]:
    """Norms with a weight of the model."""
    for found in norms(findings.graph):
        path = findings.owner(found.node, found.weights["W"])
        sizes = {"d": shape(found.result)[found.axis]}
        site = Site(
            "norm", "", path, findings.layer(found.node), sizes, found.weights, evidence=found.said,
            computed=found.computed,
        )  # fmt: skip
        ports = {"x": Port("operand", found.node, 0), "y": Port("result", found.result)}
        yield site, Use(found.result, ports)


def embeddings(findings: Findings) -> Iterator[tuple[Site, Use]]:
    """Gathers of a table's rows."""
    for node, part in findings.tables.items():
        table: Any = node.args[0]
        sizes = dict(zip(("vocab", "d_model"), shape(table), strict=True))
        path = findings.owner(node, str(table.target))
        site = Site(
            "embedding",
            part,
            path,
            findings.layer(node),
            sizes,
            {"W": str(table.target)},
            evidence="gather of rows",
        )
        yield site, Use(node, {"ids": Port("value", node, 1), "y": Port("result", node)}, Gather(node))


def input_sites(findings: Findings) -> Iterator[tuple[Site, Use]]:
    """What the model reads."""
    for found in inputs(findings.graph, findings.tables, findings.cores, findings.projections, findings.held):
        table: Any = None if found.gather is None else found.gather.args[0]
        vocab, weights = ({}, {}) if table is None else ({"vocab": shape(table)[0]}, {"W": str(table.target)})
        places = places_for(findings, found.node)
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
        yield site, Use(found.node, findings.with_tokens({"h": Port("result", found.node)}, "h"))


def places_for(findings: Findings, rows: fx.Node) -> int | None:
    """For how many tokens in a row there are places in the table whose rows are added to some rows."""
    met, counts = reached(rows), []
    for node, part in findings.tables.items():
        if part == "position" and met & reached(node):
            first = first_place(node.args[1], lambda path: lookup(findings.root, path))
            counts.append(shape(node.args[0])[0] - (first or 0))  # type: ignore[arg-type]
    return min(counts, default=None)


def block_sites(findings: Findings) -> Iterator[tuple[Site, Use]]:
    """Repeated blocks: the value that enters and the value that leaves."""
    members: dict[tuple[str, str], list[fx.Node]] = {}
    for node in findings.graph.nodes:
        block = block_of(node, findings.blocks)
        if block is not None and node.op == "call_function" and is_tensor(node):
            members.setdefault(block, []).append(node)
    for (path, _), nodes in members.items():
        inside = set(nodes)
        leaving = [
            node for node in nodes if any(user not in inside and user.op != "output" for user in node.users)
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
            findings.blocks[path],
            {"d_model": shape(last)[-1]},
            evidence="one of a list of blocks",
        )
        begins = Port("value", last, number=int(begins_a_text(findings.cores)))
        yield site, Use(last, findings.with_tokens({"y": Port("result", last), "begins": begins}, "y"))


def positions(findings: Findings) -> Iterator[tuple[Site, Use]]:
    """Places that read where tokens stand."""
    for node, port in position_ports(findings.graph, lambda path: lookup(findings.root, path)):
        site = Site(
            "positions",
            "",
            module_path(node),
            findings.layer(node),
            {},
            evidence="whole numbers that count up",
        )
        yield site, Use(node, {"p": port})


def tensors(findings: Findings) -> Iterator[tuple[Site, Use]]:
    """Every parameter that the graph reads."""
    for node in findings.graph.nodes:
        if is_parameter(node) and not is_ours(str(node.target)):
            path = str(node.target)
            layer = next(
                (number for block, number in findings.blocks.items() if path.startswith(f"{block}.")), None
            )
            yield (
                Site("tensor", "", path, layer, {}, {"W": path}, evidence="a parameter that is read"),
                Use(node, {}),
            )
