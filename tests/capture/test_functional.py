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
    ],
)
def test_what_a_view_can_see_is_still_seen(function: Callable[[Tensor], Tensor]) -> None:
    module = Body(function)
    program = captured(module, x=X)
    assert torch.equal(run(program, module, X.clone()), function(X.clone()))


def test_gradients_go_through() -> None:
    module = Body(plain)
    program = captured(module, x=X)
    one, two = X.clone().requires_grad_(), X.clone().requires_grad_()
    torch.sum(run(program, module, one) ** 2).backward()
    torch.sum(plain(two) ** 2).backward()
    assert torch.equal(one.grad, two.grad)  # type: ignore[arg-type]
