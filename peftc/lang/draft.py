"""Sections that are being put together into a flattened rule; every text of theirs knows where it was written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from peftc.lang.document import Loss, Option, Parameter, Quantise, Rule, Schedule, Section, Train
from peftc.lang.initial import read_initial
from peftc.lang.reading import read_mapping
from peftc.lang.renaming import Line
from peftc.lang.roles import ROLES
from peftc.lang.sizes import names_of
from peftc.lang.source import Key, Place, Source

TABLES = ("match", "parameters", "let", "fold", "rewrite", "merge", "train", "quantise", "loss", "schedule")


@dataclass
class Draft:
    """One section in the making. `places` are those of whole tables and of what the match says."""

    place: Place
    role: tuple[str, ...]
    part: tuple[str, ...] = ()
    values: dict[str, str] = field(default_factory=dict)
    where: list[Line] = field(default_factory=list)
    parameters: dict[str, tuple[Parameter, Place]] = field(default_factory=dict)
    let: dict[str, Line] = field(default_factory=dict)
    rewrite: dict[str, Line] = field(default_factory=dict)
    merge: dict[str, Line] = field(default_factory=dict)
    train: dict[str, tuple[Train, Place]] = field(default_factory=dict)
    loss: dict[str, Line] = field(default_factory=dict)
    losses: dict[str, Loss] = field(default_factory=dict)
    schedule: dict[str, tuple[Schedule, Place]] = field(default_factory=dict)
    quantise: dict[str, tuple[Quantise, Place]] = field(default_factory=dict)
    required: bool = False
    asked: bool = False
    follows: bool = False
    fold: tuple[str, ...] = ()
    places: dict[tuple[Key, ...], Place] = field(default_factory=dict)

    @property
    def ports(self) -> set[str]:
        """The ports of its roles."""
        return {port for role in self.role if role in ROLES for port in ROLES[role].ports}

    @property
    def axes(self) -> set[str]:
        """The axes of its roles' ports, and those that it gives them."""
        default = {
            a for role in self.role if role in ROLES for p in ROLES[role].ports.values() for a in p.axes
        }
        return default.union(*(text.split() for text in self.values.values()))

    def live(self) -> set[str]:
        """Every name that a new value depends on, through bindings."""
        ends = (*self.rewrite.values(), *self.merge.values(), *self.loss.values())
        waiting = [name for line in ends for name in names(line)]
        read: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name not in read:
                read.add(name)
                waiting += names(self.let[name]) if name in self.let else ()
                waiting += self.read_at_start(name)
        return read

    def read_at_start(self, name: str) -> tuple[str, ...]:
        """The names that the initial value of a parameter reads, where it is an expression."""
        if name not in self.parameters:
            return ()
        parameter, place = self.parameters[name]
        expression = read_initial(parameter.init, place).expression
        return expression.names if expression else ()

    def prune(self) -> None:
        """Take out the bindings and parameters that nothing reads."""
        live = self.live()
        self.let = {name: line for name, line in self.let.items() if name in live}
        self.parameters = {name: held for name, held in self.parameters.items() if name in live}
        self.fold = tuple(name for name in self.fold if name in live)

    def options_read(self) -> set[str]:
        """Names that may be options: in live expressions, sizes, initial laws, conditions and trains."""
        read = self.live().union(*(names(line) for line in self.where))
        for parameter, place in self.parameters.values():
            read |= {name for dimension in parameter.dimensions for name in names_of(dimension.size)}
            read |= {str(value) for _, value in read_initial(parameter.init, place).settings}
            read |= {str(parameter.seed), str(parameter.lr)}
        read |= {str(term.weight) for term in self.losses.values()}
        read |= {str(value) for told, _ in self.schedule.values() for value in told.settings.values()}
        for kept, _ in self.quantise.values():
            read |= {kept.format, str(kept.compute), *map(str, kept.settings.values())}
        return read | {train.insert for train, _ in self.train.values() if train.insert}

    def content(self) -> dict[str, Any]:
        """The section as a mapping."""
        match = {"role": self.role, "part": self.part, "values": self.values}
        held: dict[str, Any] = {
            "match": {**match, "where": tuple(line.text for line in self.where)},
            "parameters": {n: p.model_dump(exclude_defaults=True) for n, (p, _) in self.parameters.items()},
            "train": {
                port: train.model_dump(exclude_defaults=True) for port, (train, _) in self.train.items()
            },
        }
        if self.required:
            held["required"] = True
        if self.asked:
            held["asked"] = True
        if self.follows:
            held["follows"] = True
        if self.fold:
            held["fold"] = self.fold
        for table, lines in (("let", self.let), ("rewrite", self.rewrite), ("merge", self.merge)):
            held[table] = {name: line.text for name, line in lines.items()}
        held["loss"] = {
            name: term.model_dump(exclude_defaults=True) | {"value": self.loss[name].text}
            for name, term in self.losses.items()
        }
        held["schedule"] = {
            name: told.model_dump(exclude_defaults=True) for name, (told, _) in self.schedule.items()
        }
        held["quantise"] = {
            port: told.model_dump(exclude_defaults=True) for port, (told, _) in self.quantise.items()
        }
        return held

    def origins(self) -> dict[tuple[Key, ...], Place]:
        """Where everything in it was written."""
        found = dict(self.places)
        found |= {("match", "where", index): line.place for index, line in enumerate(self.where)}
        for table, lines in (("let", self.let), ("rewrite", self.rewrite), ("merge", self.merge)):
            found |= {(table, name): line.place for name, line in lines.items()}
        found |= {("parameters", name): place for name, (_, place) in self.parameters.items()}
        found |= {("loss", name, "value"): line.place for name, line in self.loss.items()}
        found |= {("schedule", name): place for name, (_, place) in self.schedule.items()}
        found |= {("quantise", port): place for port, (_, place) in self.quantise.items()}
        return found | {("train", port): place for port, (_, place) in self.train.items()}


def names(line: Line) -> tuple[str, ...]:
    """The names that a line reads."""
    return line.expression.names


def draft_of(rule: Rule, section: Section) -> Draft:
    """A section as it stands in its rule."""
    keys = rule.keys(section)

    def at(*inner: Key) -> Place:
        return rule.source.place(*keys, *inner)

    def lines(table: str, texts: Mapping[str, str]) -> dict[str, Line]:
        return {name: Line(text, at(table, name)) for name, text in texts.items()}

    match = section.match
    places: dict[tuple[Key, ...], Place] = {(table,): at(table) for table in TABLES}
    places |= {("match", key): at("match", key) for key in ("role", "part")}
    places |= {("match", "values", port): at("match", "values", port) for port in match.values}
    return Draft(
        at(),
        match.role,
        match.part,
        dict(match.values),
        [Line(text, at("match", "where", i), condition=True) for i, text in enumerate(match.where)],
        {name: (parameter, at("parameters", name)) for name, parameter in section.parameters.items()},
        lines("let", section.let),
        lines("rewrite", section.rewrite),
        lines("merge", section.merge),
        {port: (train, at("train", port)) for port, train in section.train.items()},
        {name: Line(term.value, at("loss", name, "value")) for name, term in section.loss.items()},
        dict(section.loss),
        {name: (told, at("schedule", name)) for name, told in section.schedule.items()},
        {port: (told, at("quantise", port)) for port, told in section.quantise.items()},
        section.required,
        section.asked,
        section.follows,
        section.fold,
        places,
    )


def assemble(
    head: Rule,
    options: Mapping[str, tuple[Option, Place]],
    drafts: Iterable[Draft],
    order: Mapping[str, tuple[str, ...]],
    made_of: int,
) -> Rule:
    """The rule of these sections, under the name and the words of `head`. Raises RuleSyntaxError."""
    said = head.model_dump(include={"format", "name", "summary", "paper", "shorthand", "default"})
    origins: dict[tuple[Key, ...], Place] = {("options", name): place for name, (_, place) in options.items()}
    data = {
        **said,
        **order,
        "options": {n: o.model_dump(exclude_defaults=True) for n, (o, _) in options.items()},
    }
    for number, draft in enumerate(drafts):
        keys: tuple[Key, ...] = ("also", number - 1) if number else ()
        if number:
            data.setdefault("also", []).append(draft.content())
            origins[keys] = draft.place
        else:
            data |= draft.content()
        origins |= {(*keys, *inner): place for inner, place in draft.origins().items()}
    source = Source(head.source.file, head.source.text, origins)
    return read_mapping(data, source).read_from(source, made_of, head)
