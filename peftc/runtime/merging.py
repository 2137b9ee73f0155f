"""Puts adapters into the weights they stand beside, where their rules say how: `merge` sections and trained values."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from peftc.capture.graph_reader import CONSTANTS
from peftc.errors import MergeError
from peftc.graphs import operations
from peftc.lang import Parameter, Scope, Term, signature
from peftc.lang.roles import ROLES
from peftc.match.plan import HOME, Application, Plan
from peftc.rewrite.eager import EagerBackend, tensor_at, weight_terms
from peftc.rewrite.rewriting import original_path
from peftc.runtime.engine import Engine
from peftc.runtime.hooks import REGISTER
from peftc.runtime.starting import wide

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
        MergeError: a rule of the plan is no change of weights; names it.
    """
    if kept := unmergeable(plan):
        raise MergeError(
            f"{kept[0]} cannot be merged: it is no change of a weight",
            hint="; ".join(f"{label} stays beside the model" for label in kept),
        )
    changed: Weights = {path: tensor_at(root, path).detach() for path in plan.trained}
    with torch.no_grad():
        for application in plan.applications:
            for port in plan.section(application).merge:
                path = application.site.weights[port]
                held = changed.get(path, tensor_at(root, path).detach())
                changed[path] = with_part(
                    held, edited(root, plan, application, port, changed), application, port
                )
            for port, name in application.inserted.items():
                path = next(each.path for each in application.parameters if each.name == name)
                bias_path = f"{application.site.path}.{'bias' if port == 'b' else port}"
                changed[bias_path] = with_bias(
                    root, changed.get(bias_path), tensor_at(root, path), application
                )
    return changed


def edited(
    root: nn.Module, plan: Plan, application: Application, port: str, changed: Mapping[str, Tensor]
) -> Tensor:
    """What a section's merge makes of one weight at a site: the site's own part, in the order it is stored in."""
    bound, section, site = plan.bound(application.rule), plan.section(application), application.site
    backend = EagerBackend()
    paths = {each.name: each.path for each in application.parameters}

    def read(path: str) -> Tensor:
        return wide(changed[path] if path in changed else tensor_at(root, path))

    def parameter(name: str, declared: Parameter, _: tuple[int, ...]) -> Term:
        return Term(declared.named, wide(tensor_at(root, paths[name])))

    given = weight_terms(bound.rule, section, site, read, backend)
    scope = Scope(bound.rule, plan.options(application), given, backend, parameter, section=section)
    own = signature(section, site.role).ports[port]
    role_axes = ROLES[site.role].ports[port].axes
    called = dict(zip(role_axes, own, strict=False))
    order = (
        tuple(called.get(axis, axis) for axis in site.stored.get(port, role_axes))
        if port in site.stored
        else own
    )
    result = backend.align(scope.merge(port), order)
    assert isinstance(result, Tensor)
    return result


def with_part(held: Tensor, part: Tensor, application: Application, port: str) -> Tensor:
    """A weight with the site's own part of it replaced."""
    site = application.site
    if site.rows is None:
        return part.to(held.dtype).reshape(held.shape)
    order = site.stored.get(port, ROLES[site.role].ports[port].axes)
    axis = order.index("d_out")
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
    whole = held
    if whole is None:
        width = tensor_at(root, site.weights["W"]).shape[
            site.stored.get("W", ROLES[site.role].ports["W"].axes).index("d_out")
        ]
        whole = torch.zeros(width, dtype=bias.dtype, device=bias.device)
    if site.rows is None:
        return bias.detach().clone()
    return operations.put_channels(whole, bias.detach(), site.rows)


def plain_model(root: nn.Module, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A model of the original class, without adapters, over the compiled module's storage.

    Args:
        root: a compiled module.
        weights: path → what stands there instead. Without, it is the model as it came.
    """
    engine: Engine = root._peftc  # type: ignore[assignment]  # noqa: SLF001 - of the class that this stage makes
    plan = engine.plan
    memo: dict[int, object] = {id(engine): None}
    for parameter in root.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    made = copy_of(root, memo)
    for path, module in list(made.named_modules()):
        for name in (HOME, CONSTANTS):
            if name in module._modules and HOME not in path.split("."):  # noqa: SLF001 - nn.Module has no other way
                del module._modules[name]  # noqa: SLF001
        for name in ("_peftc", "_peftc_path", *REGISTER):
            vars(module).pop(name, None)
        if path in engine.plain:
            module.__class__ = engine.plain[path]
    given = {path: tensor_at(root, original_path(path)) for path in plan.trained}
    put_weights(made, {**given, **(weights or {})})
    return made


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
