"""What the league's records say, put together: scores over seeds, differences with their noise. Runs nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

from benchmarks.league.entrants import RESULTS, TIMES, Entrant, Setting, entrants, name_of
from peftc.lang import Rule, default_library

REFERENCE = "full"
KINDS = (
    "the model's own parameters",
    "a change of weights: it can be merged",
    "something beside the weights: it stays",
)


@dataclass(frozen=True)
class Standing:
    """One method's records.

    Attributes:
        entrant: the method as it is now.
        kind: which of `KINDS`.
        runs: its records, by seed.
        older: whether a record is of an older rule or learning rate.
    """

    entrant: Entrant
    kind: str
    runs: Mapping[int, Mapping[str, Any]]
    older: bool

    @property
    def name(self) -> str:
        """The rule's."""
        return self.entrant.name

    @property
    def accuracies(self) -> list[float]:
        """By seed."""
        return [run["accuracy"] for _, run in sorted(self.runs.items())]

    @property
    def accuracy(self) -> float:
        """The mean over seeds."""
        return mean(self.accuracies)

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds; None for one."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else None

    def figure(self, key: str) -> Any:
        """A figure that does not depend on the seed, or the middle one of those that nearly do not."""
        return median(run[key] for run in self.runs.values())

    @property
    def memory(self) -> float:
        """What training took on top of the model, in MB."""
        return float(
            median(run["memory_mb"]["peak"] - run["memory_mb"]["before"] for run in self.runs.values())
        )


def standings(setting: Setting) -> tuple[Standing, ...]:
    """Every rule of the library, the best first, those without a record last."""
    rules = {rule.name: rule for rule in default_library().rules()}
    found = [
        standing(setting, each, kind_of(*(rules[name_of(spec)] for spec in each.rules)))
        for each in entrants()
    ]
    return tuple(sorted(found, key=lambda each: (-each.accuracy if each.runs else 1.0, each.name)))


def standing(setting: Setting, entrant: Entrant, kind: str) -> Standing:
    """One method."""
    runs = {}
    for path in (RESULTS / setting.name).glob(f"{entrant.name}-*.json"):
        seed = path.stem.removeprefix(f"{entrant.name}-")
        if seed.isdigit():
            runs[int(seed)] = json.loads(path.read_text(encoding="utf-8"))
    now = (entrant.digest, entrant.learning_rate)
    older = any((run["digest"], run["learning_rate"]) != now for run in runs.values())
    return Standing(entrant, kind, runs, older)


def kind_of(*rules: Rule) -> str:
    """Which of `KINDS` rules are together, from what their sections do."""
    sections = [section for rule in rules for section in rule.sections]
    changing = [section for section in sections if section.rewrite and not section.asked]
    if not changing:
        return KINDS[0]
    return KINDS[1] if all(section.merge for section in changing) else KINDS[2]


def baselines(setting: Setting) -> Mapping[str, Any]:
    """Majority class and frozen probe."""
    found: dict[str, Any] = json.loads(
        (RESULTS / setting.name / "baselines.json").read_text(encoding="utf-8")
    )
    return found


def difference(one: Standing, other: Standing) -> tuple[float, float] | None:
    """Mean difference of accuracy over the seeds that both have, and its standard error.

    The error is that of the held-out rows, each row's difference being the mean over seeds: what both get right or
    both get wrong makes no noise.
    """
    seeds = sorted(one.runs.keys() & other.runs.keys())
    if not seeds or one.name == other.name:
        return None
    rows = [
        mean(pair)
        for pair in zip(*(row_differences(one.runs[seed], other.runs[seed]) for seed in seeds), strict=True)
    ]
    return mean(rows), stdev(rows) / math.sqrt(len(rows))


def row_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[int]:
    """For each held-out row: 1 where only the first is right, -1 where only the second is, else 0."""
    return [a - b for a, b in zip(bits(one), bits(other), strict=True)]


def bits(run: Mapping[str, Any]) -> Sequence[int]:
    """Which rows a run got right."""
    return [int(bit) for bit in f"{int(run['right'], 16):0{run['held_out_rows']}b}"]


def times() -> Mapping[str, Mapping[str, float]]:
    """Step time of each method over that of the trained head alone: median and quartiles. Empty when not measured."""
    if not TIMES.is_file():
        return {}
    found: dict[str, dict[str, float]] = json.loads(TIMES.read_text(encoding="utf-8"))["ratios"]
    return found
