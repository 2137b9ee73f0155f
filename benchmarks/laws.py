"""The laws of pairs of rules, by what was measured of one; and which act otherwise over a merged one, and why. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CLOSE = 1e-5
"""How far outputs may be apart, relative to the largest."""

LOW_RANK = ("adalora", "loha", "lokr", "lora", "olora", "pissa", "rslora", "vera")

REASONS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "it divides by the lengths of the rows of the weight that it finds, which the other has changed": tuple(
        (inside, "dora") for inside in (*LOW_RANK, "ia3", "oft")
    ),
    "it packs the weight that it finds, here with the other in it": tuple(
        (inside, "nf4") for inside in (*LOW_RANK, "dora", "ia3", "oft")
    ),
    "it trains the weight that it finds, which the other has scaled or turned": (
        ("dora", "full"),
        ("ia3", "full"),
        ("oft", "full"),
    ),
    "it also trains the biases that the other has put in": (("bitfit", "full"),),
    "both train the norms, which are moved once where they are one parameter, and twice one after the other": (
        ("full", "compacter"),
        ("full", "houlsby"),
    ),
    "one scales the output of some maps and the input of others: merged, each comes first at one and last at the other": (
        ("adalora", "ia3"),
        ("ia3", "adalora"),
    ),
}
"""Why a rule acts otherwise → (merged underneath, compiled over it)."""


def unlike(one: str, other: str, over: Mapping[str, Sequence[float]]) -> list[str]:
    """What is wrong with the distances of a pair, by what is merged: unlike both orders without a reason, or the reverse."""
    known = {case for cases in REASONS.values() for case in cases}
    wrong = []
    for inside, outside in ((one, other), (other, one)):
        if inside in over and (min(over[inside]) > CLOSE) != ((inside, outside) in known):
            how = "like" if (inside, outside) in known else "unlike"
            wrong.append(f"{outside} acts {how} beside {inside} over a model with {inside} in its weights")
    return wrong


def broken(one: str, other: str, record: Mapping[str, Any]) -> list[str]:
    """The laws that a pair breaks, in words; a refusal breaks none if it names both."""
    if "failed" in record:
        return [f"an error that is not peftc's: {record['failed']}"]
    if "refused" in record:
        return [] if record["names both"] else ["refused without naming both"]
    found = [f"no gradient at {path}" for path in record["gradients"]]
    found += [
        f"beside {name} at its start: {value:.1g}"
        for name, value in record["beside"].items()
        if value > CLOSE
    ]
    found += [f"{value:.1g} from the equations" for value in record["equations"] if value > CLOSE]
    found += unlike(one, other, record["over"])
    found += [] if record["saved"] else ["other bits after saving and loading"]
    if isinstance(record["merged"], float) and record["merged"] > CLOSE:
        found.append(f"merged differs by {record['merged']:.1g}")
    return found
