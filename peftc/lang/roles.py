"""The table of roles, their ports and parts: the words a rule can use of a model. It finds none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from peftc.lang.axes import Axes, read_axes

PortKind = Literal["operand", "result", "value", "weight"]
KINDS_OF_PORT: Mapping[PortKind, str] = MappingProxyType(
    {
        "operand": "One argument of one consumer: a rewrite changes what that consumer gets.",
        "result": "What all users of a site read: a rewrite moves them all to the new value.",
        "value": "Can only be read.",
        "weight": "A parameter of the model: can be read, trained and merged into.",
    }
)

CALL_AXES = frozenset({"*", "batch", "seq", "queries", "keys"})
"""Axes whose length changes from call to call: no parameter can have such a size."""


@dataclass(frozen=True)
class Port:
    """A value or an operand at a site, with its default axes. An optional port is absent at some sites.

    `neutral` is the number that an absent weight counts as; without one, a rule that reads it leaves the site out.
    `counted` is a number of the role that is 0 at sites without the port, which a rule that reads it leaves out.
    """

    name: str
    kind: PortKind
    axes: Axes
    doc: str
    optional: bool = False
    neutral: float | None = None
    counted: str = ""


@dataclass(frozen=True)
class Role:
    """What a part of a model can be. A role without parts is chosen by its own name.

    `numbers` are what conditions and expressions can read of a site besides the sizes of its axes: name → meaning.
    `grows` is the axis along which a rewrite may put something in front of its result.
    """

    name: str
    doc: str
    ports: Mapping[str, Port]
    parts: tuple[str, ...] = ()
    numbers: Mapping[str, str] = field(default_factory=dict)
    grows: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """What a spec can write after the colon to choose sites of this role."""
        groups = tuple(name for name, group in GROUPS.items() if self.name == "linear" and group)
        return (*(self.parts or (self.name,)), *groups)


def _role(
    name: str, doc: str, *ports: Port, parts: tuple[str, ...] = (), grows: str = "", **numbers: str
) -> Role:
    held = MappingProxyType({port.name: port for port in ports})
    return Role(name, doc, held, parts, MappingProxyType(numbers), grows)


def _port(
    name: str,
    kind: PortKind,
    axes: str,
    doc: str,
    *,
    optional: bool = False,
    neutral: float | None = None,
    counted: str = "",
) -> Port:
    return Port(name, kind, read_axes(axes), doc, optional, neutral, counted)


OTHER = "other"
"""The part of a linear site that is none of the named ones; analysis writes it as an empty part."""

CONV = "conv"
"""The part of a linear site that is a convolution: a matrix times all that it reads for one place."""

BEGINS = "begins"
"""The port that says whether a call begins a text."""

BOTH = "both"
"""The part of a residual that adds what an attention and a feed-forward network make side by side."""

_LINEAR_PARTS = ("q", "k", "v", "o", "gate", "up", "down", "head", "router", CONV, OTHER)

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "attention": ("q", "k", "v", "o"),
        "ffn": ("gate", "up", "down"),
        "all-linear": tuple(part for part in _LINEAR_PARTS if part not in ("head", CONV)),
    }
)
"""Groups of parts of the role linear."""

SCOPES = ("encoder", "decoder", "cross")
"""What may stand before a part: `decoder.q`."""

_WEIGHT = _port(
    "W", "weight", "d_out d_in", "The matrix; its axes are lined up by name, however it is stored."
)
_BIAS = _port(
    "b", "weight", "d_out", "What is added to the product; many models have none.", optional=True, neutral=0
)
_TOKENS = _port(
    "tokens",
    "value",
    "batch seq",
    "1 for a real token, 0 for padding and for rows that a rule puts in front of the text; all 1 where a call tells "
    "nothing of padding.",
    optional=True,
)
_INPUT = _port("x", "operand", "* d_in", "What is multiplied by the weight.")
_OUTPUT = _port("y", "result", "* d_out", "The product, with the bias.")

ROLES: Mapping[str, Role] = MappingProxyType(
    {
        role.name: role
        for role in (
            _role(
                "linear",
                "A product with a weight of the model.",
                *(_INPUT, _OUTPUT, _WEIGHT, _BIAS, _TOKENS),
                parts=_LINEAR_PARTS,
            ),
            _role(
                "attention",
                "A softmax attention: queries look at keys and gather values.",
                _port("q", "operand", "batch heads queries head_dim", "The queries, positions applied."),
                _port("k", "operand", "batch kv_heads keys head_dim", "The keys, cache included."),
                _port("v", "operand", "batch kv_heads keys value_dim", "The values, cache included."),
                _port(
                    "mask",
                    "operand",
                    "batch heads queries keys",
                    "Which keys a query sees; absent where all or all earlier ones are seen.",
                    optional=True,
                ),
                _port("h", "value", "batch seq d_model", "What the queries are projected from."),
                _TOKENS,
                _port(
                    "y",
                    "result",
                    "batch heads queries value_dim",
                    "What was gathered, before its projection.",
                ),
            ),
            _role(
                "ffn",
                "A feed-forward network: up, activation, down.",
                _port("x", "operand", "* d_model", "What goes into its first products."),
                _port("y", "result", "* d_model", "What its last product makes."),
                _TOKENS,
            ),
            _role(
                "residual",
                "A residual sum: what an attention (`attention`), a feed-forward network (`ffn`), or both side by side "
                "(`both`) make is added to what they were computed from.",
                _port("x", "value", "* d_model", "What goes into the first products."),
                _port("y", "operand", "* d_model", "What is added to the stream."),
                _port("stream", "value", "* d_model", "What it is added to."),
                _port(
                    "normed",
                    "value",
                    "* d_model",
                    "What the block's own norm makes of the sum, where one takes it, as in post-norm blocks: of what "
                    "`y` is before it is rewritten.",
                    optional=True,
                    counted="post_norms",
                ),
                _TOKENS,
                parts=("attention", "ffn", BOTH),
                post_norms="1 where a norm of the block takes the sum, and nothing else does; else 0.",
            ),
            _role(
                "norm",
                "A normalisation with its scale, and a shift where it has one.",
                _port("x", "operand", "* d", "What is normalised."),
                _port("y", "result", "* d", "The normalised value, scaled and shifted."),
                _port("W", "weight", "d", "The scale.", optional=True),
                _port("b", "weight", "d", "The shift; RMS norms have none.", optional=True, neutral=0),
            ),
            _role(
                "embedding",
                "A row of a table for each id: of the tokens' (`embedding`), of one of places (`position`), or of any "
                "other (`table`), such as that of token types.",
                _port("ids", "value", "*", "The numbers of the rows."),
                _port("y", "result", "* d_model", "The rows."),
                _port("W", "weight", "vocab d_model", "The table."),
                parts=("embedding", "position", "table"),
            ),
            _role(
                "input",
                "What a model reads: its embedded tokens, with what scales them, before places and types are added. A "
                "rewrite may put rows in front; what comes with the tokens then grows too. Of a model with an encoder "
                "and a decoder, the encoder's is `source` and the decoder's `target`; of any other it is `source`.",
                _port("h", "result", "batch seq d_model", "The embedded tokens."),
                _port(
                    "W", "weight", "vocab d_model", "The table, as its rows come out: scaled where they are."
                ),
                _TOKENS,
                parts=("source", "target"),
                grows="seq",
            ),
            _role(
                "head",
                "The product that makes the model's output, over classes (`task`) or the vocabulary.",
                *(_INPUT, _OUTPUT, _WEIGHT, _BIAS),
                parts=("task", "vocabulary"),
            ),
            _role(
                "block",
                "The unit that a model repeats, from residual stream to residual stream.",
                _port("y", "result", "* d_model", "What the block leaves."),
                _TOKENS,
                _port(
                    "begins",
                    "value",
                    "",
                    "1 in a call that begins a text, 0 in one that goes on with a cache.",
                ),
            ),
            _role(
                "positions",
                "The ids by which tokens are placed: in a position table, or by an angle of rotation.",
                _port("p", "operand", "* seq", "One whole number for each token."),
            ),
            _role(
                "tensor",
                "Every parameter of the model, whatever it does.",
                _port("W", "weight", "*", "The parameter itself."),
            ),
        )
    }
)


def accepts(role: str, word: str, part: str) -> bool:
    """Whether `word` (a part, a group, or the role's own name) chooses a site of this role and part."""
    part = part or OTHER
    if not ROLES[role].parts:
        return word in (role, part)
    if role == "linear" and word in GROUPS:
        return part in GROUPS[word]
    return word == part or (word == role and role not in ROLES[role].parts)


def known_words(roles: tuple[str, ...]) -> tuple[str, ...]:
    """Every word that can choose a part of these roles, in the order of the table."""
    return tuple(dict.fromkeys(word for role in roles for word in (*ROLES[role].words, role)))
