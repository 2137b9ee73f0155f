"""Composites: a rule that uses others becomes one ordinary rule of sections, before anything is proved.

So matching, rewriting and storing know nothing of composites. What the used rules call their options,
parameters and bindings gets the label of the use in front; `fragments` then puts in what is under `define`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from peftc.errors import RuleError, UnknownRuleError, instead
from peftc.lang.codes import fault
from peftc.lang.document import Option, Rule, Use
from peftc.lang.draft import Draft, assemble, draft_of
from peftc.lang.expression import is_name
from peftc.lang.fragments import Fragments
from peftc.lang.overrides import Overrides
from peftc.lang.renaming import Line, renamed_loss, renamed_parameter, renamed_quantise, renamed_schedule
from peftc.lang.source import Place
from peftc.lang.stacking import name_added, stack

MOST_RULES = 16
MOST_NAMES = 500

Finder: TypeAlias = Callable[[str, tuple[str, ...]], Rule]
"""Gives the proved rule of a name, for a composite inside the composites of these names."""


def flattened(rule: Rule, find: Finder, trail: tuple[str, ...] = ()) -> Rule:
    """A rule without `use` and `define` that says the same. Raises RuleError.

    Args:
        find: the library.
        trail: names of the composites that this rule is being put together for, and its own.
    """
    has_match = "match" in rule.model_fields_set
    if not has_match and not (rule.use and not (rule.rewrite or rule.let or rule.parameters or rule.train)):
        raise fault("R004", rule.source.place(), "the key 'match' is missing")
    if not (rule.use or rule.define):
        return rule
    composite = Composite(rule, find, trail)
    own = [draft_of(rule, section) for section in rule.sections]
    drafts = own[:1] if has_match else []
    for index, use in enumerate(rule.use):
        drafts += composite.use(index, use)
    drafts += own[1:]
    Fragments(rule, composite.options, drafts).put_in()
    count = sum(len(draft.let) + len(draft.parameters) for draft in drafts)
    if count > MOST_NAMES:
        message = f"a rule has at most {MOST_NAMES} bindings and parameters, flattened this has {count}"
        raise fault("R050", rule.source.place(), message)
    return assemble(rule, composite.options, drafts, composite.order(), max(1, composite.made_of))


class Composite:
    """What the uses of one rule come to: sections, options, and their order towards other rules."""

    def __init__(self, rule: Rule, find: Finder, trail: tuple[str, ...]) -> None:
        self.rule, self.find, self.trail = rule, find, trail
        self.options = {
            name: (option, rule.source.place("options", name)) for name, option in rule.options.items()
        }
        self.used: dict[str, Rule] = {}
        self.made_of = 1 if "match" in rule.model_fields_set else 0

    def use(self, index: int, use: Use) -> list[Draft]:
        """The sections of one used rule, with what is different about them here."""
        place = self.rule.source.place("use", index)
        label = self._label(place, use)
        used = self._find(place, use)
        self._refuse_order(place, used)
        self.used[label] = used
        self._refuse_long(place, use, used, label)
        options = self._options(index, use, used, label)
        drafts = [_relabelled(draft_of(used, s), place, label, options) for s in used.sections if not s.asked]
        if use.saved is not None:
            stack(drafts, self.rule, index, use.saved, label)
        if use.added is not None:
            place = self.rule.source.place("use", index, "added")
            if use.added in (*use.let, *use.parameters):
                raise fault("R020", place, f"{use.added!r} is what is added, and cannot be replaced")
            name_added(drafts, place, f"{label}_{use.added}")
        Overrides(self.rule, index, use, used, label, options, set(self.options), drafts).put_in()
        self._drop_unread(index, use, used, options, drafts)
        drafts[0].required = True
        return drafts

    def order(self) -> dict[str, tuple[str, ...]]:
        """What all of them say of other rules."""
        own = {used.name for used in self.used.values()} | {self.rule.name}

        def told(of: Callable[[Rule], Iterable[str]]) -> tuple[str, ...]:
            theirs = [name for used in self.used.values() for name in of(used) if name not in own]
            return tuple(dict.fromkeys([*of(self.rule), *theirs]))

        return {
            "before": told(lambda rule: rule.before),
            "after": told(lambda rule: rule.after),
            "conflicts": told(lambda rule: rule.conflicts),
        }

    def _label(self, place: Place, use: Use) -> str:
        if use.label is not None:
            if use.label in self.used:
                raise fault("R020", place, f"two used rules have the label {use.label!r}")
            return use.label
        numbered = (f"{use.rule}_{number}" for number in range(2, len(self.used) + 3))
        return use.rule if use.rule not in self.used else next(n for n in numbered if n not in self.used)

    def _find(self, place: Place, use: Use) -> Rule:
        if use.rule in self.trail:
            circle = " → ".join([*self.trail[self.trail.index(use.rule) :], use.rule])
            raise fault("R049", place, f"{circle} goes round in a circle")
        if len(self.trail) > MOST_RULES or len(self.rule.use) > MOST_RULES:
            raise fault("R050", place, f"a composite has at most {MOST_RULES} rules")
        try:
            used = self.find(use.rule, self.trail)
        except UnknownRuleError as error:
            raise fault("R048", place, error.message, hint=error.hint) from None
        self.made_of += used.made_of
        if self.made_of > MOST_RULES:
            raise fault("R050", place, f"a composite has at most {MOST_RULES} rules")
        return used

    def _refuse_long(self, place: Place, use: Use, used: Rule, label: str) -> None:
        """With the label in front, names must still be names."""
        named = [
            name
            for section in used.sections
            for name in (*section.parameters, *section.let, *section.loss, *section.schedule)
        ]
        own = (*use.parameters, *use.let, *use.loss, *use.schedule)
        longest = max((*used.options, *named, *own), key=len, default="")
        if not is_name(f"{label}_{longest}"):
            message = f"'{label}_{longest}' cannot be a name: it is too long, or has __ in it"
            raise fault("R020", place, message, hint="give the use another label")

    def _refuse_order(self, place: Place, used: Rule) -> None:
        """The uses act as they stand; what the rules say of each other must allow that."""
        for other in self.used.values():
            if used.name in other.conflicts or other.name in used.conflicts:
                raise fault("R053", place, f"{other.name} and {used.name} exclude each other")
            if other.name in used.before or used.name in other.after:
                raise fault("R053", place, f"{used.name} must be used before {other.name}")

    def _options(self, index: int, use: Use, used: Rule, label: str) -> dict[str, str]:
        """Name of an option in the used rule → its name here; makes those that are new."""
        for name in use.options:
            if name not in used.options:
                message = f"{used.name} has no option {name!r}"
                raise self._option_fault(index, name, message, instead(name, used.options))
        names: dict[str, str] = {}
        for name, option in used.options.items():
            given = use.options.get(name)
            names[name] = f"{label}_{name}"
            if isinstance(given, str) and given in self.rule.options:
                if not _as_narrow(self.rule.options[given], option):
                    message = f"{given!r} can have values that {name} of {used.name} cannot"
                    raise self._option_fault(index, name, message)
                names[name] = given
                continue
            if isinstance(given, str) and not isinstance(option.default, str):
                message = f"there is no option {given!r} here"
                raise self._option_fault(index, name, message, instead(given, self.rule.options))
            place = used.source.place("options", name).taken_by(self.rule.source.place("use", index))
            if given is not None:
                place = self.rule.source.place("use", index, "options", name)
                if problem := option.problem(given):
                    raise fault("R051", place, f"{name} of {used.name} {problem}")
            default = option.default if given is None else option.typed(given)
            if names[name] in self.options:
                raise fault("R020", place, f"there are two options {names[name]!r}")
            self.options[names[name]] = (option.model_copy(update={"default": default}), place)
        return names

    def _option_fault(self, index: int, name: str, message: str, hint: str | None = None) -> RuleError:
        return fault("R051", self.rule.source.place("use", index, "options", name), message, hint=hint)

    def _drop_unread(
        self, index: int, use: Use, used: Rule, options: Mapping[str, str], drafts: list[Draft]
    ) -> None:
        """Overrides may leave options that nothing reads: those are no options of the composite."""
        read: set[str] = set().union(*(draft.options_read() for draft in drafts))
        for name, here in options.items():
            if here not in read:
                if name in use.options:
                    message = f"nothing that is left of {used.name} reads its option {name!r}"
                    raise self._option_fault(index, name, message)
                del self.options[here]


def _relabelled(draft: Draft, place: Place, label: str, options: Mapping[str, str]) -> Draft:
    """A section of a used rule, its names with the label in front, and all its places used at `place`."""
    names = {**options, **{name: f"{label}_{name}" for name in (*draft.let, *draft.parameters)}}

    def line(old: Line) -> Line:
        return replace(old, place=old.place.taken_by(place)).renamed(names)

    def keyed(lines: Mapping[str, Line]) -> dict[str, Line]:
        return {f"{label}_{name}": line(old) for name, old in lines.items()}

    def size(name: str) -> str:
        return options.get(name, name)

    changed: dict[str, Any] = {
        "place": draft.place.taken_by(place),
        "where": [line(old) for old in draft.where],
        "parameters": {
            f"{label}_{name}": renamed_parameter(parameter, at.taken_by(place), size, options, read=names)
            for name, (parameter, at) in draft.parameters.items()
        },
        "let": keyed(draft.let),
        "fold": tuple(f"{label}_{name}" for name in draft.fold),
        "rewrite": {port: line(old) for port, old in draft.rewrite.items()},
        "merge": {port: line(old) for port, old in draft.merge.items()},
        "train": {
            port: (train.model_copy(update={"insert": options.get(train.insert or "")}), at.taken_by(place))
            for port, (train, at) in draft.train.items()
        },
        "loss": keyed(draft.loss),
        "losses": {f"{label}_{name}": renamed_loss(term, options) for name, term in draft.losses.items()},
        "schedule": {
            f"{label}_{name}": (renamed_schedule(told, names, options), at.taken_by(place))
            for name, (told, at) in draft.schedule.items()
        },
        "quantise": {
            port: (renamed_quantise(told, options), at.taken_by(place))
            for port, (told, at) in draft.quantise.items()
        },
        "places": {keys: at.taken_by(place) for keys, at in draft.places.items()},
    }
    return replace(draft, **changed)


def _as_narrow(own: Option, option: Option) -> bool:
    """Whether every value that `own` can have is one that `option` can have."""
    if option.problem(own.default):
        return False
    low = option.min is None or (own.min is not None and own.min >= option.min)
    high = option.max is None or (own.max is not None and own.max <= option.max)
    return (
        low
        and high
        and (not option.choices or (bool(own.choices) and set(own.choices) <= set(option.choices)))
    )
