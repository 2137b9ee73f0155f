"""Calls of other sizes than the one given: more rows and fewer, longer and shorter, of ids, of waves and of rows of numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from peftc.capture.arguments import kind_of
from peftc.certificate.outputs import run_whole
from peftc.certificate.subject import Arguments, Subject, in_step

Size = tuple[int, ...]
"""Rows of a call, then the length of each of its arguments along what may vary."""


def calls_of_sizes(subject: Subject) -> Iterator[Arguments]:
    """The call itself, and others of other sizes; the model may not take them."""
    yield subject.arguments
    yield subject.of_size(3, 9)  # lengths of tokens; what has none keeps its length here
    yield subject.of_size(1, 5)
    axis = axis_that_varies(subject)
    if axis is not None:
        yield stretched(subject.of_size(2), axis, SHORTER)
        yield stretched(subject.of_size(3), axis, LONGER)


SHORTER, LONGER = 0.7, 1.4
"""Lengths of what is no text, as parts of the length that was given: a text has few tokens, a wave thousands."""
MOST_AXES = 3
"""Axes of what has a length: an image has more, and models of images take one size of them."""


def axis_that_varies(subject: Subject) -> int | None:
    """The axis of a call's waves or rows of numbers along which the model takes other lengths; None where there is none."""
    for axis in range(1, MOST_AXES):
        if not any(value.dim() > axis for value in floats(subject.arguments).values()):
            break
        for part in (SHORTER, LONGER):
            try:
                run_whole(subject.plain, stretched(subject.arguments, axis, part))
            except TimeoutError:
                raise
            except Exception:  # noqa: BLE001 - the model itself does not take this length
                continue
            return axis
    return None


def floats(arguments: Arguments) -> dict[str, Tensor]:
    """Waves, spectra and rows of numbers, by name."""
    return {
        name: value
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.is_floating_point() and 2 <= value.dim() <= MOST_AXES
    }


def stretched(arguments: Arguments, axis: int, part: float) -> Arguments:
    """A call whose numbers are longer or shorter along an axis, and with them what is of the same length, such as a mask."""
    lengths = {value.shape[axis] for value in floats(arguments).values() if value.dim() > axis}

    def other(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() > MOST_AXES:
            return value
        at = axis if value.is_floating_point() else 1
        if value.dim() <= at or value.shape[at] not in lengths:
            return value
        old = value.shape[at]
        length = max(2, round(old * part))
        return value.index_select(at, torch.arange(length, device=value.device) % old)

    return {name: other(value) for name, value in arguments.items()}


def size_of(arguments: Arguments) -> Size:
    """How many rows a call has, and how long each of its arguments is."""
    tensors = [value for value in arguments.values() if isinstance(value, Tensor) and value.dim()]
    rows = tensors[0].shape[0] if tensors else 1
    return (rows, *(length for value in tensors for length in value.shape[1:]))


SEVERAL = 5
"""Tokens of a call that was given with one."""


def is_single(arguments: Arguments) -> bool:
    """Whether a call is one token long, or one row of numbers."""
    ids = in_step(arguments)
    rows = {name: value for name, value in floats(arguments).items() if value.dim() == MOST_AXES}
    lengths = [value.shape[1] for name, value in arguments.items() if name in ids or name in rows]
    return bool(lengths) and max(lengths) == 1


def of_several_tokens(subject: Subject) -> Arguments | None:
    """The call with several tokens, no two alike, where it was given with one; None where it is longer, or has no ids."""
    ids = in_step(subject.arguments)
    if not is_single(subject.arguments) or not any(kind_of(name) == "ids" for name in ids):
        return None
    call = dict(subject.arguments)
    for name in ids:
        longer = call[name].repeat(1, SEVERAL)
        counted = kind_of(name) in ("ids", "places")
        call[name] = (
            (longer + torch.arange(SEVERAL, device=longer.device)) % subject.words if counted else longer
        )
    return call
