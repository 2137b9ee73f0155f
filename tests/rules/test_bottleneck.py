"""The bottleneck network, behind a feed-forward network and beside it, against the equation written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import peftc
from tests.models import bert, llama, padding, randomise, tokens
from tests.rules.composites import check_equal, check_saved

BESIDE = {
    "format": 1,
    "name": "beside",
    "summary": "A bottleneck that reads what the network reads.",
    "use": [{"rule": "bottleneck", "let": {"source": "x"}, "options": {"scale": 4.0}}],
}
CASES = pytest.mark.parametrize(("make", "kind"), [(bert, "bert"), (llama, "llama")], ids=["bert", "llama"])


@CASES
def test_behind_the_network(make: Callable[[], Any], kind: str) -> None:
    model = make().double()
    compiled = peftc.compile(model, ["bottleneck:8(scale=0.5)"], defaults=False)
    randomise(compiled)
    check_equal(model, kind, compiled, scale=0.5)


@CASES
def test_beside_the_network(make: Callable[[], Any], kind: str) -> None:
    model = make().double()
    rule = peftc.Rule.model_validate(BESIDE)
    compiled = peftc.compile(model, [{"rule": rule, "bottleneck_size": 8}], defaults=False)
    randomise(compiled, scale=0.1)
    check_equal(model, kind, compiled, scale=4.0, parallel=True)


@pytest.mark.parametrize(
    "act", ["relu", *(pytest.param(act, marks=pytest.mark.slow) for act in ("gelu", "silu", "tanh"))]
)
def test_it_starts_as_the_model_it_came_from(act: str) -> None:
    for model in (bert(), llama()):
        compiled: Any = peftc.compile(model, [f"bottleneck:8(act={act})"], defaults=False)
        call = {"input_ids": tokens(), "attention_mask": padding()}
        with torch.no_grad():
            assert torch.equal(compiled(**call).logits, model(**call).logits)


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model = llama()
    compiled = peftc.compile(model, ["bottleneck:8"], defaults=False)
    randomise(compiled)
    check_saved(compiled, model, tmp_path / "adapter")


def test_layers_can_be_chosen() -> None:
    plan = peftc.plan(bert(), ["bottleneck:8@1"], defaults=False)
    assert [each.site.layer for each in plan.applications] == [1]


def test_the_numbers() -> None:
    options = peftc.plan(bert(), ["bottleneck"], defaults=False).bound("bottleneck").options
    assert options == {"size": 64, "scale": 1.0, "act": "relu"}
    assert peftc.plan(bert(), ["bottleneck:1"], defaults=False).trainable_count == 2 * (3 * 24 + 1)
