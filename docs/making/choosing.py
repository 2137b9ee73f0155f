"""The page on choosing a method: a text with rows of the league put in, so that no figure in it goes stale."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

from benchmarks.league.records import Standing, standings
from docs.making.compositions import FREE, ORDERED, REFUSED, kind, records
from docs.making.league import SETTING, headings, row
from docs.making.markdown import page, table
from peftc.lang import default_library

TEXT = Path(__file__).with_name("choosing.md")
ROWS = re.compile(r"^<!-- league: (.*) -->$", re.MULTILINE)
FIGURE = re.compile(r"\{\{(\w+)\}\}")
COLUMNS = ("method", "accuracy %", "seeds", "trainable", "memory, MB", "step time", "merges")


def choosing() -> str:
    """The page."""
    title, _, text = TEXT.read_text(encoding="utf-8").partition("\n")
    found = standings(SETTING)
    figures = {"pairs": pairs(), "noise": noise(found)}
    text = ROWS.sub(lambda mark: league_rows(mark[1].split(), found), text.strip())
    return page(title.removeprefix("# "), FIGURE.sub(lambda mark: figures[mark[1]], text))


def league_rows(names: list[str], found: tuple[Standing, ...]) -> str:
    """Rows of the league, the best first; a method that is no rule yet has none."""
    places = [headings().index(column) for column in COLUMNS]
    rows = [tuple(row(each, found)) for each in found if each.name in names]
    return table(COLUMNS, ([cells[place] for place in places] for cells in rows))


def pairs() -> str:
    """How many pairs compose."""
    measured = records()
    kinds = [kind(*pair, measured.get(pair)) for pair in combinations(default_library().names(), 2)]
    composing = sum(each in (FREE, ORDERED) for each in kinds)
    return f"{composing} of {len(kinds)} pairs compose and {kinds.count(REFUSED)} are refused"


def noise(found: tuple[Standing, ...]) -> str:
    """How far seeds are apart in the league."""
    spreads = sorted(each.spread for each in found if each.spread is not None)
    if not spreads:
        return "In the league, no method has had a second seed yet."
    return (
        f"In the league, a method's seeds have a standard deviation of {100 * spreads[len(spreads) // 2]:.2f} points in "
        f"the middle, and up to {100 * spreads[-1]:.2f}."
    )
