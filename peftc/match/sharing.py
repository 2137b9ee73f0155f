"""Which new parameters are one tensor, and what a tensor is drawn with. Makes none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from peftc.analyse import Site
from peftc.errors import MatchError
from peftc.lang import ROLES, Bound, Constant, Parameter, Section, signature
from peftc.lang.sizes import WIDEST
from peftc.match.plan import Application, NewParameter, Plan

WEIGHTED = ("linear", "embedding")
"""The roles whose sites are uses of a weight of the model."""


def tied(sites: Sequence[Site]) -> Mapping[Site, str]:
    """Sites at which the model uses one weight under several names, with what tells that weight: they are one."""
    groups: dict[tuple[object, ...], list[Site]] = {}
    for site in sites:
        if site.role in WEIGHTED:
            groups.setdefault((site.role, site.matrix, site.rows), []).append(site)
    found: dict[Site, str] = {}
    for group in groups.values():
        weight, stored = group[0].matrix
        also = any(each.matrix != (weight, stored) and each.matrix[0] == weight for each in sites)
        if len({site.path for site in group}) > 1:
            found |= dict.fromkeys(group, f"tied {weight}" + (" turned" if also and stored else ""))
    return found


def shared(bound: Bound, number: int, site: Site, name: str, parameter: Parameter, tie: str = "") -> str:
    """What tells a shared tensor apart from others; nothing for one that is a site's own."""
    group = {"site": tie, "layer": f"layer {site.layer}", "scope": site.scope or "model", "model": "model"}
    where = group[parameter.share]
    return f"{bound.label}.{number}.{name} of the {where}" if where else ""


def seed(
    bound: Bound,
    number: int,
    site: Site,
    name: str,
    parameter: Parameter,
    options: Mapping[str, Constant],
) -> int | None:
    """What a tensor is drawn with: the rule's seed, and what tells the tensor apart. Not the label."""
    if parameter.seed is None:
        return None
    given = options[parameter.seed] if isinstance(parameter.seed, str) else parameter.seed
    where = {"site": site.id, "layer": site.layer, "scope": site.scope, "model": ""}[parameter.share]
    told = f"{given} {bound.rule.name} {number} {name} {where}"
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:7])


def widest(section: Section, site: Site, parameter: Parameter, sites: Sequence[Site]) -> dict[str, int]:
    """The largest size of each axis among the sites that share a parameter with this one, under its name in sizes."""
    if parameter.share == "site":
        return {}
    found: dict[str, int] = {}
    for other in sites:
        together = {"layer": other.layer == site.layer, "scope": other.scope == site.scope, "model": True}
        if together[parameter.share]:
            for axis, size in signature(section, other.role, other.stack).sizes_at(other.sizes).items():
                found[f"{WIDEST}({axis})"] = max(size, found.get(f"{WIDEST}({axis})", 0))
    return found


def refuse_misfits(plan: Plan) -> None:
    """Raise MatchError if places that share a parameter need it in different shapes."""
    first: dict[str, NewParameter] = {}
    for parameter in plan.new_parameters:
        other = first.setdefault(parameter.shared or parameter.path, parameter)
        if other.shape != parameter.shape:
            raise MatchError(
                f"{parameter.name} is shared, but its places need it in different shapes",
                detail=tuple(f"{list(each.shape)} at {each.path}" for each in (other, parameter)),
                hint="choose parts of one size",
            )
        if (other.settings, other.seed) != (parameter.settings, parameter.seed):
            raise MatchError(
                f"{parameter.name} is shared, but its places would start it differently",
                detail=tuple(
                    f"{each.law} {dict(each.settings)} at {each.path}" for each in (other, parameter)
                ),
                hint="give its options for all sites alike",
            )


def shared_edit(application: Application, port: str) -> tuple[str, ...]:
    """What tells an edit that is one for several names of a weight; nothing for any other."""
    keys = [each.shared for each in application.parameters]
    return (
        (application.site.weights[port], port, str(application.site.rows), *keys)
        if keys and all(keys)
        else ()
    )


def leaks(plan: Plan) -> Iterator[tuple[Application, Site]]:
    """Each application that changes a weight which is read elsewhere too, and where: as a tied head does a table."""
    acting: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    changing = [
        (application, port, (application.rule, *shared_edit(application, port)))
        for application in plan.applications
        for port in plan.section(application).merge
        if port in application.site.weights  # a bias that is not there is read by nobody
    ]
    for application, _, edit in changing:
        acting.setdefault((application.site.role, application.site.path), set()).add(edit)
    for application, port, edit in changing:
        for other in plan.sites:
            same_edit = len(edit) > 1 and edit in acting.get((other.role, other.path), ())
            if reads(other, application.site, port) and not same_edit:
                yield application, other
                break


def reads(other: Site, site: Site, port: str) -> bool:
    """Whether another site reads what an edit changes of a weight: the same weight, and channels of it that overlap."""
    one, two = (
        ("linear" if each.role == "head" else each.role, each.path, each.matrix[1]) for each in (other, site)
    )
    aside = other.role == "tensor" or ROLES[other.role].grows  # they name a weight that another site reads
    if one == two or aside or site.weights[port] not in other.weights.values():
        return False
    if other.rows is None or site.rows is None:
        return True
    return any(a < d and c < b for a, b in site.rows for c, d in other.rows)
