"""Takes out of a compiled module what its gates have put to 0: smaller parameters, fewer sections, equal outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from peftc.capture.graph_reader import CONSTANTS
from peftc.errors import ShrinkError
from peftc.lang import Bound, Shrunk
from peftc.lang.gates import gone
from peftc.match import Plan, make_plan
from peftc.match.plan import Application, Place
from peftc.runtime.build import build
from peftc.runtime.engine import Engine
from peftc.runtime.merging import plain_model


@dataclass(frozen=True)
class Left:
    """What is left of one application: which entries of axes; or nothing."""

    entries: Mapping[str, Tensor]
    gone: bool = False


def shrunk_module(root: nn.Module) -> nn.Module:
    """A compiled module of the same class, over the same frozen weights, without what gates have put to 0.

    Raises:
        ShrinkError: no rule has a gate, or nothing of any rule would be left.
    """
    engine: Engine = root._peftc  # type: ignore[assignment]  # noqa: SLF001 - of the class that this stage makes
    plan = engine.plan
    gated = [
        bound.label for bound in plan.rules if any(gates(bound, number) for number in sections_of(bound))
    ]
    if not gated:
        named = ", ".join(bound.label for bound in plan.rules)
        raise ShrinkError(f"no rule here has a gate: {named}", hint="a rule file marks one by gate = true")
    left = {each.place: left_of(root, plan, each) for each in plan.applications}
    if all(each.gone for each in left.values()):
        raise ShrinkError("every gate is 0: nothing of the rules would be left")
    bounds = [with_left(bound, left) for bound in plan.rules]
    bounds = [bound for bound in bounds if any(not left[each.place].gone for each in plan.of(bound.label))]
    copied, first = plain_model(root), next(entry for entry in engine.entries if not entry.program.root)
    smaller = make_plan(bounds, first.analysis, copied, budget=2**63)
    made = Engine(copied, smaller, engine.blocks, engine.passes)
    kind = type(root).__bases__[0]
    compiled = build(copied, smaller, made, kind)
    carry_over(root, compiled, plan, left)
    hand_programs(engine, made, root)
    return compiled


def has_zeros(root: nn.Module, plan: Plan) -> bool:
    """Whether a gate of a plan is 0 anywhere."""
    paths = (
        parameter.path
        for application in plan.applications
        for parameter in application.parameters
        if parameter.name in gates(plan.bound(application.rule), application.section)
    )
    return any(bool((root.get_parameter(path) == 0).any()) for path in paths)


def gates(bound: Bound, number: int) -> list[str]:
    """The gates of a section."""
    return [name for name, made in bound.rule.sections[number].parameters.items() if made.gate]


def sections_of(bound: Bound) -> range:
    """The numbers of a rule's sections."""
    return range(len(bound.rule.sections))


def left_of(root: nn.Module, plan: Plan, application: Application) -> Left:
    """What a section's gates leave of it at a site."""
    bound, paths = plan.bound(application.rule), {each.name: each.path for each in application.parameters}
    section, entries = plan.section(application), dict[str, Tensor]()
    for name in gates(bound, application.section):
        live = root.get_parameter(paths[name]).detach() != 0
        options = plan.options(application)
        if not live.any() and gone(bound.rule, application.section, application.site.role, options, name):
            return Left({}, gone=True)
        if section.parameters[name].named:
            (axis,) = section.parameters[name].named
            kept = live.nonzero().flatten()
            both = entries.get(axis)
            kept = kept if both is None else kept[torch.isin(kept, both)]
            entries[axis] = kept if kept.numel() else torch.zeros(1, dtype=torch.long, device=live.device)
    return Left(entries)


def with_left(bound: Bound, left: Mapping[Place, Left]) -> Bound:
    """A rule that says what is left of it where something was taken out."""
    found = {(each.site, each.section): each for each in bound.shrunk}
    for (label, number, site), each in left.items():
        if label == bound.label and (each.gone or each.entries):
            sizes = {axis: kept.numel() for axis, kept in each.entries.items()}
            found[site, number] = Shrunk(site, number, sizes, each.gone)
    return replace(bound, shrunk=tuple(found.values()))


def carry_over(root: nn.Module, compiled: nn.Module, plan: Plan, left: Mapping[Place, Left]) -> None:
    """Put what is left of a module's parameters into the smaller module, with its mode and what trains."""
    kept: dict[str, Tensor] = {path: root.get_parameter(path) for path in plan.trained}
    for application in plan.applications:
        if not left[application.place].gone:
            kept |= narrowed(root, application, left[application.place])
    with torch.no_grad():
        for path, parameter in named(compiled):
            if path in kept:
                parameter.copy_(kept[path])
            parameter.requires_grad_(root.get_parameter(path).requires_grad)
    for path, module in compiled.named_modules():
        module.training = root.get_submodule(path).training


def narrowed(root: nn.Module, application: Application, left: Left) -> Iterator[tuple[str, Tensor]]:
    """The parameters of an application, by path, with those entries of each axis that are left."""
    for parameter in application.parameters:
        tensor = root.get_parameter(parameter.path).detach()
        for place, axis in enumerate(parameter.axes):
            if axis in left.entries:
                tensor = tensor.index_select(place, left.entries[axis])
        yield parameter.path, tensor


def named(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter by each of its paths."""
    yield from module.named_parameters(remove_duplicate=False)


def hand_programs(engine: Engine, made: Engine, root: nn.Module) -> None:
    """Let the smaller module have the programs that were captured already, and the tensors that they lifted out."""
    if hasattr(root, CONSTANTS):
        made.keep_constants(dict(root.get_submodule(CONSTANTS).named_buffers(remove_duplicate=False)))
    keys: dict[int, set[tuple[object, ...]]] = {}
    for key, entries in engine.programs.items():
        for entry in entries:
            keys.setdefault(id(entry), set()).add(key)
    for entry in engine.entries:
        made.keep(keys[id(entry)], entry.program, entry.analysis, {}, entry.records)
    made.enabled, made.inputs_require_grads = engine.enabled, engine.inputs_require_grads
