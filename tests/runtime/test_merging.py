"""Adapters in the weights: equal to adapters beside them, the module left as it was, and what has no place is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import peftc
from peftc.errors import MergeError
from tests.models import bert, llama, randomise, tokens


@pytest.mark.parametrize(
    "rules", [["lora:q,v"], ["lora:all-linear(rank=4)", "bitfit"], ["full"], ["bitfit", "lora:o"]]
)
@pytest.mark.parametrize("make", [bert, llama])
def test_merged_equals_beside(make: Callable[..., Any], rules: list[str]) -> None:
    model: Any = make()
    compiled: Any = peftc.compile(model, rules).eval()
    randomise(compiled)
    with torch.no_grad():
        for parameter in compiled.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    before = {name: value.clone() for name, value in compiled.state_dict().items()}
    merged: Any = compiled.merge_and_unload()
    assert type(merged) is type(model)
    assert not any("peftc" in name.split(".") for name in merged.state_dict())
    with torch.no_grad():
        beside, inside = compiled(input_ids=tokens()).logits, merged(input_ids=tokens()).logits
        own = model(input_ids=tokens()).logits
    torch.testing.assert_close(inside, beside, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(inside, own, atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in compiled.state_dict().items())


def test_tied_weights_stay_tied_and_frozen_ones_are_shared() -> None:
    model: Any = llama()
    full: Any = peftc.compile(model, ["full"])
    merged = full.merge_and_unload()
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    lora: Any = peftc.compile(model, ["lora:q"])
    merged = lora.merge_and_unload()
    frozen = "model.layers.0.mlp.up_proj.weight"
    assert merged.get_parameter(frozen).data_ptr() == model.get_parameter(frozen).data_ptr()


def test_a_merged_model_saves_and_is_compiled_again(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    compiled: Any = peftc.compile(llama(), ["lora:q,v"]).eval()
    randomise(compiled)
    merged: Any = compiled.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens()).logits, merged(input_ids=tokens()).logits)
    twice: Any = peftc.compile(merged, ["lora:q,v"]).eval()
    with torch.no_grad(), twice.disable_adapter():
        assert torch.equal(twice(input_ids=tokens()).logits, merged(input_ids=tokens()).logits)


def test_what_is_no_change_of_weights_is_named() -> None:
    compiled: Any = peftc.compile(llama(), ["lora:q,v", "prefix:3"])
    with pytest.raises(MergeError, match="prefix cannot be merged"):
        compiled.merge_and_unload()


class Bare(nn.Module):
    """A product with a parameter of its own: there is no bias to put one in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight)


def test_a_bias_without_a_place_is_told() -> None:
    compiled: Any = peftc.compile(
        nn.Sequential(Bare(), nn.ReLU(), Bare()), ["bitfit"], {"input": torch.randn(3, 4, 6)}
    )
    with pytest.raises(MergeError, match="no place for a bias"):
        compiled.merge_and_unload()
