"""The compiled module as a module: class, storage, copies, dtypes, submodules, generation."""

from __future__ import annotations

import copy
import inspect
import io
import os
import pickle
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.errors import StoreError
from tests.models import bert, llama, minilm, padding, randomise, smollm2, tokens

RULES = ["lora:q,v", "prefix:20"]
MAKERS = [
    pytest.param(lambda: bert(dropout=0.2), id="bert"),
    pytest.param(lambda: llama(attention_dropout=0.2), id="llama"),
    pytest.param(minilm, id="minilm"),
    pytest.param(smollm2, id="smollm2", marks=pytest.mark.slow),
]


def labels_for(model: Any, ids: Tensor) -> Tensor:
    return ids if hasattr(model, "lm_head") else torch.tensor([0, 1, 1])


@pytest.mark.parametrize("make", MAKERS)
def test_off_is_the_original_bit_for_bit_and_on_trains_what_is_planned(make: Callable[[], Any]) -> None:
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    ids = tokens(model.config.vocab_size)
    batch = {"input_ids": ids, "attention_mask": padding(), "labels": labels_for(model, ids)}
    compiled: Any = peftc.compile(model, RULES, batch)
    randomise(compiled)
    assert isinstance(compiled, type(model))
    for train in (False, True):
        model.train(train)
        compiled.train(train)
        for given in (batch, {**batch, "attention_mask": torch.ones_like(ids)}):
            torch.manual_seed(4)
            want = model(**given)
            torch.manual_seed(4)
            with compiled.disable_adapter():
                got = compiled(**given)
            assert torch.equal(got.logits, want.logits)
            assert torch.equal(got.loss, want.loss)
    compiled(**batch).loss.backward()
    plan = compiled.peftc_plan
    planned = {p.path for p in plan.new_parameters} | set(plan.trained)
    assert {name for name, p in compiled.named_parameters() if p.requires_grad} == planned
    for name, parameter in compiled.named_parameters():
        assert (parameter.grad is not None) == (name in planned), name
        assert name not in planned or bool(parameter.grad.any()), name
    assert plan.trainable_count == sum(p.numel() for p in compiled.parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW(
        [p for p in compiled.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    optimizer.step()
    assert [type(module) for module in model.modules()] == kinds
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def generator() -> str:
    """The backend that makes code, where there is a compiler for it."""
    return "inductor" if shutil.which(os.environ.get("CXX", "g++")) else "aot_eager"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the code generator's own
@pytest.mark.parametrize("make", [bert, pytest.param(llama, marks=pytest.mark.slow)])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_torch_compile_agrees_with_eager(make: Callable[..., Any], train: bool) -> None:
    model = make(num_hidden_layers=1)  # generated code takes long to compile; the dropout test below has two
    ids = tokens()
    batch = {"input_ids": ids, "attention_mask": padding(), "labels": labels_for(model, ids)}
    compiled: Any = peftc.compile(model, ["lora:q,v", "prefix:4"], batch)
    randomise(compiled)
    compiled.train(train)
    torch._dynamo.reset()
    fast: Any = torch.compile(compiled, fullgraph=True, backend=generator())
    one, other = compiled(**batch), fast(**batch)
    assert type(other) is type(one)
    torch.testing.assert_close(other.logits, one.logits, atol=1e-5, rtol=1e-5)
    parameters = [p for p in compiled.parameters() if p.requires_grad]
    for a, b in zip(
        torch.autograd.grad(one.loss, parameters), torch.autograd.grad(other.loss, parameters), strict=True
    ):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, float(a.abs().max()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the code generator's own
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_torch_compile_agrees_with_eager_at_full_depth(train: bool) -> None:
    """30 layers, real weights. The bound is relative: logits reach 32, where one float32 step is 4e-6, and the
    plain model under torch.compile differs from itself by 2e-6 of that too."""
    model = smollm2()
    torch.manual_seed(0)
    ids = torch.randint(5, 1000, (2, 32))
    compiled: Any = peftc.compile(model, ["lora:q,v", "prefix:20"])
    for name, parameter in compiled.named_parameters():
        if name.endswith(".B"):
            torch.nn.init.normal_(parameter, std=0.002)  # what a short training leaves
    compiled.train(train)
    torch._dynamo.reset()
    fast: Any = torch.compile(compiled, fullgraph=True, backend=generator())
    one, other = compiled(input_ids=ids, labels=ids), fast(input_ids=ids, labels=ids)
    largest = one.logits.abs().max().item()
    assert (one.logits - other.logits).abs().max().item() <= 1e-5 * largest
    assert (one.loss - other.loss).abs().item() <= 1e-5
    parameters = [p for p in compiled.parameters() if p.requires_grad]
    whole = [
        torch.cat([gradient.flatten() for gradient in torch.autograd.grad(output.loss, parameters)])
        for output in (one, other)
    ]
    assert (whole[0] - whole[1]).norm().item() <= 1e-4 * whole[0].norm().item()


def test_torch_compile_of_a_call_never_made_before() -> None:
    compiled: Any = peftc.compile(llama(), ["lora:q,v"])
    randomise(compiled)
    torch._dynamo.reset()
    fast: Any = torch.compile(compiled, fullgraph=True, backend="eager")
    ids = tokens()
    got = fast(input_ids=ids, attention_mask=padding())
    torch.testing.assert_close(got.logits, compiled(input_ids=ids, attention_mask=padding()).logits)


def test_torch_compile_draws_the_dropout_of_eager() -> None:
    model = bert(dropout=0.3)
    compiled: Any = peftc.compile(model, ["lora:q,v(drop=0.2)"])
    randomise(compiled)
    compiled.train()
    torch._dynamo.reset()
    fast: Any = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    results = []
    for each in (compiled, fast):
        torch.manual_seed(9)
        results.append(each(tokens()).logits)
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def test_variants_of_one_backbone_share_it() -> None:
    model = bert()
    one, two = (peftc.compile(model, [rule], defaults=False) for rule in ("lora:q,v", "prefix:3"))
    for name, parameter in model.named_parameters():
        for each in (one, two):
            own = each.get_parameter(name)
            assert own is not parameter
            assert own.data_ptr() == parameter.data_ptr()
            assert not own.requires_grad
        assert parameter.requires_grad


@pytest.mark.parametrize(("make", "part"), [(bert, "bert"), (llama, "model")])
def test_submodules_run_with_their_adapters(make: Callable[[], Any], part: str) -> None:
    model = make()
    compiled: Any = peftc.compile(model, ["lora:q,v", "prefix:3"], defaults=False)
    ids = tokens()
    inner, plain = getattr(compiled, part), getattr(model, part)
    with torch.no_grad():
        with compiled.disable_adapter():
            assert torch.equal(inner(ids).last_hidden_state, plain(ids).last_hidden_state)
        randomise(compiled)
        hidden = inner(ids).last_hidden_state
        assert not torch.allclose(hidden, plain(ids).last_hidden_state, atol=1e-3)
        logits = (
            compiled.lm_head(hidden) if part == "model" else compiled.classifier(inner(ids).pooler_output)
        )
        torch.testing.assert_close(logits, compiled(ids).logits, atol=1e-5, rtol=1e-5)


def test_greedy_generation_with_a_cache_is_the_loop_without_one() -> None:
    model = llama()
    compiled: Any = peftc.compile(model, ["lora:q,v", "prefix:3"])
    randomise(compiled, scale=0.5)
    ids = tokens(batch=2, length=5)
    settings: dict[str, Any] = {
        "max_new_tokens": 7,
        "do_sample": False,
        "attention_mask": torch.ones_like(ids),
    }
    with torch.no_grad():
        loop = ids
        for _ in range(7):
            loop = torch.cat([loop, compiled(loop).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(compiled.generate(ids, **settings), loop)
    plain = model.generate(ids, **settings)
    assert not torch.equal(loop, plain)
    with compiled.disable_adapter():
        assert torch.equal(compiled.generate(ids, **settings), plain)


def test_padded_generation_is_that_of_each_row_alone() -> None:
    compiled: Any = peftc.compile(llama(), ["lora:q,v", "prefix:3"])
    randomise(compiled, scale=0.5)
    ids, mask = tokens(batch=2, length=6), padding(2, 6, left=True)
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    both = compiled.generate(ids.masked_fill(mask == 0, 0), attention_mask=mask, **settings)
    alone = compiled.generate(ids[1:, 2:], attention_mask=torch.ones(1, 4, dtype=torch.int64), **settings)
    assert torch.equal(both[1, 6:], alone[0, 4:])


def test_half_precision() -> None:
    model = llama()
    compiled: Any = peftc.compile(model, ["lora:q,v", "prefix:3"])
    compiled(tokens())
    compiled.to(torch.bfloat16)
    out = compiled(tokens())
    assert out.logits.dtype == torch.bfloat16
    out.logits.float().sum().backward()
    assert all(p.grad.dtype == torch.bfloat16 for p in compiled.parameters() if p.requires_grad)
    half = copy.deepcopy(model).to(torch.bfloat16)
    with torch.no_grad(), compiled.disable_adapter():
        assert torch.equal(compiled(tokens()).logits, half(tokens()).logits)
    assert model.dtype == torch.float32


def test_copies_stand_alone() -> None:
    compiled: Any = peftc.compile(bert(), ["lora:q,v", "prefix:3"])
    randomise(compiled)
    want = compiled(tokens()).logits
    copied = copy.deepcopy(compiled)
    assert torch.equal(copied(tokens()).logits, want)
    randomise(copied, seed=8)
    assert not torch.equal(copied(tokens()).logits, want)
    assert torch.equal(compiled(tokens()).logits, want)
    with compiled.disable_adapter():
        assert torch.equal(compiled(tokens()).logits, bert()(tokens()).logits)
        assert not torch.equal(copied(tokens()).logits, compiled(tokens()).logits)
    copied(tokens()).logits.sum().backward()
    assert all(p.grad is None for p in compiled.parameters())
    assert all(p.grad is not None for p in copied.parameters() if p.requires_grad)


def test_state_dicts_load() -> None:
    model = bert()
    one, two = (peftc.compile(model, ["lora:q,v", "prefix:3"]) for _ in range(2))
    randomise(one)
    assert set(model.state_dict()) <= set(one.state_dict())
    stream = io.BytesIO()
    torch.save(one.state_dict(), stream)
    stream.seek(0)
    two.load_state_dict(torch.load(stream, weights_only=True))
    with torch.no_grad():
        assert torch.equal(two(tokens()).logits, one(tokens()).logits)


def test_gradient_checkpointing_can_be_switched_on_and_off() -> None:
    compiled: Any = peftc.compile(llama(), ["lora:q,v"])
    assert not compiled.is_gradient_checkpointing
    compiled.gradient_checkpointing_enable()
    assert compiled.is_gradient_checkpointing
    compiled.gradient_checkpointing_disable()
    assert not compiled.is_gradient_checkpointing


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers renames the method
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    compiled: Any = peftc.compile(llama(), ["lora:q,v"])
    randomise(compiled)
    compiled.train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            compiled.gradient_checkpointing_enable({"use_reentrant": reentrant})
        compiled(input_ids=tokens(), labels=tokens()).loss.backward()
        gradients.append([p.grad for p in compiled.parameters() if p.requires_grad])
        compiled.zero_grad()
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-5)


def test_a_transformers_model_needs_no_example() -> None:
    for model in (bert(), llama()):
        compiled = peftc.compile(model, rules=["lora:q,v", "prefix:20"])
        assert isinstance(compiled, nn.Module)
        assert isinstance(compiled, type(model))
        assert type(compiled).__name__ == f"Compiled{type(model).__name__}"


def test_hooks_that_are_not_called_say_so() -> None:
    compiled: Any = peftc.compile(bert(), ["lora:q,v"])
    called = []
    compiled.bert.encoder.layer[0].register_forward_hook(lambda *_: called.append("block"))
    with pytest.warns(UserWarning, match="bert.embeddings runs as part of a captured graph"):
        compiled.bert.embeddings.register_forward_hook(lambda *_: called.append("embeddings"))
    with torch.no_grad():
        copy.deepcopy(compiled)(tokens())
    assert called == ["block"]


def test_pickling_is_refused() -> None:
    compiled: Any = peftc.compile(bert(), ["lora:q,v"])
    with pytest.raises(StoreError, match="cannot be pickled"):
        pickle.dumps(compiled)


def test_every_public_name_is_what_it_says() -> None:
    """A stage's folder must not take the place of a function of the same name."""
    for name in peftc.__all__:
        assert not inspect.ismodule(getattr(peftc, name)), name
    compiled: Any = peftc.compile(bert(), ["lora:q,v"])
    assert "lora" in peftc.graph(compiled).print_readable(print_output=False)
