"""Who takes part in the league and how each is trained: every rule of the library, by being there. No torch here."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftc.lang import default_library

ROOT = Path(__file__).parents[2]
CHOICES = ROOT / "benchmarks" / "methods.toml"
RESULTS = ROOT / "benchmarks" / "results" / "methods"
TIMES = RESULTS / "times.json"
DEFAULT = "default"


@dataclass(frozen=True)
class Entrant:
    """A method of the league.

    Attributes:
        name: its rule's.
        rules: the specs that are compiled.
        digest: a hash of what its rules say: a record of another one is of an older rule.
        first: the rule whose adapters, trained on the two halves of the training rows, it reads.
        first_rate: the learning rate of that.
    """

    name: str
    rules: tuple[str, ...]
    digest: str
    learning_rate: float
    why: str
    first: str | None = None
    first_rate: float | None = None


@dataclass(frozen=True)
class Setting:
    """What all methods share in a league. A setting's records are in a folder of its name."""

    epochs: float = 1.0
    rows: int | None = None
    batch_size: int = 32
    max_length: int = 64

    @property
    def name(self) -> str:
        """Such as epochs-1, or epochs-1-rows-640 for a part of the reviews."""
        return f"epochs-{self.epochs:g}" + (f"-rows-{self.rows}" if self.rows is not None else "")


def entrants(only: Iterable[str] = ()) -> tuple[Entrant, ...]:
    """Every rule of the library, in the order of the file of choices; those that it does not name behind them.

    Raises:
        SystemExit: a name that no rule has.
    """
    digests = {rule.name: rule.digest for rule in default_library().rules()}
    choices, wanted, names = tomllib.loads(CHOICES.read_text(encoding="utf-8")), set(only), tuple(digests)
    if unknown := wanted - set(names):
        raise SystemExit(f"no rule is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = {name: {**choices[DEFAULT], **choices.get(name, {})} for name in names}
    made = [entrant(name, chosen, digests) for name in names]
    order = {name: place for place, name in enumerate(choices)}
    made.sort(key=lambda each: order.get(each.name, len(order)))
    return tuple(each for each in made if not wanted or each.name in wanted)


def entrant(name: str, choices: Mapping[str, Mapping[str, Any]], digests: Mapping[str, str]) -> Entrant:
    """One, from its entry in the file of choices."""
    chosen = choices[name]
    rules, first = tuple(chosen.get("rules", (name,))), chosen.get("first")
    of_rules = [digests[name_of(spec)] for spec in rules]
    return Entrant(
        name=name,
        rules=rules,
        digest="-".join(digest[:12] for digest in of_rules),
        learning_rate=chosen["learning_rate"],
        why=chosen["why"],
        first=first,
        first_rate=None if first is None else choices[first]["learning_rate"],
    )


def name_of(spec: str) -> str:
    """The rule's, in a spec."""
    return spec.partition(":")[0].partition("(")[0]


def record_path(setting: Setting, name: str, seed: int) -> Path:
    """Where a run's record is."""
    return RESULTS / setting.name / f"{name}-{seed}.json"
