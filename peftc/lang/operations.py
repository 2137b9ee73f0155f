"""The vocabulary of operations a rule can name: their axes, their settings and, as a text, what they become.

Nothing here computes: `lower` is the dotted name of a torch function or of a peftc lowering, so no torch is
imported. An installed plugin adds its own with `register`; a rule can only name what is registered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from peftc.lang.axes import ANY, Axes, AxesError, Constant, Term, Unknown, show
from peftc.lang.axes import AXIS as AXIS_NAME

Settings = Mapping[str, Constant]
AxesRule = Callable[[tuple[Term, ...], Settings], Axes]
Lengths = dict[str, str]
"""What the length of each axis is called: its own name, an option's, or a sum such as `length+keys`."""
LengthsRule = Callable[[tuple[Term, ...], Settings, Lengths], Lengths]
Takes = Literal["value", "number", "any"]


@dataclass(frozen=True)
class Setting:
    """A named argument: the name of an axis, a number in a range, or one of some choices."""

    kind: Literal["axis", "number", "choice"]
    doc: str = ""
    default: Constant | None = None
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operation:
    """One word of the vocabulary.

    `optional` are values that a call may give by name, after those it `takes`; a call that gives none has
    fewer terms. `longer` names the setting whose axis comes out longer than it went in. `lengths` works the
    lengths of the result's axes out from those of the operands where they differ; it may raise AxesError.
    """

    name: str
    doc: str
    takes: tuple[tuple[str, Takes], ...]
    axes: AxesRule
    lower: str
    settings: Mapping[str, Setting] = field(default_factory=lambda: MappingProxyType({}))
    longer: str | None = None
    optional: tuple[str, ...] = ()
    lengths: LengthsRule | None = None

    @property
    def call(self) -> str:
        """How it is called: `concat(a, b, axis=…)`; settings that have a default are left out."""
        needed = (f"{name}=…" for name, setting in self.settings.items() if setting.default is None)
        return f"{self.name}({', '.join((*(name for name, _ in self.takes), *needed))})"


OPERATIONS: dict[str, Operation] = {}


def register(operation: Operation) -> Operation:
    """Add an operation to the vocabulary. Raises ValueError where the name is taken."""
    if OPERATIONS.get(operation.name, operation) != operation:
        raise ValueError(f"there is an operation {operation.name!r} already")
    OPERATIONS[operation.name] = operation
    return operation


def _same(terms: tuple[Term, ...], _settings: Settings) -> Axes:
    """The axes as they are."""
    return terms[0].axes


def _keeps(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes as they are; the one that is named must be among them."""
    _has(terms[0].axes, settings["axis"])
    return terms[0].axes


def _drops(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes without the one that is named."""
    axis = _has(terms[0].axes, settings["axis"])
    return tuple(name for name in terms[0].axes if name != axis)


def _joins(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes of the second; the first may lack some of them, and the one that is named grows."""
    first, second = terms[0].axes, terms[1].axes
    axis = _has(first, settings["axis"])
    _has(second, axis)
    if ANY in first or ANY in second:
        raise AxesError(
            f"{show(first)} and {show(second)} cannot be joined: name the axes that {ANY} stands for"
        )
    if missing := [name for name in first if name not in second]:
        raise AxesError(f"{show(first)} has {', '.join(missing)}, which {show(second)} lacks")
    return second


def _keeps_over(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes as they are; what it is taken over has the axis that is named, and none that the value lacks."""
    _drops_over(terms, settings)
    return terms[0].axes


def _drops_over(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """Without the axis; what it is taken over has that axis, and none that the value lacks."""
    kept = _drops(terms, settings)
    if len(terms) > 1:
        _has(terms[1].axes, settings["axis"])
        if lacking := [axis for axis in terms[1].axes if axis not in terms[0].axes]:
            raise AxesError(f"{show(terms[0].axes)} has no {', '.join(lacking)}, over which it is taken")
    return kept


def _renames(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes as they are, the one that is named under its new name."""
    axes, to = terms[0].axes, str(settings["to"])
    axis = _has(axes, settings["axis"])
    if to in axes or not AXIS_NAME.match(to):
        raise AxesError(
            f"{show(axes)}: {to!r} is " + ("there already" if to in axes else "no name of an axis")
        )
    return tuple(to if name == axis else name for name in axes)


def _inner(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axis that is named, and the same once more under its new name; all others, which have names, are summed."""
    if ANY in terms[0].axes:
        raise AxesError(f"{show(terms[0].axes)}: name the axes that {ANY} stands for")
    _renames(terms, settings)
    return (str(settings["axis"]), str(settings["to"]))


def _renamed_length(terms: tuple[Term, ...], settings: Settings, lengths: Lengths) -> Lengths:
    held = terms[0].held if isinstance(terms[0].held, dict) else {}
    axis = str(settings["axis"])
    return {**lengths, str(settings["to"]): held.get(axis, axis)}


def _matrix(terms: tuple[Term, ...], _settings: Settings) -> Axes:
    """The axes as they are; the last two have names."""
    axes = terms[0].axes
    if len(axes) < 2 or ANY in axes[-2:]:
        raise AxesError(f"{show(axes)} has no two last axes with names")
    return axes


def _within(terms: tuple[Term, ...], _settings: Settings) -> Axes:
    """The axes as they are; the second has none that the first lacks."""
    if lacking := [axis for axis in terms[1].axes if axis not in terms[0].axes]:
        raise AxesError(f"{show(terms[0].axes)} has no {', '.join(lacking)}")
    return terms[0].axes


def _square(terms: tuple[Term, ...], _settings: Settings) -> Axes:
    """The axes as they are; the last two have names and one length."""
    return _matrix(terms, _settings)


def _square_lengths(terms: tuple[Term, ...], _settings: Settings, lengths: Lengths) -> Lengths:
    one, other = (lengths.get(axis, axis) for axis in terms[0].axes[-2:])
    if one != other:
        raise AxesError(f"{show(terms[0].axes)} is not square: {one} by {other}")
    return lengths


def _has(axes: Axes, axis: Constant) -> str:
    if axis not in axes or axis == ANY:
        raise AxesError(f"{show(axes)} has no axis {axis!r}")
    return str(axis)


AXIS = Setting("axis", "The axis it works along.")
ACTIVATIONS = (
    *("relu", "gelu", "silu", "tanh", "sigmoid", "softplus", "elu", "leaky_relu", "quick_gelu"),
    "identity",
)
_ONE: tuple[tuple[str, Takes], ...] = (("x", "value"),)


def _define() -> None:
    for name, doc, lower in (
        ("relu", "max(x, 0).", "torch.nn.functional.relu"),
        ("gelu", "x · Φ(x).", "torch.nn.functional.gelu"),
        ("silu", "x · sigmoid(x).", "torch.nn.functional.silu"),
        ("tanh", "The hyperbolic tangent.", "torch.tanh"),
        ("sigmoid", "1 / (1 + exp(−x)).", "torch.sigmoid"),
        ("softplus", "log(1 + exp(x)).", "torch.nn.functional.softplus"),
        ("elu", "x above 0, else eˣ − 1.", "torch.nn.functional.elu"),
        ("leaky_relu", "x above 0, else x / 100.", "torch.nn.functional.leaky_relu"),
        ("quick_gelu", "x · sigmoid(1.702 x).", "peftc.quick_gelu"),
        ("exp", "eˣ.", "torch.exp"),
        ("log", "The natural logarithm.", "torch.log"),
        ("abs", "x without its sign.", "torch.abs"),
        ("square", "x · x.", "torch.square"),
        ("sqrt", "The square root.", "torch.sqrt"),
        ("stop_gradient", "x, as a constant: no gradient goes through.", "torch.detach"),
    ):
        register(Operation(name, doc, _ONE, _same, lower))
    kind = Setting("choice", "Which activation.", choices=ACTIVATIONS)
    rate = Setting("number", "The chance of a zero.", min=0, max=1)
    epsilon = Setting("number", "Added to the variance.", default=1e-5, min=0)
    for operation in (
        Operation(
            "activate", "The activation that a text names.", _ONE, _same, "peftc.activate", {"kind": kind}
        ),
        Operation("dropout", "Zeros at random while training.", _ONE, _same, "peftc.dropout", {"p": rate}),
        Operation(
            "softmax",
            "Positive, summing to 1 along an axis; `over` says with 1 and 0 what of it counts, the rest is 0.",
            _ONE,
            _keeps_over,
            "peftc.softmax",
            {"axis": AXIS},
            optional=("over",),
        ),
        Operation(
            "mean",
            "The mean along an axis; `over` says with 1 and 0 what of it counts.",
            _ONE,
            _drops_over,
            "peftc.mean",
            {"axis": AXIS},
            optional=("over",),
        ),
        Operation(
            "sum",
            "The sum along an axis; `over` says with 1 and 0 what of it counts.",
            _ONE,
            _drops_over,
            "peftc.sum",
            {"axis": AXIS},
            optional=("over",),
        ),
        Operation("max", "The largest along an axis.", _ONE, _drops, "torch.amax", {"axis": AXIS}),
        Operation(
            "length",
            "The Euclidean length along an axis: √(sum of squares).",
            _ONE,
            _drops,
            "torch.linalg.vector_norm",
            {"axis": AXIS},
        ),
        Operation(
            "clamp",
            "No less than `min`, no more than `max`.",
            _ONE,
            _same,
            "peftc.clamp",
            {"min": Setting("number", "The least."), "max": Setting("number", "The most.")},
        ),
        Operation(
            "rename",
            "The same value, one axis called otherwise, so that it meets others.",
            _ONE,
            _renames,
            "peftc.rename",
            {"axis": AXIS, "to": Setting("axis", "What the axis is called from here on.")},
            lengths=_renamed_length,
        ),
        Operation(
            "cayley",
            "The rotation (1 − S)⁻¹ (1 + S) of S = (x − xᵀ) / 2, over the last two axes.",
            _ONE,
            _square,
            "peftc.cayley",
            lengths=_square_lengths,
        ),
        Operation(
            "identity_like",
            "The identity matrix of the last two axes.",
            _ONE,
            _square,
            "peftc.identity_like",
            lengths=_square_lengths,
        ),
        Operation(
            "gram",
            "The inner products of the slices along an axis with each other.",
            _ONE,
            _inner,
            "peftc.gram",
            {"axis": AXIS, "to": Setting("axis", "What the axis is called the second time.")},
            lengths=_renamed_length,
        ),
        Operation(
            "orthogonal",
            "Orthonormal columns that span those of x, over the last two axes; the first comes out as it was.",
            _ONE,
            _matrix,
            "peftc.orthogonal",
        ),
        Operation(
            "masked",
            "x where `keep` is not 0, else 0, whatever x is there.",
            (("x", "value"), ("keep", "value")),
            _within,
            "peftc.masked",
        ),
        Operation(
            "while_training",
            "x while the model trains, a number otherwise.",
            _ONE,
            _same,
            "peftc.while_training",
            {"otherwise": Setting("number", "What it is in evaluation.", default=1.0)},
        ),
        Operation(
            "layer_norm",
            "Mean 0 and variance 1 along an axis.",
            _ONE,
            _keeps,
            "peftc.layer_norm",
            {"axis": AXIS, "eps": epsilon},
        ),
        Operation(
            "rms_norm",
            "Mean square 1 along an axis.",
            _ONE,
            _keeps,
            "peftc.rms_norm",
            {"axis": AXIS, "eps": epsilon},
        ),
        Operation(
            "concat",
            "`a` in front of `b` along an axis; `a` is repeated over the axes it lacks.",
            (("a", "value"), ("b", "value")),
            _joins,
            "peftc.concat",
            {"axis": AXIS},
            longer="axis",
        ),
        Operation(
            "see_prefix",
            "A mask opened for so many keys in front; an absent mask stays absent.",
            (("mask", "value"), ("length", "number")),
            _keeps,
            "peftc.see_prefix",
            {"axis": Setting("axis", "The mask's axis of keys.", default="keys")},
            longer="axis",
        ),
    ):
        register(operation)


_define()


def setting_problem(setting: Setting, value: object) -> str | None:
    """Why `value` cannot be this setting, or None."""
    if setting.kind == "number":
        return _number_problem(setting, value)
    if not isinstance(value, str):
        return "must be the name of an axis" if setting.kind == "axis" else "must be a text"
    if setting.kind == "choice" and value not in setting.choices:
        return f"must be one of {', '.join(setting.choices)}, not {value!r}"
    return None


def _number_problem(setting: Setting, value: object) -> str | None:
    if isinstance(value, Unknown):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "must be a number"
    if setting.min is not None and value < setting.min:
        return f"must be at least {setting.min:g}, not {value:g}"
    if setting.max is not None and value > setting.max:
        return f"must be at most {setting.max:g}, not {value:g}"
    return None
