"""Tokens that are laid in one row, worked on one by one and laid back keep their axes; others are left as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from peftc.capture.flattening import VIEWS
from peftc.graphs.reading import value
from tests.graphs import captured, operators, run

D = 6


class OneByOne(nn.Module):
    """A norm, a projection back and forth, and a sum with a second value that is flattened too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(D), nn.Linear(D, 9), nn.Linear(9, D)
        self.last = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        rows, other = x.reshape(-1, D), self.last(x).flatten(0, 1)
        made = rows + self.down(self.up(self.norm(rows)).relu()) * other
        out: Tensor = self.last(made.view(x.shape))
        return out


class Sorted(OneByOne):
    """The same, but the rows change places on their way."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.up(self.norm(x.reshape(-1, D)))
        out: Tensor = self.down(rows[rows.sum(1).argsort()])
        return out.view(x.shape)


class Mixed(OneByOne):
    """The same, but a softmax over all rows mixes them."""

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.norm(x.reshape(-1, D))
        return rows.softmax(0).view(x.shape)


class Kept(OneByOne):
    """The rows themselves are a result."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        rows = self.norm(x.reshape(-1, D))
        return rows.view(x.shape), rows


@pytest.mark.parametrize("training", [False, True])
def test_tokens_keep_their_axes(training: bool) -> None:
    torch.manual_seed(0)
    module, x = OneByOne().train(training), torch.randn(2, 5, D)
    program = captured(module, train=training, x=x)
    assert not operators(program).keys() & set(VIEWS)
    assert all(value(node).dim() == 3 for node in program.graph.nodes if node.op == "call_function")
    for size in ((2, 5, D), (3, 7, D), (1, 1, D)):
        given = torch.randn(size)
        assert torch.equal(run(program, module, given), module(given))


@pytest.mark.parametrize("kind", [Sorted, Mixed, Kept])
def test_what_is_not_worked_on_one_by_one_is_left(kind: type[OneByOne]) -> None:
    torch.manual_seed(0)
    module, x = kind().eval(), torch.randn(2, 5, D)
    program = captured(module, x=x)
    assert operators(program).keys() & set(VIEWS)
    given = torch.randn(3, 4, D)
    torch.testing.assert_close(run(program, module, given), module(given), atol=0, rtol=0)
