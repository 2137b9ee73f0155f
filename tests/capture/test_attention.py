"""Written-out softmax attention and repeated key heads, and what only looks like them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.graphs import calls, captured, run


class Attention(nn.Module):
    """A module around a function of (q, k, v, mask)."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.drop = nn.Dropout(0.3)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Any:
        return self.function(self, q, k, v, mask)


def scaled(self: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) * 0.3, -1) @ v


def divided(self: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return torch.softmax(q @ k.transpose(2, 3) / 2.5, dim=-1) @ v


def with_mask(self: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    assert mask is not None
    return torch.softmax(q @ k.transpose(-1, -2) / 2.5 + mask, -1) @ v


def mask_first(self: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    assert mask is not None
    return torch.softmax(mask + q @ k.transpose(-1, -2) / 2.5, -1) @ v


def with_dropout(self: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return self.drop(torch.softmax(q @ k.transpose(-1, -2) * 0.3, -1)) @ v  # type: ignore[no-any-return]


def other_axis(self: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) * 0.3, -2) @ v


def scores_returned(self: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Any:
    scores = q @ k.transpose(-1, -2) * 0.3
    return torch.softmax(scores, -1) @ v, scores


def weights_returned(self: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Any:
    weights = torch.softmax(q @ k.transpose(-1, -2) * 0.3, -1)
    return weights @ v, weights


def soft_capped(self: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return torch.softmax(20 * torch.tanh(q @ k.transpose(-1, -2) / 20), -1) @ v


def scaled_with_its_mask(self: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    assert mask is not None
    return torch.softmax((q @ k.transpose(-1, -2) + mask) * 0.3, -1) @ v


def rounded(self: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return torch.softmax(torch.div(q @ k.transpose(-1, -2), 0.5, rounding_mode="floor"), -1) @ v


def weighted_mask(self: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    assert mask is not None
    return torch.softmax(torch.add(q @ k.transpose(-1, -2), mask, alpha=2), -1) @ v


def untransposed(self: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return torch.softmax(q @ k * 0.3, -1) @ v


def key_is_wider(self: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return torch.softmax(q @ k[:, :1].transpose(-1, -2) * 0.3, -1) @ v[:, :1]


def operands() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 4, length, 6, generator=generator) for length in (5, 7, 7))
    return q, k, v


def mask_for(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shapes = {"whole": (3, 4, 5, 7), "padding": (3, 1, 1, 7), "square": (5, 7), "keys": (7,)}
    return torch.randn(shapes[name], generator=generator)


@pytest.mark.parametrize("function", [scaled, divided])
def test_written_out_attention_is_one_call(function: Callable[..., Any]) -> None:
    module, (q, k, v) = Attention(function), operands()
    program = captured(module, q=q, k=k, v=v)
    assert len(calls(program, "scaled_dot_product_attention")) == 1
    assert not calls(program, "softmax")
    torch.testing.assert_close(run(program, module, q, k, v), module(q, k, v), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shape", ["whole", "padding", "square", "keys"])
@pytest.mark.parametrize("function", [with_mask, mask_first])
def test_its_mask_goes_with_it(function: Callable[..., Any], shape: str) -> None:
    module, (q, k, v), mask = Attention(function), operands(), mask_for(shape)
    program = captured(module, q=q, k=k, v=v, mask=mask)
    if shape != "keys":
        (core,) = calls(program, "scaled_dot_product_attention")
        assert core.kwargs["attn_mask"] is not None
    torch.testing.assert_close(
        run(program, module, q, k, v, mask), module(q, k, v, mask), atol=1e-6, rtol=1e-6
    )


def test_its_dropout_follows_the_mode() -> None:
    module, (q, k, v) = Attention(with_dropout), operands()
    program = captured(module, train=True, q=q, k=k, v=v)
    assert len(calls(program, "scaled_dot_product_attention")) == 1
    torch.manual_seed(0)
    trained = run(program, module, q, k, v)
    module.eval()
    torch.testing.assert_close(run(program, module, q, k, v), module(q, k, v), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(trained, module(q, k, v))
    module.train()
    mean = sum(run(program, module, q, k, v) for _ in range(400)) / 400
    torch.testing.assert_close(mean, module.eval()(q, k, v), atol=0.15, rtol=0.1)


@pytest.mark.parametrize("function", [other_axis, scores_returned, weights_returned, rounded])
def test_twins_are_left(function: Callable[..., Any]) -> None:
    module, (q, k, v) = Attention(function), operands()
    program = captured(module, q=q, k=k, v=v)
    assert not calls(program, "scaled_dot_product_attention")
    torch.testing.assert_close(run(program, module, q, k, v), module(q, k, v), atol=0, rtol=0)


@pytest.mark.parametrize("function", [weighted_mask])
def test_masks_that_are_not_just_added_are_left(function: Callable[..., Any]) -> None:
    module, (q, k, v), mask = Attention(function), operands(), mask_for("whole")
    program = captured(module, q=q, k=k, v=v, mask=mask)
    assert not calls(program, "scaled_dot_product_attention")
    torch.testing.assert_close(run(program, module, q, k, v, mask), module(q, k, v, mask), atol=0, rtol=0)


def test_one_key_head_for_all_is_computed_right() -> None:
    module, (q, k, v) = Attention(key_is_wider), operands()
    program = captured(module, q=q, k=k, v=v)
    torch.testing.assert_close(run(program, module, q, k, v), module(q, k, v), atol=1e-6, rtol=1e-6)


def grouped(self: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    def repeated(x: Tensor) -> Tensor:
        batch, heads, length, width = x.shape
        return x[:, :, None].expand(batch, heads, 2, length, width).reshape(batch, heads * 2, length, width)

    return nn.functional.scaled_dot_product_attention(q, repeated(k[:, :2]), repeated(v[:, :2]))


def tiled(self: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    def repeated(x: Tensor) -> Tensor:
        batch, heads, length, width = x.shape
        return x[:, None].expand(batch, 2, heads, length, width).reshape(batch, heads * 2, length, width)

    return nn.functional.scaled_dot_product_attention(q, repeated(k[:, :2]), repeated(v[:, :2]))


def keys_only(self: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    batch, _, length, width = k.shape
    key = k[:, :2, None].expand(batch, 2, 2, length, width).reshape(batch, 4, length, width)
    return nn.functional.scaled_dot_product_attention(q, key, v)


def test_repeated_key_heads_are_handed_over_unrepeated() -> None:
    module, (q, k, v) = Attention(grouped), operands()
    program = captured(module, q=q, k=k, v=v)
    (core,) = calls(program, "scaled_dot_product_attention")
    assert core.kwargs["enable_gqa"] is True
    assert not calls(program, "expand")
    torch.testing.assert_close(run(program, module, q, k, v), module(q, k, v), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("function", [tiled, keys_only])
def test_heads_in_another_order_are_left(function: Callable[..., Any]) -> None:
    module, (q, k, v) = Attention(function), operands()
    program = captured(module, q=q, k=k, v=v)
    (core,) = calls(program, "scaled_dot_product_attention")
    assert not core.kwargs["enable_gqa"]
    assert torch.equal(run(program, module, q, k, v), module(q, k, v))
