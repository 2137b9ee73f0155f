"""Where a rule attaches: the rewritten graph of a one-layer model, with all that only moves data left out.

What is drawn is what the rewriter made: parts of the model by their sites, and each rule's nodes at a site as one part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from peftc.errors import MatchError
from peftc.lang import Bound, bind_all

if TYPE_CHECKING:
    from torch import fx

    from peftc.analyse import Analysis
    from peftc.match.plan import Application, Plan

SMALL = {"rank": 4, "target": 2, "block": 4, "reduction": 3}
"""Options whose defaults do not fit a model of width 24; sizes are not in the picture."""
MOVES = frozenset(("norm", "linear", "embedding", "head", "attention"))
ACTIVATIONS = frozenset(("silu", "gelu", "relu", "tanh"))


@dataclass(frozen=True)
class Part:
    """One box of a picture.

    Attributes:
        key: its name in the picture.
        kind: "model", "sum", "end" (where the picture begins and ends), or "rule" for what a rule puts in.
        lines: its text.
        trains: whether its own parameters train.
        packed: whether its weight is kept in fewer bits.
        place: number of its first node in the graph.
    """

    key: str
    kind: str
    lines: tuple[str, ...]
    trains: bool = False
    packed: bool = False
    place: int = 0


@dataclass(frozen=True)
class Anatomy:
    """The parts and which of them reads which.

    Attributes:
        model: which kind of model it is of.
        parts: by key, in the order of the graph.
        reads: (from, to), in that order.
    """

    model: str
    parts: Mapping[str, Part]
    reads: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Captured:
    """A captured model with its sites."""

    name: str
    model: Any = field(hash=False)
    program: Any = field(hash=False)
    analysis: Analysis = field(hash=False)


@cache
def captured(name: str) -> Captured:
    """The tiny models of the pictures, and the full-size one by which costs are counted. Weights are not read."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

    from peftc.analyse import analyse
    from peftc.runtime import capture_example

    sizes: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 4}
    sizes |= {"vocab_size": 64, "num_hidden_layers": 1}
    decoder: dict[str, Any] = {"num_key_value_heads": 2, "use_cache": False}
    labels: dict[str, Any] = {"num_labels": 3}
    ids = torch.randint(2, 60, (3, 11))
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model: Any
    if name == "decoder":
        model = LlamaForCausalLM(LlamaConfig(**sizes, **decoder))
        given["labels"] = ids
    elif name == "encoder":
        model = BertForSequenceClassification(BertConfig(**sizes, **labels))
        given["labels"] = torch.tensor([0, 1, 1])
    else:
        with torch.device("meta"):
            model = BertForSequenceClassification(BertConfig())
        given = {key: held.to("meta") for key, held in given.items()}
    _, _, (program, _, _) = capture_example(model, given)
    return Captured(name, model, program, analyse(program.graph, model))


def plan_of(name: str, rules: Iterable[str]) -> Plan:
    """What rules do with one of the models, nothing by default. Raises MatchError."""
    from peftc.match import make_plan

    held = captured(name)
    return make_plan(bind_all(list(rules)), held.analysis, held.model, (), None)


def small(name: str) -> str:
    """The spec of a rule with options that fit the tiny models."""
    bound: Bound = bind_all([name])[0]
    fitting = [f"{option}={value}" for option, value in SMALL.items() if option in bound.options]
    return f"{name}({', '.join(fitting)})" if fitting else name


def anatomy(rule: str) -> Anatomy:
    """Of a rule of the library: in a decoder, or in an encoder where it only trains what there is or finds nothing."""
    spec = small(rule)
    try:
        plan = plan_of("decoder", [spec])
        only_trains = not any(plan.section(each).rewrite or each.quantises for each in plan.applications)
    except MatchError:
        only_trains = True
    name = "encoder" if only_trains else "decoder"
    return Condenser(captured(name), plan_of(name, [spec])).anatomy()


class Condenser:
    """Puts the nodes of a rewritten graph together into parts."""

    def __init__(self, held: Captured, plan: Plan) -> None:
        from peftc.rewrite.rewriting import rewrite

        self.held, self.plan = held, plan
        program = held.program
        self.graph: fx.Graph = rewrite(
            program.graph, held.analysis, plan, program.root, training=program.training
        )
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.places = {node: place for place, node in enumerate(self.graph.nodes)}
        self.parts: dict[str, Part] = {}
        self.part_of: dict[fx.Node, str] = {}

    def anatomy(self) -> Anatomy:
        """Everything."""
        self.add_sites()
        self.add_inserted()
        self.add_sums()
        self.add_ends()
        reads = dict.fromkeys(self.reads())
        parts, edges = cropped(self.parts, tuple(reads))
        ordered = sorted(parts.values(), key=lambda part: (part.place, part.key))
        return Anatomy(self.held.name, {part.key: part for part in ordered}, edges)

    def add_sites(self) -> None:
        """Linear maps, norms, tables, attention and heads, by the sites that the analysis found."""
        acting: dict[str, list[Application]] = {}
        for application in self.plan.applications:
            acting.setdefault(application.site.id, []).append(application)
            for path in application.trains.values():
                acting.setdefault(path, []).append(application)
        for located in self.held.analysis.located:
            site = located.site
            if site.role not in MOVES:
                continue
            own = acting.get(site.id, [])
            own = [*own, *(each for path in site.weights.values() for each in acting.get(path, []))]
            for number, use in enumerate(located.uses):
                node = self.nodes.get(use.anchor.name)
                if node is None or node in self.part_of:
                    continue
                key = f"{site.id}/{number}"
                trained = sorted(
                    port
                    for port, path in site.weights.items()
                    if any(path in each.trains.values() for each in own)
                )
                self.parts[key] = Part(
                    key,
                    "model",
                    (word_for(site.role, site.part), *([f"trains {', '.join(trained)}"] if trained else [])),
                    trains=bool(trained),
                    packed=any(each.quantises for each in own),
                    place=self.places[node],
                )
                self.part_of[node] = key

    def add_inserted(self) -> None:
        """What a rule put in at a site, as one part for nodes that hang together."""
        from peftc.graphs.reading import ADDED

        added = [node for node in self.graph.nodes if ADDED in node.meta and node.op != "get_attr"]
        whole = {node for node in added if node.meta[ADDED][1] == "."}
        terms: set[fx.Node] = set()  # of the loss: computed beside the model, and read by its sum alone
        for node in reversed(added):
            if (
                node not in whole
                and node.users
                and all(each in terms or each in whole for each in node.users)
            ):
                terms.add(node)
        by_site: dict[tuple[str, str], list[fx.Node]] = {}
        for node in added:
            if node in terms:
                continue
            by_site.setdefault(node.meta[ADDED], []).append(node)
        for (rule, site), nodes in by_site.items():
            for group in self.groups(nodes):
                place = min(self.places[node] for node in group)
                key = f"{rule}/{site}/{place}"
                self.parts[key] = Part(key, "rule", self.text(rule, site), place=place)
                self.part_of.update(dict.fromkeys(group, key))

    def groups(self, nodes: list[fx.Node]) -> list[list[fx.Node]]:
        """A rule's nodes at a site in one group, or in several where other nodes lie between them."""
        own, groups = set(nodes), [nodes]
        between: set[fx.Node] = set()  # what is computed from the first of a group, and is not in it
        for node in self.graph.nodes:
            if node in own and between.intersection(node.all_input_nodes):
                groups.append([each for each in groups[-1] if self.places[each] >= self.places[node]])
                groups[-2] = [each for each in groups[-2] if self.places[each] < self.places[node]]
                own, between = set(groups[-1]), set()
            elif node not in own and any(
                each in between or (each in own and self.places[each] >= self.places[groups[-1][0]])
                for each in node.all_input_nodes
            ):
                between.add(node)
        return [group for group in groups if group]

    def text(self, rule: str, site: str) -> tuple[str, ...]:
        """What a part of a rule says: its name, the ports it writes, what of it trains."""
        lines: dict[str, None] = {}
        for application in self.plan.of(rule):
            section = self.plan.section(application)
            if application.site.id == site and section.rewrite:
                lines |= {f"{port} = {value}": None for port, value in section.rewrite.items()}
                if shown := [each.name for each in application.parameters if each.trainable]:
                    lines[f"trains {', '.join(dict.fromkeys(shown))}"] = None
        if lines or site == ".":
            return (rule, *(lines or ("a term of the loss",)))
        known = any(part.lines[:1] == (rule,) for part in self.parts.values())
        return (rule, "is taken out of what comes out" if known else "is made for what is put in")

    def add_sums(self) -> None:
        """Residual sums, activations and products of whole hidden states."""
        from peftc.graphs.reading import is_tensor, operator_name, shape

        for node in self.graph.nodes:
            if node in self.part_of or not is_tensor(node) or len(shape(node)) != 3:
                continue
            name = operator_name(node)
            operands = [
                each
                for each in node.all_input_nodes
                if (is_tensor(each) and len(shape(each)) == 3)
                or (each in self.part_of and self.parts[self.part_of[each]].kind == "rule")
            ]
            sign = {"add": "+", "mul": "×"}.get(name)
            if sign and len(operands) == 2:
                self.put(node, "sum", sign)
            elif name in ACTIVATIONS:
                self.put(node, "model", name)

    def add_ends(self) -> None:
        """The tokens that come in and what goes out."""
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.name == "input_ids":
                self.put(node, "end", "tokens")
            elif node.op == "output":
                self.put(node, "end", "output")

    def put(self, node: fx.Node, kind: str, text: str) -> None:
        """One node that is a part of its own."""
        self.parts[node.name] = Part(node.name, kind, (text,), place=self.places[node])
        self.part_of[node] = node.name

    def reads(self) -> Iterator[tuple[str, str]]:
        """Which part reads which, through nodes that are in no part."""
        behind: dict[fx.Node, tuple[str, ...]] = {}
        for node in self.graph.nodes:
            inputs = [
                (self.part_of[each],) if each in self.part_of else behind[each]
                for each in node.all_input_nodes
                if carries(each)
            ]
            found = tuple(dict.fromkeys(key for keys in inputs for key in keys))
            behind[node] = found
            own = self.part_of.get(node)
            if own is not None:
                yield from ((key, own) for key in found if key != own)


def carries(node: fx.Node) -> bool:
    """Whether a node is hidden states, or the tokens they come from: sizes, places and masks are not drawn."""
    import torch

    seen = node.meta.get("val")
    if node.op == "placeholder":
        return node.name == "input_ids"
    return seen is None or (isinstance(seen, torch.Tensor) and seen.is_floating_point())


def word_for(role: str, part: str) -> str:
    """What a part of the model is called in a picture."""
    return {"other": "linear", "": role, "embedding": "tokens' table"}.get(
        part, part if role != "norm" else "norm"
    )


def cropped(
    parts: Mapping[str, Part], reads: tuple[tuple[str, str], ...]
) -> tuple[dict[str, Part], tuple[tuple[str, str], ...]]:
    """Without the parts from which no way leads to the output, and those no token reaches."""
    forward: dict[str, set[str]] = {}
    for one, other in reads:
        forward.setdefault(one, set()).add(other)
    kept = {key for key, part in parts.items() if part.kind == "rule"}
    ends = [key for key, part in parts.items() if part.lines == ("output",)]
    backward: dict[str, set[str]] = {}
    for one, other in reads:
        backward.setdefault(other, set()).add(one)
    waiting = list(ends)
    seen: set[str] = set()
    while waiting:
        key = waiting.pop()
        if key not in seen:
            seen.add(key)
            waiting += backward.get(key, ())
    kept |= seen
    return {key: part for key, part in parts.items() if key in kept}, tuple(
        (one, other) for one, other in reads if one in kept and other in kept
    )
