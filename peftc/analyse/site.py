"""The records of analysis: a site as data, and where one graph has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from peftc.lang.roles import OTHER


@dataclass(frozen=True)
class Site:
    """One place of a role in a model. Pure data: the same for every program of the model.

    Attributes:
        role: word of the table of roles ("linear", "attention").
        part: what it is within its role ("q", "down", "task"); "" where the role has no parts.
        path: path of the module that owns it.
        layer: number of the repeated block it lies in; None outside of any.
        sizes: axis name to size, of the axes that do not change from call to call.
        weights: weight port to parameter path ("W" → "encoder.layer.0.output.dense.weight").
        rows: (start, stop) ranges of the output channels that are this part's; None where all are.
        scope: "encoder", "decoder", "cross", or "".
        stored: weight port to the order in which its axes are stored, where that is not the role's own.
        evidence: one line that says what in the data flow gave the role.
    """

    role: str
    part: str
    path: str
    layer: int | None
    sizes: Mapping[str, int] = field(hash=False)
    weights: Mapping[str, str] = field(hash=False, default_factory=dict)
    rows: tuple[tuple[int, int], ...] | None = None
    scope: str = ""
    evidence: str = ""
    stored: Mapping[str, tuple[str, ...]] = field(hash=False, default_factory=dict)

    @property
    def id(self) -> str:
        """Stable name: module path, role and part."""
        return f"{self.path or '.'}:{self.part or (OTHER if self.role == 'linear' else self.role)}"


@dataclass(frozen=True)
class Port:
    """Where one graph has a port.

    A result is the value of `node`. An operand is the argument `key` of `node`; so is a value only read.
    """

    kind: str
    node: fx.Node
    key: int | str | None = None

    @property
    def source(self) -> object:
        """The node (or constant) that is read here."""
        if self.key is None:
            return self.node
        return self.node.args[self.key] if isinstance(self.key, int) else self.node.kwargs.get(self.key)


@dataclass(frozen=True)
class Use:
    """One use of a site: its ports in the graph, and the node that new nodes belong with."""

    anchor: fx.Node
    ports: Mapping[str, Port] = field(hash=False)
