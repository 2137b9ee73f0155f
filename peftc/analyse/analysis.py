"""The record of what one graph shows of a model: every site, once, with all its uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import fx, nn

from peftc.analyse.findings import Findings
from peftc.analyse.overlooked import overlooked
from peftc.analyse.paths import is_ours
from peftc.analyse.site import Site, Use
from peftc.analyse.sites import sites


@dataclass(frozen=True)
class Located:
    """A site, and every use that one graph makes of it."""

    site: Site
    uses: tuple[Use, ...] = field(hash=False)


@dataclass(frozen=True)
class Analysis:
    """What one graph shows of a model.

    Attributes:
        located: every site, in graph order.
        unread: parameters that no output of this graph depends on.
        blocks: path of each repeated block, with its number.
        overlooked: for each weight that a product reads in a form that no site has, a linear site of no part whose
            evidence says so. It is for people: no rule acts on it.
    """

    located: tuple[Located, ...]
    unread: tuple[str, ...]
    blocks: Mapping[str, int] = field(hash=False)
    overlooked: tuple[Site, ...] = ()

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites as data."""
        return tuple(located.site for located in self.located)

    def find(self, site_id: str, role: str) -> Located | None:
        """The site of an id and role, if this graph has it."""
        for located in self.located:
            if located.site.role == role and located.site.id == site_id:
                return located
        return None


def analyse(graph: fx.Graph, root: nn.Module) -> Analysis:
    """Find every site of a normalised graph of `root`. Reads no parameter; computes positions on the CPU."""
    findings = Findings(graph, root)
    merged: dict[tuple[str, str], Located] = {}
    for site, use in sites(findings):
        key = (site.role, site.id)
        known = merged.get(key)
        merged[key] = Located(site, (use,)) if known is None else replace(known, uses=(*known.uses, use))
    read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    unread = tuple(name for name, _ in root.named_parameters() if name not in read and not is_ours(name))
    located = tuple(merged.values())
    left = overlooked(findings, [each.site for each in located])
    return Analysis(located, unread, findings.blocks, tuple(left))
