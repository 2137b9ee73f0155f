"""Makes the plan: for every rule, every site of its roles is either an application or a skip with its reason.

Longer than most files here: one walk over rules and sites, with every reason for which a site is left out.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import fx, nn

from peftc.analyse import Analysis, Site
from peftc.errors import BudgetError, MatchError, NoMatchError
from peftc.graphs.reading import shape
from peftc.lang import (
    ANY,
    Bound,
    Constant,
    Rule,
    Section,
    accompanies,
    goes_along,
    is_on,
    lift_problem,
    off,
    share_options,
    show,
    sides,
    signature,
    unmet,
)
from peftc.lang.roles import OTHER, ROLES
from peftc.lang.scope import expressions, names_behind
from peftc.lang.sizes import size_at
from peftc.match.asking import left_by_choice, not_asked
from peftc.match.fitting import (
    missing_ports,
    of_training,
    read_of_calls,
    refuse_idle_globs,
    uneven,
    unplaceable,
)
from peftc.match.idle import idle
from peftc.match.ordering import order, refuse_overwriting
from peftc.match.plan import ADAPTER, Application, NewParameter, Plan, Skip
from peftc.match.quantising import Quantising, of_quantised
from peftc.match.refusing import refuse_unknown_layers, refuse_unknown_parts, told
from peftc.match.sharing import WEIGHTED, leaks, refuse_misfits, seed, shared, tied, widest
from peftc.match.training import trained_already, training
from peftc.match.unfound import asks_for_attention, before_heads, unfound
from peftc.quantised import quantised_in
from peftc.quantised.weight import HOME

GONE = "its gate was 0, and it was taken out"
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def make_plan(
    bounds: Sequence[Bound],
    analysis: Analysis,
    root: nn.Module,
    defaults: Iterable[Bound] = (),
    budget: int | None = None,
    unread: Iterable[str] = (),
) -> Plan:
    """Match rules to the sites of a model.

    Args:
        bounds: the rules the user asked for.
        defaults: rules that act unless told otherwise; one that matches nothing is no error.
        budget: largest number of new parameters; the model's own number (at least 50 million) if None.
        unread: what is to be said of attentions that were not read as such.

    Raises:
        UnknownPartError: a part that no site of this model has.
        NoMatchError: a rule that matches nothing.
        ConflictError: rules that cannot act together.
        BudgetError: more new parameters than the budget.
    """
    asked = {bound.label for bound in bounds}
    added = [bound for bound in defaults if bound.rule.name not in {other.rule.name for other in bounds}]
    rules = order([*bounds, *added])
    came = quantised_in(root)
    sizes = {
        name: math.prod(came[name].shape) if name in came else parameter.numel()
        for name, parameter in root.named_parameters()
        if HOME not in name.split(".")
    }
    matcher = Matcher(analysis, root)
    for bound in rules:
        matcher.match(bound, required=bound.label in asked)
    notes = [
        f"{bound.label} acts by default: {bound.rule.summary}"
        for bound in added
        if any(each.rule == bound.label for each in matcher.applications)
    ]
    notes += [f"{bound.label} was trained before and stays as it is" for bound in rules if bound.kept]
    notes += [note for bound in rules if not bound.kept for note in of_training(bound, matcher.applications)]
    notes += [note for bound in bounds for note in idle(bound, analysis, matcher.applications, matcher.skips)]
    notes += unfound(bounds, analysis)
    notes += before_heads(matcher.applications, analysis)
    notes += unread if any(asks_for_attention(bound) for bound in bounds) else ()
    notes += of_quantised(came, matcher.applications, sizes)
    if analysis.unread:
        notes.append(f"no output depends on {', '.join(analysis.unread)}: left as it is")
    if not matcher.applications:
        raise NoMatchError(
            "nothing would be done: no rule is given, and none that acts by default fits this model",
            hint="peftc.rules() lists those of the library",
        )
    acting = {each.rule for each in matcher.applications}
    plan = Plan(
        tuple(bound for bound in rules if bound.label in acting),
        analysis.sites,
        tuple(matcher.applications),
        tuple(matcher.skips),
        sizes,
        analysis.unread,
        tuple(notes),
    )
    tied_notes = [
        f"{each.rule} acts on {each.site.id} alone of those that read its weight, such as {other.id}: it cannot be merged"
        for each, other in leaks(plan)
    ]
    plan = replace(plan, notes=(*plan.notes, *tied_notes))
    refuse_overwriting(plan)
    refuse_misfits(plan)
    refuse_runaway(plan, max(sum(sizes.values()), 50_000_000) if budget is None else budget)
    return plan


def refuse_runaway(plan: Plan, budget: int) -> None:
    """Raise if the plan adds more parameters than allowed; nothing has been made yet."""
    count = sum(parameter.count for parameter in plan.new_tensors)
    if count > budget:
        largest = max(plan.new_parameters, key=lambda parameter: parameter.count)
        raise BudgetError(
            f"these rules would add {count:,} parameters; the budget is {budget:,}",
            detail=(f"the largest is {largest.path} {list(largest.shape)}",),
            hint="make the rule's options smaller, or give a larger budget",
        )


def in_turn(rule: Rule) -> list[tuple[int, Section]]:
    """The sections of a rule with their numbers, those last that go along with others."""
    return sorted(enumerate(rule.sections), key=lambda each: goes_along(rule, each[1]))


class Matcher:
    """Goes through rules in order and gathers applications and skips."""

    def __init__(self, analysis: Analysis, root: nn.Module) -> None:
        self.analysis, self.root = analysis, root
        self.quantising = Quantising(analysis, root)
        self.applications: list[Application] = []
        self.skips: list[Skip] = []
        self.tied = tied(analysis.sites)
        self.lifted: dict[tuple[str, int, str, str], str | None] = {}

    def match(self, bound: Bound, required: bool) -> None:
        """Add every application and skip of one rule."""
        if required:
            refuse_unknown_parts(bound, self.analysis)
            refuse_unknown_layers(bound, self.analysis)
        before, skipped = len(self.applications), len(self.skips)
        for number, section in in_turn(bound.rule):
            if not bound.wants(section) or not is_on(bound.rule, section, bound.options):
                continue
            sites = [site for site in self.analysis.sites if site.role in section.match.role]
            chosen = []
            for site in sites:
                reason = self.reason_against(bound, number, section, site)
                if reason is None:
                    chosen.append(site)
                else:
                    self.skips.append(Skip(bound.label, site, reason, number))
            self.skips += [
                Skip(bound.label, site, site.evidence, number)
                for site in self.analysis.overlooked
                if site.role in section.match.role and not_asked(bound, section, site) is None
            ]
            for site in chosen:
                by = (bound.label, number)
                done = self.done_as(by, site)
                if reason := done or self.quantising.reason_against(
                    by, section, site, chosen, self.applications
                ):
                    self.skips.append(Skip(bound.label, site, reason, number))
                else:
                    self.apply(bound, number, section, site, chosen)
            needed = required and section.required and not bound.shrunk
            if (
                needed
                and not self.applied(bound, number)
                and not left_by_choice(bound, section, self.analysis.sites)
            ):
                raise self.nothing(bound, number)
        if required and not self.does_something(bound):
            wanted = (
                number
                for number, each in enumerate(bound.rule.sections)
                if bound.wants(each) and is_on(bound.rule, each, bound.options)
            )
            raise self.nothing(bound, next(wanted, 0))
        self.applications[before:] = sorted(self.applications[before:], key=lambda each: each.section)
        self.skips[skipped:] = sorted(self.skips[skipped:], key=lambda each: each.section)
        refuse_idle_globs(
            bound,
            [each.site for each in self.applications[before:]],
            [skip for skip in self.skips if skip.rule == bound.label],
        )

    def done_as(self, by: tuple[str, int], site: Site) -> str | None:
        """Why a section has acted here under another part's name, or None: one product may be keys and values at once."""
        if site.role not in WEIGHTED:
            return None
        own = (site.role, site.path, site.matrix, site.rows)
        for each in self.applications:
            other = each.site
            if (each.rule, each.section) == by and own == (
                other.role,
                other.path,
                other.matrix,
                other.rows,
            ):
                return f"it is the product of {other.id}, changed there"
        return None

    def applied(self, bound: Bound, number: int) -> bool:
        """Whether a section of a rule goes anywhere."""
        return any(each.rule == bound.label and each.section == number for each in self.applications)

    def does_something(self, bound: Bound) -> bool:
        """Whether a rule goes anywhere with more than what accompanies it."""
        acting = {each.section for each in self.applications if each.rule == bound.label}
        return any(
            bound.shrunk or not accompanies(bound.rule, bound.rule.sections[number]) for number in acting
        )

    def alone(self, bound: Bound, section: Section, site: Site) -> str | None:
        """Why a section that goes along with others has none to go with at a site, or None."""
        own = [each for each in self.applications if each.rule == bound.label]
        gone = [each for each in self.skips if each.rule == bound.label and each.reason == GONE]
        places = [*((each.section, each.site) for each in own), *((each.section, each.site) for each in gone)]
        sections = bound.rule.sections
        scopes = {
            side
            for number, other in places
            if share_options(bound.rule, section, sections[number])
            for side in sides(other.scope)
        }
        if not scopes:
            return "nothing acts that it goes along with"
        if site.scope and not scopes & {site.scope, ""}:
            return f"nothing acts in the {site.scope} that it goes along with"
        return None

    def reason_against(self, bound: Bound, number: int, section: Section, site: Site) -> str | None:
        """Why a section leaves a site out, or None."""
        left = bound.shrunk_at(site.id, number)
        if left is not None and left.gone:
            return GONE
        if reason := not_asked(bound, section, site):
            return reason
        if goes_along(bound.rule, section) and (reason := self.alone(bound, section, site)):
            return reason
        if site.stack and (reason := self.unliftable(bound, section, site)):
            return reason
        if reason := unplaceable(bound.rule, section, site):
            return reason
        missing = missing_ports(bound.rule, section, site)
        if missing:
            return f"it has no {', '.join(missing)}"
        if reason := self.misfit(section, site) or self.unchangeable(section, site):
            return reason
        sizes = signature(section, site.role, site.stack).sizes_at(site.sizes)
        options = {**bound.options, **bound.options_at(site.path, site.id)}
        if reason := unmet(bound.rule, section, options, sizes):
            return reason
        return uneven(section, {**options, **sizes})

    def unliftable(self, bound: Bound, section: Section, site: Site) -> str | None:
        """Why a section cannot act on a site that is a stack of matrices, or None; proved once for all of them."""
        key = (bound.label, id(section), site.role, site.stack)
        if key not in self.lifted:
            self.lifted[key] = lift_problem(bound.rule, section, site.role, site.stack, bound.options)
        return self.lifted[key]

    def misfit(self, section: Section, site: Site) -> str | None:
        """Which port does not have as many axes at a site as the section names, or None.

        An optional operand, such as a mask, may have fewer: it is broadcast.
        """
        located = self.analysis.find(site)
        for port, axes in section.values().items():
            if ROLES[site.role].ports[port].optional:
                continue
            for use in located.uses if located else ():
                source = use.ports[port].source if port in use.ports else None
                if isinstance(source, fx.Node) and ANY not in axes and len(shape(source)) != len(axes):
                    return f"{port} has {len(shape(source))} axes here, not those of {show(axes)}"
        return None

    def unchangeable(self, section: Section, site: Site) -> str | None:
        """Which operand that a section rewrites is not the site's alone, or None."""
        located = self.analysis.find(site)
        for port in section.rewrite:
            if ROLES[site.role].ports[port].kind == "operand" and any(
                port in use.ports and use.ports[port].kind == "value"
                for use in (located.uses if located else ())
            ):
                return f"its {port} is read for other parts too, and cannot be changed for it alone"
        return None

    def apply(self, bound: Bound, number: int, section: Section, site: Site, chosen: Sequence[Site]) -> None:
        """Add one application, or the skip that says why there is nothing to do."""
        own = bound.options_at(site.path, site.id)
        options = {**bound.options, **own}
        trained = training(section, site, chosen, options, lambda: self.home(bound, site, number), self.root)
        if trained.reason:
            self.skips.append(Skip(bound.label, site, trained.reason, number))
            return
        trains, inserted = trained.trains, {port: each.name for port, each in trained.inserted.items()}
        parameters = [
            *self.new_parameters(bound, section, site, number, chosen, options),
            *trained.inserted.values(),
        ]
        if bound.kept:
            parameters = [as_trained(parameter) for parameter in parameters]
        other = trained_already(trains, self.applications)
        if other and not parameters:
            self.skips.append(Skip(bound.label, site, f"{other} trains it already", number))
            return
        quantises = self.quantising.packings(bound, section)
        if not (trains or parameters or section.rewrite or quantises):
            self.skips.append(Skip(bound.label, site, f"it has no {', '.join(section.train)}", number))
            return
        self.applications.append(
            Application(bound.label, number, site, tuple(parameters), trains, inserted, quantises, own)
        )

    def new_parameters(
        self,
        bound: Bound,
        section: Section,
        site: Site,
        number: int,
        chosen: Sequence[Site],
        options: Mapping[str, Constant],
    ) -> Iterable[NewParameter]:
        """The parameters that a section makes at a site, which is one of those that it goes to."""
        own = {**options, **signature(section, site.role, site.stack).sizes_at(site.sizes)}
        found = expressions(bound.rule, section)
        left = bound.shrunk_at(site.id, number)
        for name, parameter in section.parameters.items():
            known = {**own, **widest(section, site, parameter, chosen)}
            initial = parameter.initial
            computed = initial.expression is not None
            behind = names_behind(found, "parameters", name) if computed else ()
            sizes = {each.axis: size_at(each.size, known) or 0 for each in parameter.dimensions}
            shape = tuple(({**sizes, **left.sizes} if left else sizes)[axis] for axis in sizes)
            axes = parameter.named_in(site.stack)
            if stacked := len(axes) > len(shape):
                shape = (site.sizes[site.stack], *shape)
            yield NewParameter(
                name,
                f"{self.home(bound, site, number)}.{name}",
                axes,
                shape,
                initial.law or parameter.init,
                initial.resolve(options),
                parameter.dtype,
                parameter.trainable,
                shared(bound, number, site, name, parameter, self.tied.get(site, "")),
                seed(bound, number, site, name, parameter, options),
                computed,
                read_of_calls(site, behind),
                stacked,
                float(options[parameter.lr] if isinstance(parameter.lr, str) else parameter.lr),
                initial.saved,
            )

    def home(self, bound: Bound, site: Site, number: int) -> str:
        """Where a rule's parameters live: beside the site's owner, never inside a container that runs its children."""
        owner, rest = site.path, [site.part or (OTHER if site.role == "linear" else site.role)]
        while owner and isinstance(self.root.get_submodule(owner), CONTAINERS):
            owner, _, last = owner.rpartition(".")
            rest.insert(0, last)
        if site.name:
            rest.append(site.name.replace(".", "_"))
        if number:
            rest.append(str(number))
        return ".".join([*([owner] if owner else []), HOME, ADAPTER, bound.label, "_".join(rest)])

    def nothing(self, bound: Bound, number: int) -> MatchError:
        """The error for a section that matches nothing, with the nearest candidates."""
        section = bound.rule.sections[number]
        skipped = [s for s in self.skips if (s.rule, s.section) == (bound.label, number)]
        role = " or ".join(section.match.role)
        what = f"section {number + 1} of {bound.label}" if number else bound.label
        if not skipped and off(bound.rule, section, bound.options):
            kept_off = {off(bound.rule, each, bound.options) for each in bound.rule.sections}
            return NoMatchError(
                f"{what} does nothing with these options",
                detail=sorted(reason for reason in kept_off if reason is not None),
            )
        if not skipped:
            there = ", ".join(sorted({site.role for site in self.analysis.sites}))
            return NoMatchError(f"{what} matches nothing: this model has no {role}", hint=f"it has: {there}")
        left = [skip.site for skip in skipped if skip.site in self.analysis.overlooked]
        glob, parts = bound.path_glob, bound.parts_of(section)
        close = [skip for skip in skipped if glob is None or fnmatch.fnmatchcase(skip.site.path, glob)]
        if not (close or left):
            paths = sorted({skip.site.path for skip in skipped})
            near = difflib.get_close_matches(str(glob).strip("*."), paths, n=3, cutoff=0.0)
            return NoMatchError(
                f"{what} matches nothing: no {role} has a path like {glob}",
                hint=f"nearest: {', '.join(near)}",
            )
        if glob is None and parts:
            close = [skip for skip in close if any(s.accepts(skip.site.role, skip.site.part) for s in parts)]
        reasons: dict[str, list[Site]] = {}
        for skip in close or skipped:
            if skip.site not in left:
                reasons.setdefault(skip.reason, []).append(skip.site)
        nearest = left if (left and glob is not None) or not reasons else next(iter(reasons.values()))
        detail = [
            f"{len(sites)} × {reason}, such as {sites[0].path or '.'}" for reason, sites in reasons.items()
        ]
        return NoMatchError(
            f"{what} matches nothing: it leaves out all {len(skipped)} sites of role {role}",
            detail=(*detail[:6], *told(left, 6)),
            hint="nearest: " + ", ".join(site.id for site in nearest[:3]),
        )


def as_trained(parameter: NewParameter) -> NewParameter:
    """A parameter of a rule that is kept: nothing of it is computed, drawn or trained, its values are put in."""
    return replace(
        parameter, trainable=False, law="zeros", settings={}, seed=None, computed=False, data=(), saved=""
    )
