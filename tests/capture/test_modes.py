"""Dropout that asks for the mode when it runs, and matmuls that are outer products."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from tests.graphs import captured, operators, run

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Dropping(nn.Module):
    """A dropout in the model's own mode."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.drop = nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x) + 1  # type: ignore[no-any-return]


class AlwaysDropping(nn.Module):
    """A dropout that is on in both modes."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, 0.5, True)


class NeverDropping(nn.Module):
    """A dropout that is off in both modes."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, 0.5, False)


def check_both_modes(module: nn.Module, train: bool) -> None:
    program = captured(module, train=train, x=X)
    for mode in (False, True):
        module.train(mode)
        torch.manual_seed(1)
        want = module(X)
        torch.manual_seed(1)
        assert torch.equal(run(program, module, X), want), f"captured in train={train}, run in train={mode}"


def test_one_graph_serves_both_modes() -> None:
    for train in (False, True):
        check_both_modes(Dropping(), train)


def test_dropout_of_nothing_is_gone() -> None:
    assert not operators(captured(Dropping(0.0), train=True, x=X))["dropout"]


def test_a_dropout_that_is_off_while_training_stays_off() -> None:
    check_both_modes(NeverDropping(), train=True)


def test_a_dropout_that_is_on_while_evaluating_stays_on() -> None:
    module = AlwaysDropping()
    program = captured(module, train=False, x=X)
    torch.manual_seed(1)
    want = module(X)
    torch.manual_seed(1)
    assert torch.equal(run(program, module, X), want)


class Product(nn.Module):
    """A plain matmul."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


def test_outer_products_are_products() -> None:
    a, b = torch.randn(3, 5, 1), torch.randn(3, 1, 7)
    module = Product()
    program = captured(module, a=a, b=b)
    assert operators(program) == {"mul": 1}
    assert torch.equal(run(program, module, a, b), a @ b)


def test_a_sum_of_two_products_is_none() -> None:
    a, b = torch.randn(3, 5, 2), torch.randn(3, 2, 7)
    program = captured(Product(), a=a, b=b)
    assert operators(program)["matmul"] == 1
