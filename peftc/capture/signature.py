"""What makes two calls of a module the same program: names, structure, dtypes, devices, constants, mode.

Sizes are no part of it: captured programs are general in them, or say where they are not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peftc.capture.structures import (
    LENGTH,
    NO_LENGTHS,
    Lengths,
    UnknownStructureError,
    is_constant,
    is_structure,
    take_apart,
    tensors_in,
)
from peftc.errors import ProgramError

# What transformers' models read from their config inside `forward`; a change of one is another program.
CONFIG_FLAGS = (
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "problem_type",
    "_attn_implementation",
)

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Parameters:
    """The arguments of a `forward`: names by position, defaults, and whether others are taken."""

    names: tuple[str, ...]
    defaults: Mapping[str, Any]
    open: bool

    @classmethod
    def of(cls, forward: Callable[..., Any]) -> Parameters:
        """Read them from a function or bound method."""
        names, defaults, takes_more = [], {}, False
        for parameter in inspect.signature(forward).parameters.values():
            if parameter.name == "self":
                continue
            if parameter.kind is parameter.VAR_KEYWORD:
                takes_more = True
            elif parameter.kind is not parameter.VAR_POSITIONAL:
                names.append(parameter.name)
                if parameter.default is not parameter.empty:
                    defaults[parameter.name] = parameter.default
        return cls(tuple(names), defaults, takes_more)


@dataclass(frozen=True)
class Call:
    """One call, taken apart.

    Attributes:
        key: (name, shape) of each argument, in order of names, without those left at a default of None; equal keys are
            served by the same programs.
        tensors: the tensors, in that order; see `take_apart` for lengths among them.
        arguments: what `forward` was given, by name; none in a call that stands for others.
    """

    key: Key
    tensors: tuple[Tensor, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each tensor."""
        return tuple(
            f"{name}.{position}" if is_structure(shape) else name
            for name, shape in self.key
            for position, _ in enumerate(tensors_in(shape))
        )

    def is_length(self) -> list[bool]:
        """Of each tensor, whether it only tells a length."""
        return [each == (LENGTH,) for _, shape in self.key for each in tensors_in(shape)]


def read_call(
    parameters: Parameters, args: Sequence[Any], kwargs: Mapping[str, Any], lengths: Lengths = NO_LENGTHS
) -> Call:
    """Take a call apart.

    Raises:
        ProgramError: more positional arguments than `forward` has, one given twice, or a value that is
            neither a tensor, a constant, nor a structure of them.
    """
    arguments = by_name(parameters, args, kwargs)
    defaults = parameters.defaults
    needed = {name for name in parameters.names if name not in defaults}
    given = {
        name: arguments[name]
        for name in sorted(arguments)
        if arguments[name] is not None or defaults.get(name) is not None or name in needed
    }
    return call_with(given, lengths)


def call_with(arguments: Mapping[str, Any], lengths: Lengths = NO_LENGTHS) -> Call:
    """A call with these arguments, in this order.

    Raises:
        ProgramError: one is neither a tensor, a constant, nor a structure of them.
    """
    parts: list[Any] = []
    tensors: list[Tensor] = []
    for name, value in arguments.items():
        try:
            parts.append((name, take_apart(value, tensors, lengths)))
        except UnknownStructureError as error:
            inside = "" if str(error) == type(value).__name__ else f": it holds a {error}"
            raise ProgramError(
                f"forward was given {name!r} of type {type(value).__name__}, "
                f"which is neither a tensor, a constant, nor a structure of them{inside}"
            ) from None
    return Call(tuple(parts), tuple(tensors), arguments)


def by_name(parameters: Parameters, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names.

    Raises:
        ProgramError: more positional arguments than `forward` has, one given twice, or one it does not have.
    """
    if len(args) > len(parameters.names):
        raise ProgramError(f"forward takes {len(parameters.names)} arguments, was given {len(args)}")
    arguments = dict(zip(parameters.names, args, strict=False))
    for name, value in kwargs.items():
        if name in arguments:
            raise ProgramError(f"forward was given {name!r} twice")
        if name not in parameters.names and not parameters.open:
            raise ProgramError(
                f"forward has no argument {name!r}", hint="it has " + ", ".join(parameters.names)
            )
        arguments[name] = value
    return arguments


def mode_key(root: nn.Module, modules: Sequence[nn.Module]) -> Key:
    """The part of a signature that lies in the module: its mode, dtype and device, and flags of its config.

    Casts and devices are constants of a captured program. So is the mode of every one of its `modules`, where
    they are not all in the same.
    """
    flags = [module.training for module in modules]
    mode = root.training if flags.count(root.training) == len(flags) else tuple(flags)
    backbone = backbone_of(modules)
    kind = () if backbone is None else (backbone.dtype, backbone.device.type, backbone.device.index)
    config = getattr(root, "config", None)
    if config is None:
        return (mode, *kind)
    held = vars(config)  # which is read in no time, and the attribute through three functions
    return (
        mode,
        *kind,
        *[held[flag] if flag in held else getattr(config, flag, None) for flag in CONFIG_FLAGS],
    )


def backbone_of(modules: Sequence[nn.Module]) -> Tensor | None:
    """The first parameter with a floating point in some modules."""
    for module in modules:
        for parameter in module._parameters.values():  # noqa: SLF001 - its public twin walks through the whole tree
            if parameter is not None and parameter.is_floating_point():
                return parameter
    return None


def example_call(call: Call, *, own_sizes: bool = False) -> Call:
    """A call of the same key whose sizes suit tracing: zeros, never the caller's own data.

    With `own_sizes` the sizes are the call's; otherwise they may be others.

    Tracing specialises to a dimension of size 1 and to sizes that happen to be equal, so a batch of 1 becomes
    a larger one, and so does a length of 1 unless a cache comes with it (one new token is its own program).
    """
    told = call.is_length()
    tensors = [tensor for tensor, is_told in zip(call.tensors, told, strict=True) if not is_told]
    batches = {int(tensor.shape[0]) for tensor in tensors if tensor.dim()}
    lengths = {int(tensor.shape[1]) for tensor in tensors if tensor.dim() > 1}
    taken = {int(size) for tensor in tensors for size in tensor.shape[1:]}
    batch = next(iter(batches)) if len(batches) == 1 and not own_sizes else None
    if batch is not None and (batch == 1 or batch in taken):
        batch = next(size for size in (2, 3, 5, 7, 11, 13, 17, 19) if size not in taken)
    cached = any(is_structure(shape) for _, shape in call.key)
    stretch = not cached and lengths == {1} and not own_sizes

    def zeros(tensor: Tensor, is_told: bool) -> Tensor:
        sizes = [int(size) for size in tensor.shape]
        if sizes and batch is not None and not is_told:
            sizes[0] = batch
        if stretch and len(sizes) > 1:
            sizes[1] = 23
        return torch.zeros(sizes, dtype=tensor.dtype, device=tensor.device)

    return Call(call.key, tuple(map(zeros, call.tensors, told)))


def call_of(key: Key) -> Call:
    """A call that stands for those of a key, where nothing but the key is known.

    Raises:
        ProgramError: the call has structures or tensors whose sizes a key does not tell.
    """
    tensors = []
    for name, shape in key:
        kind, *rest = shape
        if kind is Tensor and rest[0] <= 2:
            dim, dtype, place, index = rest
            device = torch.device(place) if index is None else torch.device(place, index)
            tensors.append(torch.zeros([2, 23][:dim], dtype=dtype, device=device))
        elif not is_constant(shape):
            raise ProgramError(
                f"this call, with {name!r}, has no program yet and cannot be captured while it is traced",
                hint="call the module once with these arguments before it is traced",
            )
    return Call(key, tuple(tensors))
