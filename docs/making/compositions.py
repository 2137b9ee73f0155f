"""The page of compositions and its picture, from the records of `benchmarks/compositions.py`. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.laws import CLOSE, REASONS, broken
from docs.making.markdown import code, page, table
from peftc.lang import default_library

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "compositions.json"
FREE, ORDERED, REFUSED, BROKEN, ABSENT = "free", "ordered", "refused", "broken", "not measured"
COLOURS = {FREE: "#8cc99b", ORDERED: "#9dbfe6", REFUSED: "#d9d9d9", BROKEN: "#d7301f", ABSENT: "#ffffff"}
MEANINGS = {
    FREE: "compose; the order makes no difference",
    ORDERED: "compose; the order is part of the method",
    REFUSED: "are refused, by an error that names both",
    BROKEN: "break a law: see the page",
    ABSENT: "not measured yet",
}
CELL, LETTER = 18, 6.6

Records = Mapping[tuple[str, str], Mapping[str, Any]]


@cache
def records() -> Records:
    """By pair, of the rules that there are."""
    held: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    pairs = combinations(default_library().names(), 2)
    return {pair: held["+".join(pair)] for pair in pairs if "+".join(pair) in held}


def kind(one: str, other: str, record: Mapping[str, Any] | None) -> str:
    """Which of `MEANINGS` a pair is."""
    if record is None:
        return ABSENT
    if broken(one, other, record):
        return BROKEN
    if "refused" in record:
        return REFUSED
    return ORDERED if record["order"] > CLOSE else FREE


def compositions() -> str:
    """The page."""
    found = records()
    names = default_library().names()
    kinds = {pair: kind(*pair, found.get(pair)) for pair in combinations(names, 2)}
    counts = {each: sum(one == each for one in kinds.values()) for each in MEANINGS}
    composing = {pair: found[pair] for pair, each in kinds.items() if each in (FREE, ORDERED)}
    return page(
        "Compositions",
        "Every pair of rules of the library, in both orders, on a tiny pre-norm decoder (on an encoder where one needs a "
        "task's head), with random values in all that they add: `python benchmarks/compositions.py` measures it, and a "
        f"slow test measures it anew. Of {len(kinds)} pairs, "
        + ", ".join(f"{count} {MEANINGS[each]}" for each, count in counts.items() if count)
        + ".",
        "![pairs of rules](compositions.svg)",
        "## What is measured of each pair",
        "\n".join(f"- {line}" for line in laws(composing.values())),
        "## Where a rule acts otherwise over a merged one",
        table(
            ("compiled over a model", "with this in its weights", "why"),
            ((code(outside), " ".join(map(code, inside)), why) for outside, inside, why in otherwise()),
        ),
        "## Where the order is part of the method",
        "What is nearer to the front of the list acts first; what comes after reads its result, as functions do. What acts "
        "where a branch joins the stream (`compacter`, `pfeiffer`) reads what all others have made of the branch.",
        table(
            ("rule", "with"),
            grouped(pair for pair, each in kinds.items() if each == ORDERED),
        ),
        "## What is refused",
        refused({pair: found[pair] for pair, each in kinds.items() if each == REFUSED}),
        "## What merges together",
        *merging(composing),
        *wrong({pair: found[pair] for pair, each in kinds.items() if each == BROKEN}),
    )


def laws(composing: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What was checked, and of how many."""
    held = list(composing)
    beside = sum(len(record["beside"]) for record in held)
    over = [min(fars) for record in held for fars in record["over"].values()]
    yield f"All that its plan trains gets a gradient that is not 0: {len(held)} pairs."
    yield (
        "In both orders, the outputs are those of both rules' equations, written by hand into the plain model: "
        f"{len(held)} pairs, with random values in both."
    )
    yield (
        "With one rule as it starts (where that is as if it were not there), the outputs are those of the other alone: "
        f"{beside} cases."
    )
    yield (
        "An independent way to the same outputs: one rule merged into the weights of a plain model, the other compiled on "
        f"that. {sum(far <= CLOSE for far in over)} of {len(over)} cases are equal to the pair in an order; the others are "
        "below, with the reason of each."
    )
    coupled = sum(far > CLOSE for record in held for far in record.get("coupled", {}).values())
    if coupled:
        yield (
            "Not so where one rule starts from weights that the other trains (the lengths of their rows, say): it goes on "
            f"from what they were, {coupled} cases."
        )
    yield f"It comes back from a folder with the same bits: {sum(record['saved'] for record in held)} pairs."
    yield "Whether both orders give the same outputs, to 1e-5 of the largest; and whether it can be merged."


def otherwise() -> Iterator[tuple[str, list[str], str]]:
    """What acts otherwise, over what, and why."""
    for why, cases in REASONS.items():
        for outside in dict.fromkeys(outside for _, outside in cases):
            yield outside, [inside for inside, its in cases if its == outside], why


def grouped(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Each rule with those that it is in a pair with."""
    partners: dict[str, list[str]] = {}
    for one, other in pairs:
        partners.setdefault(one, []).append(other)
        partners.setdefault(other, []).append(one)
    for name, others in sorted(partners.items()):
        yield code(name), " ".join(map(code, sorted(others)))


def refused(found: Records) -> str:
    """With what is said."""
    if not found:
        return "Nothing."
    return table(
        ("pair", "what is said"),
        ((f"{code(one)} {code(other)}", record["refused"]) for (one, other), record in sorted(found.items())),
    )


def merging(composing: Records) -> Iterator[str]:
    """Pairs that merge into the weights, and the reasons of those of which each merges alone."""
    merged = {pair: record for pair, record in composing.items() if isinstance(record["merged"], float)}
    reasons = {
        pair: record["merged"]
        for pair, record in composing.items()
        if isinstance(record["merged"], str) and "it is no change of a weight" not in record["merged"]
    }
    yield (
        f"{len(merged)} pairs: the merged model's outputs are those of the compiled one. With a rule that stays beside the "
        "weights (a prefix, a bottleneck), a pair stays beside them too. Each of these merges alone, but not with the other:"
    )
    yield (
        table(
            ("pair", "what is said"),
            ((f"{code(one)} {code(other)}", text) for (one, other), text in sorted(reasons.items())),
        )
        if reasons
        else "none."
    )


def wrong(found: Records) -> Iterator[str]:
    """Pairs that break a law."""
    if found:
        yield "## Broken"
        yield table(
            ("pair", "what"),
            (
                (f"{code(one)} {code(other)}", lacking(record))
                for (one, other), record in sorted(found.items())
            ),
        )


def lacking(record: Mapping[str, Any]) -> str:
    """Which law a pair breaks."""
    if record.get("gradients"):
        return f"no gradient at {', '.join(code(path) for path in record['gradients'])}"
    return record.get("failed") or json.dumps(
        {key: value for key, value in record.items() if key != "digest"}
    )


def matrix() -> str:
    """The picture: a cell for each pair."""
    names = default_library().names()
    found = records()
    left = LETTER * max(map(len, names)) + 16
    top = 0.6 * LETTER * max(map(len, names)) + 4  # names stand obliquely above their columns
    size = CELL * len(names)
    parts = []
    for row, other in enumerate(names):
        y = top + CELL * row
        parts.append(
            f'<text x="{left - 6:.0f}" y="{y + CELL * 0.72:.1f}" text-anchor="end">{escape(other)}</text>'
        )
        for column, one in enumerate(names[:row]):
            each = kind(one, other, found.get((one, other)))
            parts.append(
                f'<rect x="{left + CELL * column:.0f}" y="{y:.0f}" width="{CELL - 1}" height="{CELL - 1}" '
                f'fill="{COLOURS[each]}"><title>{escape(one)} + {escape(other)}: {each}</title></rect>'
            )
        x = left + CELL * row
        parts.append(
            f'<text transform="translate({x + 4:.0f},{y + CELL * 0.6:.1f}) rotate(-35)">{escape(other)}</text>'
        )
    used = {kind(*pair, found.get(pair)) for pair in combinations(names, 2)}
    at = top + size + 16
    for each, meaning in MEANINGS.items():
        if each in used:
            parts.append(
                f'<rect x="{left:.0f}" y="{at:.0f}" width="12" height="12" fill="{COLOURS[each]}" stroke="#999"/>'
                f'<text x="{left + 18:.0f}" y="{at + 10:.0f}">{escape(meaning)}</text>'
            )
            at += 18
    width = left + size + LETTER * max(map(len, names))
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{at + 12:.0f}">',
            "<style>text { font-family: 'DejaVu Sans', Verdana, sans-serif; font-size: 11px; fill: #222 }</style>",
            f'<rect width="{width:.0f}" height="{at + 12:.0f}" fill="#fff"/>',
            *parts,
            "</svg>\n",
        )
    )
