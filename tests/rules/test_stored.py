"""Rules on models whose matrices are stored [d_in d_out] or multiplied transposed: fused, by `addmm` and by `@`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import peftc
from tests.models import randomise
from tests.runtime.test_starting import DORA, PISSA

D, HEADS, WORDS = 32, 4, 67
IDS = torch.randint(WORDS, (3, 9), generator=torch.Generator().manual_seed(4))


def conv() -> Any:
    """Fused projections as `addmm` with matrices [d_in d_out], a written-out gelu."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS, n_layer=2, n_head=HEADS, n_embd=D, n_positions=32, attn_pdrop=0.0, resid_pdrop=0.0,
        embd_pdrop=0.0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def interleaved() -> Any:
    """Fused projections as a product with a transposed parameter, its parts interleaved head by head."""
    from transformers import FalconConfig, FalconForCausalLM

    torch.manual_seed(0)
    config = FalconConfig(
        vocab_size=WORDS, hidden_size=D, num_hidden_layers=2, num_attention_heads=HEADS, alibi=False,
        multi_query=False, new_decoder_architecture=False, bos_token_id=1, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return FalconForCausalLM(config).eval()


def rows(kind: str, part: str) -> Tensor:
    """The output channels of a part."""
    place, width = "qkv".index(part), D // HEADS
    if kind == "conv":
        return torch.arange(place * D, (place + 1) * D)
    return torch.cat([torch.arange(width) + (3 * head + place) * width for head in range(HEADS)])


MAKE = {"conv": conv, "interleaved": interleaved}


@pytest.mark.parametrize("kind", MAKE)
def test_every_part_is_found(kind: str) -> None:
    plan = peftc.plan(MAKE[kind](), "lora:all-linear", defaults=False)
    parts = [each.site.part for each in plan.applications]
    assert sorted(parts) == sorted(["q", "k", "v", "o", "up", "down"] * 2)
    assert {role: sum(site.role == role for site in plan.sites) for role in ("attention", "ffn")} == {
        "attention": 2,
        "ffn": 2,
    }
    for each in plan.applications:
        assert each.site.stored == ({"W": ("d_in", "d_out")} if kind == "conv" else {})


def updated(model: Any, kind: str, compiled: Any, scale: float) -> Any:
    """A copy with scale · B A added to the channels of each part, in the order in which the matrix is stored."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for application in compiled.peftc_plan.applications:
            held = {each.name: compiled.get_parameter(each.path) for each in application.parameters}
            weight = copied.get_parameter(application.site.weights["W"])
            own = rows(kind, application.site.part)
            if kind == "conv":
                weight[:, own] += scale * (held["B"] @ held["A"]).T
            else:
                weight[own] += scale * held["B"] @ held["A"]
    return copied


@pytest.mark.parametrize("kind", MAKE)
def test_lora_on_q_and_v_trains_these_channels_alone(kind: str) -> None:
    model = MAKE[kind]()
    compiled: Any = peftc.compile(model, "lora:q,v(rank=3, alpha=6)", defaults=False)
    assert torch.allclose(compiled(IDS).logits, model(IDS).logits, atol=1e-6)
    randomise(compiled, scale=0.1)
    want = updated(model, kind, compiled, 2.0)
    assert (compiled(IDS).logits - model(IDS).logits).abs().max() > 1e-3
    assert torch.allclose(compiled(IDS).logits, want(IDS).logits, atol=1e-5)
    compiled.train()(IDS).logits.square().sum().backward()
    trained = {
        name for name, p in compiled.named_parameters() if p.grad is not None and bool(p.grad.abs().max() > 0)
    }
    assert trained == {name for name, p in compiled.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", MAKE)
def test_the_length_of_a_weight_is_that_of_its_own_channels(kind: str) -> None:
    model = MAKE[kind]()
    compiled: Any = peftc.compile(model, DORA, defaults=False)
    for application in compiled.peftc_plan.applications:
        held = {each.name: compiled.get_parameter(each.path) for each in application.parameters}
        weight = model.get_parameter(application.site.weights["W"]).detach()
        matrix = weight.T if kind == "conv" else weight
        assert torch.allclose(held["m"], matrix[rows(kind, application.site.part)].norm(dim=1), atol=1e-6)
    assert torch.allclose(compiled(IDS).logits, model(IDS).logits, atol=1e-5)
    randomise(compiled, scale=0.1)
    want = copy.deepcopy(model)
    with torch.no_grad():
        for application in compiled.peftc_plan.applications:
            held = {each.name: compiled.get_parameter(each.path) for each in application.parameters}
            own, weight = rows(kind, application.site.part), want.get_parameter(application.site.weights["W"])
            matrix = weight.T if kind == "conv" else weight
            direction = matrix[own] + held["B"] @ held["A"]
            matrix[own] = held["m"][:, None] * direction / direction.norm(dim=1, keepdim=True)
    assert torch.allclose(compiled(IDS).logits, want(IDS).logits, atol=1e-5)


@pytest.mark.parametrize("kind", MAKE)
def test_singular_vectors_are_those_of_the_turned_matrix(kind: str) -> None:
    model = MAKE[kind]()
    compiled: Any = peftc.compile(model, PISSA, defaults=False)
    assert torch.allclose(compiled(IDS).logits, model(IDS).logits, atol=1e-5)
    application = compiled.peftc_plan.applications[0]
    held = {each.name: compiled.get_parameter(each.path) for each in application.parameters}
    weight = model.get_parameter(application.site.weights["W"]).detach()
    matrix = (weight.T if kind == "conv" else weight)[rows(kind, application.site.part)]
    u, s, vh = torch.linalg.svd(matrix)
    assert torch.allclose(held["B"] @ held["A"], u[:, :4] * s[:4] @ vh[:4], atol=1e-5)


@pytest.mark.slow
def test_bias_and_generation_on_stored_matrices() -> None:
    model = conv()
    compiled: Any = peftc.compile(model, ["bitfit", "prefix:3"], defaults=False).eval()
    randomise(compiled, scale=0.1)
    ids = IDS[:2, :5]
    cached = compiled.generate(ids, max_new_tokens=6, do_sample=False, use_cache=True, pad_token_id=1)
    plain = compiled.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False, pad_token_id=1)
    assert torch.equal(cached, plain)
