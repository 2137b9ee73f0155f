"""Which uses are of one site: those of the same weights. Others have ids of their own, told apart by the weights' names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import reduce

from peftc.analyse.paths import common_path
from peftc.analyse.site import Origin, Site, Use

WEIGHTED = frozenset(["linear", "norm", "embedding", "head"])
"""The roles whose sites are uses of one weight."""
MADE = ("q", "down", "attention", "ffn", "k", "v", "up", "gate", "o")
"""Parts of what other sites are made of, in the order in which they are asked for a name."""

Found = tuple[Site, list[Use]]


def united(found: Iterable[tuple[Site, Use]]) -> Iterator[Found]:
    """Each site once, with all its uses: one that several calls of a module use is one, whatever else it is called in."""
    groups: dict[tuple[str, str], list[Found]] = {}
    for site, use in found:
        group = groups.setdefault(place(site), [])
        for number, (known, uses) in enumerate(group):
            if is_one(known, site):
                group[number] = replace(known, made_of={**site.made_of, **known.made_of}), [*uses, use]
                break
        else:
            group.append((site, [use]))
    taken = {key for key, group in groups.items() if len(group) == 1}
    for group in groups.values():
        names = names_of([site for site, _ in group], taken) if len(group) > 1 else [group[0][0].name]
        for name, (site, uses) in zip(names, group, strict=True):
            yield replace(site, name=name), uses


def place(site: Site) -> tuple[str, str]:
    """What tells a site from all others of its model."""
    return site.role, site.id


def is_one(one: Site, other: Site) -> bool:
    """Whether two sites of one id are one. What a call does not show, as the keys that a cache has, tells nothing."""
    if one.role in WEIGHTED:
        return one.matrix == other.matrix
    shown = one.made_of.keys() & other.made_of.keys()
    return all(meet(one.made_of[part], other.made_of[part]) for part in shown)


def meet(some: Iterable[Origin], others: Collection[Origin]) -> bool:
    """Whether two parts are made of the same rows of a weight, at least of some."""
    return any(weight == own and overlap(rows, held) for weight, rows in some for own, held in others)


def overlap(some: Sequence[tuple[int, int]] | None, others: Sequence[tuple[int, int]] | None) -> bool:
    """Whether ranges have something in common; None is all there is."""
    if some is None or others is None:
        return True
    return any(a < d and c < b for a, b in some for c, d in others)


def names_of(sites: Sequence[Site], taken: Collection[tuple[str, str]]) -> Sequence[str]:
    """Names for sites of one id: each other, and no longer than they have to be; they are of the weights' own paths."""
    for names in proposed(sites):
        ids = {place(replace(site, name=name)) for site, name in zip(sites, names, strict=True)}
        if len(ids) == len(sites) and ids.isdisjoint(taken):
            return names
    return [str(number) for number, _ in enumerate(sites)]


def proposed(sites: Sequence[Site]) -> Iterator[list[str]]:
    """Lists of names, one for each site, the best ones first."""
    told = [{"W": ((site.weights["W"], None),)} if site.role in WEIGHTED else site.made_of for site in sites]
    parts = [part for part in ("W", *MADE) if all(part in each for each in told)]
    for part in parts:
        ways = ways_to([each[part][0][0] for each in told], sites[0].path)
        for count in range(1, max(map(len, ways)) + 1):
            yield [".".join(way[:count]) for way in ways]
        if part == "W" and len({each.stored.get("W") for each in sites}) > 1:
            yield [
                f"{way[0]}_turned" if site.stored.get("W") else way[0]
                for site, way in zip(sites, ways, strict=True)
            ]
    for part in parts:  # of one weight, but other rows of it
        ways = ways_to([each[part][0][0] for each in told], sites[0].path)
        firsts = [(each[part][0][1] or ((0, 0),))[0][0] for each in told]
        yield [f"{way[0]}_{first}" for way, first in zip(ways, firsts, strict=True)]


def ways_to(weights: Sequence[str], path: str) -> list[list[str]]:
    """The words of the paths of weights behind those that all have in common with a module's."""
    shared = reduce(common_path, weights, path)
    return [(weight[len(shared) + 1 :] if shared else weight).split(".") for weight in weights]
