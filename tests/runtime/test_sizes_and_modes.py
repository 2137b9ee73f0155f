"""Models that branch on a size, and modules that are not all in one mode: right whatever was captured first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.errors import CaptureError
from tests.models import bert, randomise, tokens


class Branching(nn.Module):
    """Another result for long inputs, for even lengths, and where two inputs have one batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 12)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        y: Tensor = self.inner(x)
        if x.shape[1] > 40:
            raise ValueError("at most 40")
        if x.shape[1] > 16:
            y = y * 2
        if x.shape[1] % 2 == 0:
            y = y + 1
        if z is not None and x.shape[0] == z.shape[0]:
            y = y + z.sum()
        return y


def test_code_that_branches_on_a_size_takes_the_right_branch() -> None:
    model = Branching()
    compiled: Any = peftc.compile(model, ["lora:all-linear"], {"x": torch.randn(2, 6, 12)})
    with torch.no_grad(), compiled.disable_adapter():
        for batch, length in ((2, 6), (2, 7), (3, 17), (1, 40), (5, 1), (1, 1), (3, 8), (3, 19)):
            x = torch.randn(batch, length, 12)
            assert torch.equal(compiled(x), model(x)), (batch, length)
        before = len(compiled._peftc.entries)
        for length in (2, 3, 5, 16, 18, 21, 39):
            x = torch.randn(4, length, 12)
            assert torch.equal(compiled(x), model(x)), length
        assert len(compiled._peftc.entries) == before  # long or short, even or odd: four programs
        for sizes in ((2, 2), (2, 3), (1, 1), (4, 4)):
            x, z = torch.randn(sizes[0], 6, 12), torch.randn(sizes[1], 4)
            assert torch.equal(compiled(x, z), model(x, z)), sizes


def test_a_size_that_the_model_refuses_is_refused_with_its_own_line() -> None:
    compiled: Any = peftc.compile(Branching(), ["lora:all-linear"], {"x": torch.randn(2, 6, 12)})
    with pytest.raises(CaptureError, match="at most 40") as found:
        compiled(torch.randn(2, 41, 12))
    assert 'raise ValueError("at most 40")' in str(found.value)


def test_torch_compile_of_code_that_branches_on_a_size() -> None:
    model = Branching()
    compiled: Any = peftc.compile(model, ["lora:all-linear"], {"x": torch.randn(2, 6, 12)})
    for length in (6, 7, 18, 19):
        compiled(torch.randn(2, length, 12))
    torch._dynamo.reset()
    fast: Any = torch.compile(compiled, fullgraph=True, backend="eager")
    with torch.no_grad(), compiled.disable_adapter():
        for length in (6, 7, 17, 20, 9):
            x = torch.randn(3, length, 12)
            assert torch.equal(fast(x), model(x)), length


@pytest.mark.parametrize("root", [True, False], ids=["train", "eval"])
def test_dropouts_in_the_other_mode(root: bool) -> None:
    model: Any = bert(dropout=0.5)
    compiled: Any = peftc.compile(model, ["lora:q,v"])
    for both in (model, compiled):
        both.train(root)
    with torch.no_grad(), compiled.disable_adapter():
        for _ in range(2):  # the second time every program is there
            for module in (model, compiled):
                module.train(root)
            same_draws(model, compiled)
            for module in (model, compiled):
                for each in module.modules():
                    if isinstance(each, nn.Dropout):
                        each.train(not root)
            same_draws(model, compiled)
            for module in (model, compiled):
                module.train(root)
                module.bert.train(not root)
            same_draws(model, compiled)


def same_draws(model: Any, compiled: Any) -> None:
    results = []
    for each in (model, compiled):
        torch.manual_seed(3)
        results.append(each(tokens()).logits)
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-6)


class Normed(nn.Module):
    """A batch norm, whose statistics move in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(12, 12), nn.BatchNorm1d(12)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.inner(x))
        return result


def test_a_frozen_batch_norm_stays_frozen() -> None:
    torch.manual_seed(0)
    model: Any = Normed()
    model(torch.randn(9, 12) * 3 + 1)
    compiled: Any = peftc.compile(model, ["lora:all-linear"], {"x": torch.randn(4, 12)})
    x = torch.randn(5, 12)
    for freeze in (False, True, False):
        for each in (model, compiled):
            each.train()
            each.norm.train(not freeze)
        with compiled.disable_adapter():
            torch.testing.assert_close(compiled(x), model(x), atol=1e-6, rtol=1e-6)
        assert compiled.norm.num_batches_tracked == model.norm.num_batches_tracked
        torch.testing.assert_close(compiled.norm.running_mean, model.norm.running_mean)


@pytest.mark.slow
def test_torch_compile_follows_the_mode_of_a_part() -> None:
    model: Any = bert(dropout=0.5)
    compiled: Any = peftc.compile(model, ["lora:q,v"])
    randomise(compiled)
    compiled.eval()
    torch._dynamo.reset()
    fast: Any = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        still = fast(tokens()).logits
        compiled.bert.train()
        assert not torch.allclose(fast(tokens()).logits, still)
        compiled.eval()
        torch.testing.assert_close(fast(tokens()).logits, still)


class Plain(nn.Module):
    """A stream of numbers without an axis of tokens, or with any."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.d, self.h = nn.Linear(6, 12), nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.h(x + self.d(torch.relu(self.u(x))))
        return out


@pytest.mark.parametrize("rule", ["lora:ffn(rank=2)", "bottleneck", "ia3"])
def test_an_input_may_have_no_axis_but_its_own(rule: str) -> None:
    one, two = torch.randn(6), torch.randn(2, 6)
    for given in (one, two):
        compiled = peftc.compile(Plain().eval(), [rule], {"x": given}).eval()
        randomise(compiled)
        torch.testing.assert_close(compiled(two)[0], compiled(two[0]))
        assert compiled(one).shape == (3,)
