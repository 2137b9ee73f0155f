"""The sites of what layers are made of: attentions, feed-forward networks and the residual sums behind them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from peftc.analyse.attention import AttentionCore
from peftc.analyse.experts import Experts
from peftc.analyse.feedforward import FeedForward
from peftc.analyse.findings import Findings
from peftc.analyse.norms import norms
from peftc.analyse.paths import common_path, lookup
from peftc.analyse.residuals import Residual, Seed, between, residuals
from peftc.analyse.site import Origin, Port, Site, Use
from peftc.analyse.windows import window_of
from peftc.graphs.reading import is_tensor, module_path, shape
from peftc.lang.roles import BOTH


def attention_site(findings: Findings, core: AttentionCore) -> tuple[Site, Use]:
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
        sizes["d_model"] = findings.projections[query].d_in
    mask = node.kwargs.get("attn_mask")
    if mask not in findings.windows:
        findings.windows[mask] = window_of(mask, lambda path: lookup(findings.root, path))
    site = Site(
        "attention",
        "",
        module_path(node),
        findings.layer(node),
        sizes,
        scope=findings.scopes.of_core(core),
        evidence=f"softmax core {node.name}",
        window=findings.windows[mask],
        made_of=made_of_core(findings, core),
    )
    return site, Use(node, findings.with_tokens(ports, "h"))


def made_of_core(findings: Findings, core: AttentionCore) -> dict[str, tuple[Origin, ...]]:
    """The weights of an attention's parts."""
    found: dict[str, tuple[Origin, ...]] = {}
    for part in "qkv":
        for node, parts in core.parts.items():
            if part in parts:
                found[part] = (*found.get(part, ()), findings.origin(node, parts[part]))
    return found | ({} if core.o is None else {"o": (findings.origin(core.o),)})


def ffn_site(findings: Findings, network: FeedForward) -> tuple[Site, Use]:
    """The site of one feed-forward network."""
    down, up = findings.projections[network.down], findings.projections[network.up]
    path = common_path(module_path(up.node), module_path(down.node))
    ports = {"x": input_of(findings, network), "y": Port("result", down.node)}
    site = Site(
        "ffn",
        "",
        path,
        findings.layer(down.node),
        {"d_model": down.d_out, "d_ff": down.d_in},
        evidence=f"{up.node.name}, {network.activation}, {down.node.name}",
        made_of={
            part: (findings.origin(node, network.channels.get(part)),)
            for part, node in (("down", network.down), ("up", network.up), ("gate", network.gate))
            if node is not None
        },
    )
    return site, Use(down.node, findings.with_tokens(ports, "x"))


def input_of(findings: Findings, network: FeedForward) -> Port:
    """What a network reads: an operand of its first products, where these read one value and make nothing else."""
    nodes = dict.fromkeys(node for node in (network.gate, network.up) if node is not None)
    first, *others = sorted(
        (findings.projections[node] for node in nodes), key=lambda each: findings.order[each.node]
    )
    alike = all((each.x, each.at) == (first.x, first.at) for each in others)
    if not alike or not all(is_read_inside(node, network, findings) for node in nodes):
        return Port("value", first.node, first.at)
    return Port("operand", first.node, first.at, others=tuple(each.node for each in others))


def is_read_inside(node: fx.Node, network: FeedForward, findings: Findings) -> bool:
    """Whether nothing but a network reads what a product of it makes."""
    inside = {*between(node, findings.projections[network.down].x), network.down}
    return all(
        user in inside or not is_tensor(user) for each in inside - {network.down} for user in each.users
    )


def mixture_site(findings: Findings, experts: Experts) -> tuple[Site, Use]:
    """The site of a mixture of experts: one feed-forward network, whichever experts a token goes to."""
    x = Port("operand", experts.reader, 0, others=experts.others)
    ports = {"x": x, "y": Port("result", experts.result)}
    site = Site(
        "ffn",
        "",
        common_path(module_path(experts.up), module_path(experts.result)),
        findings.layer(experts.down),
        {"d_model": shape(experts.result)[-1]},
        evidence=f"rows sent to stacks of matrices, {experts.up.name} and {experts.down.name}",
        made_of={
            part: ((findings.own_name(path), None),)
            for part, path in zip(("up", "down"), experts.weights, strict=True)
        },
    )
    return site, Use(experts.result, findings.with_tokens(ports, "x"))


def seeds(findings: Findings) -> Iterator[Seed]:
    """What attentions and feed-forward networks make."""
    for core in findings.cores:
        query = core.projection("q")
        if core.o is not None and query is not None:
            scope = "cross" if core.node in findings.scopes.crossed else ""
            result = findings.projections[core.o].result
            made_of = findings.origin(core.o)
            yield Seed(result, query, "attention", module_path(core.node), made_of, scope)
    for network in findings.feed_forwards:
        down, up = findings.projections[network.down], findings.projections[network.up]
        if down.routing is None:
            path = common_path(module_path(up.node), module_path(down.node))
            yield Seed(down.result, network.gate or network.up, "ffn", path, findings.origin(network.down))
    for mixture in findings.mixtures:
        path = common_path(module_path(mixture.up), module_path(mixture.result))
        made_of = findings.own_name(mixture.weights[1]), None
        yield Seed(mixture.result, mixture.reader, "ffn", path, made_of)


def residual_sites(findings: Findings) -> Iterator[tuple[Site, Use]]:
    """Residual sums."""
    results = {norm.node: norm.result for norm in norms(findings.graph)}
    for found in residuals(seeds(findings), results, findings.blocks, findings.order):
        yield residual_site(findings, found)


def residual_site(findings: Findings, found: Residual) -> tuple[Site, Use]:
    """The site of one residual sum."""
    parts = list(dict.fromkeys(seed.part for seed in found.seeds))
    path = found.seeds[0].path
    for seed in found.seeds[1:]:
        path = common_path(path, seed.path)
    site = Site(
        "residual",
        parts[0] if len(parts) == 1 else BOTH,
        path,
        findings.layer(found.sum),
        {"d_model": shape(found.sum)[-1], "post_norms": int(found.norm is not None)},
        scope=found.seeds[0].scope,
        evidence=f"{found.sum.name} adds what is made of {found.seeds[0].result.name} to what that is made of",
        made_of={
            part: tuple(dict.fromkeys(seed.made_of for seed in found.seeds if seed.part == part))
            for part in parts
        },
    )
    ports = {
        "y": Port("operand", found.sum, found.key),
        "stream": Port("value", found.sum, 1 - found.key),
    }
    reads = found.seeds[0].reads
    ports["x"] = Port("value", reads, findings.projections[reads].at if reads in findings.projections else 0)
    if found.norm is not None:
        ports["normed"] = Port("value", found.norm, since=found.sum)
    return site, Use(found.sum, findings.with_tokens(ports, "x"))
