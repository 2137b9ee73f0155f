"""Which sites a section of a rule means, by what the user named: parts, a path, layers. Knows no graph."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import replace

from peftc.analyse import Site
from peftc.lang import Bound, PartSelector, Section, goes_along
from peftc.lang.roles import OTHER, ROLES


def asks_for(selector: PartSelector, site: Site) -> bool:
    """Whether a selector means a site, by any of the parts that its weight plays."""
    return any(selector.accepts(site.role, part, site.scope) for part in (site.part, *site.also))


def told_part(site: Site) -> str:
    """What a site's part is called, its scope in front."""
    named = site.part or (OTHER if ROLES[site.role].parts else site.role)
    return f"{site.scope}.{named}" if site.scope else named


def not_asked(bound: Bound, section: Section, site: Site) -> str | None:
    """Why a section of a rule does not mean a site at all, by its part, path or layer; None where it does."""
    parts = bound.parts_of(section)
    if parts and not any(asks_for(selector, site) for selector in parts):
        said = ", ".join(selector.text for selector in parts)
        scoped = site.scope and any(selector.scope for selector in parts)
        return f"part {told_part(site) if scoped else site.part or OTHER} is not among {said}"
    if goes_along(bound.rule, section):
        return None
    if bound.path_glob is not None and not fnmatch.fnmatchcase(site.path, bound.path_glob):
        return f"path does not match {bound.path_glob}"
    if bound.layers is not None and site.layer not in bound.layers:
        where = "outside of any layer" if site.layer is None else f"layer {site.layer}"
        return f"{where}, not in {bound.layers.text}"
    return None


def left_by_choice(bound: Bound, section: Section, sites: Iterable[Site]) -> bool:
    """Whether the user's parts, path and layers leave out every site that a section would go to without them."""
    sites = [site for site in sites if site.role in section.match.role]
    return any(not_asked(plain(bound), section, site) is None for site in sites) and all(
        not_asked(bound, section, site) for site in sites
    )


def plain(bound: Bound) -> Bound:
    """A rule as it goes by itself, whatever the user named."""
    return replace(bound, parts=(), path_glob=None, layers=None)
