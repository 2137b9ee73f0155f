"""Initial values that are computed: from weights of the model, or from what it computes on data that the user gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from peftc.analyse import Analysis, analyse
from peftc.capture import capture
from peftc.capture.graph_reader import CONSTANTS
from peftc.capture.signature import Parameters, example_call, read_call
from peftc.errors import CaptureError, MatchError
from peftc.graphs import operations
from peftc.graphs.effects import Kept, written
from peftc.graphs.program import Program, copy_graph
from peftc.lang import Parameter, Scope, Term, signature
from peftc.match.plan import Application, NewParameter, Plan
from peftc.passes import PassSettings
from peftc.quantised import quantised_in, weight_at
from peftc.rewrite import bind
from peftc.rewrite.eager import EagerBackend, weight_terms
from peftc.runtime.stacked import SavedTensors, stacked

TOKENS = "tokens"
HINT = "give data of more rows or longer texts"

Recorded = Mapping[tuple[str, str], Mapping[str, Tensor]]
"""(role, site id) → port → its value on the user's data."""


@dataclass
class Starting:
    """Computes initial values in the order of the plan; a later one can read those above it.

    Attributes:
        root: the model, its weights as they came.
        recorded: values on data, for the parameters that need them.
        saved: tensors of saved adapters, by the adapters' names, for the parameters that are read from them.
    """

    root: nn.Module
    plan: Plan
    recorded: Recorded = field(default_factory=dict)
    saved: Mapping[str, SavedTensors] = field(default_factory=dict)

    def value(self, application: Application, parameter: NewParameter, made: Mapping[str, Tensor]) -> Tensor:
        """What a parameter starts as, in single precision at least, on the device of what it is computed from.

        Args:
            made: path → tensor of the parameters that are there already.
        """
        if parameter.saved:
            return stacked(application, parameter, self.saved)
        bound, section = self.plan.bound(application.rule), self.plan.section(application)
        site, backend = application.site, EagerBackend()
        told = signature(section, site.role, site.stack)
        given = weight_terms(
            bound.rule, section, site, lambda path: wide(weight_at(self.root, path)), backend
        )
        for port, tensor in self.recorded.get((site.role, site.id), {}).items():
            given[port] = Term(told.ports[port], wide(tensor))
        if TOKENS in parameter.data and TOKENS not in given:  # a call that tells nothing of padding has none
            like = next(given[port].held for port in parameter.data if port in given)
            given[TOKENS] = Term(told.ports[TOKENS], operations.all_tokens(cast("Tensor", like)))
        own = {each.name: each for each in application.parameters}

        def read(name: str, _: Parameter, __: tuple[int, ...]) -> Term:
            return Term(own[name].axes, wide(made[own[name].path]))

        options = self.plan.options(application)
        scope = Scope(bound.rule, options, given, backend, read, section=section, stack=site.stack)
        try:
            with torch.no_grad():
                term = scope.initial(parameter.name)
                tensor = backend.align(term, parameter.axes)
                if parameter.stacked and site.stack not in term.axes:
                    tensor = tensor.expand(parameter.shape)
        except (
            RuntimeError
        ) as error:  # an axis shorter than what is taken of it, a matrix without a decomposition
            message = f"{application.rule}: what {parameter.name} starts as cannot be computed at {site.id}"
            raise MatchError(f"{message}: {error}", hint=HINT if parameter.data else None) from error
        assert isinstance(tensor, Tensor)
        if tensor.shape != parameter.shape:
            raise MatchError(
                f"{application.rule}: {parameter.name} would start as {list(tensor.shape)}, "
                f"but is {list(parameter.shape)} at {site.id}",
                hint=HINT if parameter.data else None,
            )
        # In the order in which a saved one is read again: products round differently over other strides.
        return tensor.clone(memory_format=torch.contiguous_format)


def wide(tensor: Tensor) -> Tensor:
    """A tensor in single precision, if it has less: half of it is too coarse to reckon with."""
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def needs_data(plan: Plan) -> list[tuple[Application, NewParameter]]:
    """The parameters of a plan that start from values on data."""
    return [
        (application, parameter)
        for application in plan.applications
        for parameter in application.parameters
        if parameter.data
    ]


def record(
    model: nn.Module, plan: Plan, data: Mapping[str, Any] | None, settings: PassSettings
) -> dict[tuple[str, str], dict[str, Tensor]]:
    """Run a model as it came, in evaluation mode, and keep the values that initial values are computed from.

    Args:
        data: arguments of `forward` by name.

    Raises:
        MatchError: a parameter needs data and there is none, or the call on it does not show a site.
    """
    needed = needs_data(plan)
    if not needed:
        return {}
    application, parameter = needed[0]
    if data is None:
        raise MatchError(
            f"{application.rule}: {parameter.name} starts from {parameter.data[0]!r} on real inputs, and there are none",
            hint="compile(..., data={...}) takes them: arguments of forward, by name",
        )
    call = read_call(Parameters.of(model.forward), (), dict(data))
    program, constants, _ = capture(model, example_call(call, own_sizes=True), exact=True, settings=settings)
    analysis = analyse(program.graph, model)
    wanted: dict[tuple[str, str, str], fx.Node] = {}
    for application, parameter in needed:
        for port in parameter.data:
            key = (application.site.role, application.site.id, port)
            if (node := node_of(analysis, application, parameter, port)) is not None:
                wanted[key] = node
    masks = token_masks(analysis)
    tensors = run(model, program, constants, (*wanted.values(), *masks), call.tensors)
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for (role, site, port), tensor in zip(wanted, tensors, strict=False):
        found.setdefault((role, site), {})[port] = tensor
    for application, parameter in needed:
        recorded = found.get((application.site.role, application.site.id), {})
        refuse_padding(plan, application, parameter, recorded, tensors[len(wanted) :])
    return found


def token_masks(analysis: Analysis) -> tuple[fx.Node, ...]:
    """The values that tell tokens from padding at any site."""
    ports = [use.ports[TOKENS] for each in analysis.located for use in each.uses if TOKENS in use.ports]
    return tuple(dict.fromkeys(port.source for port in ports if isinstance(port.source, fx.Node)))


def refuse_padding(
    plan: Plan,
    application: Application,
    parameter: NewParameter,
    recorded: Mapping[str, Tensor],
    masks: Sequence[Tensor],
) -> None:
    """Refuse keys of padding where a parameter starts as the first keys of the first row, as many as it has itself.

    Raises:
        MatchError: one of so many is padding.
    """
    if application.site.role != "attention":
        return
    told = signature(plan.section(application), "attention")
    for port, keys in recorded.items():
        axes = [axis for axis in told.ports[port] if told.sizes.get(axis) == "keys"]
        if not axes or axes[0] not in parameter.axes:
            continue
        count = parameter.shape[parameter.axes.index(axes[0])]
        form = (keys.shape[0], keys.shape[told.ports[port].index(axes[0])])
        if any(bool((mask[0, :count] == 0).any()) for mask in masks if tuple(mask.shape) == form):
            raise MatchError(
                f"{application.rule}: {parameter.name} starts as the first {count} keys of the data's first row, and "
                f"padding is among them at {application.site.id}",
                hint="give a first row of as many tokens, with its padding behind them",
            )


def node_of(
    analysis: Analysis, application: Application, parameter: NewParameter, port: str
) -> fx.Node | None:
    """The node of a port at the first use of a site; None for what tells padding, in a call without any."""
    site = application.site
    located = analysis.find(site)
    source = located.uses[0].ports[port].source if located and port in located.uses[0].ports else None
    if located and port == TOKENS and source is None:
        return None
    if not isinstance(source, fx.Node):
        message = f"{application.rule}: {parameter.name} starts from {port!r}, which the data do not show at {site.id}"
        raise MatchError(message, hint="give the arguments with which the model is called in training")
    return source


def run(
    model: nn.Module,
    program: Program,
    constants: Mapping[str, Tensor],
    wanted: tuple[fx.Node, ...],
    tensors: Any,
) -> tuple[Tensor, ...]:
    """The values of some nodes of a program, whose writes into the model and the data are taken back."""
    if not program.sizes.hold(tensors):
        raise CaptureError(f"captured for other sizes than those of the data: {program.sizes}")
    graph, moved = copy_graph(program.graph)
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    output.args = (tuple(moved[node] for node in wanted),)
    graph.eliminate_dead_code()
    for name in program.given:  # nothing is changed here
        graph.erase_node(
            next(node for node in graph.nodes if node.op == "placeholder" and node.target == name)
        )
    bind(graph, quantised_in(model))
    holder = nn.Module()
    for name, tensor in constants.items():
        holder.register_buffer(name, tensor, persistent=False)
    model.add_module(CONSTANTS, holder)  # where the graph looks for them; the compiled module has its own
    try:
        module = fx.GraphModule(model, graph).eval()
    finally:
        delattr(model, CONSTANTS)
    before = Kept(written(graph), module, tensors)
    try:
        with torch.no_grad():
            values: tuple[Tensor, ...] = module(*tensors)
            # A value that is written to behind would be another one.
            return tuple(value.clone() for value in values) if before.before else values
    finally:
        before.put_back()
