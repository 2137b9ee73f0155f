"""Proves that what a section folds depends on no call: such a binding can be computed once. Makes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from peftc.errors import instead
from peftc.lang.codes import fault
from peftc.lang.document import Rule, Section
from peftc.lang.roles import ROLES
from peftc.lang.scope import expressions, names_behind
from peftc.lang.signature import Signature


def check_fold(rule: Rule, section: Section, signatures: Sequence[Signature]) -> None:
    """Raise RuleError for the first binding that is folded and cannot be."""
    if not section.fold:
        return
    place, found = rule.source.place(*rule.keys(section), "fold"), expressions(rule, section)
    ports = {port.name for role in section.match.role for port in ROLES[role].ports.values()}
    moving = set[str]().union(*(role.moving for role in signatures))
    for at, name in enumerate(section.fold):
        if name not in section.let:
            raise fault(
                "R065", place, f"there is no binding {name!r} to fold", hint=instead(name, section.let)
            )
        if name in section.fold[:at]:
            raise fault("R065", place, f"{name!r} is folded twice")
        behind = names_behind(found, "let", name)
        if read := sorted(behind & ports):
            message = f"{name!r} cannot be folded: it depends on {read[0]!r}, which is the site's"
            hint = "it can read parameters, options and sizes"
            raise fault("R065", place, message, text=section.let[name], hint=hint)
        if read := sorted(behind & moving):
            message = f"{name!r} cannot be folded: {read[0]!r} changes from call to call"
            raise fault("R065", place, message, text=section.let[name])
        if not behind & {*section.parameters}:
            message = f"{name!r} cannot be folded: it reads no parameter"
            raise fault("R065", place, message, text=section.let[name])


def behind_fold(rule: Rule, section: Section) -> frozenset[str]:
    """The parameters that the folded bindings of a section are made of."""
    found = expressions(rule, section)
    read = set[str]().union(*(names_behind(found, "let", name) for name in section.fold))
    return frozenset(read & {*section.parameters})
