"""Models that branch on data: each way is captured when a call first takes it, and no call takes the wrong one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.errors import BranchError, CaptureError
from tests.models import randomise


class Branching(nn.Module):
    """Doubles what has a negative sum, checks for numbers that are none, and adds one where a mask hides something."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        assert not x.isnan().any(), "a number is none"
        if x.sum() < 0:
            y = y * 2
            if (mask == 2).any().item():
                y = y - 3
        if not mask.all():
            y = y + mask.float().mean()
        return y.sin()  # so that the linear map is no head


def given(total: int, hidden: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    mask = torch.ones(batch, 5, dtype=torch.long)
    mask[:, :hidden] = 0
    return torch.randn(batch, 5, 4).abs() * total, mask


def test_every_way_is_taken_as_data_says() -> None:
    torch.manual_seed(0)
    model = Branching()
    compiled: Any = peftc.compile(
        model, ["lora:all-linear(rank=2)"], dict(zip(("x", "mask"), given(1, 0), strict=True))
    )
    two = given(-1, 0)
    two[1][0, 0] = 2
    calls = [given(1, 0), given(-1, 0), given(1, 2), given(-1, 2), two, given(1, 1, 7), given(-1, 1, 7)]
    with torch.no_grad(), compiled.disable_adapter():
        for _ in range(2):
            for x, mask in calls:
                assert torch.equal(compiled(x, mask), model(x, mask))
        entries = len(compiled._peftc.entries)
        for x, mask in reversed(calls):
            assert torch.equal(compiled(x, mask), model(x, mask))
        assert len(compiled._peftc.entries) == entries
    assert 5 <= entries <= 8  # five ways, and what was captured with the adapters on


def test_adapters_are_in_every_way_and_learn() -> None:
    torch.manual_seed(0)
    model = Branching()
    compiled: Any = peftc.compile(
        model, ["lora:all-linear(rank=2)"], dict(zip(("x", "mask"), given(1, 0), strict=True))
    )
    randomise(compiled)
    merged = compiled.merge_and_unload()
    for x, mask in (given(1, 0), given(-1, 0), given(-1, 2)):
        assert torch.allclose(compiled(x, mask), merged(x, mask), atol=1e-5)
        compiled(x, mask).sum().backward()
        assert all(
            p.grad is not None and p.grad.abs().sum() > 0 for p in compiled.parameters() if p.requires_grad
        )
        compiled.zero_grad()


def test_an_error_of_the_model_stays_one() -> None:
    x, mask = given(1, 0)
    compiled: Any = peftc.compile(Branching(), ["lora:all-linear(rank=2)"], {"x": x, "mask": mask})
    x[0, 0, 0] = float("nan")
    with pytest.raises(CaptureError, match="a number is none"):
        compiled(x, mask)


def test_torch_compile_says_what_to_call_first() -> None:
    x, mask = given(1, 0)
    compiled: Any = peftc.compile(Branching(), ["lora:all-linear(rank=2)"], {"x": x, "mask": mask})
    entry = compiled._peftc.entries[0]
    with pytest.raises(BranchError, match="depends on data") as found:
        entry.emitted.function(
            compiled, *given(-1, 0)[::-1] if entry.program.inputs[0] == "mask" else given(-1, 0)
        )
    assert "call the module once" in str(found.value)


class Forever(nn.Module):
    """Goes on until data says that it is enough."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        while not (x.abs() < 1e-3).all():
            x = self.inner(x) / 10
        return x


def test_a_loop_until_data_says_so_is_refused() -> None:
    with pytest.raises(CaptureError, match="more than 64 times") as found:
        peftc.compile(Forever(), ["lora:all-linear(rank=2)"], {"x": torch.randn(2, 5, 4)})
    assert "while not" in str(found.value)


class Looking(nn.Module):
    """Branches on what it looks up."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(9, 4), nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.table(ids)
        if x.sum() > 0:
            x = -x
        y: Tensor = self.inner(x)
        return y.sin()


def test_an_example_call_that_the_model_cannot_take_is_named() -> None:
    with pytest.raises(
        CaptureError, match="Looking raises IndexError in the example call: index out of range"
    ):
        peftc.compile(Looking(), ["lora:all-linear(rank=2)"], {"ids": torch.full((2, 5), 9)})


class CountingFirst(nn.Module):
    """Counts its calls and doubles the caller's tensor before it branches on data."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        self.count.add_(1)
        seen.mul_(2)
        y: Tensor = self.inner(x)
        if x.sum() < 0:
            y = y * 2
            self.count.add_(10)
        return y.sin() + seen


def test_a_call_writes_once_whichever_way_it_goes() -> None:
    plain = CountingFirst()
    given = {"x": -torch.ones(2, 5, 4), "seen": torch.ones(())}
    compiled: Any = peftc.compile(plain, ["lora:all-linear(rank=2)"], given)
    assert (
        int(compiled.count) == int(plain.count) == 0
    )  # the way of the example was looked for, and nothing else done
    assert torch.equal(given["seen"], torch.ones(()))
    ours, wanted = torch.ones(()), torch.ones(())
    for sign in (1, -1, 1, 1, -1):
        x = sign * torch.rand(2, 5, 4)
        assert torch.equal(compiled(x, ours), plain(x, wanted))
        assert torch.equal(ours, wanted)
        assert int(compiled.count) == int(plain.count)
    assert not compiled.count.requires_grad


def test_a_model_that_branches_on_data_is_not_blamed_for_breaking_a_graph() -> None:
    given = {"x": torch.ones(2, 5, 4), "seen": torch.ones(())}
    compiled: Any = peftc.compile(CountingFirst(), ["lora:all-linear(rank=2)"], given)
    certificate = peftc.check(compiled, given)
    assert certificate.passed, str(certificate)
    finding = certificate.finding("torch.compile")
    assert finding.verdict == "not applicable"
    assert "the model itself" in finding.detail
    assert int(compiled.count) == 0
