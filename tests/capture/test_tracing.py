"""What a model's code asks of sizes, of data and of its modules while it is traced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftc.errors import CaptureError
from tests.graphs import captured, operators, run

SIZES = ((2, 6), (5, 9), (3, 16))


def same(module: nn.Module, *, width: int = 4) -> None:
    """Capture a module of x [batch seq width], and hold it against itself at other sizes, with gradients."""
    torch.manual_seed(0)
    program = captured(module, x=torch.randn(2, 6, width))
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for batch, length in SIZES:
        x = torch.randn(batch, length, width)
        got, want = run(program, module, x), module(x)
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-6), (batch, length)
        ours: tuple[Any, ...] = torch.autograd.grad(got.pow(2).sum(), parameters, allow_unused=True)
        theirs: tuple[Any, ...] = torch.autograd.grad(want.pow(2).sum(), parameters, allow_unused=True)
        for one, other in zip(ours, theirs, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.allclose(one, other, rtol=1e-4, atol=1e-5)


class ClampedWeight(nn.Module):
    """Clamps its weight before it is used, and looks at its input without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.inner.weight.data.clamp_(-0.1, 0.1)
        y: Tensor = self.inner(x) / x.data.abs().max()
        return y


def test_data_of_a_tensor_is_followed() -> None:
    same(ClampedWeight())


class Chunks(nn.Module):
    """Cuts the sequence into chunks of three; how many is a division of sizes by torch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        count: Any = torch.div(x.shape[1], 3, rounding_mode="trunc")
        cut = x[:, : count * 3].reshape(x.shape[0], count, 3, 4)
        y: Tensor = self.inner(cut).amax(2)
        return y


def test_a_division_of_sizes_is_a_size() -> None:
    same(Chunks())


class Experts(nn.Module):
    """Routes tokens to experts, and loops over those that were hit."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def hits(self, x: Tensor) -> Tensor:
        """Which token goes where: [expert token]."""
        return nn.functional.one_hot(self.router(x).argmax(-1), 3).T

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, 4)
        mask = self.hits(tokens)
        out = torch.zeros_like(tokens)
        for number in (mask.sum(-1) > 0).nonzero():
            (place,) = torch.where(mask[number].squeeze(0))
            out.index_add_(0, place, self.experts[int(number.item())](tokens[place]))
        return out.reshape(x.shape)


class OneRowMore(Experts):
    """Has a row for tokens of no expert, which no token is."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, 4)
        mask = nn.functional.one_hot(self.router(tokens).argmax(-1), 4).T
        experts: Any = self.experts
        weights = torch.stack([expert.weight for expert in experts])
        out = torch.zeros_like(tokens)
        for number in (mask.sum(-1) > 0).nonzero():
            (place,) = torch.where(mask[number].squeeze(0))
            if place.numel() == 0:
                continue
            out.index_add_(0, place, tokens[place] @ weights[number[0]])
        return out.reshape(x.shape)


class CountsHits(Experts):
    """Adds something to every token for each expert that was hit: a loop over all would do too much."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        for number in (self.hits(x.reshape(-1, 4)).sum(-1) > 0).nonzero():
            out = out + 1 + number[0]
        return out


@pytest.mark.parametrize("kind", [Experts, OneRowMore])
def test_a_loop_over_experts_that_were_hit(kind: type[Experts]) -> None:
    torch.manual_seed(0)
    same(kind())


def test_a_loop_that_does_more_than_pick_is_refused() -> None:
    torch.manual_seed(0)
    module = CountsHits()
    nn.init.zeros_(module.router.weight)
    with pytest.raises(CaptureError, match="also for what is not picked"):
        captured(module, x=torch.randn(2, 6, 4))


class CountsRows(Experts):
    """Goes another way for each number of experts that were hit."""

    def forward(self, x: Tensor) -> Tensor:
        hit = (self.hits(x.reshape(-1, 4)).sum(-1) > 0).nonzero().flatten()
        for number in range(hit.shape[0] // 2):
            x = x + self.experts[number](x)
        return x


def test_rows_that_are_not_gone_through_are_refused_with_their_line() -> None:
    with pytest.raises(CaptureError, match="which rows data picks") as caught:
        captured(CountsRows(), x=torch.randn(2, 6, 4))
    assert ".nonzero().flatten()" in caught.value.detail[-1]


class Converts(nn.Module):
    """Converts a module in its forward."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = nn.Linear(4, 4), dtype

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner.to(self.dtype)(x.to(self.dtype))
        return y


def test_a_conversion_with_nothing_to_do_is_none() -> None:
    same(Converts(torch.float32))
    with pytest.raises(CaptureError, match="Converts cannot be captured"):
        captured(Converts(torch.float64), x=torch.randn(2, 6, 4))


class Seeds(nn.Module):
    """Draws the same numbers in every call."""

    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return x + torch.randn(x.shape)


class Draws(nn.Module):
    """Draws other numbers in every call."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape)


def test_a_seed_is_refused_with_its_line() -> None:
    x = torch.randn(2, 6, 4)
    with pytest.raises(CaptureError, match="sets torch's seed") as found:
        captured(Seeds(), x=x)
    assert "torch.manual_seed(3)" in str(found.value)
    module = Draws()
    program = captured(module, x=x)
    assert operators(program)["randn"] == 1
    torch.manual_seed(5)
    want = module(x)
    torch.manual_seed(5)
    assert torch.equal(run(program, module, x), want)


class SizeOfData(nn.Module):
    """Cuts its input where data says."""

    def forward(self, x: Tensor) -> Tensor:
        return x[: int(x.sum().item())] * 2


def test_a_failed_capture_prints_nothing_but_its_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError, match="depends on data") as found:
        captured(SizeOfData(), x=torch.randn(2, 6, 4))
    assert "x[: int(x.sum().item())]" in str(found.value)
    assert capfd.readouterr() == ("", "")


class Reversal(torch.autograd.Function):
    """The input, with the gradient turned around."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class Adversary(nn.Module):
    """Turns the gradient around."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Reversal.apply(x * 2)  # type: ignore[no-untyped-call]
        return y + 1


def test_a_backward_of_its_own_is_told_with_its_line() -> None:
    x = torch.randn(2, 6, 4)
    with pytest.warns(UserWarning, match="Reversal, which Adversary calls at .*test_tracing.py:") as told:
        program = captured(Adversary(), x=x)
    assert len(told) == 1
    assert torch.equal(run(program, Adversary(), x), x * 2 + 1)
    x.requires_grad_()
    Adversary()(x).sum().backward()
    assert x.grad is not None
    assert bool((x.grad == -2).all())  # the class itself is as it was


class Smooth(torch.autograd.Function):
    """A sigmoid, with its derivative written out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scale = scale
        return torch.sigmoid(x * scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        y = torch.sigmoid(ctx.saved_tensors[0] * ctx.scale)
        return gradients[0] * y * (1 - y) * ctx.scale, None


class Smoothing(nn.Module):
    """A sigmoid of its own."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Smooth.apply(x * 2, 0.5)  # type: ignore[no-untyped-call]
        return y


def test_a_backward_that_is_the_derivative_is_not_worth_a_word() -> None:
    captured(Smoothing(), x=torch.randn(2, 6, 4))  # a warning is an error here
