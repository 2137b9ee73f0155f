"""What tracing added and what computes nothing is gone; what only looks like it stays."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.graphs import captured, operators, run

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class NoOps(nn.Module):
    """Casts, slices and expansions that hand on what they are given."""

    def forward(self, x: Tensor) -> Tensor:
        y = (x + 1).to(torch.float32).to("cpu")
        y = y[:, :]
        return y.expand(y.shape[0], -1) * 2


class Ops(nn.Module):
    """The same to look at, and each does something."""

    def forward(self, x: Tensor) -> Tensor:
        y = (x + 1).to(torch.float64)
        y = y[:, 1:]
        return y.unsqueeze(0).expand(3, -1, -1)[0].to(torch.float32) * 2


class Copies(nn.Module):
    """A copy that is written to afterwards is no no-op."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        z = y.to(torch.float32, copy=True)
        z.add_(1)
        return y + z


class Unused(nn.Module):
    """Draws a number that nobody reads."""

    def forward(self, x: Tensor) -> Tensor:
        torch.rand_like(x)
        return x * 2


def test_no_ops_go() -> None:
    module = NoOps()
    program = captured(module, x=X)
    assert set(operators(program)) <= {"add", "mul", "sym_size"}
    assert torch.equal(run(program, module, X), module(X))


def test_their_twins_stay() -> None:
    module = Ops()
    program = captured(module, x=X)
    assert operators(program)["to"] == 2
    assert operators(program)["slice"] >= 1
    assert operators(program)["expand"] == 1
    assert torch.equal(run(program, module, X), module(X))


def test_copies_stay_copies() -> None:
    module = Copies()
    program = captured(module, x=X)
    assert torch.equal(run(program, module, X), module(X))


def test_dead_code_goes() -> None:
    assert operators(captured(Unused(), x=X)) == {"mul": 1}


def test_no_assert_is_left() -> None:
    program = captured(Ops(), x=X)
    assert not [name for name in operators(program) if "assert" in name]
