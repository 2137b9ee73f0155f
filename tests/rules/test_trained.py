"""Rules that train the model's own parameters (bitfit, layernorm, full, head): those planned, by plain gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import peftc
from tests.models import bert, llama, padding, tokens
from tests.zoo import entry, inputs

MAKERS = pytest.mark.parametrize("make", [bert, llama])


def call(model: Any) -> dict[str, Tensor]:
    ids, mask = tokens(), padding()
    labels = ids.masked_fill(mask == 0, -100) if hasattr(model, "lm_head") else torch.tensor([0, 1, 1])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def steps(model: nn.Module, parameters: list[nn.Parameter], batch: dict[str, Tensor], count: int = 5) -> None:
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.5)
    for _ in range(count):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def check_training(model: Any, compiled: Any, want: set[str]) -> None:
    """Only `want` trains, by the plain model's gradients and steps; the model keeps its bits and results."""
    batch = call(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        results = model(**batch)
    assert set(trainable(compiled)) == want
    assert set(compiled.peftc_plan.trained) == want
    assert compiled.peftc_plan.trainable_count == sum(p.numel() for p in trainable(compiled).values())
    plain = copy.deepcopy(model)
    compiled(**batch).loss.backward()
    plain(**batch).loss.backward()
    for name in want:
        own, other = compiled.get_parameter(name).grad, plain.get_parameter(name).grad
        assert own is not None, name
        # a key's bias moves every score of a query alike: its gradient is nothing but rounding
        assert (own - other).abs().max() <= 1e-5 * max(float(other.abs().max()), 1e-2), name
    assert not [n for n, p in compiled.named_parameters() if n not in want and p.grad is not None]
    compiled.zero_grad()
    plain.zero_grad()
    steps(compiled, list(trainable(compiled).values()), batch)
    steps(plain, [plain.get_parameter(name) for name in want], batch)
    for name in want:
        torch.testing.assert_close(
            compiled.get_parameter(name), plain.get_parameter(name), atol=1e-6, rtol=1e-5
        )
        assert not torch.equal(compiled.get_parameter(name), before[name]), name
    with torch.no_grad():
        assert not torch.equal(compiled(**batch).logits, results.logits)
        torch.testing.assert_close(compiled(**batch).logits, plain(**batch).logits, atol=2e-5, rtol=1e-5)
        with compiled.disable_adapter():
            off = compiled(**batch)
        assert torch.equal(off.logits, results.logits)
        assert torch.equal(off.loss, results.loss)
        assert torch.equal(model(**batch).logits, results.logits)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@MAKERS
def test_full_is_plain_training(make: Callable[[], Any]) -> None:
    model = make()
    compiled = peftc.compile(model, ["full"], call(model))
    check_training(model, compiled, {name for name, _ in model.named_parameters()})


def test_full_keeps_tied_parameters_tied() -> None:
    compiled: Any = peftc.compile(llama(), ["full"])
    assert compiled.lm_head.weight is compiled.model.embed_tokens.weight


def test_bitfit_trains_biases_and_norms_biases() -> None:
    model = bert()
    compiled = peftc.compile(model, ["bitfit"], call(model), defaults=False)
    linear = ("query.bias", "key.bias", "value.bias", "dense.bias")
    want = {
        name
        for name, _ in model.named_parameters()
        if (name.endswith(linear) and "encoder" in name) or name.endswith("LayerNorm.bias")
    }
    got = set(trainable(compiled))
    assert want <= got <= want | {"bert.pooler.dense.bias"}
    check_training(model, compiled, got)


def test_bitfit_with_its_default_head() -> None:
    model = bert()
    compiled = peftc.compile(model, ["bitfit"], call(model))
    got = set(trainable(compiled))
    assert {"classifier.weight", "classifier.bias"} <= got
    assert not [name for name in got if not name.endswith("bias") and name != "classifier.weight"]


def test_partial_bitfit() -> None:
    model = bert()
    compiled = peftc.compile(model, ["bitfit:q,up"], call(model), defaults=False)
    layers = [f"bert.encoder.layer.{layer}" for layer in range(2)]
    want = {f"{layer}.attention.self.query.bias" for layer in layers}
    check_training(model, compiled, want | {f"{layer}.intermediate.dense.bias" for layer in layers})


def test_bitfit_puts_biases_into_a_model_without_any() -> None:
    model = llama()
    compiled: Any = peftc.compile(model, ["bitfit:q,down"], call(model), defaults=False)
    assert not compiled.peftc_plan.trained
    new = trainable(compiled)
    assert sorted({tuple(parameter.shape) for parameter in new.values()}) == [(24,)]
    assert len(new) == 4
    assert all(not parameter.any() for parameter in new.values())
    batch = call(model)
    with torch.no_grad():
        assert torch.equal(compiled(**batch).logits, model(**batch).logits)
    reference = copy.deepcopy(model)
    for each in compiled.peftc_plan.applications:
        (parameter,) = each.parameters
        with torch.no_grad():
            compiled.get_parameter(parameter.path).copy_(torch.randn(parameter.shape))
        linear = reference.get_submodule(each.site.path)
        linear.bias = nn.Parameter(compiled.get_parameter(parameter.path).detach().clone())
    got, want = compiled(**batch), reference(**batch)
    torch.testing.assert_close(got.logits, want.logits, atol=1e-5, rtol=1e-5)
    got.loss.backward()
    want.loss.backward()
    for each in compiled.peftc_plan.applications:
        own = compiled.get_parameter(each.parameters[0].path).grad
        torch.testing.assert_close(
            own, reference.get_submodule(each.site.path).bias.grad, atol=1e-6, rtol=1e-5
        )


def test_bitfit_never_inserts_when_told_so() -> None:
    with pytest.raises(peftc.errors.MatchError):
        peftc.compile(llama(), ["bitfit:q,down(insert='never')"])


def fused() -> Any:
    """A model whose q, k and v share one matrix and one bias."""
    return entry("gpt2").model(n_layer=1)


def test_bitfit_of_one_part_of_a_fused_projection() -> None:
    model = fused()
    given = {**inputs(model), "labels": inputs(model)["input_ids"]}
    compiled: Any = peftc.compile(model, ["bitfit:q"], given, defaults=False)
    (application,) = compiled.peftc_plan.applications
    assert "puts in b [32]" in str(peftc.explain(compiled))
    (own,) = trainable(compiled).values()
    with torch.no_grad():
        torch.testing.assert_close(compiled(**given).logits, model(**given).logits, atol=2e-6, rtol=2e-6)
        own.copy_(torch.randn(own.shape))
    reference = copy.deepcopy(model)
    bias = reference.get_submodule(application.site.path).bias
    with torch.no_grad():
        bias[: len(own)] += own
    got, want = compiled(**given), reference(**given)
    torch.testing.assert_close(got.logits, want.logits, atol=1e-5, rtol=1e-5)
    got.loss.backward()
    want.loss.backward()
    torch.testing.assert_close(own.grad, bias.grad[: len(own)], atol=1e-6, rtol=1e-5)
    merged = compiled.merge_and_unload()
    assert torch.equal(merged.get_submodule(application.site.path).bias, bias)
    with pytest.raises(peftc.errors.MatchError, match="shared with other parts"):
        peftc.plan(model, ["bitfit:q(insert=never)"], given, defaults=False)


def test_bitfit_of_every_part_of_a_fused_projection_trains_its_bias() -> None:
    model = fused()
    given = inputs(model)
    every = peftc.plan(model, ["bitfit(insert=never)"], given, defaults=False)
    assert set(every.trained) == {
        name for name, _ in model.named_parameters() if name.endswith("bias") and "lm_head" not in name
    }
    assert not every.new_parameters


def test_layernorm_trains_scales_and_shifts() -> None:
    model = bert()
    want = {name for name, _ in model.named_parameters() if "LayerNorm" in name}
    check_training(model, peftc.compile(model, ["layernorm"], call(model), defaults=False), want)


@pytest.mark.parametrize("model_type", ["gemma2", "nemotron", "qwen3"])
def test_layernorm_finds_scales_that_are_computed(model_type: str) -> None:
    model = entry(model_type).model()
    given = {**inputs(model), "labels": inputs(model)["input_ids"]}
    compiled: Any = peftc.compile(model, ["layernorm"], given, defaults=False)
    want = {name for name, _ in model.named_parameters() if "norm" in name}
    assert set(compiled.peftc_plan.trained) == want
    compiled(**given).loss.backward()
    plain = copy.deepcopy(model)
    plain(**given).loss.backward()
    for name in want:
        own, other = compiled.get_parameter(name).grad, plain.get_parameter(name).grad
        assert (own - other).abs().max() <= 1e-5 * max(float(other.abs().max()), 1e-2), name


def test_a_computed_scale_cannot_be_read() -> None:
    rule = {
        "format": 1, "name": "louder", "summary": "Scales what norms make.", "match": {"role": "norm"},
        "parameters": {"l": {"axes": "d", "init": "ones"}},
        "rewrite": {"y": "y * l"}, "merge": {"W": "W * l", "b": "b * l"},
    }  # fmt: skip
    model = entry("gemma2").model()
    with pytest.raises(peftc.errors.NoMatchError, match="computes its W from a parameter"):
        peftc.plan(model, [peftc.Rule.model_validate(rule)], inputs(model), defaults=False)


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")  # HF PEFT says so of every norm
@pytest.mark.parametrize(
    ("make", "ends"),
    [(bert, r".*LayerNorm"), (llama, r".*norm"), (lambda: entry("t5").model(), r".*layer_norm")],
    ids=["bert", "llama", "t5"],
)
def test_layernorm_is_hf_pefts(make: Callable[[], Any], ends: str) -> None:
    model = make()
    given = inputs(model) if ends.endswith("layer_norm") else call(model)
    config = peft.LNTuningConfig(target_modules=ends)
    theirs: Any = peft.get_peft_model(copy.deepcopy(model), config).eval()
    compiled: Any = peftc.compile(model, ["layernorm"], given, defaults=False).eval()
    own = trainable(compiled)
    others = {
        name.removeprefix("base_model.model.").replace("ln_tuning_layers.default.", ""): parameter
        for name, parameter in trainable(theirs).items()
    }
    assert set(own) == set(others)
    for name, parameter in own.items():
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn(parameter.shape))
            others[name].copy_(parameter)
    got, want = compiled(**given).logits, theirs(**given).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert not torch.equal(got, model(**given).logits)
    got.square().mean().backward()
    want.square().mean().backward()
    for name, parameter in own.items():
        torch.testing.assert_close(parameter.grad, others[name].grad, atol=1e-6, rtol=1e-4)


def test_a_task_head_trains_by_default_and_the_plan_says_so() -> None:
    compiled: Any = peftc.compile(bert(), ["lora:q"])
    assert set(compiled.peftc_plan.trained) == {"classifier.weight", "classifier.bias"}
    assert any("head acts by default" in note for note in compiled.peftc_plan.notes)
    compiled = peftc.compile(bert(), ["lora:q"], defaults=False)
    assert not compiled.peftc_plan.trained


@pytest.mark.slow
def test_a_head_over_the_vocabulary_does_not() -> None:
    compiled: Any = peftc.compile(llama(), ["lora:q"])
    assert not compiled.peftc_plan.trained


def test_head_alone() -> None:
    model = bert()
    check_training(
        model, peftc.compile(model, ["head"], call(model)), {"classifier.weight", "classifier.bias"}
    )
