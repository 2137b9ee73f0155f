"""What packs and unpacks the number formats of `peftc.lang.formats`, by the kernels of bitsandbytes.

A weight is packed as codes and statistics. Numbers with fractions among the statistics are kept as the whole numbers
of their bits: so nothing that casts a model's floating-point tensors can round them.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from peftc.errors import QuantiseError
from peftc.lang import FORMATS, Constant, Packing

Settings = Mapping[str, Constant]


class Kernels(Protocol):
    """What the class that a format `runs` can do. `shape` is that of the weight, [d_out d_in]."""

    statistics: Sequence[str]
    """Names of the statistics that a weight has at most, in order."""

    def pack(self, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Codes and statistics of a weight [d_out d_in]."""

    def unpack(
        self, codes: Tensor, statistics: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        """The weight [d_out d_in] of its codes and statistics."""


def kernels_of(packing: Packing) -> Kernels:
    """What packs and unpacks by a packing. Raises QuantiseError where bitsandbytes is missing."""
    return _kernels(packing.format, tuple(packing.settings.items()))


@cache
def _kernels(name: str, settings: tuple[tuple[str, Constant], ...]) -> Kernels:
    module, _, kind = FORMATS[name].runs.rpartition(".")
    made: Kernels = getattr(importlib.import_module(module), kind)(name, dict(settings))
    return made


def bits_of(numbers: Tensor) -> Tensor:
    """Numbers in single precision as whole numbers of the same bits, over the same storage."""
    return numbers.detach().float().view(torch.int32)


def numbers_of(bits: Tensor) -> Tensor:
    """What `bits_of` was given."""
    return bits.view(torch.float32)


@cache
def bitsandbytes() -> Any:
    """bitsandbytes' functions."""
    # At its import it says that a kernel is missing which is never called here.
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        raise QuantiseError(
            "weights are quantised by bitsandbytes, which cannot be imported",
            detail=(str(error),),
            hint='pip install "peftc[quant]"',
        ) from error
    finally:
        logger.setLevel(before)


@cache
def dynamic_map(device: torch.device) -> Tensor:
    """The 256 values to which scales are rounded, on a device."""
    made: Tensor = bitsandbytes().create_dynamic_map().to(device)
    return made


class Blocks:
    """Four bits a number, two numbers a byte, and the largest of each block.

    The largest are kept as they are, `scales`; or in 8 bits around their mean, `offset`, with a largest of their own,
    `scales_2`, for each `NESTED` of them.
    """

    statistics = ("scales", "scales_2", "offset")
    NESTED = 256

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.functions = name, bitsandbytes()
        self.blocksize, self.double = int(settings["blocksize"]), bool(settings["double"])

    def pack(self, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Kernels`."""
        codes, state = self.functions.quantize_4bit(
            weight.contiguous(),
            blocksize=self.blocksize,
            compress_statistics=self.double,
            quant_type=self.name,
        )
        return codes, self.statistics_of(state)

    def statistics_of(self, state: Any) -> dict[str, Tensor]:
        """The statistics in bitsandbytes' own record."""
        if not state.nested:
            return {"scales": bits_of(state.absmax)}
        return {
            "scales": state.absmax,
            "scales_2": bits_of(state.state2.absmax),
            "offset": bits_of(state.offset.reshape(1)),
        }

    def scales(self, statistics: Sequence[Tensor]) -> Tensor:
        """The largest of each block, in single precision."""
        if len(statistics) == 1:
            return numbers_of(statistics[0])
        codes, second, offset = statistics
        found: Tensor = torch.ops.bitsandbytes.dequantize_blockwise.default(
            codes, numbers_of(second), dynamic_map(codes.device), self.NESTED, torch.float32
        )
        return found + numbers_of(offset)

    def unpack(
        self, codes: Tensor, statistics: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        """See `Kernels`."""
        # The kernels know three number formats; what is wanted in another is rounded from the widest of them.
        known = dtype if dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.float32
        weight: Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(
            codes, self.scales(statistics), self.blocksize, self.name, self.as_rows(shape), known
        )
        count = math.prod(shape)
        return weight.reshape(-1)[:count].view(list(shape)).to(dtype)

    def as_rows(self, shape: Sequence[int]) -> list[int]:
        """The numbers of a weight as rows of a block each, or as one row where the last block is short.

        A weight's own rows would not do: on CPUs with AVX512, bitsandbytes begins a new block with each, though blocks
        go on from row to row. And it has a quick kernel for even numbers of numbers alone; codes come in pairs.
        """
        count = math.prod(shape)
        return [1, count + count % 2] if count % self.blocksize else [count // self.blocksize, self.blocksize]


class Rows:
    """A byte a number, and the largest of each row."""

    statistics = ("scales",)
    LARGEST = 127.0

    def __init__(self, _name: str, _settings: Settings) -> None:
        self.functions = bitsandbytes()

    def pack(self, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Kernels`."""
        codes, scales, _ = self.functions.int8_vectorwise_quant(weight.contiguous().to(torch.float16))
        return codes, {"scales": bits_of(scales)}

    def unpack(
        self, codes: Tensor, statistics: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        """See `Kernels`."""
        scales = numbers_of(statistics[0]).mul(1.0 / self.LARGEST).unsqueeze(1)
        return codes.reshape(list(shape)).to(dtype).mul_(scales)
