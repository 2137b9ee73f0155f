"""Formats against the values of their papers, and against bitsandbytes, bit for bit."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from peftc.errors import QuantiseError
from peftc.lang import FORMATS, Packing, read_packing
from peftc.quantised import formats
from peftc.quantised.formats import bits_of, kernels_of, numbers_of
from tests.quantised import by_hand

VALUES = {"nf4": by_hand.nf4_values(), "fp4": by_hand.fp4_values()}
BLOCKS = [
    Packing(name, {"blocksize": size, "double": double})
    for name in VALUES
    for size in (32, 64, 256)
    for double in (False, True)
]


def weight(rows: int = 24, columns: int = 40, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def left(packing: Packing, held: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    kernels = kernels_of(packing)
    codes, statistics = kernels.pack(held)
    return kernels.unpack(codes, list(statistics.values()), held.shape, dtype or held.dtype)


def test_the_tables_are_those_of_the_papers() -> None:
    functions = formats.bitsandbytes()
    for name, values in VALUES.items():
        table = functions.get_4bit_type(name, device="cpu")
        assert torch.allclose(table.unique(), values.unique(), atol=2e-7), name
    assert torch.allclose(functions.create_dynamic_map(), by_hand.dynamic_values(), atol=1e-7)


@pytest.mark.parametrize("packing", BLOCKS, ids=lambda packing: packing.text)
@pytest.mark.parametrize("shape", [(24, 40), (7, 31), (24, 96), (12, 160), (3, 16), (96, 192)])
def test_blocks_are_the_nearest_values(packing: Packing, shape: tuple[int, int]) -> None:
    """Also where rows are no whole number of blocks, where bitsandbytes' own kernel for CPUs mixes blocks up.

    Of quantised scales, a few lie in the middle of two values: which is nearer is rounding, and a step is small.
    """
    held = weight(*shape)
    size, double = int(packing.settings["blocksize"]), bool(packing.settings["double"])
    got, want = left(packing, held), by_hand.blocks(held, VALUES[packing.format], size, double=double)
    differs = (got - want).abs() > 1e-6
    assert (got - want).abs().max() <= 0.02 * held.abs().max()
    assert int(differs.sum()) <= (2 * size if double else 0)
    assert (got - held).abs().max() > 0.05


def test_rows_are_the_nearest_steps() -> None:
    held = weight()
    assert torch.allclose(left(Packing("int8"), held), by_hand.rows(held), atol=1e-6)
    assert (left(Packing("int8"), held) - held).abs().max() <= held.abs().max() / 127


@pytest.mark.parametrize("packing", [*BLOCKS, Packing("int8")], ids=lambda packing: packing.text)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bitsandbytes_gives_the_same_bits(packing: Packing, dtype: torch.dtype) -> None:
    functions, held = formats.bitsandbytes(), weight(24, 256, dtype=dtype)
    if packing.format == "int8":
        codes, scales, _ = functions.int8_vectorwise_quant(held.to(torch.float16))
        want = codes.to(dtype).mul_(scales.unsqueeze(1).mul(1.0 / 127.0))
    else:
        codes, state = functions.quantize_4bit(
            held, blocksize=packing.settings["blocksize"], quant_type=packing.format,
            compress_statistics=packing.settings["double"],
        )  # fmt: skip
        want = functions.dequantize_4bit(codes, state)
    assert torch.equal(kernels_of(packing).pack(held)[0], codes)
    assert torch.equal(left(packing, held), want)


def test_other_number_formats_are_rounded_from_single_precision() -> None:
    held = weight()
    assert torch.equal(left(BLOCKS[1], held, torch.float64), left(BLOCKS[1], held).double())


def test_zeros_stay_zeros() -> None:
    for packing in (*BLOCKS, Packing("int8")):
        assert not left(packing, torch.zeros(8, 64)).any(), packing.text


@pytest.mark.parametrize("packing", [*BLOCKS, Packing("int8")], ids=lambda packing: packing.text)
def test_bits_are_what_a_packed_weight_takes(packing: Packing) -> None:
    held = weight(512, 1024)
    codes, statistics = kernels_of(packing).pack(held)
    taken = 8 * sum(each.numel() * each.element_size() for each in (codes, *statistics.values()))
    assert taken / held.numel() == pytest.approx(packing.bits, rel=0.01)


def test_no_statistic_is_a_number_that_a_cast_would_round() -> None:
    for packing in (*BLOCKS, Packing("int8")):
        codes, statistics = kernels_of(packing).pack(weight())
        assert not any(each.is_floating_point() for each in (codes, *statistics.values()))
    numbers = torch.randn(5)
    assert torch.equal(numbers_of(bits_of(numbers)), numbers)
    assert bits_of(numbers).data_ptr() == numbers.data_ptr()


def test_a_packing_is_written_and_read() -> None:
    for packing in (*BLOCKS, Packing("int8")):
        assert read_packing(packing.text).text == packing.text
        assert read_packing(packing.text).settings == packing.settings
    assert str(Packing("int8", compute="bfloat16")) == "int8, products in bfloat16"


def test_every_format_has_kernels() -> None:
    for name, told in FORMATS.items():
        settings: dict[str, Any] = {key: setting.default for key, setting in told.settings.items()}
        assert left(Packing(name, settings), weight()).shape == (24, 40)


def test_without_bitsandbytes_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    formats.bitsandbytes.cache_clear()
    formats._kernels.cache_clear()
    try:
        with pytest.raises(QuantiseError, match=r"peftc\[quant\]"):
            kernels_of(Packing("int8"))
    finally:
        monkeypatch.undo()
        formats.bitsandbytes.cache_clear()
    assert importlib.import_module("bitsandbytes.functional") is formats.bitsandbytes()
