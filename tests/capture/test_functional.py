"""In-place operators: made functional where nothing can tell, left where something can."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.graphs import captured, operators, run

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Body(nn.Module):
    """A module around a function of one tensor."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def plain(x: Tensor) -> Tensor:
    y = x * 2
    early = y + 1
    y.add_(3)
    y.mul_(x)
    return y + early


def through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0].add_(3)
    return y


def seen_through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    row = y[0]
    y.add_(3)
    return row + y


def through_a_cast_that_does_nothing(x: Tensor) -> Tensor:
    y = x * 2
    same = y.to(torch.float32)
    same.add_(3)
    return y + same


def through_contiguous(x: Tensor) -> Tensor:
    y = x * 2
    same = y.contiguous()
    same.add_(3)
    return y + same


def seen_through_contiguous(x: Tensor) -> Tensor:
    y = x * 2
    same = y.contiguous()
    y.add_(3)
    return y + same


def filled(x: Tensor) -> Tensor:
    y = x.new_empty(x.shape)
    y[:, :3] = x[:, :3]
    y[:, 3:] = 1.0
    return y


def written_through_a_slice_and_again(x: Tensor) -> Tensor:
    y, other = x * 2, x + 1
    row = y[0]
    row.copy_(other[0])
    row.add_(1)
    return y + other


def added_to_a_slice(x: Tensor) -> Tensor:
    y = x * 2
    y[0] += 1
    return y


def written_and_a_slice_of_it(x: Tensor) -> Tensor:
    x.mul_(2)
    x[0].add_(1)
    return x + 1


def test_in_place_becomes_functional() -> None:
    module = Body(plain)
    program = captured(module, x=X)
    assert not [name for name in operators(program) if name.endswith("_")]
    assert torch.equal(run(program, module, X), plain(X))


@pytest.mark.parametrize(
    "function",
    [
        through_a_view,
        seen_through_a_view,
        through_a_cast_that_does_nothing,
        through_contiguous,
        seen_through_contiguous,
        filled,
        written_through_a_slice_and_again,
        added_to_a_slice,
        written_and_a_slice_of_it,
    ],
)
def test_what_a_view_can_see_is_still_seen(function: Callable[[Tensor], Tensor]) -> None:
    module = Body(function)
    program = captured(module, x=X)
    ours, wanted = X.clone(), X.clone()
    assert torch.equal(run(program, module, ours), function(wanted))
    assert torch.equal(ours, wanted)  # what it writes into the caller's tensor


def test_gradients_go_through() -> None:
    module = Body(plain)
    program = captured(module, x=X)
    one, two = X.clone().requires_grad_(), X.clone().requires_grad_()
    torch.sum(run(program, module, one) ** 2).backward()
    torch.sum(plain(two) ** 2).backward()
    assert torch.equal(one.grad, two.grad)  # type: ignore[arg-type]


class Counting(nn.Module):
    """Writes into two buffers, by way of a function of them and of the input."""

    mean: Tensor
    count: Tensor

    def __init__(self, function: Callable[[Counting, Tensor], object]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("mean", torch.ones(6))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.function(self, x)
        return x * self.mean + self.count


def twice_in_a_chain(module: Counting, x: Tensor) -> None:
    module.mean.mul_(0.9).add_(x.mean(0))


def twice(module: Counting, x: Tensor) -> None:
    module.mean.mul_(0.9)
    module.mean.add_(x.mean(0))
    module.count += 1
    module.count += 1


def by_its_data(module: Counting, x: Tensor) -> None:
    module.mean.data.mul_(0.9).add_(x.mean(0))


def whole_and_a_slice(module: Counting, x: Tensor) -> None:
    module.mean.mul_(0.9)
    module.mean[:3].add_(x.mean(0)[:3]).mul_(2)


def a_slice_twice(module: Counting, x: Tensor) -> None:
    part = module.mean[:3]
    part.add_(x.mean(0)[:3])
    part.mul_(0.9)
    module.count.copy_(part.sum())


def through_another_name(module: Counting, x: Tensor) -> None:
    same = module.mean.contiguous().view(2, 3).to(torch.float32)
    same.add_(x.mean(0).view(2, 3))
    same.mul_(0.9)


@pytest.mark.parametrize(
    "function", [twice_in_a_chain, twice, by_its_data, whole_and_a_slice, a_slice_twice, through_another_name]
)
def test_every_write_into_a_buffer_is_kept(function: Callable[[Counting, Tensor], object]) -> None:
    plain, ours = Counting(function), Counting(function)
    program = captured(ours, x=X)
    for _ in range(2):
        assert torch.equal(run(program, ours, X), plain(X))
    assert torch.equal(ours.mean, plain.mean)
    assert torch.equal(ours.count, plain.count)


def copied_without_gradients(module: Counting, x: Tensor) -> None:
    with torch.no_grad():
        module.mean.copy_(module.mean * 0.9 + x.mean(0))
        module.count += x.sum()


def sliced_without_gradients(module: Counting, x: Tensor) -> None:
    with torch.no_grad():
        module.mean[:3] = x[0, :3]
        module.mean[3:].mul_(2).add_(x[0, 3:])


def twice_without_gradients(module: Counting, x: Tensor) -> None:
    with torch.no_grad():
        module.mean.mul_(0.9)
    with torch.no_grad():
        module.mean.add_(x.mean(0))


@pytest.mark.parametrize(
    "function", [copied_without_gradients, sliced_without_gradients, twice_without_gradients]
)
def test_what_is_written_while_gradients_are_off_has_no_history(
    function: Callable[[Counting, Tensor], object],
) -> None:
    plain, ours = Counting(function), Counting(function)
    program = captured(ours, x=X)
    one, two = X.clone().requires_grad_(), X.clone().requires_grad_()
    for _ in range(2):  # a history would have been freed by the first step
        run(program, ours, one).pow(2).sum().backward()
        plain(two).pow(2).sum().backward()
    assert torch.equal(one.grad, two.grad)  # type: ignore[arg-type]
    assert torch.equal(ours.mean, plain.mean)
    assert torch.equal(ours.count, plain.count)
    assert not ours.mean.requires_grad
    assert not ours.count.requires_grad


def written_while_gradients_are_off(x: Tensor) -> Tensor:
    y = x * 2
    with torch.no_grad():
        y.clamp_(-1, 1)
        y[0] = y[1]
        other = y.clone()
        other.add_(1)
        other[0] = 0
    return y.sum() ** 2 + (x * other).sum()


def test_what_has_a_history_keeps_it_when_written_while_gradients_are_off() -> None:
    module = Body(written_while_gradients_are_off)
    program = captured(module, x=X)
    one, two = X.clone().requires_grad_(), X.clone().requires_grad_()
    ours, wanted = run(program, module, one), module(two)
    assert torch.equal(ours, wanted)
    ours.backward()
    wanted.backward()
    assert torch.equal(one.grad, two.grad)  # type: ignore[arg-type]
    assert operators(program)[
        "select_scatter"
    ]  # what is made while gradients are off is still written functionally
