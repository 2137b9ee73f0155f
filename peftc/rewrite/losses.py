"""What rules add to a model's loss: as nodes of a training graph, and as a number on its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from peftc.graphs import operations
from peftc.graphs.reading import ADDED, MODULES, STATE
from peftc.lang import Bound, Constant, Parameter, Scope, Section, Term
from peftc.match.plan import Application, Plan
from peftc.quantised import weight_at
from peftc.rewrite.backend import GraphBackend
from peftc.rewrite.eager import EagerBackend, weight_terms

LOSS = "loss"  # the field of a model's output that is trained on


def has_losses(plan: Plan) -> bool:
    """Whether any rule of a plan adds to the loss."""
    return bool(adding(plan))


def adding(plan: Plan) -> list[Application]:
    """The applications that add to the loss: those of rules that are kept have done so."""
    return [each for each in plan.applications if plan.section(each).loss and not plan.is_kept(each)]


def auxiliary_loss(root: nn.Module, plan: Plan) -> Tensor:
    """All that the rules add to the loss: a number with a gradient, 0 where they add nothing."""
    total = weighted(plan, lambda _: EagerBackend(root.training), lambda path: weight_at(root, path))
    if isinstance(total, Tensor):
        return total
    some = next(root.parameters(), torch.empty(0))
    return torch.zeros((), device=some.device)


def add_losses(graph: fx.Graph, plan: Plan) -> bool:
    """Add the rules' terms to the loss in a graph's output; False where it has none, and nothing changes."""
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    held = output.args[0]
    own = loss_of(held)
    if own is None or not has_losses(plan):
        return False
    first = held if isinstance(held, fx.Node) else output
    read = {str(node.target): node for node in graph.nodes if node.op == "get_attr"}

    def reader(path: str) -> fx.Node:
        if path not in read:
            with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
                read[path] = graph.get_attr(path)
            read[path].meta[STATE] = "parameter"
        node: fx.Node = read[path]
        return node

    def backend(application: Application) -> GraphBackend:
        name = f"{(application.site.path or 'model').replace('.', '_')}__{application.rule}_loss"
        return GraphBackend(graph, name, {MODULES: (), ADDED: (application.rule, application.site.id)})

    with graph.inserting_before(first):
        total = weighted(plan, backend, reader)
        rules = "+".join(dict.fromkeys(each.rule for each in adding(plan)))
        last = GraphBackend(graph, "model", {MODULES: (), ADDED: (rules, ".")})
        new = last.make(operations.add_loss, own, total)
    if isinstance(held, fx.Node):
        held.update_kwarg(LOSS, new)
    else:
        output.args = ({**held, LOSS: new},)
    return True


def loss_of(held: Any) -> fx.Node | None:
    """The loss in what a graph gives back: a field of the model's output object, or of a mapping."""
    fields = held.kwargs if isinstance(held, fx.Node) and isinstance(held.target, type) else held
    loss = fields.get(LOSS) if isinstance(fields, Mapping) else None
    return loss if isinstance(loss, fx.Node) else None


def weighted(
    plan: Plan, backend_of: Callable[[Application], GraphBackend], read: Callable[[str], Any]
) -> Any:
    """The sum over all terms of weight times the mean (or the sum) over sites; None where there are none."""
    terms: dict[tuple[str, int, str], list[Any]] = {}
    backends: dict[tuple[str, int, str], GraphBackend] = {}
    for application in adding(plan):
        bound, section = plan.bound(application.rule), plan.section(application)
        for name in section.loss:
            key = (application.rule, application.section, name)
            backends[key] = backend_of(application)
            terms.setdefault(key, []).append(term(bound, section, application, name, backends[key], read))
    total: Any = None
    for (rule, number, name), found in terms.items():
        backend, bound = backends[rule, number, name], plan.bound(rule)
        said = bound.rule.sections[number].loss[name]
        stacked = backend.make(torch.stack, found)
        reduced = backend.make(torch.mean if said.reduce == "mean" else torch.sum, stacked)
        part = backend.make(torch.mul, reduced, number_of(said.weight, bound.options))
        total = part if total is None else backend.make(torch.add, total, part)
    return total


def term(
    bound: Bound,
    section: Section,
    application: Application,
    name: str,
    backend: GraphBackend,
    read: Callable[[str], Any],
) -> Any:
    """One term at one site."""
    own = {parameter.name: parameter for parameter in application.parameters}

    def parameter(key: str, _: Parameter, __: tuple[int, ...]) -> Term:
        return Term(own[key].axes, read(own[key].path))

    given = weight_terms(bound.rule, section, application.site, read, backend)
    options = {**bound.options, **application.options}
    scope = Scope(bound.rule, options, given, backend, parameter, section=section)
    return scope.loss(name).held


def number_of(said: float | str, options: Mapping[str, Constant]) -> float:
    """A number, or that of an option."""
    return float(options[said]) if isinstance(said, str) else float(said)
