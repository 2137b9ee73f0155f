"""Calls of other sizes and contents: what means something in a call is still there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.certificate.subject import Subject, varied
from tests.zoo import entry

IDS = torch.tensor([[5, 6, 7, 8, 2], [9, 10, 11, 12, 2]])


def test_other_lengths_keep_the_end_of_a_text_and_leave_sizes_alone() -> None:
    given = {"input_ids": IDS, "attention_mask": IDS * 0 + 1, "spatial_shapes": torch.full((2, 2), 4)}
    subject = Subject(nn.Identity(), nn.Identity(), given, 1e-5)
    short, long = subject.of_size(3, 3), subject.of_size(1, 7)
    assert short["input_ids"].tolist() == [[5, 6, 2], [9, 10, 2], [5, 6, 2]]
    assert short["attention_mask"].shape == (3, 3)
    assert short["spatial_shapes"].shape == (3, 2)
    assert long["input_ids"].tolist() == [[5, 6, 7, 8, 2, 5, 2]]
    assert Subject(nn.Identity(), nn.Identity(), {"x": IDS}, 1e-5).of_size(2, 3)["x"].shape == (2, 3)


def test_content_fills_zeros_only() -> None:
    ended = torch.tensor([[0, 0, 0, 2]])
    filled = varied({"input_ids": ended, "pixels": torch.zeros(1, 3), "use_cache": True}, nn.Identity())
    assert filled["input_ids"][0, -1] == 2
    assert bool((filled["input_ids"][0, :3] >= 10).all())
    assert bool((filled["pixels"] != 0).all())
    assert filled["use_cache"] is True


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "table"), [("clip", "clip"), ("bart", "classifier")])
def test_a_call_made_for_a_model_is_examined_in_other_sizes(model_type: str, table: str) -> None:
    compiled = peftc.compile(entry(model_type, table).model(), ["lora:q,v(rank=2)"], defaults=False)
    certificate = peftc.check(compiled)
    assert certificate.passed, str(certificate)
    assert certificate.finding("visibility").verdict == "pass"


class Remembering(nn.Module):
    """Keeps a part of its last value in a buffer, with its history, and counts its calls."""

    last: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(6, 6), nn.Linear(6, 3)
        self.register_buffer("last", torch.zeros(6))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        self.last.copy_(self.last * 0.5 + y.mean((0, 1)))
        self.count.add_(1)
        return self.out(torch.tanh(y) + self.last + self.count)  # type: ignore[no-any-return]


def test_buffers_are_as_before_and_every_call_begins_with_them() -> None:
    given = {"x": torch.randn(2, 5, 6)}
    compiled: Any = peftc.compile(Remembering(), ["lora:all-linear(rank=2)"], given)
    before = compiled.last
    certificate = peftc.check(compiled, given)
    assert certificate.passed, str(certificate)
    assert compiled.last is before
    assert not before.count_nonzero()
    assert not int(compiled.count)
    assert not before.requires_grad
    compiled(**given).sum().backward()
    assert compiled.last.requires_grad  # as in the model itself
    merged = compiled.merge_and_unload()
    assert torch.equal(merged.last, compiled.last)
