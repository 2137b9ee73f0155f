"""Modules that came quantised, as transformers loads them with bitsandbytes: taken over, and made again.

A module that is taken over becomes an ordinary linear one whose weight is a quantised weight like any other, over the
storage of the module it came from.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peftc.errors import QuantiseError
from peftc.lang import COMPUTE, Packing
from peftc.quantised.formats import Blocks, Rows, bits_of, bitsandbytes, dynamic_map, kernels_of, numbers_of
from peftc.quantised.weight import QuantisedWeight, hold


@dataclass(frozen=True)
class Origin:
    """What a module that came quantised was: its class, and what that is told when it is made."""

    kind: type[nn.Module]
    settings: dict[str, Any]
    beside: dict[str, Any]
    """Attributes that others put on it."""


def taken_over(module: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """An ordinary linear module over the storage of one that came quantised; None for any other module.

    Args:
        dtype: the number format of the model, for weights that do not know theirs.

    Raises:
        QuantiseError: its weight has no values yet, or is kept in a way that is not known.
    """
    library: Any = sys.modules.get("bitsandbytes")  # who has a module of it has imported it
    if library is None or not hasattr(library, "nn"):
        return None
    if isinstance(module, library.nn.Linear4bit):
        return plain(module, *four_bits(module))
    if isinstance(module, library.nn.Linear8bitLt):
        return plain(module, *eight_bits(module, dtype))
    return None


def plain(module: Any, codes: Tensor, held: QuantisedWeight) -> nn.Module:
    """A linear module with these codes."""
    made = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
    made.weight = nn.Parameter(codes, requires_grad=False)
    if module.bias is not None:
        made.bias = nn.Parameter(module.bias.detach(), requires_grad=False)
    made.training = module.training
    hold(made, "weight", held)
    return made


def bare(tensor: Tensor) -> Tensor:
    """A tensor without the class that it has, over the same storage."""
    with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - torch's own name for it has an underscore
        return tensor.detach().as_subclass(torch.Tensor)


def four_bits(module: Any) -> tuple[Tensor, QuantisedWeight]:
    """Codes and the rest of a weight in blocks."""
    state, codes = module.weight.quant_state, bare(module.weight)
    if state is None:
        raise QuantiseError(
            f"a {type(module).__name__} has a weight that is not quantised yet",
            hint="move the model to its device",
        )
    dtype = state.dtype
    compute = (
        dtype_name(module.compute_dtype) if module.compute_type_is_set and module.compute_dtype else "input"
    )
    if getattr(state, "packing_format_for_cpu", False):
        dtype, nested = state.original_dtype, False
        codes, statistics = reordered(codes, state), {"scales": bits_of(state.absmax.T.reshape(-1))}
    else:
        nested = state.nested
        if nested:
            refuse_unknown_scales(state.state2)
        kernels = Blocks(state.quant_type, {"blocksize": state.blocksize, "double": nested})
        codes, statistics = codes.view(torch.uint8).reshape(-1, 1), kernels.statistics_of(state)
    packing = Packing(
        state.quant_type,
        {"blocksize": int(state.blocksize), "double": nested},
        compute if compute in COMPUTE else "input",
    )
    told = {
        "compute_dtype": module.compute_dtype,
        "quant_type": state.quant_type,
        "compress_statistics": nested,
    }
    return codes, QuantisedWeight(
        packing, tuple(state.shape), statistics, dtype, origin=origin_of(module, told)
    )


def reordered(codes: Tensor, state: Any) -> Tensor:
    """The codes of a weight whose module ran in evaluation on a CPU, for which they are put into another order.

    Its scales were rounded to half precision then, and are taken as they are.
    """
    unnested = copy.copy(state)
    unnested.original_nested = False
    found, _ = bitsandbytes()._convert_weight_packed_for_cpu_inverse(codes, unnested)  # noqa: SLF001 - has no other name
    back: Tensor = found.view(torch.uint8).reshape(-1, 1)
    return back


def refuse_unknown_scales(state: Any) -> None:
    """Raise for scales that are quantised in another way than bitsandbytes does by itself."""
    usual = state.blocksize == Blocks.NESTED and torch.equal(state.code, dynamic_map(state.code.device))
    if not usual:
        raise QuantiseError(
            "the scales of a weight in 4 bits are quantised in a way that is not known",
            hint="load the model with bnb_4bit_use_double_quant=False",
        )


def eight_bits(module: Any, dtype: torch.dtype) -> tuple[Tensor, QuantisedWeight]:
    """Codes and the rest of a weight in rows."""
    scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
    codes = bare(module.weight)
    if module.state.has_fp16_weights or scales is None or codes.dtype != torch.int8:
        raise QuantiseError(
            f"a {type(module).__name__} has a weight that is not kept in 8 bits",
            hint="load the model with llm_int8_has_fp16_weight=False, and move it to its device",
        )
    told = {"has_fp16_weights": False, "threshold": module.state.threshold}
    statistics = {"scales": bits_of(scales)}
    return codes, QuantisedWeight(
        Packing("int8"), tuple(codes.shape), statistics, dtype, origin=origin_of(module, told)
    )


def origin_of(module: nn.Module, told: dict[str, Any]) -> Origin:
    """What a module was."""
    beside = {
        name: value for name, value in vars(module).items() if name in ("source_cls", "_is_hf_initialized")
    }
    return Origin(type(module), told, beside)


def as_loaded(
    module: Any, held: QuantisedWeight, codes: Tensor, statistics: Mapping[str, Tensor]
) -> nn.Module:
    """The module that another was taken over from, made again with these codes."""
    library, origin = importlib.import_module("bitsandbytes"), held.origin
    assert isinstance(origin, Origin)
    made: Any = origin.kind(
        module.in_features,
        module.out_features,
        bias=module.bias is not None,
        device="meta",
        **origin.settings,
    )
    if isinstance(kernels_of(held.packing), Rows):
        scales = numbers_of(statistics["scales"])
        made.weight = library.nn.Int8Params(codes, requires_grad=False, CB=codes, SCB=scales)
    else:
        made.weight = packed_parameter(library, made, held, codes, statistics)
    made.bias = module.bias
    made.training = module.training
    vars(made).update(origin.beside)
    module_again: nn.Module = made
    return module_again


def packed_parameter(
    library: Any, owner: Any, held: QuantisedWeight, codes: Tensor, statistics: Mapping[str, Tensor]
) -> Any:
    """bitsandbytes' own parameter for codes in blocks."""
    functions, settings = library.functional, held.packing.settings
    second = offset = None
    scales = statistics["scales"]
    if settings["double"]:
        code = dynamic_map(codes.device)
        second = functions.QuantState(
            numbers_of(statistics["scales_2"]), code=code, blocksize=Blocks.NESTED, dtype=torch.float32
        )
        offset = numbers_of(statistics["offset"]).reshape(())
    owner.quant_state = functions.QuantState(
        scales if settings["double"] else numbers_of(scales),
        shape=torch.Size(held.shape),
        code=functions.get_4bit_type(held.packing.format, device=codes.device),
        blocksize=settings["blocksize"],
        quant_type=held.packing.format,
        dtype=held.like.dtype,
        offset=offset,
        state2=second,
    )
    return library.nn.Params4bit(
        codes,
        requires_grad=False,
        quant_state=owner.quant_state,
        blocksize=settings["blocksize"],
        compress_statistics=settings["double"],
        quant_type=held.packing.format,
        module=owner,
        bnb_quantized=True,
    )


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` of `torch.float32`."""
    return str(dtype).removeprefix("torch.")
