"""Which parts projections play in the attentions and feed-forward networks that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from peftc.analyse.attention import AttentionCore
from peftc.analyse.experts import Experts
from peftc.analyse.feedforward import FeedForward
from peftc.analyse.projections import Projection
from peftc.analyse.routers import routers
from peftc.analyse.scopes import Scopes


@dataclass(frozen=True, eq=False)
class Part:
    """One part that a projection plays.

    Attributes:
        name: word of the table of roles; "" for a projection that plays none.
        channels: numbers of the output channels that play it, counting up; None where all do.
        scope: "encoder", "decoder" or "cross" where a model has them, else "".
        evidence: what in the data flow gave the part.
    """

    name: str
    channels: Tensor | None = None
    scope: str = ""
    evidence: str = ""


def parts_played(
    projections: Mapping[fx.Node, Projection],
    cores: Iterable[AttentionCore],
    networks: Iterable[FeedForward],
    scopes: Scopes,
    mixtures: Iterable[Experts] = (),
) -> dict[fx.Node, list[Part]]:
    """The parts of each projection that plays some; a fused one plays several."""
    networks = list(networks)
    played: dict[fx.Node, list[Part]] = {}
    for core in cores:
        scope = scopes.of_core(core)
        for projection, parts in core.parts.items():
            for name, channels in parts.items():
                evidence = f"its channels reach operand {name} of {core.node.name}"
                played.setdefault(projection, []).append(Part(name, channels, scope, evidence))
        if core.o is not None:
            evidence = f"first product that reads {core.node.name}"
            played.setdefault(core.o, []).append(Part("o", None, scope, evidence))
    for network in networks:
        for name, node in (("gate", network.gate), ("up", network.up), ("down", network.down)):
            if node is not None:
                evidence = f"{name} of a feed-forward network with {network.activation}"
                played.setdefault(node, []).append(Part(name, network.channels.get(name), evidence=evidence))
    for mixture in mixtures:
        for name, node in (("up", mixture.up), ("down", mixture.down)):
            if node in projections:
                played.setdefault(node, [Part(name, evidence=f"the {name} product of a mixture of experts")])
        for node in mixture.routers:
            played.setdefault(node, [Part("router", evidence=f"chooses rows for {mixture.up.name}")])
    for node in routers(networks, projections):
        played.setdefault(node, [Part("router", evidence="weighs what several feed-forward networks make")])
    return {node: each_once(parts) for node, parts in played.items()}


def each_once(parts: Iterable[Part]) -> list[Part]:
    """Parts of one projection, each once: what several attentions read of it as one part, such as a head each, is one."""
    found: dict[str, Part] = {}
    for part in parts:
        known = found.setdefault(part.name, part)
        if known.channels is not None:
            both = None if part.channels is None else torch.cat([known.channels, part.channels]).unique()
            found[part.name] = replace(known, channels=both)
    return list(found.values())


def rest_of(parts: Iterable[Part], d_out: int) -> list[Part]:
    """What of a projection none of its parts is made of: a latent, a gate, or what another use reads."""
    left = torch.ones(d_out, dtype=torch.bool)
    for part in parts:
        if part.channels is None:
            return []
        left[part.channels] = False
    rest = left.nonzero().flatten()
    return (
        [Part("", rest, evidence="the channels that play no part of those that others play")]
        if len(rest)
        else []
    )
