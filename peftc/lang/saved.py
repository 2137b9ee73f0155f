"""Rules that read parameters from saved adapters, and the rules that these were saved with: whether they go together.

Opens no folder and reads no tensor; who does gives a SavedRule for each adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peftc.errors import RuleError, SavedAdapterError
from peftc.lang.axes import Constant
from peftc.lang.bind import Bound
from peftc.lang.check import check
from peftc.lang.condition import is_on
from peftc.lang.document import Rule, Use
from peftc.lang.library import Library, default_library
from peftc.lang.site_options import SiteOptions

WHERE = "saved adapters"


@dataclass(frozen=True)
class SavedRule:
    """An adapter on disk: what the user calls it, and the rule that its parameters are of."""

    name: str
    bound: Bound


def counted_by(rule: Rule) -> str | None:
    """The option that says how many saved adapters a rule reads; None for a rule that reads none."""
    found = {
        str(made.dimensions[0].size)
        for section in rule.sections
        for made in section.parameters.values()
        if made.initial.saved
    }
    return min(found, default=None)


def read_from(bound: Bound, saved: Sequence[SavedRule], library: Library | None = None) -> Bound:
    """A rule that reads saved adapters, bound to these; one that reads none, as it is.

    The used rule becomes that of the adapters, with their options; where the user chose no sites, it goes to those
    that they chose.

    Raises:
        SavedAdapterError: the adapters differ, or the rule cannot read them; says how.
    """
    counting = counted_by(bound.rule)
    if counting is None or not saved:
        return bound
    first = saved[0].bound
    for other in saved[1:]:
        refuse_unlike(saved[0], other)
    rule = flattened_with(bound, saved[0], library or default_library())
    names = option_names(rule, first)
    fixed = {**{here: first.options[name] for name, here in names.items()}, counting: len(saved)}
    given = {
        name: value for name, value in bound.options.items() if value != bound.rule.options[name].default
    }
    if wrong := next((name for name in given if name in fixed and given[name] != fixed[name]), None):
        known = ", ".join(repr(each.name) for each in saved)
        message = f"{wrong} was given as {said(given[wrong])}, and is {said(fixed[wrong])} for {known}"
        raise SavedAdapterError(message, where=WHERE, hint=f"leave {wrong} out")
    defaults = {name: option.typed(option.default) for name, option in rule.options.items()}
    options = {name: {**defaults, **given, **fixed}[name] for name in rule.options}
    chosen: Mapping[str, Any] = {} if bound.parts or bound.layers or bound.path_glob else places(first)
    sites = tuple(renamed(each, names) for each in first.sites)
    return replace(
        bound,
        rule=rule,
        options=options,
        saved=tuple(each.name for each in saved),
        sites=(*(each for each in sites if each.options), *bound.sites),
        **chosen,
    )


def places(bound: Bound) -> dict[str, Any]:
    """What a user chose of sites."""
    return {key: getattr(bound, key) for key in ("parts", "layers", "path_glob")}


def renamed(each: SiteOptions, names: Mapping[str, str]) -> SiteOptions:
    """Options of some sites, under the names that the reading rule has for them."""
    return SiteOptions(
        each.glob, {names[name]: value for name, value in each.options.items() if name in names}
    )


def flattened_with(bound: Bound, saved: SavedRule, library: Library) -> Rule:
    """The reading rule, flattened with the adapters' own rule in the place of the one that it names."""
    written, stored = bound.rule.written, as_trained(saved.bound)
    if not any(use.saved for use in written.use):
        return bound.rule
    alias = "saved_rule"  # so that another use of the same name still finds that of the library

    def taken(use: Use) -> Use:
        return use.model_copy(update={"rule": alias, "label": use.label or use.rule}) if use.saved else use

    def find(name: str, trail: tuple[str, ...]) -> Rule:
        return stored if name == alias else library.rule(name, trail)

    put_in = written.model_copy(update={"use": tuple(map(taken, written.use))})
    try:
        return check(put_in.read_from(written.source), find, (written.name,))
    except RuleError as error:
        raise SavedAdapterError(
            f"{written.name} cannot read {stored.name}, which {saved.name!r} is of: {error.message}",
            where=WHERE,
            detail=(f"at {error.where}",),
        ) from error


def as_trained(bound: Bound) -> Rule:
    """The rule of an adapter without the sections that its options turn off: they hold nothing."""
    on = tuple(section for section in bound.rule.also if is_on(bound.rule, section, bound.options))
    return bound.rule.model_copy(update={"also": on})


def option_names(rule: Rule, stored: Bound) -> dict[str, str]:
    """Name of an option of the adapters' rule → its name in the rule that reads them, where it has one."""
    labels = [use.label or use.rule for use in rule.written.use if use.saved]
    return {
        name: f"{label}_{name}"
        for label in labels
        for name in stored.options
        if f"{label}_{name}" in rule.options
    }


def refuse_unlike(one: SavedRule, other: SavedRule) -> None:
    """Raise SavedAdapterError unless two adapters are of one rule, with the same options at the same places."""
    mine, theirs = one.bound, other.bound
    if mine.rule.name != theirs.rule.name:
        raise unlike(one, other, f"is of {mine.rule.name}", f"of {theirs.rule.name}")
    if mine.rule != theirs.rule:
        key, here, there = first_difference(mine.rule.content, theirs.rule.content)
        raise unlike(one, other, f"has {key} = {here} in its {mine.rule.name}", f"{there}")
    for name, value in mine.options.items():
        if value != theirs.options[name]:
            raise unlike(one, other, f"has {name} = {said(value)}", said(theirs.options[name]))
    for key, what in (
        ("parts", "parts"),
        ("layers", "layers"),
        ("path_glob", "paths"),
        ("sites", "options by site"),
    ):
        if getattr(mine, key) != getattr(theirs, key):
            raise unlike(one, other, f"is for {chosen(mine, key)} {what}", f"for {chosen(theirs, key)}")


def unlike(one: SavedRule, other: SavedRule, here: str, there: str) -> SavedAdapterError:
    """The error for two adapters of which one is so and the other otherwise."""
    message = f"{one.name!r} {here}, {other.name!r} {there}"
    return SavedAdapterError(message, where=WHERE, hint="only adapters that are alike can be read together")


def said(value: Constant) -> str:
    """A value as a message says it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def chosen(bound: Bound, key: str) -> str:
    """What a user chose of sites, in words."""
    held = getattr(bound, key)
    if not held:
        return "all" if key != "sites" else "no"
    if key == "parts":
        return ", ".join(each.text for each in held)
    if key == "sites":
        return "; ".join(f"{each.glob}: {dict(each.options)}" for each in held)
    return held.text if key == "layers" else str(held)


def first_difference(one: Any, other: Any, key: str = "") -> tuple[str, str, str]:
    """Where two contents of rules first differ, and what stands there."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in {**one, **other}:
            if one.get(name) != other.get(name):
                return first_difference(one.get(name), other.get(name), f"{key}.{name}" if key else name)
    here, there = ("nothing" if held is None else repr(held) for held in (one, other))
    return key, here, there
