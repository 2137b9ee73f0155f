"""The pass that lets tokens keep their axes where a model lays them in one row, works on each, and lays them back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from torch import fx

from peftc.graphs.reading import argument, is_call, is_pointwise, is_tensor, operator_name, value

VIEWS = ("view", "reshape", "flatten", "unflatten", "_unsafe_view")
NORMS = ("layer_norm", "rms_norm")
ELEMENTWISE = frozenset(("dropout", "to", "clone", "contiguous"))
"""Operators that work on each number by itself, though torch does not tag them so."""

Lead = tuple[str, ...]
"""Sizes of the axes in front of the last one, as the trace calls them."""


@dataclass(frozen=True)
class KeepTokenAxes:
    """`view(f(view(x, [-1, d])), [batch, seq, d])` becomes f(x), where f works on each token by itself.

    What a rule reads there then has the axes of a batch of texts. Left alone: whatever mixes, picks or sorts tokens, as
    the ways to experts do.
    """

    optional: ClassVar[bool] = True

    def run(self, graph: fx.Graph) -> int:
        """Take the views out."""
        gone: set[fx.Node] = set()
        for node in list(graph.nodes):
            if node in gone or (lead := flattened(node)) is None:
                continue
            region = region_of(node, lead)
            if region is not None and region.exits:
                region.unfold(graph)
                gone |= {*region.entries, *region.exits}
        return len(gone)


@dataclass
class Region:
    """What is computed of flattened tokens, each by itself.

    Attributes:
        lead: the axes that were flattened.
        entries: the views that flatten.
        inside: what is computed of them.
        exits: the views that lay the tokens back.
    """

    lead: Lead
    entries: dict[fx.Node, None] = field(default_factory=dict)
    inside: dict[fx.Node, None] = field(default_factory=dict)
    exits: dict[fx.Node, None] = field(default_factory=dict)

    def grow(self, entry: fx.Node) -> bool:
        """Take in what reads an entry, up to the views back; says whether that is all that reads it."""
        self.entries[entry] = None
        queue = [entry]
        while queue:
            for user in queue.pop().users:
                if user in self.inside or user in self.exits:
                    continue
                if laid_back(user, self.lead):
                    self.exits[user] = None
                elif works_by_row(user):
                    self.inside[user] = None
                    queue.append(user)
                else:
                    return False
        return True

    def others(self) -> Iterator[fx.Node]:
        """What is read inside and comes from elsewhere, other than weights."""
        for node in self.inside:
            rows = node.all_input_nodes[:1] if is_call(node, "linear", *NORMS) else node.all_input_nodes
            for read in rows:
                known = read in self.entries or read in self.inside
                if not known and is_tensor(read) and value(read).dim() > 1:
                    yield read

    def unfold(self, graph: fx.Graph) -> None:
        """Compute all of it with the axes that there were."""
        for entry in self.entries:
            source = entry.args[0]
            assert isinstance(source, fx.Node)
            sizes = value(source).shape[:-1]
            entry.replace_all_uses_with(source)
            graph.erase_node(entry)
        for node in self.inside:
            seen = value(node)
            node.meta["val"] = seen.new_empty((*sizes, seen.shape[-1]))
        for back in self.exits:
            flat = back.args[0]
            assert isinstance(flat, fx.Node)
            back.replace_all_uses_with(flat)
            graph.erase_node(back)


def region_of(entry: fx.Node, lead: Lead) -> Region | None:
    """All that belongs to one view that flattens; None where not all of it works on each token by itself."""
    region = Region(lead)
    entries = [entry]
    while entries:
        if not all(flattened(each) == lead and region.grow(each) for each in entries):
            return None
        entries = list(dict.fromkeys(region.others()))
    return region


def flattened(node: fx.Node) -> Lead | None:
    """The axes that a view [… d] → [rows d] lays in one; None for all other nodes."""
    if not is_call(node, *VIEWS) or not is_tensor(node) or not is_tensor(node.args[0]):
        return None
    before, after = value(node.args[0]).shape, value(node).shape
    if len(before) < 3 or len(after) != 2 or str(before[-1]) != str(after[-1]):
        return None
    return lead_of(node.args[0])


def laid_back(node: fx.Node, lead: Lead) -> bool:
    """Whether a view [rows d] → [… d] gives back the axes that there were."""
    if not is_call(node, *VIEWS) or not is_tensor(node) or not is_tensor(node.args[0]):
        return False
    return lead_of(node) == lead and str(value(node).shape[-1]) == str(value(node.args[0]).shape[-1])


def lead_of(node: fx.Node) -> Lead:
    """What the trace calls the sizes of all axes but the last."""
    return tuple(str(size) for size in value(node).shape[:-1])


def works_by_row(node: fx.Node) -> bool:
    """Whether an operator makes of each row [… d] one row, and of no other."""
    if not is_tensor(node) or value(node).dim() != 2:
        return False
    if is_call(node, *NORMS):
        return len(argument(node, "normalized_shape", ())) == 1
    return operator_name(node) in ELEMENTWISE or is_call(node, "linear") or is_pointwise(node)
