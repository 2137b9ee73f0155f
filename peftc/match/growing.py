"""How many rows the rules of a plan put in front of what a model reads, input by input. Makes none."""

from __future__ import annotations

from collections.abc import Mapping

from peftc.errors import MatchError
from peftc.lang import grown_by, signature
from peftc.lang.roles import ROLES
from peftc.match.plan import Application, Plan


def rows_of(plan: Plan, application: Application) -> int:
    """How many rows an application puts in front at its site."""
    site, section = application.site, plan.section(application)
    if not ROLES[site.role].grows or not section.rewrite:
        return 0
    sizes = signature(section, site.role).sizes_at(site.sizes)
    return grown_by(
        plan.bound(application.rule).rule, section, site.role, {**plan.options(application), **sizes}
    )


def rows_by_part(plan: Plan) -> Mapping[str, int]:
    """Part of an input → how many rows all rules together put in front of it.

    Raises:
        MatchError: two inputs of one part would become longer by different numbers of rows.
    """
    found: dict[str, dict[str, int]] = {}
    for site in plan.sites:
        if ROLES[site.role].grows:
            found.setdefault(site.part, {})[site.id] = 0
    for application in plan.applications:
        if rows := rows_of(plan, application):
            found[application.site.part][application.site.id] += rows
    for part, by_site in found.items():
        if len(set(by_site.values())) > 1:
            raise MatchError(
                f"inputs that come with the same tokens would become longer by different numbers of rows ({part})",
                detail=tuple(f"{rows} at {site}" for site, rows in by_site.items()),
                hint="let the rules go to all of them",
            )
    return {part: rows for part, by_site in found.items() if (rows := next(iter(by_site.values())))}
