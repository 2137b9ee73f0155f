"""A plan in words and numbers: what each rule does where, and what it leaves out and why. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group as Renderables
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from torch import nn

from peftc.lang import Bound
from peftc.match.plan import Application, Plan, Skip

HEADINGS = ("where", "layers", "sites", "what", "trainable")
EXAMPLES = 1  # paths named for each reason


@dataclass(frozen=True)
class SiteGroup:
    """Sites of one part at which a rule does the same.

    Attributes:
        where: role and part, with its scope.
        layers: numbers of their blocks; sites: their ids.
        parameters: name → shape of what is added at each; trains: ports whose weight trains.
        inserted: names among them of zero weights, put in where a site has none of its own.
        quantises: port → how its weight is kept.
        count: trainable elements at all of them that no group before had.
        options: those of the rule that have another value here.
    """

    where: str
    layers: tuple[int, ...]
    sites: tuple[str, ...]
    parameters: Mapping[str, tuple[int, ...]] = field(hash=False)
    trains: tuple[str, ...]
    count: int
    quantises: Mapping[str, str] = field(hash=False, default_factory=dict)
    options: Mapping[str, Any] = field(hash=False, default_factory=dict)
    inserted: tuple[str, ...] = ()

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """Its row of the table, under `HEADINGS`."""
        layers = ranges(self.layers) or self.sites[0].rpartition(":")[0]
        added = [
            f"{'puts in ' if name in self.inserted else ''}{name} {sizes(shape)}"
            for name, shape in self.parameters.items()
        ]
        trained = [f"trains {', '.join(self.trains)}"] if self.trains else []
        kept = [f"keeps {port} in {packing}" for port, packing in self.quantises.items()]
        own = [f"with {' '.join(f'{name}={value}' for name, value in self.options.items())}"]
        what = ", ".join(added + trained + kept + (own if self.options else []))
        return self.where, layers, str(len(self.sites)), what, f"{self.count:,}"


@dataclass(frozen=True)
class SkipGroup:
    """Sites that a rule leaves out for one reason."""

    reason: str
    sites: tuple[str, ...]

    def __str__(self) -> str:
        """One line."""
        named = ", ".join(self.sites[:EXAMPLES])
        return f"{len(self.sites)} × {self.reason}: {named}{', …' if len(self.sites) > EXAMPLES else ''}"


@dataclass(frozen=True)
class RuleExplanation:
    """One rule of a plan."""

    label: str
    asked: str
    summary: str
    options: Mapping[str, Any] = field(hash=False)
    groups: tuple[SiteGroup, ...]
    skips: tuple[SkipGroup, ...]

    @property
    def heading(self) -> str:
        """The rule as it was asked for, and every option."""
        said = " ".join(f"{name}={value}" for name, value in self.options.items())
        name = self.label if self.asked in ("", self.label) else f"{self.label} ({self.asked})"
        return f"{name}  {said}".rstrip()


@dataclass(frozen=True)
class Explanation:
    """A plan, explained: `str()` for plain text, `table()` for a terminal, `as_dict()` for JSON."""

    rules: tuple[RuleExplanation, ...]
    notes: tuple[str, ...]
    trainable: int
    total: int

    @property
    def totals(self) -> str:
        """The last line."""
        share = 100 * self.trainable / self.total if self.total else 0.0
        return f"trainable {self.trainable:,} of {self.total:,} parameters ({share:.4g} %)"

    def __str__(self) -> str:
        """Plain text, the same from run to run."""
        return "\n".join(self.text_lines())

    def text_lines(self) -> Iterator[str]:
        """The lines of the text."""
        cells = [HEADINGS, *(group.cells for rule in self.rules for group in rule.groups)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
        for rule in self.rules:
            yield rule.heading
            yield f"  {aligned(HEADINGS, widths)}"
            yield from (f"  {aligned(group.cells, widths)}" for group in rule.groups)
            if rule.skips:
                yield "  left out"
                yield from (f"    {skip}" for skip in rule.skips)
            yield ""
        yield from (f"note: {note}" for note in self.notes)
        yield self.totals

    def table(self) -> RenderableType:
        """Tables for a terminal."""
        parts: list[RenderableType] = []
        for rule in self.rules:
            title = Text(rule.heading, style="bold")
            table = Table(title=title, title_justify="left", box=None, header_style="dim")
            for heading in HEADINGS:
                table.add_column(heading, justify="right" if heading in ("sites", "trainable") else "left")
            for group in rule.groups:
                table.add_row(*map(Text, group.cells))
            parts.append(table)
            parts += [Text(f"  left out {skip}", style="dim") for skip in rule.skips]
        parts += [Text(f"note: {note}", style="yellow") for note in self.notes]
        parts.append(Text(self.totals, style="bold"))
        return Renderables(*parts)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return asdict(self)


def explain(compiled_or_plan: nn.Module | Plan) -> Explanation:
    """Explain a plan, or that of a compiled module.

    Raises:
        TypeError: it is neither.
    """
    plan: object = compiled_or_plan
    if isinstance(compiled_or_plan, nn.Module):
        plan = getattr(compiled_or_plan, "peftc_plan", None)
    if not isinstance(plan, Plan):
        raise TypeError(f"{type(compiled_or_plan).__name__} is neither a plan nor a compiled module")
    counted: set[str] = set()
    rules = tuple(explained(plan, bound, counted) for bound in plan.rules)
    return Explanation(rules, plan.notes, plan.trainable_count, plan.total_count)


def explained(plan: Plan, bound: Bound, counted: set[str]) -> RuleExplanation:
    """One rule. `counted` holds the parameters that train and were counted already."""
    groups: dict[tuple[object, ...], list[Application]] = {}
    for application in plan.of(bound.label):
        groups.setdefault(alike(application), []).append(application)
    return RuleExplanation(
        bound.label,
        bound.text,
        bound.rule.summary,
        dict(bound.options),
        tuple(site_group(plan, members, counted) for members in groups.values()),
        tuple(skip_groups(skip for skip in plan.skips if skip.rule == bound.label)),
    )


def alike(application: Application) -> tuple[object, ...]:
    """What applications of one group have in common."""
    site = application.site
    shapes = tuple((parameter.name, parameter.shape) for parameter in application.parameters)
    outside = site.path if site.layer is None else ""
    own = tuple(sorted(application.options.items()))
    return (
        application.section,
        site.scope,
        site.role,
        site.part,
        outside,
        shapes,
        tuple(application.trains),
        own,
    )


def site_group(plan: Plan, members: Sequence[Application], counted: set[str]) -> SiteGroup:
    """One group."""
    first = members[0]
    site = first.site
    count = 0
    for member in members:
        new = {each.shared or each.path: each.count for each in member.parameters if each.trainable}
        count += sum(size for name, size in new.items() if name not in counted)
        counted.update(new)
        fresh = {path for path in member.trains.values() if path not in counted}
        count += sum(plan.sizes[path] for path in fresh if path not in plan.kept)
        counted |= fresh
    named = " ".join(word for word in (site.role, site.part) if word)
    return SiteGroup(
        f"{site.scope} {named}".strip(),
        tuple(sorted({member.site.layer for member in members if member.site.layer is not None})),
        tuple(member.site.id for member in members),
        {parameter.name: parameter.shape for parameter in first.parameters},
        tuple(first.trains),
        count,
        {port: str(packing) for port, packing in first.quantises.items()},
        dict(first.options),
        tuple(first.inserted.values()),
    )


def skip_groups(skips: Iterable[Skip]) -> Iterator[SkipGroup]:
    """Skips by their reason, in the order in which reasons come up."""
    reasons: dict[str, list[str]] = {}
    for skip in skips:
        reasons.setdefault(skip.reason, []).append(skip.site.id)
    for reason, sites in reasons.items():
        yield SkipGroup(reason, tuple(dict.fromkeys(sites)))


def ranges(numbers: Iterable[int]) -> str:
    """`0-3, 5` of sorted numbers."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return ", ".join(str(start) if start == stop else f"{start}-{stop}" for start, stop in runs)


def sizes(shape: Sequence[int]) -> str:
    """`[8 768]`."""
    return f"[{' '.join(map(str, shape))}]"


def aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A row of the text: numbers to the right, all else to the left."""
    right = {HEADINGS.index("sites"), HEADINGS.index("trainable")}
    padded = [
        cell.rjust(width) if column in right else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()
