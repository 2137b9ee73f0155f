"""What a user named that a model or a rule does not have, even when another part or layer matched: an error, not less done."""

from __future__ import annotations

from collections.abc import Sequence

from peftc.analyse import Analysis, Site
from peftc.errors import NoMatchError, UnknownPartError
from peftc.lang import Bound, PartSelector, accompanies, is_on, off
from peftc.match.asking import asks_for, told_part
from peftc.match.unfound import unfound


def refuse_unknown_parts(bound: Bound, analysis: Analysis) -> None:
    """Raise if the user named a part that no site of the model has, even when another one matched."""
    sites = [site for site in analysis.sites if site.role in bound.roles]
    left = [site for site in analysis.overlooked if site.role in bound.roles]
    for selector in bound.parts:
        refuse_idle_part(bound, selector)
        if any(asks_for(selector, site) for site in (*sites, *left)):
            continue
        there = sorted({told_part(site) for site in sites})
        raise UnknownPartError(
            f"{bound.label}: this model has no part {selector.text!r}",
            detail=(*told(left, 3), *unfound([bound], analysis)),
            hint=f"it has: {', '.join(there)}" if there else f"it has no {' or '.join(bound.roles)} at all",
        )


def refuse_idle_part(bound: Bound, selector: PartSelector) -> None:
    """Raise if the user named a part, and all sections that can have it are off."""
    rule = bound.rule
    having = [
        each
        for each in rule.sections
        if not accompanies(rule, each) and selector.within(rule, each) and selector.part
    ]
    reasons = {off(rule, each, bound.options) for each in having} - {None}
    if reasons and not any(is_on(rule, each, bound.options) for each in having):
        raise NoMatchError(
            f"{bound.label} does nothing at {selector.text!r} with these options",
            detail=sorted(map(str, reasons)),
        )


def refuse_unknown_layers(bound: Bound, analysis: Analysis) -> None:
    """Raise if the user named a layer that the model does not have, even when another one matched."""
    there = {site.layer for site in analysis.sites if site.layer is not None}
    if bound.layers is None or not (beyond := bound.layers.beyond(there)):
        return
    said = f"layer {beyond[0]}" if len(beyond) == 1 else f"layers {joined(beyond)}"
    raise NoMatchError(
        f"{bound.label}: this model has no {said}",
        hint=f"it has: {joined(sorted(there))}" if there else "it has no layers at all",
    )


def joined(numbers: Sequence[int]) -> str:
    """Numbers in order, those in a row as a range: `0-3, 7`."""
    starts = [number for index, number in enumerate(numbers) if not index or numbers[index - 1] != number - 1]
    stops = [
        number for index, number in enumerate(numbers) if number + 1 not in numbers[index + 1 : index + 2]
    ]
    return ", ".join(
        str(start) if start == stop else f"{start}-{stop}" for start, stop in zip(starts, stops, strict=True)
    )


def told(left: Sequence[Site], most: int) -> tuple[str, ...]:
    """Some of the weights that no site has, a line each, with what reads them."""
    return tuple(f"{site.id}: {site.evidence}" for site in left[:most])
