"""Whether rules start as the model they are put into: their parameters are drawn anew, as compiling draws them."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from peftc.certificate.findings import Finding, none, within
from peftc.certificate.subject import Subject, afresh, error, kept, run
from peftc.lang import signature
from peftc.lang.lengths import lengths_of, proving_scope
from peftc.lang.scope import expressions
from peftc.match.plan import Application, NewParameter, Plan
from peftc.runtime.build import restart
from peftc.runtime.compilation import carry_out, look, start_from
from peftc.runtime.starting import Starting, record
from peftc.runtime.twin import twin

SMALL = 0.01
"""The largest spread with which a rule draws what is to start near 0."""
NEAR = 5e-3
"""The largest relative difference of a rule that does."""


def identity_at_start(subject: Subject) -> Finding:
    """Rules that edit values in place change nothing as they start, whatever they are now.

    An edit promises that: an adapter is put into a model that is trained, to start from it. One that is a product of
    several factors, each drawn near 0 by its own law, promises to start near the model. What puts keys or tokens in
    front, is read from saved adapters or has no parameters promises neither.
    """
    name, plan = "identity at the start", subject.plan
    acting = [each for each in plan.applications if plan.section(each).rewrite]
    if not acting:
        return none(name, "no rule changes the graph")
    others = {each.place: why for each in acting if (why := acts_at_once(plan, each))}
    promised = [each for each in acting if each.place not in others]
    if not promised:
        return none(name, next(iter(others.values())))
    torch.manual_seed(0)
    with torch.no_grad():
        figure = difference(subject) if not others else difference_alone(subject, promised)
    near = [each.rule for each in promised if is_drawn_small(plan, each)]
    named = ", ".join(dict.fromkeys(each.rule for each in promised))
    detail = f"{named} with first values, drawn again"
    if near:
        detail += f"; {near[0]} draws near 0"
    return within(name, figure, max(NEAR, subject.tolerance) if near else subject.tolerance, detail)


def acts_at_once(plan: Plan, application: Application) -> str:
    """Why an application acts from the start, by its meaning; "" where it promises not to."""
    rule = application.rule
    if not application.parameters:
        return f"{rule} acts without parameters"
    if any(each.saved for each in application.parameters):
        return f"{rule} is made of adapters that were trained"
    if makes_longer(plan, application):
        return f"{rule} puts something in front, which acts from the start"
    return ""


def makes_longer(plan: Plan, application: Application) -> bool:
    """Whether a rewrite gives a port more entries along an axis than it had: a softmax over more keys is another."""
    bound, section = plan.bound(application.rule), plan.section(application)
    told = signature(section, application.site.role, application.site.stack)
    scope = proving_scope(bound.rule, section, told, plan.options(application))
    return any(
        "+" in length and length.split("+")[-1] == axis
        for port in section.rewrite
        for axis, length in lengths_of(scope.rewrite(port)).items()
    )


def is_drawn_small(plan: Plan, application: Application) -> bool:
    """Whether an edit is near 0 by its laws: more than one of its factors is drawn there, so it is of second order.

    One factor that is drawn near 0 is no promise: where the rest is large, so is the edit.
    """
    small = {each.name for each in application.parameters if is_small(each)}
    found = expressions(plan.bound(application.rule).rule, plan.section(application))

    def read(table: str, key: str) -> int:
        """How often an expression reads what is small, through bindings too."""
        names = [node.id for node in ast.walk(found[table, key].tree) if isinstance(node, ast.Name)]
        return sum(
            1 if name in small else read("let", name)
            for name in names
            if name in small or ("let", name) in found
        )

    return any(read("rewrite", key) > 1 for table, key in found if table == "rewrite")


def is_small(parameter: NewParameter) -> bool:
    """Whether a parameter is drawn at random, and near 0 by its law."""
    settings = parameter.settings
    spread = {
        "normal": settings.get("std"),
        "truncated_normal": settings.get("std"),
        "uniform": max(abs(settings.get("low", 1.0)), abs(settings.get("high", 1.0))),
    }.get(parameter.law)
    return parameter.trainable and spread is not None and 0 < spread <= SMALL


def difference(subject: Subject) -> float:
    """How far the module is from the model with first values in it; what it holds is put back."""
    plan, plain = subject.plan, subject.plain
    recorded = record(afresh(plain), plan, subject.arguments, subject.compiled._peftc.passes)  # noqa: SLF001
    with kept(subject.compiled):
        restart(subject.compiled, plan, Starting(plain, plan, recorded))
        for path in plan.trained:
            subject.compiled.get_parameter(path).copy_(plain.get_parameter(path))
        return error(run(subject.compiled, subject.arguments), run(plain, subject.arguments))


def difference_alone(subject: Subject, promised: list[Application]) -> float:
    """The same of a module with some applications of the plan only: what acts beside them would hide them."""
    passes: Any = subject.compiled._peftc.passes  # noqa: SLF001
    places = {each.place for each in promised}
    copied: nn.Module = twin(afresh(subject.plain))
    looked = look(copied, subject.plan.rules, subject.arguments, passes=passes)
    some = tuple(each for each in looked.plan.applications if each.place in places)
    looked = replace(looked, plan=replace(looked.plan, applications=some))
    compiled = carry_out(looked, copied, starting=start_from(looked, copied, subject.arguments)).eval()
    return error(run(compiled, subject.arguments), run(subject.plain, subject.arguments))
