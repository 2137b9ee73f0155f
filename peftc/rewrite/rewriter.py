"""Edits a graph: puts the sections of rules in at the places where a graph has their sites.

Longer than most files here: what each result has become is known to one object, and every edit goes by it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeAlias

from torch import fx
from torch.nn import functional

from peftc.analyse import (
    Convolution,
    Form,
    Gather,
    Located,
    Port,
    Routing,
    Site,
    Use,
    between,
)
from peftc.graphs import operations
from peftc.graphs.reading import ADDED, STATE, place, shape, value
from peftc.lang import ANY, Axes, Bound, Parameter, Scope, Section, Term, signature
from peftc.lang.roles import ROLES
from peftc.lang.scope import expressions
from peftc.match.plan import Application, NewParameter, Place
from peftc.rewrite.backend import AbsentMask, GraphBackend
from peftc.rewrite.eager import laid_out, own_part, weight_terms
from peftc.rewrite.forms import backend_for
from peftc.rewrite.growing import cut_outputs, take_out, token_lengths

Folded: TypeAlias = Mapping[Place, Mapping[str, tuple[Axes, str]]]
"""Place of an application → name of a binding that is computed already → its axes, and the path of its value."""


class Rewriter:
    """Edits one graph. Keeps track of what each result has become, so that rules compose."""

    def __init__(
        self, graph: fx.Graph, moved: Mapping[fx.Node, fx.Node], folded: Folded = MappingProxyType({})
    ) -> None:
        self.graph, self.moved, self.folded = graph, moved, folded
        self.latest: dict[fx.Node, fx.Node] = {}
        self.products: dict[
            fx.Node, fx.Node
        ] = {}  # a product of several parts → the one in which some were renewed
        self.inputs: dict[
            tuple[fx.Node, object], Any
        ] = {}  # consumer and channels of such a part → its own input
        self.read: dict[str, fx.Node] = {}
        self.rooms: dict[fx.Node, fx.Node] = {}  # what a model reads → the same without the rows of the room
        self.fronts: dict[str, int] = {}  # the graph's name for a number of tokens → rows of the room in it

    def make_room(self, located: Located, count: int, *, cut: bool) -> None:
        """Let an input have so many rows in front, which rules are to put there; and cut the outputs, if asked to."""
        for use in located.uses:
            rows = self.moved[use.anchor]
            lengths = set(token_lengths(self.graph, located.site, shape(use.anchor)[1]))
            self.fronts |= dict.fromkeys(lengths, count)
            if cut:
                cut_outputs(self.graph, count, located.site, lengths)
                cut = False
            self.rooms[rows] = take_out(self.graph, rows, count, located.site)

    def apply(self, bound: Bound, section: Section, application: Application, located: Located) -> None:
        """Put one section in at every use of its site."""
        for use in located.uses:
            self.apply_at(bound, section, application, use)

    def apply_at(self, bound: Bound, section: Section, application: Application, use: Use) -> None:
        """Put one section in at one use."""
        site = application.site
        anchor = self.moved[use.anchor]
        name = f"{(site.path or 'model').replace('.', '_')}__{application.rule}"
        meta = {**place(anchor), ADDED: (application.rule, site.id)}
        backend = backend_for(self.graph, name, meta, site, self.form(use))
        told = signature(section, site.role, site.stack)
        ports = {port: self.in_copy(at) for port, at in use.ports.items()}
        read = {name for expression in expressions(bound.rule, section).values() for name in expression.names}
        if ROLES[site.role].grows:
            ports = {port: replace(at, node=self.rooms.get(at.node, at.node)) for port, at in ports.items()}
        given: dict[str, Term] = {}
        parameters = {parameter.name: parameter for parameter in application.parameters}

        def new_parameter(key: str, _: Parameter, __: tuple[int, ...]) -> Term:
            return Term(parameters[key].axes, self.parameter(parameters[key]))

        own_before = set(self.graph.nodes)
        results = [port for port in section.rewrite if ROLES[site.role].ports[port].kind == "result"]
        operands = [port for port in section.rewrite if port not in results]
        for group, before in ((operands, True), (results, False)):
            if not group:
                continue
            with self.insertion(ports[group[0]], before):
                given |= weight_terms(bound.rule, section, site, self.state, backend)
                for key, (axes, path) in self.folded.get(application.place, {}).items():
                    given[key] = Term(axes, self.state(path, "buffer"))
                for port, at in ports.items():
                    if at.since is None or port in read:
                        given[port] = Term(told.ports[port], self.value(port, at, use, backend))
                if "tokens" in told.ports:
                    given["tokens"] = Term(
                        told.ports["tokens"], self.tokens(site, given.get("tokens"), ports, backend)
                    )
                scope = Scope(
                    bound.rule,
                    {**bound.options, **application.options},
                    given,
                    backend,
                    new_parameter,
                    section=section,
                    stack=site.stack,
                )
                new = {port: self.lined_up(scope.rewrite(port), told.ports[port], backend) for port in group}
            own = {node for node in self.graph.nodes if node not in own_before}
            for port, node in new.items():
                if port == "x" and (use.rows is not None or isinstance(use.form, Convolution)):
                    self.renew_part(ports, node, site, use, backend)
                else:
                    self.write(port, ports[port], node, use, backend, own)
        for key in application.inserted.values():
            self.insert_bias(ports["y"], parameters[key], use, backend)

    def in_copy(self, at: Port) -> Port:
        """A port in the nodes of this graph."""
        since = None if at.since is None else self.moved[at.since]
        others = tuple(self.moved[node] for node in at.others)
        return replace(at, node=self.moved[at.node], since=since, others=others)

    def form(self, use: Use) -> Form:
        """How the values of a use are held, in the nodes of this graph."""
        match use.form:
            case Convolution(call):
                return Convolution(self.moved[call])
            case Gather(call):
                return Gather(self.moved[call])
            case Routing(kind, call, by, number):
                return Routing(kind, self.moved[call], None if by is None else self.moved[by], number)
        return None

    def lined_up(self, term: Term, axes: tuple[str, ...], backend: GraphBackend) -> Any:
        """A term's node in the port's own order of axes."""
        return term.held if isinstance(term.held, AbsentMask) else backend.align(term, axes)

    def insertion(self, at: Port, before: bool) -> Any:
        """Where new nodes go: before the consumer of an operand, after the value of a result."""
        if before:
            return self.graph.inserting_before(at.node)
        current = self.current(at)
        # Before the next node, not after this one: nodes then stand in the order in which they are made.
        return self.graph.inserting_before(current.next)

    def current(self, at: Port) -> fx.Node:
        """What a result has become."""
        return self.latest.get(at.node, self.products.get(at.node, at.node))

    def value(self, port: str, at: Port, use: Use, backend: GraphBackend) -> Any:
        """What a port holds now."""
        if at.kind == "result":
            node = self.current(at)
            if use.rows is not None:
                return backend.make(operations.take_channels, node, use.rows)
            return backend.held(port, node)
        if at.number is not None:
            return at.number
        if at.since is not None:
            return self.computed_anew(at.since, at.node, backend)
        if port == "x" and (at.node, use.rows) in self.inputs:
            return self.inputs[at.node, use.rows]
        source = at.source
        if source is None:
            query, key = at.node.args[0], at.node.args[1]
            assert isinstance(query, fx.Node)
            assert isinstance(key, fx.Node)
            return AbsentMask(bool(at.node.kwargs.get("is_causal")), query, key)
        return backend.held(port, source)

    def computed_anew(self, first: fx.Node, last: fx.Node, backend: GraphBackend) -> fx.Node:
        """What is from one node to another, once more, with what the first reads now."""
        new: dict[fx.Node, fx.Node] = {}
        for node in between(first, last):
            made = self.graph.node_copy(node, lambda source: new.get(source, source))
            made.meta.update(backend.meta)
            new[node] = made
        return new[last]

    def tokens(self, site: Site, told: Term | None, ports: Mapping[str, Port], backend: GraphBackend) -> Any:
        """What says which tokens are real: all of them, where a call tells nothing of padding.

        Rows that a rule puts in front of what the model reads are no tokens of a text: its first one is behind them.
        """
        at = next(ports[port] for port in ("tokens", "h", "x", "q", "y") if port in ports)
        held = backend.make(operations.all_tokens, at.source) if told is None else told.held
        # By what the model itself has there: what rules made has no size before it runs.
        lengths = () if ROLES[site.role].grows else value(at.node).shape[1:2]
        count = max((self.fronts.get(str(length), 0) for length in lengths), default=0)
        return backend.make(operations.without_first, held, count) if count else held

    def write(
        self,
        port: str,
        at: Port,
        new: Any,
        use: Use,
        backend: GraphBackend,
        own: set[fx.Node],
    ) -> None:
        """Make a port hold `new`: all other users of a result read it, an operand's one consumer does."""
        if isinstance(new, AbsentMask):
            return
        if at.kind == "result":
            current = self.current(at)
            with self.graph.inserting_after(new):
                new = backend.put_back(new, current)
            own = own | {new}
            if use.rows is not None:
                with self.graph.inserting_after(new):
                    new = backend.make(operations.put_channels, current, new, use.rows)
                own = own | {new}
            current.replace_all_uses_with(new, delete_user_cb=lambda user: user not in own)
            self.latest[at.node] = new
        elif isinstance(at.key, int):
            for node in (at.node, *at.others):
                node.update_arg(at.key, new)
        else:
            assert at.key is not None
            at.node.update_kwarg(at.key, new)
            if port == "mask":
                at.node.update_kwarg("is_causal", False)

    def renew_part(
        self, ports: Mapping[str, Port], new_x: fx.Node, site: Site, use: Use, backend: GraphBackend
    ) -> None:
        """Give one part of a product of several its own input: its channels are computed anew, the others stay.

        What earlier rules make of the product reads the renewed one, as if the part had a matrix to itself. A
        convolution is renewed as a whole: what it reads for each place is no value that could be given to it.
        """
        at = ports["y"]
        product = self.products.get(at.node, at.node)
        before = set(self.graph.nodes)
        with self.graph.inserting_before(product.next):
            terms = {}
            for port, path in site.weights.items():
                order = site.axes(port)
                part = own_part(site, laid_out(site, port, self.state(path), backend), order, backend)
                want = (*([site.stack] if site.stack else []), *ROLES["linear"].ports[port].axes)
                terms[port] = Term(want, backend.align(Term(order, part), want))
            renewed = self.product_of(new_x, terms, site, use, backend)
            if use.rows is None:
                renewed = backend.put_back(renewed, product)
            else:
                renewed = backend.make(operations.put_channels, product, renewed, use.rows)
        made = {node for node in self.graph.nodes if node not in before}
        product.replace_all_uses_with(renewed, delete_user_cb=lambda user: user not in made)
        self.products[at.node] = renewed
        self.inputs[ports["x"].node, use.rows] = new_x

    def product_of(
        self, x: fx.Node, terms: Mapping[str, Term], site: Site, use: Use, backend: GraphBackend
    ) -> Any:
        """x times a weight, and its bias."""
        if use.form is None:
            return backend.make(
                functional.linear, x, terms["W"].held, terms["b"].held if "b" in terms else None
            )
        rows = (ANY, site.stack) if site.stack else (ANY,)
        y = backend.contract(Term((*rows, "d_in"), x), terms["W"], (*rows, "d_out"))
        if "b" not in terms:
            return y
        return backend.pointwise("+", Term((*rows, "d_out"), y), terms["b"], (*rows, "d_out"))

    def insert_bias(self, at: Port, parameter: NewParameter, use: Use, backend: GraphBackend) -> None:
        """Add a zero parameter to a result, in place of the bias that its site lacks."""
        with self.insertion(at, before=False):
            before = set(self.graph.nodes)
            held = self.value("y", at, use, backend)
            new = backend.make(operator.add, held, self.parameter(parameter))
        own = {node for node in self.graph.nodes if node not in before}
        self.write("y", at, new, use, backend, own)

    def parameter(self, parameter: NewParameter) -> fx.Node:
        """The node that reads a new parameter."""
        return self.state(parameter.path)

    def state(self, path: str, kind: str = "parameter") -> fx.Node:
        """The node that reads a parameter or a buffer: one for the whole graph, in front of all that could use it."""
        if path not in self.read:
            first = next(node for node in self.graph.nodes if node.op not in ("placeholder", "get_attr"))
            with self.graph.inserting_before(first):
                node = self.graph.get_attr(path)
            node.meta[STATE] = kind
            self.read[path] = node
        return self.read[path]

    def drop_dead_parameters(self) -> None:
        """Erase reads that nothing uses any more."""
        for node in reversed(list(self.graph.nodes)):
            if not node.users and (node.op == "get_attr" or ADDED in node.meta):
                self.graph.erase_node(node)
