"""What makes two calls of a module the same program: names, structure, dtypes, devices, constants, mode.

Sizes are no part of it: captured programs are general in them, or say where they are not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

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
        key: hashable; equal keys are served by the same programs.
        names: name of each tensor.
        tensors: the tensors, in that order.
        arguments: what `forward` was given, by name, without those left at None.
    """

    key: Key
    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    arguments: Mapping[str, Any]


def read_call(parameters: Parameters, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """Take a call apart.

    Raises:
        ProgramError: more positional arguments than `forward` has, one given twice, or a value that is
            neither a tensor, a constant, nor a structure of them.
    """
    arguments = by_name(parameters, args, kwargs)
    parts: list[Any] = []
    names: list[str] = []
    tensors: list[Tensor] = []
    kept: dict[str, Any] = {}
    for name in sorted(arguments):
        value = arguments[name]
        if value is None and parameters.defaults.get(name) is None:
            continue
        kept[name] = value
        if isinstance(value, Tensor):
            parts.append((name, value.dim(), value.dtype, value.device.type, value.device.index))
            names.append(name)
            tensors.append(value)
        elif value is None or isinstance(value, (bool, int, float, str)):
            parts.append((name, value))
        else:
            leaves, structure = pytree.tree_flatten(value)
            parts.append((name, repr(structure)))
            for position, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor):
                    parts.append((position, leaf.dim(), leaf.dtype, leaf.device.type, leaf.device.index))
                    names.append(f"{name}.{position}")
                    tensors.append(leaf)
                elif leaf is None or isinstance(leaf, (bool, int, float, str)):
                    parts.append((position, leaf))
                else:
                    raise ProgramError(
                        f"forward was given {name!r} of type {type(leaf).__name__}, "
                        f"which is neither a tensor, a constant, nor a known structure of them"
                    )
    return Call(tuple(parts), tuple(names), tuple(tensors), kept)


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
    backbone = next((each for each in root.parameters() if each.is_floating_point()), None)
    kind = () if backbone is None else (backbone.dtype, backbone.device.type, backbone.device.index)
    config = getattr(root, "config", None)
    if config is None:
        return (mode, *kind)
    return (mode, *kind, *[getattr(config, flag, None) for flag in CONFIG_FLAGS])


def example_call(arguments: Mapping[str, Any], *, own_sizes: bool = False) -> dict[str, Any]:
    """Arguments of the same structure whose sizes suit tracing: zeros, never the caller's own data.

    With `own_sizes` the sizes are the call's; otherwise they may be others.

    Tracing specialises to a dimension of size 1 and to sizes that happen to be equal, so a batch of 1 becomes
    a larger one, and so does a length of 1 unless a cache comes with it (one new token is its own program).
    """
    leaves, structure = pytree.tree_flatten(dict(arguments))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    cached = any(
        not isinstance(value, (Tensor, bool, int, float, str, type(None))) for value in arguments.values()
    )
    batches = {int(tensor.shape[0]) for tensor in tensors if tensor.dim()}
    lengths = {int(tensor.shape[1]) for tensor in tensors if tensor.dim() > 1}
    taken = {int(size) for tensor in tensors for size in tensor.shape[1:]}
    batch = next(iter(batches)) if len(batches) == 1 and not own_sizes else None
    if batch is not None and (batch == 1 or batch in taken):
        batch = next(size for size in (2, 3, 5, 7, 11, 13, 17, 19) if size not in taken)
    stretch = not cached and lengths == {1} and not own_sizes

    def zeros(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        sizes = [int(size) for size in leaf.shape]
        if sizes and batch is not None:
            sizes[0] = batch
        if stretch and len(sizes) > 1:
            sizes[1] = 23
        return torch.zeros(sizes, dtype=leaf.dtype, device=leaf.device)

    return dict(pytree.tree_unflatten([zeros(leaf) for leaf in leaves], structure))
