"""The records of analysis: a site as data, and where one graph has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import fx

from peftc.lang.roles import OTHER, ROLES

Origin: TypeAlias = tuple[str, tuple[tuple[int, int], ...] | None]
"""A weight, and the (start, stop) ranges of its output channels that are meant; None for all."""


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
        rows: (start, stop) ranges of the output channels in its weights that are this part's; None where all are.
        scope: "encoder", "decoder", "cross", or "".
        stored: weight port to the order in which its axes are stored, where that is not the role's own.
        evidence: one line that says what in the data flow gave the role.
        stack: the axis of the matrices of which the weight is a stack ("experts"), all at one site; "" for one alone.
        refolded: whether weights are stored in another shape than that of their ports' axes, as kernels are.
        window: how many keys back a query of an attention sees at most, with the one of its own place; 0 for all.
        name: what tells its weight, or what it is made of, apart from others of its module that play the same part; else
            nothing.
        factor: the number that what is read of its weight is multiplied by before it comes out.
        also: parts that its weight plays elsewhere in the model: who asks for one of them asks for this site.
        computed: weight ports whose value the model computes from its parameter, as 1 + w: it can be trained, not read.
        made_of: part → the weights that play it, each with its rows, of an attention, a network or a residual sum: uses of
            the same weights are one site, and others are others.
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
    stack: str = ""
    refolded: bool = False
    name: str = ""
    window: int = 0
    factor: float = 1.0
    computed: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    made_of: Mapping[str, tuple[Origin, ...]] = field(hash=False, default_factory=dict)

    def axes(self, port: str) -> tuple[str, ...]:
        """The axes of a weight port in the order in which they are stored, in the words of the role."""
        own = ROLES[self.role].ports[port].axes
        return tuple(self.stored.get(port, (self.stack, *own) if self.stack else own))

    @property
    def matrix(self) -> tuple[str | None, tuple[str, ...] | None]:
        """Its weight, and how that is stored: turned over, it is another matrix, of other inputs and outputs."""
        return self.weights.get("W"), self.stored.get("W")

    @property
    def id(self) -> str:
        """Stable name: module path, the weight's own name where that is needed, role and part.

        A part that is called as another role is, as that of a residual sum behind an attention, has its own role in front;
        but for linear maps, which have nothing but their parts.
        """
        path = ".".join(part for part in (self.path, self.name) if part)
        if self.role == "linear":
            return f"{path or '.'}:{self.part or OTHER}"
        role = f"{self.role}." if self.part in ROLES and self.part != self.role else ""
        return f"{path or '.'}:{role}{self.part or self.role}"


@dataclass(frozen=True)
class Port:
    """Where one graph has a port.

    A result is the value of `node`. An operand is the argument `key` of `node`, and of `others` that read the same; so is
    a value only read. Where `since` is a node, what is from there to `node` is computed anew for who reads the value, with
    what `since` then reads. A `number` is a value that every call of the graph has.
    """

    kind: str
    node: fx.Node
    key: int | str | None = None
    since: fx.Node | None = None
    number: int | None = None
    others: tuple[fx.Node, ...] = ()

    @property
    def source(self) -> object:
        """The node (or constant) that is read here."""
        if self.key is None:
            return self.node
        return self.node.args[self.key] if isinstance(self.key, int) else self.node.kwargs.get(self.key)


@dataclass(frozen=True)
class Convolution:
    """A use that is a convolution: x and y are held [batch channels places…], and x stands for what it reads of them.

    `call` is the convolution, whose other arguments say how it goes over its input.
    """

    call: fx.Node


@dataclass(frozen=True)
class Routing:
    """A use of a stack of matrices whose rows [rows … d] find their matrices in some way.

    Attributes:
        kind: "sorted" where the rows of a matrix follow one another, "numbered" where each has a number, "batched"
            where the first axis of the rows is that of the matrices, "single" where all rows meet the same.
        call: the product.
        by: the ends of the rows of each matrix; the number of the matrix of each row; else nothing.
        number: of the one that all rows meet.
    """

    kind: Literal["sorted", "numbered", "batched", "single"]
    call: fx.Node
    by: fx.Node | None = None
    number: int = 0


@dataclass(frozen=True)
class Gather:
    """A use of a table by ids; `call` says besides which row has no gradient."""

    call: fx.Node


Form: TypeAlias = Convolution | Routing | Gather | None
"""How the values of a use are held; None where they are as their ports say."""


@dataclass(frozen=True)
class Use:
    """One use of a site.

    Attributes:
        anchor: the node that new nodes belong with.
        ports: where the graph has its ports.
        form: how its values are held.
        rows: (start, stop) ranges of the channels of its result that are the site's; None where all are.
    """

    anchor: fx.Node
    ports: Mapping[str, Port] = field(hash=False)
    form: Form = None
    rows: tuple[tuple[int, int], ...] | None = None
