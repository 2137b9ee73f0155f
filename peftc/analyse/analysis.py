"""The record of what one graph shows of a model: every site, once, with all its uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import fx, nn

from peftc.analyse.findings import Findings
from peftc.analyse.identity import is_one, place, united
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

    def find(self, site: Site) -> Located | None:
        """Where this graph has a site, which may be another graph's: there it may have a name that it needs none for here."""
        for located in self.by_part.get((site.role, site.path, site.part), ()):
            if is_one(located.site, site):
                return located
        # One of a weight is known by its name too, since a tied one may be called otherwise.
        return None if site.made_of else self.by_place.get(place(site))

    @cached_property
    def by_place(self) -> Mapping[tuple[str, str], Located]:
        """Role and id → the site."""
        return {place(located.site): located for located in self.located}

    @cached_property
    def by_part(self) -> Mapping[tuple[str, str, str], Sequence[Located]]:
        """Role, path and part → the sites, which differ in their names at most."""
        found: dict[tuple[str, str, str], list[Located]] = {}
        for located in self.located:
            site = located.site
            found.setdefault((site.role, site.path, site.part), []).append(located)
        return found


def analyse(graph: fx.Graph, root: nn.Module) -> Analysis:
    """Find every site of a normalised graph of `root`. Reads no parameter; computes positions on the CPU."""
    findings = Findings(graph, root)
    located = tuple(Located(site, tuple(uses)) for site, uses in united(sites(findings)))
    read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    unread = tuple(name for name, _ in root.named_parameters() if name not in read and not is_ours(name))
    left = overlooked(findings, [each.site for each in located])
    return Analysis(located, unread, findings.blocks, tuple(left))
