"""A quantised weight in a module tree: its codes stand where the weight stood, the rest beside their owner.

So the codes are a frozen parameter of the weight's name and the statistics are buffers: both are saved, moved and
counted as a model's tensors are, and no copy of the weight in its first format is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peftc.errors import QuantiseError
from peftc.lang import Packing
from peftc.quantised import operators
from peftc.quantised.formats import kernels_of

HOME = "peftc"  # the submodule of a module that holds what is added to it
QUANTISED = "quantised"  # below HOME: what belongs to quantised weights, by their names


class QuantisedWeight(nn.Module):
    """What belongs to one quantised weight besides its codes.

    Attributes:
        packing: how it is kept.
        shape: its axes' sizes, [d_out d_in].
        turned: whether the model has it as [d_in d_out].
        statistics: names of the buffers that go with the codes, in order.
        like: an empty buffer; its number format and device are those that the weight would have, cast and moved
            with the model.
        origin: what the owner was when the weight came quantised, or None.
    """

    like: Tensor

    def __init__(
        self,
        packing: Packing,
        shape: tuple[int, ...],
        statistics: Mapping[str, Tensor],
        dtype: torch.dtype,
        turned: bool = False,
        origin: Any = None,
    ) -> None:
        super().__init__()
        self.packing, self.shape, self.turned, self.origin = packing, shape, turned, origin
        self.statistics = tuple(statistics)
        for name, tensor in statistics.items():
            self.register_buffer(name, tensor)
        device = next(iter(statistics.values())).device
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=device), persistent=False)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The sizes of the weight as the model has it."""
        return self.shape[::-1] if self.turned else self.shape

    @property
    def compute(self) -> torch.dtype | None:
        """In which number format products are computed; None for that of what is multiplied."""
        named = self.packing.compute
        return None if named == "input" else getattr(torch, named)

    def read(self, codes: Tensor) -> Tensor:
        """The weight as the model has it, in its number format."""
        return self.read_from(codes, [self.get_buffer(name) for name in self.statistics])

    def read_from(self, codes: Tensor, statistics: Sequence[Tensor]) -> Tensor:
        """The same, of other codes and statistics."""
        weight: Tensor = operators.dequantise(
            codes, list(statistics), list(self.shape), self.packing.text, self.like.dtype
        )
        return weight.t() if self.turned else weight

    def repacked(self, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Codes and statistics of another weight in this one's place, kept as this one is."""
        return kernels_of(self.packing).pack(weight.t() if self.turned else weight)


def quantised_in(root: nn.Module) -> dict[str, QuantisedWeight]:
    """Path → what belongs to it, of every quantised weight."""
    found = {}
    for path, module in root.named_modules():
        if isinstance(module, QuantisedWeight):
            *owner, _home, _quantised, name = path.split(".")
            found[".".join([*owner, name])] = module
    return found


def beside(root: nn.Module, path: str) -> QuantisedWeight | None:
    """What belongs to the quantised weight at a path; None for a weight that is not."""
    owner, _, name = path.rpartition(".")
    held = root.get_submodule(owner)
    for step in (HOME, QUANTISED, name):
        inner = child_of(held, step)
        if inner is None:
            return None
        held = inner
    return held if isinstance(held, QuantisedWeight) else None


def statistics_path(path: str, statistic: str) -> str:
    """Where a statistic of the weight at a path is."""
    owner, _, name = path.rpartition(".")
    return ".".join(part for part in (owner, HOME, QUANTISED, name, statistic) if part)


def weight_at(root: nn.Module, path: str) -> Tensor:
    """The parameter or buffer at a path; a quantised one is unpacked."""
    owner, _, name = path.rpartition(".")
    tensor = getattr(root.get_submodule(owner), name)
    assert isinstance(tensor, Tensor), path
    held = beside(root, path)
    return tensor if held is None else held.read(tensor)


def unpacked(root: nn.Module, besides: Collection[str] = ()) -> dict[str, Tensor]:
    """Path → the weight itself, of every quantised weight besides some."""
    return {
        path: held.read(root.get_parameter(path))
        for path, held in quantised_in(root).items()
        if path not in besides
    }


def quantise(root: nn.Module, path: str, packing: Packing, *, turned: bool = False) -> None:
    """Pack the weight at a path; `turned` says that it is stored as [d_in d_out]. Every owner of it has the codes.

    Raises:
        QuantiseError: bitsandbytes is missing, or the weight is no matrix of floating-point numbers with values.
    """
    weight = root.get_parameter(path).detach()
    if weight.dim() != 2 or not weight.is_floating_point() or weight.is_meta:
        raise QuantiseError(
            f"{path} cannot be quantised: it is {weight.dtype} {list(weight.shape)} on {weight.device}",
            hint="load the model's values first, in float32, float16 or bfloat16",
        )
    matrix = weight.t() if turned else weight
    codes, statistics = kernels_of(packing).pack(matrix)
    put(root, path, codes)
    hold(root, path, QuantisedWeight(packing, tuple(matrix.shape), statistics, weight.dtype, turned))


def put(root: nn.Module, path: str, tensor: Tensor) -> None:
    """Put a frozen parameter in the place of another, at each of its owners."""
    before, fresh = root.get_parameter(path), nn.Parameter(tensor, requires_grad=False)
    for module in root.modules():
        for name, own in list(module.named_parameters(recurse=False)):
            if own is before:
                setattr(module, name, fresh)


def hold(root: nn.Module, path: str, held: QuantisedWeight) -> None:
    """Put what belongs to a quantised weight beside its owner."""
    owner, _, name = path.rpartition(".")
    home(root, ".".join(part for part in (owner, HOME, QUANTISED) if part)).add_module(name, held)


def home(root: nn.Module, path: str) -> nn.Module:
    """The module at a path, made of empty modules, in the mode of those around them, where it is not there yet."""
    module = root
    for name in path.split("."):
        child = child_of(module, name)
        if child is None:
            child = nn.Module().train(module.training)
            module.add_module(name, child)
        module = child
    return module


def child_of(module: nn.Module, name: str) -> nn.Module | None:
    """A module's child of a name; one that it has by several names, by any of them."""
    return module._modules.get(name)  # noqa: SLF001 - named_children() gives each child once
