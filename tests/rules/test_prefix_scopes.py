"""Prefixes of encoder-decoders: one for each scope, against attention written out, in training and in generation."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from tests.models import randomise
from tests.rules.references import attend
from tests.zoo import entry, inputs

PREFIX = 3


class BartReference(nn.Module):
    """In place of any attention: of a sequence to itself, or to the encoder's; `seen` is what a query sees of it."""

    def __init__(self, own: Any, p_k: Tensor, p_v: Tensor, real: Tensor | None) -> None:
        super().__init__()
        self.own, self.p_k, self.p_v, self.real = own, p_k, p_v, real

    def forward(
        self, hidden_states: Tensor, key_value_states: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        source = hidden_states if key_value_states is None else key_value_states
        batch, queries, keys = len(source), hidden_states.shape[1], source.shape[1]

        def split(x: Tensor) -> Tensor:
            heads: int = self.own.num_heads
            out: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
            return out

        q, k, v = (
            split(project(x))
            for project, x in (
                (self.own.q_proj, hidden_states),
                (self.own.k_proj, source),
                (self.own.v_proj, source),
            )
        )
        seen = torch.ones(batch, queries, keys, dtype=torch.bool)
        seen = seen.tril() if self.real is None else seen & self.real.bool()[:, None, :]
        out: Tensor = self.own.out_proj(attend(q, k, v, seen, self.p_k, self.p_v))
        return out, None


class T5Reference(nn.Module):
    """The same where scores have biases of relative positions: a key in front has the largest that its query has."""

    def __init__(self, own: Any, p_k: Tensor, p_v: Tensor, real: Tensor | None) -> None:
        super().__init__()
        self.own, self.p_k, self.p_v, self.real = own, p_k, p_v, real

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor, None]:
        source = hidden_states if key_value_states is None else key_value_states
        batch, queries, keys = len(source), hidden_states.shape[1], source.shape[1]
        bias = position_bias
        if bias is None and self.own.has_relative_attention_bias:
            bias = self.own.compute_bias(queries, keys)
        elif bias is None:
            bias = torch.zeros(1, self.own.n_heads, queries, keys)

        def split(x: Tensor) -> Tensor:
            heads: int = self.own.n_heads
            out: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
            return out

        q, k, v = split(self.own.q(hidden_states)), split(self.own.k(source)), split(self.own.v(source))
        seen = torch.ones(batch, 1, queries, keys, dtype=torch.bool)
        seen = seen.tril() if self.real is None else seen & self.real.bool()[:, None, None, :]
        added = bias.masked_fill(~seen, float("-inf"))
        scores = torch.cat(
            [q @ self.p_k.transpose(-1, -2) + added.amax(-1, True), q @ k.transpose(-1, -2) + added], -1
        )
        weights = torch.softmax(scores, -1)
        out = weights[..., :PREFIX] @ self.p_v + weights[..., PREFIX:] @ v
        return self.own.o(out.transpose(1, 2).flatten(2)), bias, None


REFERENCES = {"bart": BartReference, "t5": T5Reference}


@cache
def model_and_call(name: str) -> tuple[Any, dict[str, Tensor]]:
    model = entry(name).model()
    given = inputs(model)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    given["attention_mask"][0, -4:] = 0
    return model, given


@pytest.mark.parametrize(
    ("name", "spec", "scopes"),
    [
        ("bart", "prefix:3", {"encoder", "decoder", "cross"}),
        pytest.param("t5", "prefix:3", {"encoder", "decoder", "cross"}, marks=pytest.mark.slow),
        pytest.param("bart", "prefix:encoder(length=3)", {"encoder"}, marks=pytest.mark.slow),
        pytest.param("bart", "prefix:cross(length=3)", {"cross"}, marks=pytest.mark.slow),
        pytest.param("t5", "prefix:decoder(length=3)", {"decoder"}, marks=pytest.mark.slow),
    ],
)
def test_the_written_out_attention(name: str, spec: str, scopes: set[str]) -> None:
    model, given = model_and_call(name)
    compiled: Any = peftc.compile(model, [spec], given, defaults=False).eval()
    randomise(compiled)
    copied = copy.deepcopy(model)
    applications = [each for each in compiled.peftc_plan.applications if each.parameters]
    assert {each.site.scope for each in applications} == scopes
    assert len(
        {id(compiled.get_parameter(p.path)) for each in applications for p in each.parameters}
    ) == 2 * len(applications)
    for each in applications:
        p_k, p_v = (compiled.get_parameter(parameter.path) for parameter in each.parameters)
        real = None if each.site.scope == "decoder" else given["attention_mask"]
        path = each.site.path
        copied.set_submodule(path, REFERENCES[name](copied.get_submodule(path), p_k, p_v, real))
    got, want = (each(**given, use_cache=False).logits for each in (compiled, copied))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    parameters = [p for p in compiled.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(out.square().sum(), parameters) for out in (got, want))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max()))


def test_hf_peft_has_the_decoders() -> None:
    """And no other; of its rows, layer i of L reads the keys and values of layer 2 i mod L, here the first for both."""
    from peft import PrefixTuningConfig, get_peft_model

    model, given = model_and_call("bart")
    config = PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=PREFIX)
    theirs: Any = get_peft_model(copy.deepcopy(model), config).eval()
    spec = f"prefix:decoder(length={PREFIX}, positions=shift)"
    compiled: Any = peftc.compile(model, [spec], given, defaults=False).eval()
    randomise(compiled)
    first, second = (
        [compiled.get_parameter(made.path) for made in each.parameters]
        for each in compiled.peftc_plan.applications
        if each.parameters
    )
    embedding = theirs.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        for one, other in zip(first, second, strict=True):
            other.copy_(one)
        rows = [each.transpose(0, 1).flatten(1) for each in first]
        embedding.copy_(torch.cat([*rows, *map(torch.zeros_like, rows)], -1))
    got, want = compiled(**given).logits, theirs(**given).logits
    assert (got - model(**given).logits).abs().max() > 1e-3
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(got.square().sum(), [*first, *second])
    (whole,) = torch.autograd.grad(want.square().sum(), [embedding])
    mine = [one + other for one, other in zip(ours[:2], ours[2:], strict=True)]
    rows = [each.transpose(0, 1).flatten(1) for each in mine]
    assert (torch.cat(rows, -1) - whole[:, : whole.shape[1] // 2]).abs().max() <= 1e-5 * whole.abs().max()


def test_only_the_side_that_is_asked_for_is_shifted_or_trained() -> None:
    model, given = model_and_call("bart")
    plan = peftc.plan(model, ["prefix:cross(positions=shift)"], given, defaults=False)
    assert {each.site.path for each in plan.applications if each.site.role == "positions"} == {
        "model.decoder.embed_positions"
    }
    (skip,) = [each for each in plan.skips if each.site.role == "positions"]
    assert skip.reason == "nothing acts in the encoder that it goes along with"
    plan = peftc.plan(model, ["houlsby:encoder"], given, defaults=False)
    assert plan.trained
    assert all(path.startswith("model.encoder.") for path in plan.trained)
    both = peftc.plan(model, ["houlsby"], given, defaults=False)
    assert any(path.startswith("model.decoder.") for path in both.trained)


@pytest.mark.parametrize("name", ["bart", pytest.param("t5", marks=pytest.mark.slow)])
def test_generation_reads_each_of_them(name: str) -> None:
    """Token by token with caches, as one forward says: the encoder apart, keys across taken from the cache."""
    model = entry(name).model()
    given = inputs(model)
    compiled: Any = peftc.compile(model, [f"prefix:{PREFIX}"], given, defaults=False).eval()
    randomise(compiled)
    told: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    made = compiled.generate(
        given["input_ids"], output_logits=True, return_dict_in_generate=True, use_cache=True, **told
    )
    out, steps = made.sequences, torch.stack(made.logits, 1)
    with torch.no_grad():
        call = {"input_ids": given["input_ids"], "decoder_input_ids": out[:, :-1], "use_cache": False}
        torch.testing.assert_close(steps, compiled(**call).logits[:, -4:], atol=1e-5, rtol=1e-5)
        assert (steps - model(**call).logits[:, -4:]).abs().max() > 1e-3
    reached = torch.autograd.grad(
        compiled(input_ids=given["input_ids"], decoder_input_ids=out[:, :-1]).logits.sum(),
        [p for p in compiled.parameters() if p.requires_grad],
    )
    assert all(bool(gradient.abs().max() > 0) for gradient in reached)
