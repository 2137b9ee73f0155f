"""Takes structures with tensors in them apart (a cache, say), in steps that torch.compile can follow. Makes none."""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[Any, ...]
"""A structure without its tensors, to hash and compare: (kind, …), see `take_apart`."""

Lengths = Mapping[type, frozenset[str]]
"""Class → those of its attributes that are whole numbers which change from call to call, as lengths do."""

TEXTS_AND_NUMBERS = (bool, int, float, str)
CONSTANTS = frozenset(
    (type(None), *TEXTS_AND_NUMBERS, torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size)
)
LENGTH, NUMBER, GIVEN = "length", "number", "given"
NO_LENGTHS: Lengths = {}
SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


class UnknownStructureError(TypeError):
    """Something that cannot be taken apart; says its class."""


def take_apart(
    value: Any, found: list[Any], lengths: Lengths = NO_LENGTHS, known: Mapping[int, str] | None = None
) -> Shape:
    """The shape of a value; its tensors are appended to `found`, in order.

    A length is told by a tensor too, an empty one of that length: captured programs are general in sizes.

    Args:
        value: tensors, constants, containers and objects of them.
        found: gets the tensors; of a value in a trace, also numbers that are symbols.
        lengths: which attributes are lengths.
        known: identities of objects that are not taken apart, with what to call them.

    Raises:
        UnknownStructureError: there is something else in it.
    """
    kind = type(value)
    if kind in CONSTANTS:
        return (kind, value)
    if isinstance(value, Tensor):
        found.append(value)
        return (Tensor, value.dim(), value.dtype, value.device.type, value.device.index)
    if known is not None and id(value) in known:
        return (GIVEN, known[id(value)])
    if kind is list or kind is tuple:
        return (kind, None, *[take_apart(item, found, lengths, known) for item in value])
    if isinstance(value, dict):
        if kind is not dict and kind is not OrderedDict and not is_dataclass(kind):
            raise UnknownStructureError(kind.__name__)
        return (
            kind,
            tuple(value.keys()),
            *[take_apart(item, found, lengths, known) for item in value.values()],
        )
    if isinstance(value, SYMBOLS):
        return symbol(value, found)
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return (kind, None, *[take_apart(item, found, lengths, known) for item in value])
    if isinstance(value, (type, enum.Enum, *TEXTS_AND_NUMBERS)):
        return (kind, value)
    if not hasattr(value, "__dict__") or callable(value) or isinstance(value, (nn.Module, tuple, list)):
        raise UnknownStructureError(kind.__name__)
    return take_object_apart(value, found, lengths, known)


def take_object_apart(
    value: Any, found: list[Any], lengths: Lengths, known: Mapping[int, str] | None
) -> Shape:
    """The same, of an object by its attributes."""
    kind = type(value)
    vary = lengths.get(kind, ())
    items = []
    for name, item in value.__dict__.items():
        if name in vary and type(item) is int:
            found.append(torch.empty((item, 0)))
            items.append((LENGTH,))
        else:
            items.append(take_apart(item, found, lengths, known))
    return (kind, tuple(value.__dict__), *items)


def symbol(value: Any, found: list[Any]) -> Shape:
    """A number of a trace: a constant if it can be no other."""
    node = value.node
    if isinstance(value, torch.SymInt):
        constant = node.maybe_as_int()
    else:
        constant = node.maybe_as_bool() if isinstance(value, torch.SymBool) else node.maybe_as_float()
    if constant is not None:
        return (type(constant), constant)
    found.append(value)
    return (NUMBER,)


def is_structure(shape: Shape) -> bool:
    """Whether a shape is that of a container or an object: what a call can change."""
    return shape[0] is not Tensor and not is_constant(shape)


def is_constant(shape: Shape) -> bool:
    """Whether a shape is a constant's."""
    kind = shape[0]
    return kind in CONSTANTS or (
        isinstance(kind, type) and issubclass(kind, (type, enum.Enum, *TEXTS_AND_NUMBERS))
    )


def tensors_in(shape: Shape) -> Iterator[Shape]:
    """The shapes of what was found in a structure, in order."""
    if shape[0] is Tensor or shape[0] in (LENGTH, NUMBER):
        yield shape
    elif is_structure(shape) and shape[0] != GIVEN:
        for item in shape[2:]:
            yield from tensors_in(item)


def lengths_in(shape: Shape) -> Iterator[tuple[type, str]]:
    """Class and name of every attribute that a trace left as a symbol."""
    if not is_structure(shape) or shape[0] in (LENGTH, NUMBER, GIVEN):
        return
    for name, item in zip(shape[1] or (None,) * len(shape[2:]), shape[2:], strict=True):
        if item == (NUMBER,) and isinstance(name, str) and not issubclass(shape[0], dict):
            yield shape[0], name
        yield from lengths_in(item)
