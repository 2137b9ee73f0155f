"""Prefixes against a written-out attention, against HF PEFT, and by what depends on what."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import peftc
from peftc.errors import MatchError
from tests.models import (
    BATCH,
    LENGTH,
    WORDS,
    bert,
    llama,
    minilm,
    mistral,
    padding,
    randomise,
    smollm2,
    tokens,
)
from tests.rules.references import BertReference, LlamaReference

PREFIX = 5
ATTENTION = {"bert": ("attention.self", BertReference), "llama": ("self_attn", LlamaReference)}


def attentions(model: Any, kind: str) -> list[str]:
    """Paths of the attentions, in order."""
    suffix = ATTENTION[kind][0]
    return [path for path, _ in model.named_modules() if path.endswith(suffix)]


def prefixes(compiled: Any) -> dict[str, dict[str, Tensor]]:
    """Path of an attention → its P_k and P_v."""
    return {
        each.site.path: {
            parameter.name: compiled.get_parameter(parameter.path) for parameter in each.parameters
        }
        for each in compiled.peftc_plan.applications
        if each.parameters
    }


def compiled_prefix(model: Any, *, positions: str = "keep", scale: float = 1.0) -> Any:
    compiled: Any = peftc.compile(model, [f"prefix:{PREFIX}(positions='{positions}')"], defaults=False)
    randomise(compiled, scale=scale)
    return compiled


def reference(model: Any, kind: str, compiled: Any, given: Callable[[], Tensor]) -> Any:
    copied, found = copy.deepcopy(model), prefixes(compiled)
    assert set(found) == set(attentions(model, kind))
    for path, tensors in found.items():
        module = ATTENTION[kind][1](copied.get_submodule(path), tensors["P_k"], tensors["P_v"], given)
        copied.set_submodule(path, module)
    return copied


CASES = [
    pytest.param(bert, "bert", id="bert"),
    pytest.param(lambda: bert(attention="eager"), "bert", id="bert-written-out"),
    pytest.param(llama, "llama", id="llama"),
    pytest.param(lambda: llama(attention="eager"), "llama", id="llama-written-out"),
    pytest.param(minilm, "bert", id="minilm"),
    # 30 layers amplify the last bit of float32 to 1e-3: in float64 a difference is a fault.
    pytest.param(lambda: smollm2().double(), "llama", id="smollm2", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("make", "kind"), CASES)
def test_the_written_out_attention(make: Callable[[], Any], kind: str) -> None:
    model = make()
    atol = 1e-8 if model.dtype == torch.float64 else 2e-5
    compiled = compiled_prefix(model)
    ids = tokens(model.config.vocab_size)
    masks = [None, torch.ones_like(ids), padding()]
    if kind == "llama":
        masks.append(padding(left=True))
    now: list[Tensor] = [torch.ones_like(ids)]
    want_of = reference(model, kind, compiled, lambda: now[0])
    parameters = [p for p in compiled.parameters() if p.requires_grad]
    for mask in masks:
        now[0] = torch.ones_like(ids) if mask is None else mask
        given = {} if mask is None else {"attention_mask": mask}
        real = now[0].bool() if kind == "llama" else torch.ones(BATCH, dtype=torch.bool)
        got, want = compiled(ids, **given).logits[real], want_of(ids, **given).logits[real]
        torch.testing.assert_close(got, want, atol=atol, rtol=atol)
        weights = torch.randn(want.shape, generator=torch.Generator().manual_seed(0))
        ours = torch.autograd.grad((got * weights).sum(), parameters)
        theirs = torch.autograd.grad((want * weights).sum(), parameters)
        for one, other in zip(ours, theirs, strict=True):
            assert (one - other).abs().max() <= atol * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        pytest.param(bert, "bert", id="bert"),
        pytest.param(llama, "llama", id="llama"),
        pytest.param(smollm2, "llama", id="smollm2", marks=pytest.mark.slow),
    ],
)
def test_hf_peft_where_positions_shift(make: Callable[[], Any], kind: str) -> None:
    from peft import PrefixTuningConfig, get_peft_model

    model = make()
    task = "SEQ_CLS" if kind == "bert" else "CAUSAL_LM"
    theirs: Any = get_peft_model(
        copy.deepcopy(model), PrefixTuningConfig(task_type=task, num_virtual_tokens=PREFIX)
    )
    compiled = compiled_prefix(model, positions="shift")
    found = prefixes(compiled)
    rows = [
        found[path][name].transpose(0, 1).reshape(PREFIX, -1)
        for path in attentions(model, kind)
        for name in ("P_k", "P_v")
    ]
    embeddings = theirs.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        embeddings.copy_(torch.cat(rows, -1))
    ids = tokens(model.config.vocab_size)
    labels = torch.tensor([0, 1, 1]) if kind == "bert" else ids
    for mask in (torch.ones_like(ids), padding()):
        one = compiled(input_ids=ids, attention_mask=mask, labels=labels)
        other = theirs.eval()(input_ids=ids, attention_mask=mask, labels=labels)
        assert (one.logits - other.logits).abs().max() <= 1e-5
        compiled.zero_grad()
        theirs.zero_grad()
        one.loss.backward()
        other.loss.backward()
        ours = torch.cat(
            [
                found[path][name].grad.transpose(0, 1).reshape(PREFIX, -1)  # type: ignore[union-attr]
                for path in attentions(model, kind)
                for name in ("P_k", "P_v")
            ],
            -1,
        )
        assert (ours - embeddings.grad).abs().max() <= 1e-5 * embeddings.grad.abs().max()


def test_positions_matter() -> None:
    model = llama()
    ids = tokens()
    keep, shift = (compiled_prefix(model, positions=positions) for positions in ("keep", "shift"))
    with torch.no_grad():
        assert (keep(ids).logits - shift(ids).logits).abs().max() > 1e-4


def test_every_token_sees_the_prefix_and_no_later_token() -> None:
    compiled = compiled_prefix(llama())
    embedded = compiled.get_input_embeddings()(tokens(batch=2)).detach().requires_grad_()
    logits = compiled(inputs_embeds=embedded).logits
    parameters = [p for p in compiled.parameters() if p.requires_grad]
    sees = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    for token in range(LENGTH):
        gradients = torch.autograd.grad(logits[0, token].sum(), [embedded, *parameters], retain_graph=True)
        sees[token] = gradients[0][0].abs().sum(-1) > 0
        assert not gradients[0][1].abs().sum(), "another row of the batch"
        for gradient in gradients[1:]:
            assert bool((gradient.abs().sum(-1) > 0).all()), f"token {token} does not see the whole prefix"
    assert torch.equal(sees, torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())


def test_padding_stays_hidden_and_the_prefix_stays_seen() -> None:
    compiled = compiled_prefix(bert())
    mask = padding()
    embedded = compiled.get_input_embeddings()(tokens()).detach().requires_grad_()
    logits = compiled(inputs_embeds=embedded, attention_mask=mask).logits
    parameters = [p for p in compiled.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(logits.sum(), [embedded, *parameters])
    assert torch.equal(gradients[0].abs().sum(-1) > 0, mask.bool())
    for gradient in gradients[1:]:
        assert bool((gradient.abs().sum(-1) > 0).all())


@pytest.fixture(params=["always", "window"])
def sliding(request: pytest.FixtureRequest) -> Any:
    """(visible, model whose queries see four tokens, compiled)"""
    model = mistral()
    compiled: Any = peftc.compile(model, [f"prefix:{PREFIX}(visible={request.param})"], defaults=False)
    randomise(compiled)
    return request.param, model, compiled


def test_a_prefix_under_a_sliding_window(sliding: Any) -> None:
    visible, model, compiled = sliding
    copied = copy.deepcopy(model)
    for path, own in prefixes(compiled).items():
        module = copied.get_submodule(path)
        real = lambda: padding(left=True)  # noqa: E731
        reference = LlamaReference(module, own["P_k"], own["P_v"], real, window=4, slides=visible == "window")
        copied.set_submodule(path, reference)
    ids, mask = tokens(), padding(left=True)
    got, want = (each(ids, attention_mask=mask).logits[mask.bool()] for each in (compiled, copied))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    parameters = [p for p in compiled.parameters() if p.requires_grad]
    for one, other in zip(
        *(torch.autograd.grad(out.square().sum(), parameters) for out in (got, want)), strict=True
    ):
        assert (one - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max()))


def test_decoding_past_the_window_is_one_forward(sliding: Any) -> None:
    _, _, compiled = sliding
    ids = tokens(length=14)
    with torch.no_grad():
        whole = compiled(ids).logits
        step = compiled(ids[:, :3], use_cache=True)
        got, cache = [step.logits], step.past_key_values
        for start, stop in ((3, 4), (4, 9), (9, 10), (10, 11), (11, 14)):
            step = compiled(ids[:, start:stop], past_key_values=cache, use_cache=True)
            got.append(step.logits)
    torch.testing.assert_close(torch.cat(got, 1), whole, atol=1e-5, rtol=1e-5)


def test_dropout_takes_keys_of_each_row_apart() -> None:
    compiled: Any = peftc.compile(llama(num_hidden_layers=1), [f"prefix:{PREFIX}(drop=0.5)"], defaults=False)
    randomise(compiled)
    ids = tokens()[:1].expand(3, -1)
    with torch.no_grad():
        assert torch.equal(compiled.eval()(ids).logits[0], compiled(ids).logits[1])
        one, other, third = compiled.train()(ids).logits
        assert not torch.equal(one, other)
        assert not torch.equal(other, third)
        many = torch.stack([compiled(ids).logits.mean(0) for _ in range(200)]).mean(0)
    assert (many - one).abs().max() < (other - one).abs().max(), "on average it is the whole prefix, nearly"
    compiled(ids).logits.sum().backward()
    for tensors in prefixes(compiled).values():
        assert all(bool(tensor.grad.abs().max() > 0) for tensor in tensors.values())  # type: ignore[union-attr]


TEXT = f"prefix:{PREFIX}(init=text, positions=shift)"


def test_a_text_is_a_prefix() -> None:
    """With the keys and values of a text in front, the model goes on as if the text were there."""
    model, text, ids = llama(), tokens(batch=2, length=PREFIX + 2, seed=1), tokens()
    compiled: Any = peftc.compile(model, [TEXT], defaults=False, data={"input_ids": text})
    before = text[:1, :PREFIX].expand(len(ids), -1)
    with torch.no_grad():
        want = model(torch.cat([before, ids], 1)).logits[:, PREFIX:]
        torch.testing.assert_close(compiled(ids).logits, want, atol=1e-5, rtol=1e-5)
    compiled(ids).logits.sum().backward()
    for tensors in prefixes(compiled).values():
        assert all(bool(tensor.grad.abs().max() > 0) for tensor in tensors.values())  # type: ignore[union-attr]


def test_a_text_has_to_be_long_enough() -> None:
    with pytest.raises(MatchError, match="there are none"):
        peftc.compile(llama(), [TEXT], defaults=False)
    with pytest.raises(MatchError, match="P_k starts as cannot be computed") as caught:
        peftc.compile(llama(), [TEXT], defaults=False, data={"input_ids": tokens(length=PREFIX - 1)})
    assert "longer texts" in str(caught.value)


@pytest.mark.parametrize("side", ["before", "behind"])
def test_padding_is_no_text(side: str) -> None:
    text = tokens(batch=2, length=PREFIX + 2, seed=1)
    mask = torch.ones_like(text)
    mask[0, :1] = 0
    mask = mask if side == "before" else mask.flip(1)
    data = {"input_ids": text, "attention_mask": mask}
    if side == "behind":  # as many tokens as are taken
        peftc.compile(llama(), [TEXT], data, defaults=False, data=data)
        mask[0, PREFIX - 1 :] = 0
    with pytest.raises(MatchError, match=f"the first {PREFIX} keys of the data's first row, and padding"):
        peftc.compile(llama(), [TEXT], data, defaults=False, data=data)


def counted(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return function(*args, **kwargs)

    return run


@pytest.mark.parametrize(
    "make", [lambda: bert(dropout=0.2), lambda: llama(attention_dropout=0.2)], ids=["bert", "llama"]
)
def test_gradient_checkpointing_changes_nothing(make: Callable[[], Any]) -> None:
    model = make()
    compiled = compiled_prefix(model).train()
    ids = tokens()
    labels = ids if hasattr(model, "lm_head") else torch.tensor([0, 1, 1])
    runs: list[list[Tensor]] = []
    calls: list[int] = []
    compiled(input_ids=ids, attention_mask=padding(), labels=labels)
    functions = compiled._peftc.templates.functions
    for number, function in enumerate(functions):
        functions[number] = counted(function, calls)
    for enabled in (False, True):
        if enabled:
            compiled.gradient_checkpointing_enable()
        compiled.zero_grad()
        calls.clear()
        torch.manual_seed(3)
        loss = compiled(input_ids=ids, attention_mask=padding(), labels=labels).loss
        loss.backward()
        assert len(calls) == (4 if enabled else 2), "a checkpointed block runs again for its gradient"
        runs.append([loss.detach(), *[p.grad.clone() for p in compiled.parameters() if p.requires_grad]])
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_prefix_never_enters_the_cache() -> None:
    model = llama()
    compiled = compiled_prefix(model)
    ids = tokens()
    with torch.no_grad():
        cache = compiled(ids, use_cache=True).past_key_values
        assert cache.get_seq_length() == LENGTH
        plain = model(ids, use_cache=True).past_key_values
        torch.testing.assert_close(cache.layers[0].keys, plain.layers[0].keys)
        more = tokens(seed=8, length=3)
        step = compiled(more, past_key_values=cache, use_cache=True)
        assert step.past_key_values.get_seq_length() == LENGTH + 3
        whole = compiled(torch.cat([ids, more], 1)).logits[:, -3:]
    torch.testing.assert_close(step.logits, whole, atol=1e-5, rtol=1e-5)


def test_layers_can_be_chosen() -> None:
    compiled: Any = peftc.compile(llama(), [f"prefix:{PREFIX}@1"], defaults=False)
    assert list(prefixes(compiled)) == ["model.layers.1.self_attn"]
    assert compiled(tokens()).logits.shape == (BATCH, LENGTH, WORDS)
