"""Which axes the result of an operation has, and what their lengths are called, from those of its operands.

Each raises AxesError where the operands do not fit. Their docstrings are the reference's column of axes. Longer than
most files here: one short function for each way in which axes can come out.
"""

from __future__ import annotations

from peftc.lang.axes import ANY, AXIS, Axes, AxesError, Constant, Term, Unknown, contract, show
from peftc.lang.operations import Lengths, Settings
from peftc.lang.sizes import over, size_at, times


def same(terms: tuple[Term, ...], _settings: Settings) -> Axes:
    """The axes as they are."""
    return terms[0].axes


def keeps(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes as they are; the one that is named must be among them."""
    has(terms[0].axes, settings["axis"])
    return terms[0].axes


def drops(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes without the one that is named."""
    axis = has(terms[0].axes, settings["axis"])
    return tuple(name for name in terms[0].axes if name != axis)


def joins(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes of the second; the first may lack some of them, and the one that is named grows."""
    first, second = terms[0].axes, terms[1].axes
    axis = has(first, settings["axis"])
    has(second, axis)
    if ANY in first or ANY in second:
        raise AxesError(
            f"{show(first)} and {show(second)} cannot be joined: name the axes that {ANY} stands for"
        )
    if missing := [name for name in first if name not in second]:
        raise AxesError(f"{show(first)} has {', '.join(missing)}, which {show(second)} lacks")
    return second


def repeats(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes with the one that is named in front, unless they have it."""
    axis = has(terms[1].axes, settings["axis"])
    axes = terms[0].axes
    if axis in axes:
        return axes
    if ANY in axes:
        raise AxesError(f"{show(axes)} cannot be repeated: name the axes that {ANY} stands for")
    return (axis, *axes)


def repeat_lengths(terms: tuple[Term, ...], settings: Settings, _lengths: Lengths) -> Lengths:
    axis, axes = str(settings["axis"]), terms[0].axes
    own = {name: length_of(terms[0], name) for name in axes}
    return own if axis in axes else {axis: length_of(terms[1], axis), **own}


def keeps_over(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes as they are; what it is taken over has the axis that is named, and none that the value lacks."""
    drops_over(terms, settings)
    return terms[0].axes


def drops_over(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """Without the axis; what it is taken over has that axis, and none that the value lacks."""
    kept = drops(terms, settings)
    if len(terms) > 1:
        has(terms[1].axes, settings["axis"])
        if lacking := [axis for axis in terms[1].axes if axis not in terms[0].axes]:
            raise AxesError(f"{show(terms[0].axes)} has no {', '.join(lacking)}, over which it is taken")
    return kept


def renames(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes as they are, the one that is named under its new name."""
    axes, to = terms[0].axes, str(settings["to"])
    axis = has(axes, settings["axis"])
    if to in axes or not AXIS.match(to):
        raise AxesError(
            f"{show(axes)}: {to!r} is " + ("there already" if to in axes else "no name of an axis")
        )
    return tuple(to if name == axis else name for name in axes)


def inner(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axis that is named, and the same once more under its new name; all others, which have names, are summed."""
    named(terms[0].axes)
    renames(terms, settings)
    return (str(settings["axis"]), str(settings["to"]))


def named(axes: Axes) -> Axes:
    if ANY in axes:
        raise AxesError(f"{show(axes)}: name the axes that {ANY} stands for")
    return axes


def new(axes: Axes, *names: Constant) -> Axes:
    """Names for new axes: all different, and none there already."""
    for position, name in enumerate(names):
        if name in axes or name in names[:position] or not AXIS.match(str(name)):
            raise AxesError(
                f"{show(axes)}: {name!r} is "
                + ("no name of an axis" if name not in axes else "there already")
            )
    return tuple(map(str, names))


def halves(terms: tuple[Term, ...]) -> tuple[Axes, Axes, Axes]:
    """The axes that two values share, and the two that each has besides."""
    one, other = named(terms[0].axes), named(terms[1].axes)
    both = tuple(axis for axis in one if axis in other)
    own = tuple(axis for axis in one if axis not in both), tuple(axis for axis in other if axis not in both)
    if len(own[0]) != 2 or len(own[1]) != 2:
        raise AxesError(f"{show(one)} and {show(other)} must each have two axes that the other lacks")
    return (both, *own)


def product(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes that both have, then the rows and the columns of the product."""
    both, _, _ = halves(terms)
    return (*both, *new(both, settings["rows"], settings["columns"]))


def product_lengths(terms: tuple[Term, ...], settings: Settings, lengths: Lengths) -> Lengths:
    _, one, other = halves(terms)
    made = {
        str(settings[name]): times(length_of(terms[0], one[place]), length_of(terms[1], other[place]))
        for place, name in enumerate(("rows", "columns"))
    }
    return {**lengths, **made}


def splits(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes with the one that is named replaced by its two."""
    axes = terms[0].axes
    axis = has(axes, settings["axis"])
    counted(terms[1])
    rest = tuple(name for name in axes if name != axis)
    outer, inner = new(rest, settings["outer"], settings["inner"])
    return tuple(new for name in axes for new in ((outer, inner) if name == axis else (name,)))


def split_lengths(terms: tuple[Term, ...], settings: Settings, lengths: Lengths) -> Lengths:
    pieces = counted(terms[1])
    inner = over(length_of(terms[0], str(settings["axis"])), pieces)
    return {**lengths, str(settings["outer"]): pieces, str(settings["inner"]): inner}


def merges(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes with the two that are named, which stand side by side, as one."""
    axes = terms[0].axes
    outer, inner = has(axes, settings["outer"]), has(axes, settings["inner"])
    if axes.index(inner) != axes.index(outer) + 1:
        raise AxesError(f"{show(axes)}: {inner!r} does not stand right behind {outer!r}")
    rest = tuple(name for name in axes if name not in (outer, inner))
    (to,) = new(rest, settings["to"])
    return tuple(to if name == outer else name for name in axes if name != inner)


def merged_lengths(terms: tuple[Term, ...], settings: Settings, lengths: Lengths) -> Lengths:
    outer, inner = (length_of(terms[0], str(settings[name])) for name in ("outer", "inner"))
    return {**lengths, str(settings["to"]): times(outer, inner)}


def picks(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes of the ids, then those of the first without the one that is named; they share none."""
    table, ids = named(terms[0].axes), terms[1].axes
    axis = has(table, settings["axis"])
    rest = tuple(name for name in table if name != axis)
    if both := [name for name in ids if name in table]:
        raise AxesError(f"{show(table)} and the ids {show(ids)} both have {', '.join(both)}")
    return (*ids, *rest)


def keeps_some(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes as they are; the one that is named must be among them."""
    counted(terms[1])
    return keeps(terms, settings)


def first_lengths(terms: tuple[Term, ...], settings: Settings, lengths: Lengths) -> Lengths:
    return {**lengths, str(settings["axis"]): counted(terms[1])}


def length_of(term: Term, axis: str) -> str:
    held = term.held if isinstance(term.held, dict) else {}
    return str(held.get(axis, axis))


def counted(term: Term) -> str:
    """A number that is a length: the name of what a site knows, or the number itself."""
    if isinstance(term.held, Unknown):
        return term.held.name
    if isinstance(term.held, int) and term.held > 0:
        return str(term.held)
    if isinstance(term.held, (int, float)):
        raise AxesError(f"{term.held:g} is no whole number above 0")
    return "?"


def renamed_length(terms: tuple[Term, ...], settings: Settings, lengths: Lengths) -> Lengths:
    held = terms[0].held if isinstance(terms[0].held, dict) else {}
    axis = str(settings["axis"])
    return {**lengths, str(settings["to"]): held.get(axis, axis)}


def matrix(terms: tuple[Term, ...], _settings: Settings) -> Axes:
    """The axes as they are; the last two have names."""
    axes = terms[0].axes
    if len(axes) < 2 or ANY in axes[-2:]:
        raise AxesError(f"{show(axes)} has no two last axes with names")
    return axes


def within(terms: tuple[Term, ...], _settings: Settings) -> Axes:
    """The axes as they are; the second has none that the first lacks."""
    if lacking := [axis for axis in terms[1].axes if axis not in terms[0].axes]:
        raise AxesError(f"{show(terms[0].axes)} has no {', '.join(lacking)}")
    return terms[0].axes


def square(terms: tuple[Term, ...], _settings: Settings) -> Axes:
    """The axes as they are; the last two have names and one length."""
    return matrix(terms, _settings)


def square_lengths(terms: tuple[Term, ...], _settings: Settings, lengths: Lengths) -> Lengths:
    one, other = (lengths.get(axis, axis) for axis in terms[0].axes[-2:])
    if one != other:
        raise AxesError(f"{show(terms[0].axes)} is not square: {one} by {other}")
    return lengths


def dots(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes of both but the one that is named; those that both have are kept once."""
    one, other = terms[0].axes, terms[1].axes
    axis = has(one, settings["axis"])
    has(other, axis)
    return contract((*(name for name in one if name != axis), axis), other)


def skews(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes with the last one, that of the pairs, replaced by the rows and the columns."""
    counted(terms[1])
    *rest, _ = named(terms[0].axes) or ("",)
    return (*rest, *new(tuple(rest), settings["rows"], settings["columns"]))


def skew_lengths(terms: tuple[Term, ...], settings: Settings, lengths: Lengths) -> Lengths:
    count, have = counted(terms[1]), length_of(terms[0], terms[0].axes[-1])
    want = str(size_at(f"pairs({count})", {})) if count.isdigit() else f"pairs({count})"
    if have != want:
        raise AxesError(f"{show(terms[0].axes)} ends in {have} numbers, a skew matrix of {count} has {want}")
    return {**lengths, str(settings["rows"]): count, str(settings["columns"]): count}


def numbers(_terms: tuple[Term, ...], _settings: Settings) -> Axes:
    """A number."""
    return ()


def has(axes: Axes, axis: Constant) -> str:
    if axis not in axes or axis == ANY:
        raise AxesError(f"{show(axes)} has no axis {axis!r}")
    return str(axis)


def left(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes with the last one replaced by the named one."""
    matrix(terms, settings)
    counted(terms[1])
    rest = terms[0].axes[:-1]
    return (*rest, *new(rest, settings["axis"]))


def middle(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes with the last two replaced by the named one."""
    matrix(terms, settings)
    counted(terms[1])
    rest = terms[0].axes[:-2]
    return (*rest, *new(rest, settings["axis"]))


def right(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes with the last but one replaced by the named one."""
    matrix(terms, settings)
    counted(terms[1])
    *rest, _, last = terms[0].axes
    return (*rest, *new((*rest, last), settings["axis"]), last)


def counted_length(terms: tuple[Term, ...], settings: Settings, lengths: Lengths) -> Lengths:
    """The length of the new axis is what is counted."""
    return {**lengths, str(settings["axis"]): counted(terms[1])}


def runs_on(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axis that is named and those behind it; over those in front of it, it runs on."""
    axes = named(terms[0].axes)
    axis = has(axes, settings["axis"])
    counted(terms[1])
    if len(terms) > 2 and axis not in terms[2].axes:
        raise AxesError(f"{show(terms[2].axes)} has no axis {axis!r}")
    if len(terms) > 2 and (lacking := [name for name in terms[2].axes if name not in axes]):
        raise AxesError(f"{show(axes)} has no {', '.join(lacking)}, over which it is taken")
    return axes[axes.index(axis) :]


def recurs(terms: tuple[Term, ...], settings: Settings) -> Axes:
    """The axes of x, the last one replaced by the last of `state`: those of the weights are the gates and these two."""
    x, step, state, bias = (named(term.axes) for term in terms)
    axis = has(x, settings["axis"])
    if len(step) != 2 or len(state) != 2 or len(bias) != 1 or not step[0] == state[0] == bias[0]:
        raise AxesError(
            f"{show(step)}, {show(state)} and {show(bias)} must be [gates in], [gates out] and [gates]"
        )
    if x[-1] != step[1] or x[-1] == axis:
        raise AxesError(f"{show(x)} does not end in {step[1]!r}, which {show(step)} takes in at each step")
    return (*x[:-1], *new((*x[:-1], step[0]), state[1]))


def recurring_lengths(terms: tuple[Term, ...], _settings: Settings, lengths: Lengths) -> Lengths:
    gates, out = terms[2].axes
    have, want = length_of(terms[2], gates), times("4", length_of(terms[2], out))
    if have != want:
        raise AxesError(f"the axis {gates!r} is {have} long, four gates of {out!r} are {want}")
    return {**lengths, out: length_of(terms[2], out)}
