"""What rewriting did to a graph, node by node. Compares two graphs; makes neither."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx, nn

from peftc.graphs.printing import lines
from peftc.graphs.reading import ADDED
from peftc.inspect.whole import engine_of
from peftc.match.plan import Plan

LONGEST_SHOWN = 2  # a longer run of nodes that did not change is one line


@dataclass(frozen=True)
class Inserted:
    """A node that was put in: its name, for which rule, and at which site."""

    node: str
    rule: str
    site: str


@dataclass(frozen=True)
class Diff:
    """A graph before and after.

    Attributes:
        rows: (mark, line): "+" put in, "-" gone or as it was, "~" as it is now, " " the same.
        inserted: every node that was put in.
    """

    rows: tuple[tuple[str, str], ...] = field(repr=False)
    inserted: tuple[Inserted, ...]

    def __str__(self) -> str:
        """The graph after, with what was before where that differs; long runs of the same are one line."""
        return "\n".join(self.collapsed())

    def collapsed(self) -> Iterator[str]:
        """The lines of the text."""
        same: list[str] = []
        for mark, text in (*self.rows, ("", "")):
            if mark == " ":
                same.append(f"  {text}")
                continue
            if len(same) > LONGEST_SHOWN:
                yield f"  … {len(same)} nodes …"
            else:
                yield from same
            same = []
            if mark:
                yield f"{mark} {text}"


def diff(compiled: nn.Module) -> Diff:
    """The latest program of a compiled module, before and after its rewriting."""
    engine = engine_of(compiled)
    entry = engine.latest()
    return compare(entry.program.graph, entry.rewritten, engine.plan)


def compare(before: fx.Graph, after: fx.Graph, plan: Plan) -> Diff:
    """Two graphs whose common nodes have the same names."""
    old = {node.name: line for node, line in lines(before).items()}
    new = {node.name: line for node, line in lines(after).items()}
    gone = gone_before(list(old), new)
    trains = {path: each for each in plan.applications for path in each.trains.values()}
    rows: list[tuple[str, str]] = []
    inserted: list[Inserted] = []
    for node in after.nodes:
        rows += [("-", old[name]) for name in gone.get(node.name, ())]
        line = new[node.name]
        if node.name not in old:
            rule, site = added_by(node)
            inserted.append(Inserted(node.name, rule, site))
            rows.append(("+", f"{line}  # {rule} {site}"))
        elif node.op == "get_attr" and node.target in trains:
            rows.append(("~", f"{line}  # trains: {trains[node.target].rule} {trains[node.target].site.id}"))
        elif old[node.name] != line:
            rows += [("-", old[node.name]), ("~", line)]
        else:
            rows.append((" ", line))
    return Diff(tuple(rows), tuple(inserted))


def gone_before(old: list[str], new: dict[str, str]) -> dict[str, list[str]]:
    """For nodes of the new graph: the old nodes that stood in front of them and are no more."""
    gone: dict[str, list[str]] = {}
    waiting: list[str] = []
    for name in old:
        if name not in new:
            waiting.append(name)
        elif waiting:
            gone[name], waiting = waiting, []
    return gone


def added_by(node: fx.Node) -> tuple[str, str]:
    """Rule and site of a node that was put in; one that only reads state belongs with what uses it."""
    for each in (node, *node.users):
        if ADDED in each.meta:
            rule, site = each.meta[ADDED]
            return str(rule), str(site)
    return "", ""
