"""Masks that are exactly causal or hide nothing are folded; masks that are nearly so are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.graphs import calls, captured, run

Mask = Callable[[int], Tensor]


class Masked(nn.Module):
    """Attention of a value with itself under a mask made from its length."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=self.mask(x.shape[2]))


def places(length: int) -> tuple[Tensor, Tensor]:
    return torch.arange(length).unsqueeze(1), torch.arange(length).unsqueeze(0)


def causal(length: int) -> Tensor:
    query, key = places(length)
    return key <= query


def causal_triangle(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def causal_numbers(length: int) -> Tensor:
    query, key = places(length)
    return torch.zeros(length, length).masked_fill(key > query, torch.finfo(torch.float32).min)


def hides_nothing(length: int) -> Tensor:
    return torch.zeros(length, length)


def window(length: int) -> Tensor:
    query, key = places(length)
    return (key <= query) & (key > query - 4)


def wide_window(length: int) -> Tensor:
    query, key = places(length)
    return (key <= query) & (query - key < 20)


def window_by_a_negative_number(length: int) -> Tensor:
    query, key = places(length)
    return (key <= query) & (key - query > -20)


def window_by_a_fraction(length: int) -> Tensor:
    query, key = places(length)
    return (key <= query) & ((query - key).float() < 19.5)


def window_by_a_triangle(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril().triu(-20)


def one_ahead(length: int) -> Tensor:
    query, key = places(length)
    return key <= query + 1


def turned(length: int) -> Tensor:
    query, key = places(length)
    return key >= query


def sloped(length: int) -> Tensor:
    query, key = places(length)
    return ((key - query) * 0.5).masked_fill(key > query, float("-inf"))


def every_key_beyond_thirty(length: int) -> Tensor:
    query, key = places(length)
    return (key <= query) | (key >= 30)


def window_of_chunks(length: int) -> Tensor:
    query, key = places(length)
    return (key <= query) & (query // 4 - key // 4 < 8)


def window_by_a_slope(length: int) -> Tensor:
    query, key = places(length)
    return (key <= query) & ((query - key) * 0.25 < 8)


def window_by_a_root(length: int) -> Tensor:
    query, key = places(length)
    return (key <= query) & (torch.sqrt((query - key).float()) < 5.5)


def window_by_a_logarithm(length: int) -> Tensor:
    query, key = places(length)
    return (key <= query) & (torch.log2((query - key).float() + 1) < 5)


def window_of_half_the_length(length: int) -> Tensor:
    query, key = places(length)
    return (key <= query) & (query - key < 8 + length // 2)


def window_by_two_bounds(length: int) -> Tensor:
    query, key = places(length)
    return (key <= query) & (query - 15 < key + 16)


def every_seventh_hidden(length: int) -> Tensor:
    query, key = places(length)
    return (key <= query) & ((query - key) % 7 != 6)


def documents(positions: Tensor) -> Tensor:
    """Causal within each document: a new one begins where positions do not go on by one. positions: [rows length]."""
    ends = torch.diff(positions, prepend=positions[:, :1] - 1, dim=-1) != 1
    document = ends.cumsum(-1)
    rows = torch.arange(positions.shape[0])[:, None, None, None]
    query = torch.arange(positions.shape[1])[None, None, :, None]
    key = torch.arange(positions.shape[1])[None, None, None, :]
    return (document[rows, query] == document[rows, key]) & (positions[rows, key] <= positions[rows, query])


def one_document(length: int) -> Tensor:
    return documents(torch.arange(length).unsqueeze(0).expand(2, -1))


def one_document_from_seven(length: int) -> Tensor:
    return documents(torch.arange(7, length + 7).unsqueeze(0).expand(2, -1))


def a_document_a_token(length: int) -> Tensor:
    return documents(torch.arange(0, 2 * length, 2).unsqueeze(0).expand(2, -1))


def documents_by_halves(length: int) -> Tensor:
    return documents(torch.arange(length).unsqueeze(0).expand(2, -1) // 2)


def document_by_row(length: int) -> Tensor:
    return documents(torch.arange(2).unsqueeze(1).expand(-1, length))


def values(length: int) -> Tensor:
    return torch.randn(2, 3, length, 4, generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize(
    "mask", [causal, causal_triangle, causal_numbers, one_document, one_document_from_seven]
)
def test_causal_masks_become_the_causal_kernel(mask: Mask) -> None:
    module = Masked(mask)
    program = captured(module, x=values(7))
    (core,) = calls(program, "scaled_dot_product_attention")
    assert core.kwargs["attn_mask"] is None
    assert core.kwargs["is_causal"] is True
    for length in (7, 12):
        torch.testing.assert_close(
            run(program, module, values(length)), module(values(length)), atol=1e-6, rtol=1e-6
        )


def test_a_mask_that_hides_nothing_goes() -> None:
    module = Masked(hides_nothing)
    (core,) = calls(captured(module, x=values(7)), "scaled_dot_product_attention")
    assert core.kwargs["attn_mask"] is None
    assert core.kwargs["is_causal"] is False


@pytest.mark.parametrize(
    "mask",
    [
        window,
        wide_window,
        window_by_a_negative_number,
        window_by_a_fraction,
        window_by_a_triangle,
        one_ahead,
        turned,
        sloped,
        every_key_beyond_thirty,
        window_of_chunks,
        window_by_a_slope,
        window_by_a_root,
        window_by_a_logarithm,
        window_of_half_the_length,
        window_by_two_bounds,
        every_seventh_hidden,
        a_document_a_token,
        documents_by_halves,
        document_by_row,
    ],
)
def test_twins_keep_their_mask(mask: Mask) -> None:
    module = Masked(mask)
    program = captured(module, x=values(7))
    (core,) = calls(program, "scaled_dot_product_attention")
    assert core.kwargs["attn_mask"] is not None
    for length in (7, 40, 90):
        assert torch.equal(run(program, module, values(length)), module(values(length)))


class Cross(nn.Module):
    """A causal mask over more keys than queries is no causal kernel's."""

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        rows, columns = torch.arange(q.shape[2]).unsqueeze(1), torch.arange(x.shape[2]).unsqueeze(0)
        mask = columns <= rows + (x.shape[2] - q.shape[2])
        return nn.functional.scaled_dot_product_attention(q, x, x, attn_mask=mask)


def test_more_keys_than_queries_keep_their_mask() -> None:
    module, q, x = Cross(), values(5), values(9)
    program = captured(module, q=q, x=x)
    (core,) = calls(program, "scaled_dot_product_attention")
    assert core.kwargs["attn_mask"] is not None
    assert torch.equal(run(program, module, q, x), module(q, x))


class Batched(nn.Module):
    """A mask that is causal for the first examples of a batch only."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = places(x.shape[2])
        example = torch.arange(x.shape[0]).view(-1, 1, 1, 1)
        mask = (columns <= rows) & ((example < 2) | (rows - columns < 2))
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def test_a_mask_that_tells_examples_apart_is_kept() -> None:
    module, x = Batched(), torch.randn(5, 3, 9, 4)
    program = captured(module, x=x)
    (core,) = calls(program, "scaled_dot_product_attention")
    assert core.kwargs["attn_mask"] is not None
    assert torch.equal(run(program, module, x), module(x))


class Given(nn.Module):
    """A mask that is an input, as it is."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def test_a_mask_that_is_an_input_is_kept() -> None:
    module, x = Given(), values(7)
    mask = torch.ones(2, 3, 7, 7, dtype=torch.bool).tril()
    program = captured(module, x=x, mask=torch.ones_like(mask))
    (core,) = calls(program, "scaled_dot_product_attention")
    assert core.kwargs["attn_mask"] is not None
    assert torch.equal(run(program, module, x, mask), module(x, mask))


class InRows(nn.Module):
    """Reads eight rows of x [rows 1 seq width] as one example each, under a causal mask or one of a window."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[2]
        grouped = x.reshape(-1, 8, length, x.shape[3])
        mask = self.mask(length).expand(grouped.shape[0], 1, length, length)
        attended = nn.functional.scaled_dot_product_attention(grouped, grouped, grouped, attn_mask=mask)
        return attended.reshape(x.shape)


@pytest.mark.parametrize(("mask", "folded"), [(causal, True), (window, False)])
def test_a_mask_is_told_at_a_batch_that_leaves_something_of_it(mask: Mask, folded: bool) -> None:
    torch.manual_seed(0)
    module = InRows(mask)
    program = captured(module, x=torch.randn(16, 1, 6, 4))
    (attention,) = calls(program, "scaled_dot_product_attention")
    assert attention.kwargs["is_causal"] is folded
    for rows, length in ((8, 9), (24, 3)):
        x = torch.randn(rows, 1, length, 4)
        assert torch.allclose(run(program, module, x), module(x), atol=1e-6)
