"""Rules on a model that carries an adapter already: it stays as it is, in front, and only what is new trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import peftc
from peftc.errors import CaptureError, NoMatchError
from tests.models import bert, llama, padding, randomise, tokens


def call_of(model: Any) -> dict[str, Tensor]:
    given = {"input_ids": tokens(), "attention_mask": padding()}
    return given if "Causal" in type(model).__name__ else {**given, "labels": torch.tensor([0, 1, 1])}


def together(model: Any, rules: list[str], base: Any, top: Any) -> Any:
    """All rules compiled at once, with the values of two modules in which some are below and some above."""
    made: Any = peftc.compile(model, rules, call_of(model)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            for other in (base, top):
                held = dict(other.named_parameters())
                if name in held:
                    parameter.copy_(held[name])
    return made


@pytest.mark.parametrize(
    ("make", "below", "above"),
    [
        (bert, ["houlsby(size=4)", "bitfit"], ["lora:q,v(rank=4)"]),
        pytest.param(
            llama,
            ["prefix:3", "adalora:q,v(rank=4, target=2)"],
            ["lora:all-linear(rank=4)", "prefix:2"],
            marks=pytest.mark.slow,
        ),
        pytest.param(llama, ["nf4", "lora:q(rank=4)"], ["lora:q,v(rank=4)"], marks=pytest.mark.slow),
    ],
)
def test_what_it_carries_stays_and_what_is_new_trains(
    make: Any, below: list[str], above: list[str], tmp_path: Path
) -> None:
    model = make()
    given = call_of(model)
    base: Any = peftc.compile(model, below, given).eval()
    randomise(base, scale=0.2)
    before = {name: each.detach().clone() for name, each in base.named_parameters()}
    with torch.no_grad():
        carried = base(**given).logits
    plan = peftc.plan(base, above, given)
    top: Any = peftc.compile(base, above, given).eval()
    assert plan.digest == top.peftc_plan.digest
    assert [note for note in plan.notes if "was trained before and stays as it is" in note]
    with torch.no_grad():
        if not any("prefix" in each for each in above):
            torch.testing.assert_close(top(**given).logits, carried, atol=1e-5, rtol=1e-5)
    new = {each.path for each in top.peftc_plan.new_tensors if each.trainable}
    heads = {path for path in top.peftc_plan.trained if path not in top.peftc_plan.kept}
    trains = {name for name, each in top.named_parameters() if each.requires_grad}
    assert trains == new | heads
    assert not any(name in before for name in new)
    assert top.peftc_plan.trainable_count == sum(top.get_parameter(name).numel() for name in trains)
    assert (
        sum(group.count for rule in peftc.explain(plan).rules for group in rule.groups)
        == plan.trainable_count
    )
    randomise(top, scale=0.2)
    with torch.no_grad():
        out = top(**given).logits
        torch.testing.assert_close(
            together(model, [*below, *above], base, top)(**given).logits, out, atol=1e-5, rtol=1e-5
        )
    top.train()
    output = top(**given, **({} if "labels" in given else {"labels": given["input_ids"]}))
    output.loss.backward()
    assert {name for name, each in top.named_parameters() if each.grad is not None} == trains
    for name, value in base.named_parameters():
        assert torch.equal(value, before[name]), name

    top.eval().save_pretrained(tmp_path / "both")
    again: Any = peftc.load(model, tmp_path / "both", given, trainable=True).eval()
    assert {name for name, each in again.named_parameters() if each.requires_grad} == trains
    with torch.no_grad():
        assert torch.equal(again(**given).logits, out)


def test_a_loaded_adapter_is_carried_and_both_merge(tmp_path: Path) -> None:
    model = llama()
    given = call_of(model)
    first: Any = peftc.compile(model, ["lora:q,v(rank=4)"], given)
    randomise(first)
    first.save_pretrained(tmp_path / "first")
    base: Any = peftc.load(model, tmp_path / "first", given)
    top: Any = peftc.compile(base, ["ia3", "lora:o(rank=4)"], given).eval()
    assert [bound.label for bound in top.peftc_plan.rules] == ["lora", "ia3", "lora_2"]
    randomise(top, scale=0.1)
    with torch.no_grad():
        out = top(**given).logits
        torch.testing.assert_close(top.merge_and_unload()(**given).logits, out, atol=1e-5, rtol=1e-4)
        with top.disable_adapter():
            assert torch.equal(top(**given).logits, model(**given).logits)


def test_what_was_trained_before_is_not_trained_again_by_the_same_rule() -> None:
    base = peftc.compile(bert(), ["bitfit"])
    with pytest.raises(NoMatchError, match="bitfit_2 matches nothing"):
        peftc.compile(base, ["bitfit"])


def test_no_adapter_is_loaded_into_a_compiled_module(tmp_path: Path) -> None:
    compiled: Any = peftc.compile(bert(), ["lora:q,v"])
    compiled.save_pretrained(tmp_path / "one")
    with pytest.raises(CaptureError, match="compiled already"):
        peftc.load(compiled, tmp_path / "one")
