"""Puts adapters into the weights they stand beside, where their rules say how: `merge` sections and trained values."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from peftc.capture.graph_reader import CONSTANTS
from peftc.errors import MergeError
from peftc.graphs import operations
from peftc.graphs.shared_modules import SharedModules
from peftc.lang import Parameter, Scope, Term
from peftc.lang.roles import ROLES
from peftc.match.plan import Application, Plan
from peftc.match.sharing import leaks, shared_edit
from peftc.quantised import QuantisedWeight, as_loaded, quantised_in, unpacked, weight_at
from peftc.quantised.weight import HOME
from peftc.rewrite.backend import AbsentWeight
from peftc.rewrite.eager import EagerBackend, stored_axes, weight_terms
from peftc.rewrite.rewriting import original_path
from peftc.runtime.engine import Engine
from peftc.runtime.hooks import REGISTER
from peftc.runtime.merge_order import merge_order
from peftc.runtime.starting import wide
from peftc.runtime.twin import remember_loading, values_of_written

Weights = dict[str, Tensor]
"""Path → tensor, as the plain model would have it."""


def unmergeable(plan: Plan) -> list[str]:
    """Labels of the rules that no change of weights can stand for, in the plan's order."""
    found = [
        application.rule
        for application in plan.applications
        if plan.section(application).rewrite and not plan.section(application).merge
    ]
    return list(dict.fromkeys(found))


def merged_weights(root: nn.Module, plan: Plan) -> Weights:
    """Every weight of the model that a plan's rules change, with the change in it, in the weight's own format.

    Sums are taken in single precision at least, and rounded once.

    Raises:
        MergeError: a rule of the plan is no change of weights, or one would change another site's too; names it.
    """
    if kept := unmergeable(plan):
        raise MergeError(
            f"{kept[0]} cannot be merged: it is no change of a weight",
            hint="; ".join(f"{label} stays beside the model" for label in kept),
        )
    changed: Weights = {path: weight_at(root, path).detach() for path in plan.trained}
    for application, other in leaks(plan):
        raise MergeError(
            f"{application.rule} cannot be merged at {application.site.id}: {other.id} reads the same weight, and would "
            "change with it",
            hint="untie the model's weights before it is compiled; or leave the adapter beside it",
        )
    done: set[tuple[str, ...]] = set()
    with torch.no_grad():
        for application in merge_order(plan):
            ports = plan.section(application).merge
            parts = {port: edited(root, plan, application, port, changed) for port in ports}
            for port, part in parts.items():
                if port not in application.site.weights:
                    put_in_absent(root, part, application, port, changed)
                    continue
                path = application.site.weights[port]
                key = shared_edit(application, port)
                if key in done:
                    continue
                done |= {key} if key else set()
                held = changed.get(path, weight_at(root, path).detach())
                changed[path] = with_part(held, part, application, port)
            for port, name in application.inserted.items():
                path = next(each.path for each in application.parameters if each.name == name)
                put_in_zero_one(root, weight_at(root, path), application, port, changed)
    return changed


def put_in_zero_one(
    root: nn.Module, put_in: Tensor, application: Application, port: str, changed: Weights
) -> None:
    """Merge a parameter that was put in: into the model's own where there is one, which other parts share."""
    site = application.site
    if port in site.weights:
        path = site.weights[port]
        held = changed.get(path, weight_at(root, path).detach())
        changed[path] = with_part(held, wide(own_part_of(held, application)) + put_in, application, port)
        return
    path = absent_path(application, port)
    before = changed.get(path)
    own = put_in + (0 if before is None else own_part_of(before, application))
    changed[path] = with_bias(root, before, own, application)


def absent_path(application: Application, port: str) -> str:
    """Where a weight that a site lacks would be."""
    return f"{application.site.path}.{'bias' if port == 'b' else port}"


def own_part_of(bias: Tensor, application: Application) -> Tensor:
    """A site's own part of a bias."""
    rows = application.site.rows
    return bias if rows is None else operations.take_channels(bias, rows)


def put_in_absent(
    root: nn.Module, part: Tensor, application: Application, port: str, changed: Weights
) -> None:
    """Merge into a weight that a site lacks; what comes to its neutral number again needs no place.

    Raises:
        MergeError: the module has no place for the weight.
    """
    path = absent_path(application, port)
    neutral = ROLES[application.site.role].ports[port].neutral
    if path in changed or not torch.equal(part, torch.full_like(part, neutral or 0.0)):
        changed[path] = with_bias(root, changed.get(path), part, application)


def edited(
    root: nn.Module, plan: Plan, application: Application, port: str, changed: Mapping[str, Tensor]
) -> Tensor:
    """What a section's merge makes of one weight at a site: the site's own part, in the order it is stored in."""
    bound, section, site = plan.bound(application.rule), plan.section(application), application.site
    backend = EagerBackend()
    named = {each.name: each for each in application.parameters}

    def read(path: str) -> Tensor:
        return wide(changed[path] if path in changed else weight_at(root, path))

    def parameter(name: str, _: Parameter, __: tuple[int, ...]) -> Term:
        return Term(named[name].axes, wide(weight_at(root, named[name].path)))

    given = weight_terms(bound.rule, section, site, read, backend)
    for absent, term in given.items():
        if isinstance(term.held, AbsentWeight) and absent_path(application, absent) in changed:
            put_in = own_part_of(changed[absent_path(application, absent)], application)
            given[absent] = Term(term.axes, wide(put_in).reshape(term.held.shape))
    options = plan.options(application)
    scope = Scope(bound.rule, options, given, backend, parameter, section=section, stack=site.stack)
    result = backend.align(scope.merge(port), stored_axes(section, site, port))
    assert isinstance(result, Tensor)
    return result


def with_part(held: Tensor, part: Tensor, application: Application, port: str) -> Tensor:
    """A weight with the site's own part of it replaced."""
    site = application.site
    if site.rows is None:
        return part.to(held.dtype).reshape(held.shape)
    axis = site.axes(port).index("d_out")
    whole = held.clone()
    taken = 0
    for start, stop in site.rows:
        whole.narrow(axis, start, stop - start).copy_(part.narrow(axis, taken, stop - start))
        taken += stop - start
    return whole


def with_bias(root: nn.Module, held: Tensor | None, bias: Tensor, application: Application) -> Tensor:
    """The bias of a module that had none, with that of one site in it."""
    site = application.site
    module = root.get_submodule(site.path)
    if getattr(module, "bias", 0) is not None:
        raise MergeError(
            f"{application.rule} cannot be merged at {site.id}: {type(module).__name__} has no place for a bias"
        )
    weight = weight_at(root, site.weights["W"])
    bias = bias.detach().to(weight.dtype, copy=True).reshape(-1)
    if site.rows is None:
        return bias
    if held is None:
        width = weight.shape[site.axes("W").index("d_out")]
        held = torch.zeros(width, dtype=bias.dtype, device=bias.device)
    return operations.put_channels(held, bias, site.rows)


def plain_model(
    root: nn.Module, weights: Mapping[str, Tensor] | None = None, *, requantise: bool = False
) -> nn.Module:
    """A model of the original class, without adapters, over the compiled module's storage.

    Args:
        root: a compiled module.
        weights: path → what stands there instead. Without, it is the model as it came.
        requantise: whether modules that came quantised are so again; else weights in fewer bits are unpacked.

    Raises:
        MergeError: `requantise`, but a rule quantised a weight of a module that came as it was.
    """
    engine: Engine = root._peftc  # type: ignore[assignment]  # noqa: SLF001 - of the class that this stage makes
    plan, held = engine.plan, quantised_in(root)
    if requantise and (own := [path for path, each in held.items() if each.origin is None]):
        raise MergeError(
            f"{own[0]} came as it was and cannot be given back quantised" if held else "nothing is quantised",
            hint="save the merged model and load it quantised",
        )
    memo: dict[int, object] = {id(engine): None}
    for parameter in root.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    memo |= values_of_written(root)
    made = copy_of(root, memo)
    given = {path: weight_at(root, original_path(path)) for path in plan.trained} | dict(weights or {})
    came = quantised_in(made)
    if not requantise:
        given = unpacked(made, given) | given
    for path, module in list(made.named_modules()):
        for name in (HOME, CONSTANTS):
            if name in module._modules and HOME not in path.split("."):  # noqa: SLF001 - nn.Module has no other way
                del module._modules[name]  # noqa: SLF001
        for name in ("_peftc", "_peftc_path", *REGISTER):
            vars(module).pop(name, None)
        if path in engine.plain:
            module.__class__ = engine.plain[path]
    remember_loading(made, quantised=requantise)
    if requantise:
        put_back(made, came, given)
    put_weights(made, given)
    return made


def put_back(model: nn.Module, came: Mapping[str, QuantisedWeight], given: dict[str, Tensor]) -> None:
    """Put modules that came quantised in their places again, with what is `given` for their weights, taking it out."""
    places = SharedModules(model)
    for path, held in came.items():
        owner_path = path.rpartition(".")[0]
        owner = model.get_submodule(owner_path)
        codes = model.get_parameter(path).detach()
        statistics = {name: held.get_buffer(name) for name in held.statistics}
        if path in given:
            codes, statistics = held.repacked(given.pop(path))
        loaded = as_loaded(owner, held, codes, statistics)
        for place in places.all(owner_path):  # a module may be a child of several
            model.set_submodule(place, loaded)


def copy_of(root: nn.Module, memo: dict[int, object]) -> nn.Module:
    """A deep copy of a compiled module's modules; what `memo` has is not copied."""
    copied = type(root).__new__(type(root))
    memo[id(root)] = copied
    copied.__dict__.update({name: copy.deepcopy(value, memo) for name, value in root.__dict__.items()})
    return copied


def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put tensors in the place of parameters; tied ones stay tied."""
    for path, tensor in weights.items():
        owner, _, name = path.rpartition(".")
        before = getattr(model.get_submodule(owner), name)
        fresh = nn.Parameter(tensor.detach(), requires_grad=False)
        if before is None:
            model.get_submodule(owner).register_parameter(name, fresh)
            continue
        for module in model.modules():
            for own, parameter in list(module.named_parameters(recurse=False)):
                if parameter is before:
                    setattr(module, own, fresh)
