"""Named axes and terms: how axes are written, and what comes out when two terms meet. Makes no tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from peftc.lang.limits import AXES
from peftc.lang.sizes import FUNCTIONS, SIZE, calls

Axes: TypeAlias = tuple[str, ...]
Constant: TypeAlias = bool | int | float | str
ANY = "*"
"""Some unnamed axes, always in front."""

AXIS = re.compile(r"[a-z][a-z0-9_]{0,40}\Z")


class AxesError(Exception):
    """Axes that do not meet; whoever knows the rule's text turns it into a rule error that points there."""


@dataclass(frozen=True)
class Unknown:
    """A number that only a site knows, by its name; it stands for the number while a rule is checked."""

    name: str


@dataclass(frozen=True)
class Term:
    """A value in a rule: its named axes, and what the backend holds for it.

    A number or a text has no axes and is held as itself.
    """

    axes: Axes
    held: object

    @property
    def is_number(self) -> bool:
        """Whether this is a number that the walk itself can reckon with."""
        return (
            not self.axes and isinstance(self.held, (int, float, Unknown)) and not isinstance(self.held, bool)
        )

    @property
    def is_constant(self) -> bool:
        """Whether this is a number, a text or a truth value, not something of a backend."""
        return not self.axes and isinstance(self.held, (bool, int, float, str, Unknown))


@dataclass(frozen=True)
class Dimension:
    """One axis of a parameter, and what its size is: a number, the name of an option or of an axis, a function of
    these, or a product or a quotient (`peftc.lang.sizes`).
    """

    axis: str
    size: str | int


def show(axes: Axes) -> str:
    """`[batch seq d]`."""
    return f"[{' '.join(axes)}]"


@lru_cache(maxsize=512)
def read_axes(text: str) -> Axes:
    """The axes that `text` names, such as `"* d_in"`. Raises AxesError."""
    axes = _few(tuple(text.split()))
    for position, axis in enumerate(axes):
        if axis == ANY and position > 0:
            raise AxesError(f"{ANY} stands for leading axes, so it must come first")
        if axis != ANY and not AXIS.match(axis):
            raise AxesError(f"{axis!r} is no name of an axis (small letters, digits and _)")
        if axis in axes[:position]:
            raise AxesError(f"the axis {axis!r} is named twice")
    return axes


@lru_cache(maxsize=512)
def read_dimensions(text: str) -> tuple[Dimension, ...]:
    """The axes of a parameter with their sizes, as in `"kv_heads keys=length"`. Raises AxesError.

    A size is a number, a name, a function of these, or a product or a quotient: `o=d_out/divisor(d_out,factor)`.
    """
    dimensions: list[Dimension] = []
    for word in text.split():
        axis, equals, size = word.partition("=")
        if size.isdigit() and len(size) > 9:
            raise AxesError(f"{size} is too large for a size")
        if equals and not SIZE.match(size):
            message = "write a whole number, an option, an axis, or a product or quotient of them after"
            raise AxesError(f"{size!r} is no size: {message} {axis}=")
        for name, taken in calls(size):
            if name not in FUNCTIONS:
                raise AxesError(f"there is no size {name}(…); there is: {', '.join(FUNCTIONS)}")
            if len(taken) != len(FUNCTIONS[name].takes):
                raise AxesError(f"it is {name}({','.join(FUNCTIONS[name].takes)})")
        dimensions.append(Dimension(axis, int(size) if size.isdigit() else (size or axis)))
    names = read_axes(" ".join(dimension.axis for dimension in dimensions))
    if ANY in names:
        raise AxesError(f"a parameter's axes all have names; {ANY} has no size")
    return tuple(dimensions)


def _few(axes: Axes) -> Axes:
    if len(axes) > AXES:
        raise AxesError(f"a value has at most {AXES} axes, this would have {len(axes)}")
    return axes


def meet(left: Axes, right: Axes) -> Axes:
    """The axes of `left + right`, lined up by name. Raises AxesError.

    Leading axes without names (`*`) cannot be lined up with named ones: one side's axes must then hold the
    other's.
    """
    if ANY in left and ANY in right and (apart := set(left) ^ set(right)):
        message = (
            f"{show(left)} and {show(right)} cannot be lined up: only one has {', '.join(sorted(apart))}"
        )
        raise AxesError(message)
    for one, other in ((left, right), (right, left)):
        if ANY in one and not set(other) <= set(one):
            raise AxesError(
                f"{show(left)} and {show(right)} cannot be lined up: name the axes that {ANY} stands for, "
                "under match.values"
            )
    if ANY in right and ANY not in left:
        return right
    if len(left) < len(right) and set(left) <= set(right):
        return right
    return _few(left + tuple(axis for axis in right if axis not in left))


def contract(left: Axes, right: Axes) -> Axes:
    """The axes of `left @ right`: left's last axis is summed with right's of that name. Raises AxesError.

    Axes that both have besides it are kept once (a batch); `[* d] @ [rank d]` is `[* rank]`.
    """
    if not left or left[-1] == ANY:
        raise AxesError(f"{show(left)} @ {show(right)}: the left side has no named last axis to sum over")
    summed = left[-1]
    if summed not in right:
        raise AxesError(f"{show(left)} @ {show(right)}: the right side has no axis {summed!r} to sum over")
    kept = _few(left[:-1] + tuple(axis for axis in right if axis != summed and axis not in left))
    if ANY in kept:
        return (ANY, *(axis for axis in kept if axis != ANY))
    return kept
