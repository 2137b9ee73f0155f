"""LoRA against HF PEFT with the same weights, and against the paper's equation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from tests.models import bert, llama, minilm, padding, randomise, smollm2, tokens

RANK, ALPHA = 4, 12
TARGETS = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"]}
CASES = [
    pytest.param(bert, "bert", id="bert"),
    pytest.param(llama, "llama", id="llama"),
    pytest.param(minilm, "bert", id="minilm"),
    pytest.param(smollm2, "llama", id="smollm2", marks=pytest.mark.slow),
]


def pair(model: Any, kind: str, drop: float = 0.0) -> tuple[Any, Any, dict[str, str]]:
    """Compiled model, HF PEFT's, and path in one → path in the other; random weights in both."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=drop, target_modules=TARGETS[kind])
    theirs: Any = get_peft_model(copy.deepcopy(model), config)
    spec = f"lora:q,v(rank={RANK}, alpha={ALPHA}, drop={drop})"
    compiled: Any = peftc.compile(model, [spec], call(model, kind), defaults=False)
    randomise(compiled, scale=0.05)
    names = {
        parameter.path: f"base_model.model.{each.site.path}.lora_{parameter.name}.default.weight"
        for each in compiled.peftc_plan.applications
        for parameter in each.parameters
    }
    with torch.no_grad():
        for ours, other in names.items():
            theirs.get_parameter(other).copy_(compiled.get_parameter(ours))
    return compiled, theirs, names


def call(model: Any, kind: str) -> dict[str, Tensor]:
    """A padded batch with labels."""
    ids, mask = tokens(model.config.vocab_size), padding()
    labels = torch.tensor([0, 1, 1]) if kind == "bert" else ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def relative(one: Tensor, other: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def check_gradients(compiled: Any, theirs: Any, names: Mapping[str, str]) -> None:
    trainable = {name for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    assert set(names.values()) == trainable
    for ours, other in names.items():
        assert relative(compiled.get_parameter(ours).grad, theirs.get_parameter(other).grad) <= 1e-5, ours


@pytest.mark.parametrize(("make", "kind"), CASES)
def test_logits_gradients_and_steps_are_those_of_hf_peft(make: Callable[[], Any], kind: str) -> None:
    model = make()
    compiled, theirs, names = pair(model, kind)
    batch = call(model, kind)
    with torch.no_grad():
        for given in (batch, {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}):
            ours, other = compiled.eval()(**given).logits, theirs.eval()(**given).logits
            assert (ours - other).abs().max() <= 1e-5
            assert (ours - model(**given).logits).abs().max() > 1e-3
    compiled(**batch).loss.backward()
    theirs(**batch).loss.backward()
    check_gradients(compiled, theirs, names)
    for each in (compiled, theirs):
        each.zero_grad()
        optimizer = torch.optim.SGD((p for p in each.parameters() if p.requires_grad), lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            each(**batch).loss.backward()
            optimizer.step()
    for ours, other in names.items():
        torch.testing.assert_close(
            compiled.get_parameter(ours), theirs.get_parameter(other), atol=1e-6, rtol=1e-5
        )


@pytest.mark.parametrize(("make", "kind"), CASES[:2])
def test_dropout_on_the_updates_input_is_that_of_hf_peft(make: Callable[[], Any], kind: str) -> None:
    model = make()
    compiled, theirs, names = pair(model, kind, drop=0.4)
    batch = call(model, kind)
    losses = []
    for each in (compiled.train(), theirs.train()):
        torch.manual_seed(5)
        loss = each(**batch).loss
        loss.backward()
        losses.append(loss.detach())
    assert torch.allclose(losses[0], losses[1], atol=1e-6)
    check_gradients(compiled, theirs, names)
    with torch.no_grad():
        assert (compiled.eval()(**batch).logits - theirs.eval()(**batch).logits).abs().max() <= 1e-5


class ByHand(nn.Module):
    """W x + b + (alpha / r) B A x."""

    def __init__(self, linear: nn.Linear, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.linear, self.a, self.b = linear, a, b

    def forward(self, x: Tensor) -> Tensor:
        update: Tensor = x @ self.a.T @ self.b.T
        return self.linear(x) + (ALPHA / RANK) * update  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [bert, llama])
@pytest.mark.parametrize("part", ["all-linear", "o"])
def test_the_equation(make: Callable[[], Any], part: str) -> None:
    model = make()
    batch = {"input_ids": tokens(), "attention_mask": padding()}
    compiled: Any = peftc.compile(model, [f"lora:{part}(rank={RANK}, alpha={ALPHA})"], batch, defaults=False)
    randomise(compiled)
    reference = copy.deepcopy(model)
    for each in compiled.peftc_plan.applications:
        tensors = {parameter.name: compiled.get_parameter(parameter.path) for parameter in each.parameters}
        linear = reference.get_submodule(each.site.path)
        reference.set_submodule(each.site.path, ByHand(linear, tensors["A"], tensors["B"]))
    trained = [parameter for parameter in compiled.parameters() if parameter.requires_grad]
    want = reference(**batch).logits
    got = compiled(**batch).logits
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)
    weights = torch.randn(want.shape)
    ours = torch.autograd.grad((got * weights).sum(), trained)
    theirs = torch.autograd.grad((want * weights).sum(), trained)
    for one, other in zip(ours, theirs, strict=True):
        assert relative(one, other) <= 1e-5


def test_it_starts_as_the_model_it_came_from() -> None:
    model = llama()
    compiled: Any = peftc.compile(model, ["lora:all-linear"], defaults=False)
    with torch.no_grad():
        assert torch.equal(compiled(tokens()).logits, model(tokens()).logits)
