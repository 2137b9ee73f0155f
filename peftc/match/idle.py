"""Notes on what a user asked of a rule and what comes to nothing in a model, though the rule acts elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from peftc.analyse import Analysis
from peftc.lang import Bound, Section, accompanies, conditions, goes_along, is_on
from peftc.match.asking import asks_for, left_by_choice, not_asked, plain
from peftc.match.plan import Application, Skip

MOST = 3  # reasons that a note gives


def idle(
    bound: Bound, analysis: Analysis, applications: Sequence[Application], skips: Sequence[Skip]
) -> Iterator[str]:
    """A line for each option, part and section of a rule that has no effect; nothing of one that was trained before."""
    if bound.kept or bound.shrunk:
        return
    done = [each for each in applications if each.rule == bound.label]
    left = [each for each in skips if each.rule == bound.label]
    yield from idle_parts(bound, done, left)
    acting = {each.section for each in done}
    for number, section in enumerate(bound.rule.sections):
        if number in acting or not is_on(bound.rule, section, bound.options):
            continue
        why = reasons(bound, section, analysis, [skip for skip in left if skip.section == number])
        if said := switched_on(bound, section):
            yield f"{said} of {bound.label} does nothing here: {why}"
        elif is_left(bound, section, analysis):
            parts = ", ".join(section.match.part)
            what = " or ".join(section.match.role) + (f" ({parts})" if parts else "")
            yield f"{bound.label} goes to no {what}: {why}"


def idle_parts(bound: Bound, done: Sequence[Application], left: Sequence[Skip]) -> Iterator[str]:
    """Parts that the user named, and nothing of which is changed."""
    sections = bound.rule.sections
    for named in bound.parts:
        meant = {
            number: named.within(bound.rule, section)
            for number, section in enumerate(sections)
            if not accompanies(bound.rule, section)
        }
        if any(asks_for(each, one.site) for one in done for each in meant.get(one.section, ())):
            continue
        found = [
            skip for skip in left if any(asks_for(each, skip.site) for each in meant.get(skip.section, ()))
        ]
        yield f"{bound.label} changes nothing of {named.text}: {counted(found)}"


def is_left(bound: Bound, section: Section, analysis: Analysis) -> bool:
    """Whether a section would act by itself, and what the user named leaves out all of its sites."""
    in_place = bound.path_glob is not None and bound.rule.shorthand == "part"
    if section.asked or in_place or goes_along(bound.rule, section) or not bound.wants(section):
        return False
    return left_by_choice(bound, section, analysis.sites)


def switched_on(bound: Bound, section: Section) -> str:
    """The options with other values than their defaults that a section is on for; nothing where it is on by default."""
    defaults = {name: option.typed(option.default) for name, option in bound.rule.options.items()}
    if is_on(bound.rule, section, defaults):
        return ""
    read = [each.expression.names for each in conditions(bound.rule, section) if each.of_options]
    names = dict.fromkeys(name for each in read for name in each if bound.options[name] != defaults[name])
    return ", ".join(f"{name}={bound.options[name]}" for name in names)


def reasons(bound: Bound, section: Section, analysis: Analysis, left: Sequence[Skip]) -> str:
    """Why a section acts nowhere."""
    role = " or ".join(section.match.role)
    if not any(site.role in section.match.role for site in analysis.sites):
        return f"this model has no {role}"
    if not left:
        return f"no {role} is among {', '.join(each.text for each in bound.parts)}"
    for each in (bound, plain(bound)):
        if close := [skip for skip in left if not_asked(each, section, skip.site) is None]:
            return counted(close)
    return counted(left)


def counted(left: Sequence[Skip]) -> str:
    """The reasons of skips, each with how often it is one."""
    said = Counter(skip.reason for skip in left).most_common(MOST)
    return "; ".join(f"{count} × {reason}" for reason, count in said)
