"""The backend of the rule language that computes at once, on tensors: terms of the loss and initial values."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from peftc.analyse import Site
from peftc.graphs import operations
from peftc.lang import ANY, Axes, Rule, Section, Term, signature
from peftc.lang.roles import ROLES
from peftc.lang.scope import expressions
from peftc.rewrite.backend import AbsentWeight, GraphBackend


class EagerBackend(GraphBackend):
    """Calls what `GraphBackend` would put into a graph.

    Args:
        training: the mode that dropouts and the like see.
    """

    def __init__(self, training: bool = False) -> None:
        super().__init__(fx.Graph(), "", {})
        self.training = training

    def make(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The value itself."""
        return function(*args, **kwargs)

    def mode(self) -> Any:
        """The mode it was made with."""
        return self.training


def weight_terms(
    rule: Rule, section: Section, site: Site, read: Callable[[str], Any], backend: GraphBackend
) -> dict[str, Term]:
    """The weights of a site that a section reads, under its names, and the sizes of the axes.

    Args:
        read: gives what stands for the parameter of a path.
    """
    told = signature(section, site.role, site.stack)
    given = {axis: Term((), size) for axis, size in told.sizes_at(site.sizes).items()}
    named = {name for expression in expressions(rule, section).values() for name in expression.names}
    for port, role_port in ROLES[site.role].ports.items():
        if role_port.kind != "weight" or port not in named or port not in told.ports:
            continue
        own = told.ports[port]
        if port in site.weights:
            weight = laid_out(site, port, read(site.weights[port]), backend)
            part = own_part(site, weight, site.axes(port), backend)
            part = part if site.factor == 1 else backend.make(operator.mul, part, site.factor)
            held = Term(stored_axes(section, site, port), part)
            # In the role's order, as when the rule was proved: some operations ask which axis is the last.
            given[port] = Term(own, backend.align(held, own))
        elif role_port.neutral is not None:
            like = read(next(iter(site.weights.values())))
            shape = tuple(site.sizes[axis] for axis in site.axes(port))
            given[port] = Term(own, AbsentWeight(role_port.neutral, shape, like))
    return given


def stored_axes(section: Section, site: Site, port: str) -> Axes:
    """What a section calls the axes of a weight, in the order in which they are stored."""
    told = signature(section, site.role, site.stack).ports[port]
    own = ROLES[site.role].ports[port].axes
    called = dict(zip((site.stack, *own) if site.stack else own, told, strict=False))
    return tuple(called[axis] for axis in site.axes(port)) if port in site.stored else told


def laid_out(site: Site, port: str, weight: Any, backend: GraphBackend) -> Any:
    """A weight with the axes of its port, where it is stored with more or fewer: a kernel is all that it reads."""
    axes = site.axes(port)
    if ANY in axes or not site.refolded:
        return weight
    return backend.make(
        torch.reshape, weight, tuple(-1 if axis == "d_out" else site.sizes[axis] for axis in axes)
    )


def own_part(site: Site, weight: Any, order: Axes, backend: GraphBackend) -> Any:
    """What of a weight is the site's own, where its output channels are a part of a larger one's."""
    if site.rows is None:
        return weight
    return backend.make(operations.take_along, weight, site.rows, order.index("d_out"))
