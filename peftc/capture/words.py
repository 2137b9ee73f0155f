"""What a spelling can name: operations that it finds in a graph, and operations that it puts in their place.

Words that rules have too mean the same in both. Nothing here looks at a graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from peftc.lang import OPERATIONS
from peftc.lang.axes import Axes, AxesError, Term, show
from peftc.lang.operations import Operation, Settings
from peftc.lang.results import keeps, same
from peftc.lang.vocabulary import AXIS

SHARED = ("softmax", "sigmoid", "tanh", "exp", "square", "dropout")
"""Words of rules that spellings can use."""


def word(name: str, doc: str, *more: str) -> Operation:
    """An operation on one value, with the axes of that value."""
    return Operation(name, doc, (("x", "value"), *((name, "any") for name in more)), same, "")


def along(name: str, doc: str) -> Operation:
    """What is taken of a value along one of its axes."""
    return Operation(name, doc, (("x", "value"),), keeps, "", {"axis": AXIS})


WORDS: Mapping[str, Operation] = MappingProxyType(
    {
        **{name: OPERATIONS[name] for name in SHARED},
        **{
            each.name: each
            for each in (
                along("mean_along", "The mean along an axis, which stays as one of length 1."),
                along("sum_along", "The sum along an axis, which stays as one of length 1."),
                along("max_along", "The largest along an axis, which stays as one of length 1."),
                word("rsqrt", "1 / √x."),
                word("sqrt", "√x."),
                word("cube", "x · x · x."),
                word("cast", "x in another number format: a wildcard, or that of another value.", "to"),
                word("reshape", "x with its leading axes in another form, the last one as it is."),
            )
        },
    }
)


def attention(terms: tuple[Term, ...], _: Settings) -> Axes:
    """The axes of the queries, the last one that of the values."""
    query, values = terms[0].axes, terms[2].axes
    if len(query) != 4 or len(values) != 4:
        raise AxesError(f"{show(query)} and {show(values)} must have four axes each")
    return (*query[:3], values[3])


def linear(terms: tuple[Term, ...], _: Settings) -> Axes:
    """The axes of the value, the last one replaced by the other one of the matrix."""
    x, weight = terms[0].axes, terms[1].axes
    other = [axis for axis in weight if axis != x[-1]]
    if len(weight) != 2 or len(other) != 1:
        raise AxesError(f"{show(weight)} is no matrix that takes {show(x)}")
    return (*x[:-1], other[0])


def target(name: str, doc: str, takes: str, axes: object = same) -> Operation:
    """What a spelling becomes; any argument but the first may be absent."""
    named = takes.split()
    kinds = tuple((each, "value" if at == 0 else "any") for at, each in enumerate(named))
    return Operation(name, doc, kinds, axes, "")  # type: ignore[arg-type]


TARGETS: Mapping[str, Operation] = MappingProxyType(
    {
        each.name: each
        for each in (
            target(
                "rms_norm",
                "The norm, its statistics in a number format of their own.",
                "x weight eps compute",
            ),
            target("layer_norm", "`layer_norm` over the last axis.", "x weight bias eps"),
            target("attention", "`scaled_dot_product_attention`.", "q k v mask scale dropout", attention),
            target("linear", "`linear`, its matrix as [d_out d_in].", "x weight bias", linear),
            target("softmax", "`softmax` over the last axis.", "x"),
            target("quick_gelu", "x · sigmoid(1.702 x).", "x"),
            target("gelu_tanh", "`gelu` by tanh.", "x"),
        )
    }
)
