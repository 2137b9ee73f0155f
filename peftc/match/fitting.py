"""What a section needs of a site, and what of it a person should be told. Chooses nothing."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence

from peftc.analyse import Site
from peftc.errors import NoMatchError
from peftc.lang import Bound, Rule, Section, signature
from peftc.lang.operations import OPERATIONS
from peftc.lang.results import drops, drops_over, keeps_over
from peftc.lang.roles import CONV, ROLES
from peftc.lang.scope import expressions, names_behind
from peftc.lang.sizes import names_of, size_at
from peftc.match.plan import Application, Skip


def of_training(bound: Bound, applications: Sequence[Application]) -> Iterator[str]:
    """What a person who trains must know of a rule: what it adds to the loss, and what it needs to be told."""
    acting = {each.section for each in applications if each.rule == bound.label}
    sections = [bound.rule.sections[number] for number in sorted(acting)]
    if losses := [name for section in sections for name in section.loss]:
        yield f"{bound.label} adds to the loss while training: {', '.join(losses)}"
    rates = {
        each.name: each.lr
        for application in applications
        if application.rule == bound.label
        for each in application.parameters
        if each.lr != 1.0
    }
    if rates:
        said = ", ".join(f"{name} at {factor:g} times" for name, factor in rates.items())
        yield (
            f"{bound.label} trains {said} the learning rate: peftc finetune sees to it; elsewhere give the "
            "optimiser peftc.param_groups(compiled, lr)"
        )
    if any(gathers_tokens(bound.rule, section) for section in sections):
        yield (
            f"{bound.label} computes some numbers from all tokens of a call: in a decoder, outputs then depend on later "
            "tokens too, and what is generated on how a text is cut into calls"
        )
    if bound.saved:
        named = ", ".join(bound.saved)
        yield f"{bound.label} is made of saved adapters, in this order: {named}; no head of theirs is read"
    if bound.shrunk:
        yield f"{bound.label} was shrunk: what its gates had put to 0 is gone"
    going_on = [bound.rule.sections[number] for number in sorted(acting) if not bound.is_narrowed(number)]
    if policies := [told.policy for section in going_on for told in section.schedule.values()]:
        yield (
            f"{bound.label} changes in training, by {', '.join(policies)}: peftc finetune sees to it; elsewhere "
            "call update_schedules(step, total) after each step of the optimiser"
        )


def gathers_tokens(rule: Rule, section: Section) -> bool:
    """Whether an expression that acts in each call takes one number of several tokens, as a mean does."""
    signatures = [signature(section, role) for role in section.match.role]
    moving = {axis for told in signatures for axis in told.moving if told.sizes.get(axis) != "batch"}
    for (table, _), expression in expressions(rule, section).items():
        for node in expression.nodes if table in ("let", "rewrite") else ():
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            operation = OPERATIONS.get(node.func.id)
            along = {ast.literal_eval(each.value) for each in node.keywords if each.arg == "axis"}
            if operation and operation.axes in (drops, drops_over, keeps_over) and along & moving:
                return True
    return False


def refuse_idle_globs(bound: Bound, sites: Sequence[Site], skips: Sequence[Skip]) -> None:
    """Raise NoMatchError if options are given for sites among which the rule goes to none."""
    for each in bound.sites:
        if bound.shrunk or any(each.accepts(site.path, site.id) for site in sites):
            continue  # after shrinking, such sites may be gone
        ids = sorted({site.id for site in sites})
        near = difflib.get_close_matches(each.glob.strip("*."), ids, n=3, cutoff=0.0)
        left_out = [skip for skip in skips if each.accepts(skip.site.path, skip.site.id)]
        raise NoMatchError(
            f"{bound.label} has options for {each.glob}, but goes to no such site",
            detail=tuple(f"{skip.site.id}: {skip.reason}" for skip in left_out[:2]),
            hint=f"nearest: {', '.join(near)}",
        )


def read_of_calls(site: Site, names: Collection[str]) -> tuple[str, ...]:
    """The ports among some names whose values change from call to call."""
    ports = ROLES[site.role].ports.values()
    return tuple(port.name for port in ports if port.name in names and port.kind != "weight")


def uneven(section: Section, known: Mapping[str, object]) -> str | None:
    """Which size of a parameter is no whole number at a site, or None."""
    for name, parameter in section.parameters.items():
        for dimension in parameter.dimensions:
            named = names_of(dimension.size)
            if absent := [each for each in named if each not in known]:
                return f"it has no {absent[0]}, which {name} has the size of"
            if size_at(dimension.size, known) is None:
                said = ", ".join(f"{each} = {known[each]}" for each in named)
                return f"the size {dimension.size} of {name} is no whole number above 0 here ({said})"
    return None


def unplaceable(rule: Rule, section: Section, site: Site) -> str | None:
    """Why what a section does has no place at a site whose values are not held as its ports say, or None."""
    found = expressions(rule, section)
    read: set[str] = {*section.merge}.union(*(expression.names for expression in found.values()))
    if kept := sorted(read.intersection(site.computed)):
        return f"the model computes its {', '.join(kept)} from a parameter, which can be trained but not read or merged into"
    if not site.stack and site.part != CONV:
        return None
    for name, parameter in section.parameters.items():
        if parameter.initial.expression is None:
            continue
        if at_calls := read_of_calls(site, names_behind(found, "parameters", name)):
            what = f"a stack of {site.stack}" if site.stack else "a convolution"
            return f"it is {what}, and {name} starts from {', '.join(at_calls)} on data, which is for single matrices"
    return None


def missing_ports(rule: Rule, section: Section, site: Site) -> list[str]:
    """Ports that a section's expressions read and that this site does not have.

    Masks may be absent: that is a value; so may biases, which are then 0.
    """
    ports = ROLES[site.role].ports
    names: set[str] = {
        name for expression in expressions(rule, section).values() for name in expression.names
    }
    needed = [port for name, port in ports.items() if name in names]
    absent = [
        port.name
        for port in needed
        if port.kind == "weight"
        and port.name not in site.weights
        and (port.neutral is None or not site.weights)
    ]
    absent += [port.name for port in needed if port.counted and not site.sizes.get(port.counted)]
    if "h" in names and "h" in ports and "d_model" not in site.sizes:
        absent.append("h")
    return absent
