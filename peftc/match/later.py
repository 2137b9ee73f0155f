"""Sites that a later program of a model has and its plan does not: the example call did not reach them."""

from __future__ import annotations

from collections.abc import Iterator

from peftc.analyse import Analysis, Site
from peftc.lang import is_on
from peftc.match.asking import not_asked
from peftc.match.plan import Plan


def unplanned(plan: Plan, analysis: Analysis) -> Iterator[Site]:
    """Linear sites of a program that rules of a plan ask for, with weights that no site of the plan has."""
    known = {path for site in plan.sites for path in site.weights.values()}
    for site in analysis.sites:
        if site.role == "linear" and site.weights["W"] not in known and is_asked(plan, site):
            yield site


def is_asked(plan: Plan, site: Site) -> bool:
    """Whether a rule of a plan means a site."""
    return any(
        site.role in section.match.role
        and bound.wants(section)
        and is_on(bound.rule, section, bound.options)
        and not_asked(bound, section, site) is None
        for bound in plan.rules
        for section in bound.rule.sections
    )
