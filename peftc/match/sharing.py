"""Which new parameters are one tensor, and what a tensor is drawn with. Makes none."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from peftc.analyse import Site
from peftc.errors import MatchError
from peftc.lang import Bound, Constant, Parameter
from peftc.match.plan import NewParameter, Plan


def shared(bound: Bound, number: int, site: Site, name: str, parameter: Parameter) -> str:
    """What tells a shared tensor apart from others; nothing for one that is a site's own."""
    where = {"site": None, "layer": f"layer {site.layer}", "model": "model"}[parameter.share]
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
    where = {"site": site.id, "layer": site.layer, "model": ""}[parameter.share]
    told = f"{given} {bound.rule.name} {number} {name} {where}"
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:7])


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
