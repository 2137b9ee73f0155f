"""Parameters that are those of saved adapters, one behind the other: whether these fit a plan. Opens no folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from peftc.errors import MatchError, SavedAdapterError
from peftc.match.plan import Application, NewParameter, Plan

SavedTensors: TypeAlias = Mapping[tuple[str, str, str], Tensor]
"""The tensors of one adapter: (role, site id, name of a parameter) → tensor."""

WHERE = "saved adapters"


def stacked(application: Application, parameter: NewParameter, saved: Mapping[str, SavedTensors]) -> Tensor:
    """What saved adapters hold of a parameter at a site, along a new first axis, in the order in which they are given.

    Raises:
        SavedAdapterError: one of them has it not, or in another shape.
    """
    site, found = application.site, list[Tensor]()
    for name, tensors in saved.items():
        tensor = tensors.get((site.role, site.id, parameter.saved))
        if tensor is None:
            there = sorted({other for role, other, _ in tensors if role == site.role})
            raise SavedAdapterError(
                f"{name!r} has no {parameter.saved} at {site.id}, where {application.rule} reads it",
                where=WHERE,
                hint=f"it acts at: {', '.join(there[:4])}{', …' if len(there) > 4 else ''}"
                if there
                else None,
            )
        if tensor.shape != parameter.shape[1:]:
            raise SavedAdapterError(
                f"{parameter.saved} of {name!r} is {list(tensor.shape)} at {site.id}, "
                f"and {list(parameter.shape[1:])} for {application.rule} on this model",
                where=WHERE,
            )
        found.append(tensor)
    return torch.stack(found)


def refuse_foreign(plan: Plan, saved: Mapping[str, SavedTensors]) -> None:
    """Raise unless a plan that reads saved adapters is given some, each of whose sites the model has."""
    reading = next((each for each in plan.applications for made in each.parameters if made.saved), None)
    if reading is None:
        return
    if not saved:
        raise MatchError(
            f"{reading.rule} is made of trained adapters, and none are given",
            hint="compile(..., saved={name: folder, …}) takes them, --saved NAME=FOLDER on the command line",
        )
    known = {(site.role, site.id) for site in plan.sites}
    for name, tensors in saved.items():
        missing = sorted({site for role, site, _ in tensors if (role, site) not in known})
        if missing:
            raise SavedAdapterError(
                f"{name!r} is of another model: it acts at {missing[0]}, which this one has not",
                where=WHERE,
                hint=f"and at {len(missing) - 1} more of its sites" if len(missing) > 1 else None,
            )
