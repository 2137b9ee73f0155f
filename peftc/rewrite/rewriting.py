"""Puts a plan into a graph, application by application, in the plan's order."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx

from peftc.analyse import Analysis, Located, Port, Use
from peftc.errors import ProgramError
from peftc.graphs import operations
from peftc.graphs.program import copy_graph
from peftc.graphs.reading import ADDED, MODULES, STATE, module_stack
from peftc.lang import Bound, Parameter, Scope, Section, Term, signature
from peftc.lang.roles import ROLES
from peftc.match.plan import HOME, Application, NewParameter, Plan
from peftc.rewrite.backend import AbsentMask, GraphBackend
from peftc.rewrite.eager import weight_terms
from peftc.rewrite.losses import add_losses

ORIGINAL = "original"  # below HOME: the model's own values of parameters that train


def rewrite(
    graph: fx.Graph, analysis: Analysis, plan: Plan, root: str = "", *, training: bool = False
) -> fx.Graph:
    """A copy of `graph` with every application of the plan that it has a place for.

    Args:
        graph, analysis: a normalised graph and its sites.
        root: path of the module that the graph was captured from.
        training: whether what rules add to the loss is added to the one that the graph gives back.

    Raises:
        ProgramError: a site of the plan lies in `root`, but the graph does not show it.
    """
    copied, moved = copy_graph(graph)
    rewriter = Rewriter(copied, moved)
    for application in plan.applications:
        if not plan.section(application).rewrite and not application.inserted:
            continue
        located = locate(analysis, application, root)
        if located is not None:
            rewriter.apply(plan.bound(application.rule), plan.section(application), application, located)
    rewriter.drop_dead_parameters()
    if training and not root:
        add_losses(copied, plan)
    return copied


def without_adapters(graph: fx.Graph, plan: Plan) -> fx.Graph:
    """A copy of `graph` that reads the model's own values where parameters of the model train."""
    copied, _ = copy_graph(graph)
    trained = set(plan.trained)
    for node in copied.nodes:
        if node.op == "get_attr" and node.target in trained:
            node.target = original_path(str(node.target))
    return copied


def original_path(path: str) -> str:
    """Where the untrained value of a parameter is kept."""
    owner, _, name = path.rpartition(".")
    return ".".join(part for part in (owner, HOME, ORIGINAL, name) if part)


def locate(analysis: Analysis, application: Application, root: str) -> Located | None:
    """Where a graph has the site of an application: by its id, or for a linear map by its weight."""
    site = application.site
    found = analysis.find(site.id, site.role)
    if found is not None:
        return found
    if site.role == "linear":
        for located in analysis.located:
            if located.site.role == "linear" and located.site.weights["W"] == site.weights["W"]:
                return Located(site, located.uses)
    inside = not root or site.path == root or site.path.startswith(f"{root}.")
    if (
        site.role == "attention"
        and inside
        and any(located.site.path == site.path for located in analysis.located)
    ):
        raise ProgramError(
            f"this call does not show {site.id}, where {application.rule} acts",
            hint="call a module that contains the whole attention, or disable the adapters for this call",
        )
    return None


class Rewriter:
    """Edits one graph. Keeps track of what each result has become, so that rules compose."""

    def __init__(self, graph: fx.Graph, moved: Mapping[fx.Node, fx.Node]) -> None:
        self.graph, self.moved = graph, moved
        self.latest: dict[fx.Node, fx.Node] = {}
        self.read: dict[str, fx.Node] = {}

    def apply(self, bound: Bound, section: Section, application: Application, located: Located) -> None:
        """Put one section in at every use of its site."""
        for use in located.uses:
            self.apply_at(bound, section, application, use)

    def apply_at(self, bound: Bound, section: Section, application: Application, use: Use) -> None:
        """Put one section in at one use."""
        site = application.site
        anchor = self.moved[use.anchor]
        name = f"{(site.path or 'model').replace('.', '_')}__{application.rule}"
        meta = {MODULES: module_stack(anchor), ADDED: (application.rule, site.id)}
        backend = GraphBackend(self.graph, name, meta)
        told = signature(section, site.role)
        ports = {port: Port(at.kind, self.moved[at.node], at.key) for port, at in use.ports.items()}
        given: dict[str, Term] = {}
        parameters = {parameter.name: parameter for parameter in application.parameters}

        def new_parameter(key: str, declared: Parameter, _: tuple[int, ...]) -> Term:
            return Term(declared.named, self.parameter(parameters[key]))

        own_before = set(self.graph.nodes)
        results = [port for port in section.rewrite if ROLES[site.role].ports[port].kind == "result"]
        operands = [port for port in section.rewrite if port not in results]
        for group, before in ((operands, True), (results, False)):
            if not group:
                continue
            with self.insertion(ports[group[0]], before):
                given |= weight_terms(bound.rule, section, site, self.state, backend)
                for port, at in ports.items():
                    given[port] = Term(told.ports[port], self.value(port, at, application, backend))
                if "tokens" in told.ports and "tokens" not in ports:
                    given["tokens"] = Term(told.ports["tokens"], self.all_tokens(given, ports, backend))
                options = {**bound.options, **application.options}
                scope = Scope(bound.rule, options, given, backend, new_parameter, section=section)
                new = {port: self.lined_up(scope.rewrite(port), told.ports[port], backend) for port in group}
            own = {node for node in self.graph.nodes if node not in own_before}
            for port, node in new.items():
                self.write(port, ports[port], node, application, backend, own)
        for key in application.inserted.values():
            self.insert_bias(ports["y"], parameters[key], application, backend)

    def lined_up(self, term: Term, axes: tuple[str, ...], backend: GraphBackend) -> Any:
        """A term's node in the port's own order of axes."""
        return term.held if isinstance(term.held, AbsentMask) else backend.align(term, axes)

    def insertion(self, at: Port, before: bool) -> Any:
        """Where new nodes go: before the consumer of an operand, after the value of a result."""
        if before:
            return self.graph.inserting_before(at.node)
        current = self.latest.get(at.node, at.node)
        # Before the next node, not after this one: nodes then stand in the order in which they are made.
        return self.graph.inserting_before(current.next)

    def value(self, port: str, at: Port, application: Application, backend: GraphBackend) -> Any:
        """What a port holds now."""
        if at.kind == "result":
            node = self.latest.get(at.node, at.node)
            rows = application.site.rows
            if rows is not None and application.site.role == "linear" and port == "y":
                return backend.make(operations.take_channels, node, rows)
            return node
        source = at.source
        if source is None:
            query, key = at.node.args[0], at.node.args[1]
            assert isinstance(query, fx.Node)
            assert isinstance(key, fx.Node)
            return AbsentMask(bool(at.node.kwargs.get("is_causal")), query, key)
        return source

    def all_tokens(self, given: Mapping[str, Term], ports: Mapping[str, Port], backend: GraphBackend) -> Any:
        """What says that every token is real, where a call tells nothing of padding."""
        like = next(given[port].held for port in ("h", "x", "q") if port in ports)
        return backend.make(operations.all_tokens, like)

    def write(
        self,
        port: str,
        at: Port,
        new: Any,
        application: Application,
        backend: GraphBackend,
        own: set[fx.Node],
    ) -> None:
        """Make a port hold `new`: all other users of a result read it, an operand's one consumer does."""
        if isinstance(new, AbsentMask):
            return
        if at.kind == "result":
            current = self.latest.get(at.node, at.node)
            rows = application.site.rows
            if rows is not None and application.site.role == "linear" and port == "y":
                with self.graph.inserting_after(new):
                    new = backend.make(operations.put_channels, current, new, rows)
                own = own | {new}
            current.replace_all_uses_with(new, delete_user_cb=lambda user: user not in own)
            self.latest[at.node] = new
        elif isinstance(at.key, int):
            at.node.update_arg(at.key, new)
        else:
            assert at.key is not None
            at.node.update_kwarg(at.key, new)
            if port == "mask":
                at.node.update_kwarg("is_causal", False)

    def insert_bias(
        self, at: Port, parameter: NewParameter, application: Application, backend: GraphBackend
    ) -> None:
        """Add a zero parameter to a result, in place of the bias that its site lacks."""
        with self.insertion(at, before=False):
            before = set(self.graph.nodes)
            held = self.value("y", at, application, backend)
            new = backend.make(operator.add, held, self.parameter(parameter))
        own = {node for node in self.graph.nodes if node not in before}
        self.write("y", at, new, application, backend, own)

    def parameter(self, parameter: NewParameter) -> fx.Node:
        """The node that reads a new parameter."""
        return self.state(parameter.path)

    def state(self, path: str) -> fx.Node:
        """The node that reads a parameter: one for the whole graph, in front of all that could use it."""
        if path not in self.read:
            first = next(node for node in self.graph.nodes if node.op not in ("placeholder", "get_attr"))
            with self.graph.inserting_before(first):
                node = self.graph.get_attr(path)
            node.meta[STATE] = "parameter"
            self.read[path] = node
        return self.read[path]

    def drop_dead_parameters(self) -> None:
        """Erase reads that nothing uses any more."""
        for node in reversed(list(self.graph.nodes)):
            if not node.users and (node.op == "get_attr" or ADDED in node.meta):
                self.graph.erase_node(node)
