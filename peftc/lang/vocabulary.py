"""The operations that peftc itself brings. Knows no torch: each names what it becomes. Longer than most files here:
one entry for each.
"""

from __future__ import annotations

import math

from peftc.lang.operations import Operation, Setting, Settings, Takes, always, never, register
from peftc.lang.results import (
    counted_length,
    dots,
    drops,
    drops_over,
    first_lengths,
    inner,
    joins,
    keeps,
    keeps_over,
    keeps_some,
    left,
    matrix,
    merged_lengths,
    merges,
    middle,
    numbers,
    picks,
    product,
    product_lengths,
    recurring_lengths,
    recurs,
    renamed_length,
    renames,
    repeat_lengths,
    repeats,
    right,
    runs_on,
    same,
    skew_lengths,
    skews,
    split_lengths,
    splits,
    square,
    square_lengths,
    within,
)
from peftc.lang.sizes import FUNCTIONS

AXIS = Setting("axis", "The axis it works along.")
ACTIVATIONS = (
    *("relu", "gelu", "silu", "tanh", "sigmoid", "softplus", "elu", "leaky_relu", "quick_gelu"),
    *("gelu_tanh", "identity"),
)
_ONE: tuple[tuple[str, Takes], ...] = (("x", "value"),)
_NOT_ZERO_AT_ZERO = frozenset({"sigmoid", "softplus", "exp", "log"})


def _activates_zero(settings: Settings) -> bool:
    return settings["kind"] not in _NOT_ZERO_AT_ZERO


def _otherwise_zero(settings: Settings) -> bool:
    return settings["otherwise"] == 0


def _square(x: float) -> float:
    return x * x


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
        ("gelu_tanh", "gelu by its approximation with tanh, which the first models had.", "peftc.gelu_tanh"),
        ("stop_gradient", "x, as a constant: no gradient goes through.", "torch.detach"),
    ):
        zero = never if name in _NOT_ZERO_AT_ZERO else always
        register(Operation(name, doc, _ONE, same, lower, keeps_zeros=zero))
    for name, doc, lower, number in (
        ("exp", "eˣ.", "torch.exp", math.exp),
        ("log", "The natural logarithm.", "torch.log", math.log),
        ("abs", "x without its sign.", "torch.abs", abs),
        ("square", "x · x.", "torch.square", _square),
        ("sqrt", "The square root.", "torch.sqrt", math.sqrt),
    ):
        zero = never if name in _NOT_ZERO_AT_ZERO else always
        register(Operation(name, doc, (("x", "any"),), same, lower, number=number, keeps_zeros=zero))
    for name, function in FUNCTIONS.items():
        if function.run is not None:
            takes: tuple[tuple[str, Takes], ...] = tuple((each, "number") for each in function.takes)
            register(Operation(name, function.doc, takes, numbers, "", number=function.run))
    kind = Setting("choice", "Which activation.", choices=ACTIVATIONS)
    rate = Setting("number", "The chance of a zero.", min=0, max=1)
    epsilon = Setting("number", "Added to the variance.", default=1e-5, min=0)
    for operation in (
        Operation(
            "activate",
            "The activation that a text names.",
            _ONE,
            same,
            "peftc.activate",
            {"kind": kind},
            keeps_zeros=_activates_zero,
        ),
        Operation(
            "dropout",
            "Zeros at random while training.",
            _ONE,
            same,
            "peftc.dropout",
            {"p": rate},
            keeps_zeros=always,
        ),
        Operation(
            "softmax",
            "Positive, summing to 1 along an axis; `over` says with 1 and 0 what of it counts, the rest is 0.",
            _ONE,
            keeps_over,
            "peftc.softmax",
            {"axis": AXIS},
            optional=("over",),
        ),
        Operation(
            "mean",
            "The mean along an axis; `over` says with 1 and 0 what of it counts.",
            _ONE,
            drops_over,
            "peftc.mean",
            {"axis": AXIS},
            optional=("over",),
            keeps_zeros=always,
        ),
        Operation(
            "sum",
            "The sum along an axis; `over` says with 1 and 0 what of it counts.",
            _ONE,
            drops_over,
            "peftc.sum",
            {"axis": AXIS},
            optional=("over",),
            keeps_zeros=always,
            ignores_zeros=True,
        ),
        Operation("max", "The largest along an axis.", _ONE, drops, "torch.amax", {"axis": AXIS}),
        Operation(
            "length",
            "The Euclidean length along an axis: √(sum of squares).",
            _ONE,
            drops,
            "torch.linalg.vector_norm",
            {"axis": AXIS},
            keeps_zeros=always,
            ignores_zeros=True,
        ),
        Operation(
            "clamp",
            "No less than `min`, no more than `max`.",
            _ONE,
            same,
            "peftc.clamp",
            {
                "min": Setting("number", "The least.", default=float("-inf")),
                "max": Setting("number", "The most.", default=float("inf")),
            },
        ),
        Operation(
            "rename",
            "The same value, one axis called otherwise, so that it meets others.",
            _ONE,
            renames,
            "peftc.rename",
            {"axis": AXIS, "to": Setting("axis", "What the axis is called from here on.")},
            lengths=renamed_length,
            keeps_zeros=always,
        ),
        Operation(
            "cayley",
            "The rotation (1 − S)⁻¹ (1 + S) of S = (x − xᵀ) / 2, over the last two axes; or so many terms of its series "
            "1 + 2 S + 2 S² + … + Sⁿ⁻¹, which is no more than nearly a rotation.",
            _ONE,
            square,
            "peftc.cayley",
            {"terms": Setting("number", "Terms of the series; 0 for the rotation itself.", default=0, min=0)},
            lengths=square_lengths,
        ),
        Operation(
            "skew",
            "The skew-symmetric matrix, a row for each of `size`, whose numbers above the diagonal are the last axis "
            "of x, row by row.",
            (("x", "value"), ("size", "number")),
            skews,
            "peftc.skew",
            {
                "rows": Setting("axis", "What its rows are called."),
                "columns": Setting("axis", "What its columns are called."),
            },
            lengths=skew_lengths,
        ),
        Operation(
            "dot",
            "The products of two values, summed over an axis that both have, as `a @ b` is over the last of `a`.",
            (("a", "value"), ("b", "value")),
            dots,
            "peftc.dot",
            {"axis": AXIS},
        ),
        Operation(
            "identity_like",
            "The identity matrix of the last two axes.",
            _ONE,
            square,
            "peftc.identity_like",
            lengths=square_lengths,
        ),
        Operation(
            "kron",
            "The Kronecker product: every number of `a` times all of `b`. Axes that both have are a batch; of the "
            "others, the first of each make `rows`, the second `columns`.",
            (("a", "value"), ("b", "value")),
            product,
            "peftc.kron",
            {
                "rows": Setting("axis", "What the rows of the product are called."),
                "columns": Setting("axis", "What its columns are called."),
            },
            lengths=product_lengths,
        ),
        Operation(
            "split",
            "An axis as two: `outer` pieces of equal length in a row, and what is `inner` to each.",
            (("x", "value"), ("pieces", "number")),
            splits,
            "peftc.split",
            {
                "axis": AXIS,
                "outer": Setting("axis", "What the pieces are called."),
                "inner": Setting("axis", "What the inside of a piece is called."),
            },
            lengths=split_lengths,
        ),
        Operation(
            "join",
            "Two axes as one, piece after piece: the reverse of `split`.",
            _ONE,
            merges,
            "peftc.join",
            {
                "outer": Setting("axis", "The axis of the pieces."),
                "inner": Setting("axis", "The axis inside a piece."),
                "to": Setting("axis", "What both together are called."),
            },
            lengths=merged_lengths,
        ),
        Operation(
            "rows",
            "For each id, what of x has its number along an axis: the row of a table.",
            (("x", "value"), ("ids", "value")),
            picks,
            "peftc.rows",
            {"axis": AXIS},
        ),
        Operation(
            "first",
            "The first so many along an axis.",
            (("x", "value"), ("count", "number")),
            keeps_some,
            "peftc.first",
            {"axis": AXIS},
            lengths=first_lengths,
        ),
        Operation(
            "at_ends",
            "1 at the first so many and the last so many of what is not 0 along an axis, else 0.",
            (("x", "value"), ("first", "number"), ("last", "number")),
            keeps,
            "peftc.at_ends",
            {"axis": AXIS},
            keeps_zeros=always,
        ),
        Operation(
            "sampled",
            "So many along an axis, drawn at random each time; none is drawn again before all have been.",
            (("x", "value"), ("count", "number")),
            keeps_some,
            "peftc.sampled",
            {"axis": AXIS},
            lengths=first_lengths,
        ),
        Operation(
            "cycled",
            "So many along an axis, over and over again: of the first on the axes in front, then of the second, and so "
            "on, and from the start; `over` says with 1 and 0 what counts.",
            (("x", "value"), ("count", "number")),
            runs_on,
            "peftc.cycled",
            {"axis": AXIS},
            optional=("over",),
            lengths=first_lengths,
        ),
        Operation(
            "lstm",
            "The outputs of a long short-term memory that reads x step by step along an axis, its last one in each step, "
            "from zeros. Its four gates (input, forget, cell, output) stand one behind the other in the rows of `step`, "
            "which takes x in, of `state`, which takes in its own last output, and of `bias`.",
            (("x", "value"), ("step", "value"), ("state", "value"), ("bias", "value")),
            recurs,
            "peftc.lstm",
            {
                "axis": AXIS,
                "reverse": Setting("flag", "Whether it reads from the end to the start.", default=False),
            },
            lengths=recurring_lengths,
        ),
        Operation(
            "gram",
            "The inner products of the slices along an axis with each other.",
            _ONE,
            inner,
            "peftc.gram",
            {"axis": AXIS, "to": Setting("axis", "What the axis is called the second time.")},
            lengths=renamed_length,
        ),
        *(
            Operation(
                f"svd_{name}",
                f"{doc} of a matrix, over its last two axes, the largest `count` of them, under the name of `axis`.",
                (("x", "value"), ("count", "number")),
                axes,
                f"peftc.svd_{name}",
                {"axis": Setting("axis", "What the vectors are counted by.", default="rank")},
                lengths=counted_length,
            )
            for name, doc, axes in (
                ("u", "The left singular vectors [rows axis]", left),
                ("s", "The singular values [axis]", middle),
                ("vh", "The right singular vectors [axis columns]", right),
            )
        ),
        Operation(
            "orthogonal",
            "Orthonormal columns that span those of x, over the last two axes; the first comes out as it was.",
            _ONE,
            matrix,
            "peftc.orthogonal",
        ),
        Operation(
            "masked",
            "x where `keep` is not 0, else 0, whatever x is there.",
            (("x", "value"), ("keep", "value")),
            within,
            "peftc.masked",
            keeps_zeros=always,
        ),
        Operation(
            "counted",
            "What counts: the real tokens, or all with the padding among them.",
            (("tokens", "value"),),
            same,
            "peftc.counted",
            {"which": Setting("choice", "Which of them.", choices=("tokens", "all"))},
        ),
        Operation(
            "while_training",
            "x while the model trains, a number otherwise.",
            _ONE,
            same,
            "peftc.while_training",
            {"otherwise": Setting("number", "What it is in evaluation.", default=1.0)},
            keeps_zeros=_otherwise_zero,
        ),
        Operation(
            "layer_norm",
            "Mean 0 and variance 1 along an axis.",
            _ONE,
            keeps,
            "peftc.layer_norm",
            {"axis": AXIS, "eps": epsilon},
        ),
        Operation(
            "rms_norm",
            "Mean square 1 along an axis.",
            _ONE,
            keeps,
            "peftc.rms_norm",
            {"axis": AXIS, "eps": epsilon},
        ),
        Operation(
            "concat",
            "`a` in front of `b` along an axis; `a` is repeated over the axes it lacks.",
            (("a", "value"), ("b", "value")),
            joins,
            "peftc.concat",
            {"axis": AXIS},
            longer="axis",
        ),
        Operation(
            "repeat",
            "x once for each of an axis of `like`, as it is where it has the axis.",
            (("x", "value"), ("like", "value")),
            repeats,
            "peftc.repeat",
            {"axis": AXIS},
            lengths=repeat_lengths,
            meets=False,
        ),
        Operation(
            "see_prefix",
            "A mask opened for so many keys in front; an absent mask stays absent.",
            (("mask", "value"), ("length", "number")),
            keeps,
            "peftc.see_prefix",
            {
                "axis": Setting("axis", "The mask's axis of keys.", default="keys"),
                "visible": Setting(
                    "choice",
                    "always: every query sees the new keys; window: in attention with a sliding window, they stand "
                    "at the places before the first key, and fall out of the window as others do.",
                    default="always",
                    choices=("always", "window"),
                ),
            },
            longer="axis",
        ),
    ):
        register(operation)


_define()
