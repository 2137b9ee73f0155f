"""Initial values that are computed from weights, from other parameters, and from what the model computes on data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import peftc
from peftc.errors import MatchError
from peftc.lang import Rule, read_text
from tests.analyse.test_roles import D, Fused, X, contiguous
from tests.models import bert, llama, padding, randomise, tokens

DORA = "dora:q,v(rank=4, alpha=4)"
PISSA = "pissa:q,v(rank=4, alpha=4)"
PREFIX = """
format = 1
name = "texts"
summary = "A prefix that starts as the keys and values of real texts."
[options]
length = { default = 3, min = 1 }
[match]
role = "attention"
[parameters]
P_k = { axes = "kv_heads keys=length head_dim", init = "mean(first(k, length, axis='keys'), axis='batch')" }
P_v = { axes = "kv_heads keys=length value_dim", init = "mean(first(v, length, axis='keys'), axis='batch')" }
[rewrite]
k = "concat(P_k, k, axis='keys')"
v = "concat(P_v, v, axis='keys')"
mask = "see_prefix(mask, length)"
"""


def rule(text: str) -> Rule:
    return read_text(text, "rule.toml")


def batch(model: Any, seed: int = 0) -> dict[str, Tensor]:
    return {"input_ids": tokens(model.config.vocab_size, seed=seed), "attention_mask": padding()}


def tensors(compiled: Any, application: Any) -> dict[str, Tensor]:
    return {each.name: compiled.get_parameter(each.path) for each in application.parameters}


def test_a_length_is_that_of_the_weight() -> None:
    model = llama()
    compiled: Any = peftc.compile(model, DORA, batch(model), defaults=False).eval()
    for application in compiled.peftc_plan.applications:
        weight = model.get_parameter(application.site.weights["W"])
        assert torch.allclose(tensors(compiled, application)["m"], weight.norm(dim=1), atol=1e-6)


def test_singular_vectors_of_a_weight_and_of_a_slice() -> None:
    model = Fused(contiguous)
    compiled: Any = peftc.compile(model, PISSA, {"x": X}, defaults=False)
    assert torch.equal(compiled(X)[0], model(X)[0]) or torch.allclose(compiled(X)[0], model(X)[0], atol=1e-6)
    for application, start in zip(compiled.peftc_plan.applications, (0, 2 * D), strict=True):
        held = tensors(compiled, application)
        u, s, vh = torch.linalg.svd(model.c_attn.weight[start : start + D])
        assert torch.allclose(held["B"] @ held["A"], u[:, :4] * s[:4] @ vh[:4], atol=1e-5)
        assert torch.equal(held["A"], held["A0"])
        assert held["A"].data_ptr() != held["A0"].data_ptr()
        assert held["A"].requires_grad
        assert not held["A0"].requires_grad


def test_half_precision_is_computed_in_single() -> None:
    model = llama().to(torch.bfloat16)
    compiled: Any = peftc.compile(model, PISSA, batch(model), defaults=False)
    held = tensors(compiled, compiled.peftc_plan.applications[0])
    assert held["A"].dtype == torch.bfloat16
    assert bool(held["A"].isfinite().all())


def test_values_on_real_texts() -> None:
    model = bert().eval()
    data = batch(model, seed=5)
    compiled: Any = peftc.compile(model, rule(PREFIX), batch(model), defaults=False, data=data)
    taken: list[Tensor] = []
    layers = model.base_model.encoder.layer
    hooks = [
        each.attention.self.key.register_forward_hook(lambda _m, _i, out: taken.append(out))
        for each in layers
    ]
    model(**data)
    for hook in hooks:
        hook.remove()
    heads = model.config.num_attention_heads
    for application, keys in zip(compiled.peftc_plan.applications, taken, strict=True):
        rows = keys[:, :3].unflatten(-1, (heads, -1)).permute(2, 1, 3, 0).mean(-1)
        assert torch.allclose(tensors(compiled, application)["P_k"], rows, atol=1e-5)
    assert not hasattr(model, "peftc_constants")


def test_without_data_it_is_refused_and_data_must_be_long_enough() -> None:
    model = llama()
    with pytest.raises(MatchError, match="P_k starts from 'k' on real inputs, and there are none"):
        peftc.compile(model, rule(PREFIX), batch(model), defaults=False)
    long = rule(PREFIX.replace("default = 3", "default = 300"))
    with pytest.raises(MatchError, match="what P_k starts as cannot be computed") as caught:
        peftc.compile(model, long, batch(model), defaults=False, data=batch(model))
    assert "give data of more rows or longer texts" in str(caught.value)


def test_a_saved_adapter_needs_neither_data_nor_the_computation(tmp_path: Path) -> None:
    model = llama()
    compiled: Any = peftc.compile(
        model, [rule(PREFIX), PISSA], batch(model), defaults=False, data=batch(model)
    )
    randomise(compiled, scale=0.1)
    compiled.eval().save_pretrained(tmp_path / "a")
    loaded: Any = peftc.load(model, tmp_path / "a", batch(model))
    assert torch.equal(loaded.eval()(**batch(model)).logits, compiled(**batch(model)).logits)
