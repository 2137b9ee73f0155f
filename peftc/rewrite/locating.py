"""Where a graph has the site that a plan has in mind."""

from __future__ import annotations

from dataclasses import replace

from peftc.analyse import GIVEN, Analysis, Located, Site
from peftc.errors import ProgramError
from peftc.lang.roles import ROLES
from peftc.match.plan import Application


def locate(analysis: Analysis, application: Application, root: str) -> Located | None:
    """Where a graph has the site of an application: by its id, or for a linear map by its weight."""
    site = application.site
    found = analysis.find(site)
    if found is not None and own_name(found.site) == own_name(site):
        return found
    if ROLES[site.role].grows:
        return located_input(analysis, site, root)
    if site.role == "embedding":  # which part it is, a call may tell more or less of
        for located in analysis.located:
            same = (located.site.role, located.site.path) == (site.role, site.path)
            if same and own_name(located.site) == own_name(site):
                return Located(site, located.uses)
    if site.role == "linear":
        for located in analysis.located:
            if located.site.role == "linear" and located.site.matrix == site.matrix:
                if located.site.rows == site.rows:
                    return Located(site, located.uses)
                if all(use.rows == located.site.rows for use in located.uses):  # of a product with all of it
                    return Located(site, tuple(replace(use, rows=site.rows) for use in located.uses))
    inside = not root or site.path == root or site.path.startswith(f"{root}.")
    if (
        site.role == "attention"
        and inside
        and any(located.site.path == site.path for located in analysis.located)
    ):
        raise ProgramError(
            f"this call does not show {site.id}, where {application.rule} acts",
            hint="call a module that contains the whole attention, or disable the adapters for this call",
        )
    return None


def located_input(analysis: Analysis, site: Site, root: str) -> Located | None:
    """Where a graph has an input: by its path, whichever part a call tells it to be; or given by the call itself."""
    there = [located for located in analysis.located if located.site.role == site.role]
    for located in there:
        if located.site.path == site.path and GIVEN not in (located.site.evidence, site.evidence):
            return Located(site, located.uses)
    inside = not root or site.path == root or site.path.startswith(f"{root}.")
    for located in there:
        alike = located.site.part == site.part or (root and len(there) == 1)
        if inside and alike and GIVEN in (located.site.evidence, site.evidence):
            return Located(site, located.uses)
    return None


def own_name(site: Site) -> str:
    """What a site's module calls its weight; a tied one has other paths in other programs."""
    return site.weights.get("W", "").rpartition(".")[2]
