"""The sites of linear maps: products with weights, convolutions and heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch import fx, nn

from peftc.analyse.channels import MOVES
from peftc.analyse.convolutions import GROUPS, convolutions
from peftc.analyse.findings import Findings
from peftc.analyse.matrices import EXPERTS
from peftc.analyse.numbering import rows_of
from peftc.analyse.outputs import is_given
from peftc.analyse.parts import Part, parts_played, rest_of
from peftc.analyse.projections import Projection
from peftc.analyse.site import Convolution, Port, Site, Use
from peftc.graphs.reading import is_call, operator_name, shape
from peftc.lang.roles import CONV


def linears(findings: Findings) -> Iterator[tuple[Site, Use]]:
    """One site for each part that a projection plays."""
    played = parts_played(
        findings.projections, findings.cores, findings.feed_forwards, findings.scopes, findings.mixtures
    )
    for node in findings.projections:
        alone = Part("head", evidence="makes the model's output") if node in findings.heads else None
        played.setdefault(node, [alone or Part("", evidence=unplayed(findings.projections[node].result))])
        played[node] += rest_of(played[node], findings.projections[node].d_out)
    found = [
        linear(findings, findings.projections[node], part) for node, parts in played.items() for part in parts
    ]
    yield from one_part_each(sorted(found, key=lambda pair: findings.order[pair[1].anchor]))


def unplayed(result: fx.Node) -> str:
    """What reads a product that no attention and no network has a part for."""
    readers, queue, seen = dict[str, None](), [result], {result}
    while queue:
        for user in queue.pop(0).users:
            if user.op == "output":
                readers["the output"] = None
            elif operator_name(user) not in MOVES:
                readers[user.name] = None
            elif user not in seen:
                seen.add(user)
                queue.append(user)
    named = ", ".join([*readers][:3]) + (", …" if len(readers) > 3 else "")
    return f"no part of an attention or a network: read by {named or 'nothing'}"


def linear(findings: Findings, projection: Projection, part: Part) -> tuple[Site, Use]:
    """One linear site."""
    node, matrix = projection.node, projection.matrix
    channels = None if part.channels is None else rows_of(part.channels, projection.d_out)
    rows = matrix.rows(channels, projection.d_out)
    d_out = projection.d_out if channels is None else sum(stop - start for start, stop in channels)
    site = Site(
        "linear",
        part.name,
        findings.owner(node, matrix.weight),
        findings.layer(node),
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
    ports = ports if matrix.count else findings.with_tokens(ports, "x")
    return site, Use(projection.result, ports, projection.routing, channels)


def convolution_sites(findings: Findings) -> Iterator[tuple[Site, Use]]:
    """Linear sites that are convolutions."""
    for kernel in convolutions(findings.graph):
        weights = {"W": kernel.weight} | ({"b": kernel.bias} if kernel.bias else {})
        site = Site(
            "linear",
            CONV,
            findings.owner(kernel.node, kernel.weight),
            findings.layer(kernel.node),
            kernel.sizes,
            weights,
            evidence=kernel.said,
            stack=GROUPS if kernel.groups > 1 else "",
            refolded=True,
        )
        ports = {"x": Port("operand", kernel.node, 0), "y": Port("result", kernel.node)}
        yield site, Use(kernel.node, ports, Convolution(kernel.node))


def head_sites(findings: Findings) -> Iterator[tuple[Site, Use]]:
    """Heads, told apart by whether they are as wide as the table of the tokens.

    That is the largest that a call's own ids are looked up in: a table of positions may be larger still. A call that
    gives no ids says nothing, and the model's largest table stands for it.
    """
    tables = [
        shape(node.args[0])[0]  # type: ignore[arg-type]
        for node in findings.graph.nodes
        if is_call(node, "embedding") and is_given(node.args[1])
    ] or [module.num_embeddings for module in findings.root.modules() if isinstance(module, nn.Embedding)]
    for node in findings.projections:
        if node not in findings.heads:
            continue
        projection = findings.projections[node]
        vocabulary = projection.d_out == max(tables, default=None)
        part = Part("vocabulary" if vocabulary else "task", evidence="makes the model's output")
        site, use = linear(findings, projection, part)
        yield replace(site, role="head"), use


def one_part_each(found: list[tuple[Site, Use]]) -> Iterator[tuple[Site, Use]]:
    """Linear sites whose weight plays other parts in other places play the first of them in all: they are one site."""
    parts: dict[object, dict[fx.Node, list[str]]] = {}
    for site, use in found:
        parts.setdefault((site.matrix, site.rows), {}).setdefault(use.anchor, []).append(site.part)
    for site, use in found:
        by_node = parts[site.matrix, site.rows]
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
