"""Training that is saved and goes on in a new process ends where it would have ended: every rule, to the bit."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import peftc
from benchmarks.captured import Captured
from peftc.lang import default_library
from peftc.runtime import compilation
from peftc.store import load_adapter
from tests.models import bert, padding, tokens

STEPS = 2
BESIDE = {"nf4": ["lora"]}
"""Rules that train nothing by themselves, with others that do."""


@cache
def captured() -> Captured:
    """A model in training, and a call with labels and padding."""
    given = {"input_ids": tokens(), "attention_mask": padding(), "labels": torch.tensor([0, 1, 1])}
    return Captured(bert(num_hidden_layers=1).train(), given)


def call(step: int) -> dict[str, Tensor]:
    """A batch of its own for each step."""
    return {**captured().given, "input_ids": tokens(seed=step)}


def optimizer_of(compiled: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(peftc.param_groups(compiled, lr=0.02))


def train(compiled: Any, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    """Losses of steps from one to another."""
    losses = []
    for step in range(first, last + 1):
        torch.manual_seed(step)  # dropout is drawn anew in each step
        loss = compiled(**call(step)).loss
        loss.backward()
        optimizer.step()
        compiled.update_schedules(step, 2 * STEPS)
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", default_library().names())
def test_it_goes_on_where_it_was_saved(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = captured()
    compiled = held.compiled([name, *BESIDE.get(name, [])]).train()
    straight = optimizer_of(compiled)
    compiled.update_schedules(0, 2 * STEPS)
    begun = train(compiled, straight, 1, STEPS)
    compiled.save_pretrained(tmp_path / "adapter")
    torch.save((straight.state_dict(), compiled.schedules.state_dict()), tmp_path / "beside.pt")
    ended = train(compiled, straight, STEPS + 1, 2 * STEPS)

    # Loading captures the model once more: as it was the first time, which saves most of this test's time.
    monkeypatch.setattr(compilation, "capture_example", lambda *_: held.example)
    again: Any = load_adapter(held.model, tmp_path / "adapter", held.given, trainable=True)
    resumed = optimizer_of(again)
    states = torch.load(tmp_path / "beside.pt")
    resumed.load_state_dict(states[0])
    again.schedules.load_state_dict(states[1], torch.device("cpu"))
    assert train(again.train(), resumed, STEPS + 1, 2 * STEPS) == ended
    trained = {path: each for path, each in compiled.named_parameters() if each.requires_grad}
    assert trained
    assert set(trained) == {path for path, each in again.named_parameters() if each.requires_grad}
    for path, parameter in compiled.named_parameters():
        assert torch.equal(parameter, again.get_parameter(path)), path
    assert len({*begun, *ended}) == 2 * STEPS
    changed = held.compiled([name, *BESIDE.get(name, [])])
    assert any(not torch.equal(each, changed.get_parameter(path)) for path, each in trained.items())
