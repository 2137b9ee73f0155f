"""What goes wrong with prefixes elsewhere: beside another rule, in checkpointed blocks, under windows, in resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import peftc
from tests.models import mistral, padding, randomise, tokens

RULES = ["lora:q,v(rank=3)", "prefix_mlp:5(hidden=6, visible=window)"]


@pytest.fixture(scope="module")
def model() -> Any:
    """Two key heads for four query heads, and a window of four tokens."""
    return mistral()


@pytest.fixture
def compiled(model: Any) -> Any:
    made: Any = peftc.compile(model, RULES, defaults=False)
    randomise(made)
    return made


def gradients(compiled: Any, **given: Tensor) -> dict[str, Tensor]:
    compiled.zero_grad()
    compiled(**given, labels=given["input_ids"]).loss.backward()
    return {
        path: parameter.grad.clone()
        for path, parameter in compiled.named_parameters()
        if parameter.requires_grad
    }


def test_a_prefix_over_an_update_leaves_it_trainable_and_both_are_saved(
    model: Any, compiled: Any, tmp_path: Path
) -> None:
    ids = tokens()
    found = gradients(compiled, input_ids=ids)
    assert {path.split("peftc.default.")[1].split(".")[0] for path in found} == {"lora", "prefix_mlp"}
    assert all(bool(gradient.abs().max() > 0) for gradient in found.values())
    compiled.save_pretrained(tmp_path / "both")
    again: Any = peftc.load(model, tmp_path / "both", trainable=True)
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, compiled.eval()(ids).logits)
    resumed = gradients(again.train(), input_ids=ids)
    assert set(resumed) == set(found)
    for path, gradient in gradients(compiled.train(), input_ids=ids).items():
        assert torch.equal(resumed[path], gradient)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_give_the_same_gradients(compiled: Any, reentrant: bool) -> None:
    given = {"input_ids": tokens(), "attention_mask": padding(left=True)}
    want = gradients(compiled.train(), **given)
    compiled.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        compiled.enable_input_require_grads()
    for path, gradient in gradients(compiled, **given).items():
        torch.testing.assert_close(gradient, want[path], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_a_cache_with_places_that_are_not_filled_yet(compiled: Any) -> None:
    """The prefix falls out of the window when tokens have come, not when there is room for them."""
    told: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    dynamic, static = (
        compiled.eval().generate(tokens(batch=2, length=2), output_logits=True, **told, **way)
        for way in ({}, {"cache_implementation": "static"})
    )
    for one, other in zip(dynamic.logits, static.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_no_token_loses_those_just_before_it(compiled: Any) -> None:
    """More keys than queries: a causal mask that is counted from the wrong corner would hide the last ones."""
    ids = tokens(batch=2)
    embedded = compiled.get_input_embeddings()(ids).detach().requires_grad_()
    for mask in (None, torch.ones_like(ids)):
        logits = compiled.eval()(inputs_embeds=embedded, attention_mask=mask).logits
        (reached,) = torch.autograd.grad(logits[0, -1].sum(), embedded)
        sees = reached[0].abs().sum(-1) > 0
        # Two layers, each of which looks three tokens back.
        assert sees.tolist() == [place >= ids.shape[1] - 7 for place in range(ids.shape[1])]
