"""A prefix made by a network: against one large network written out, against HF PEFT, and folded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import peftc
from tests.models import bert, llama, padding, randomise, tokens
from tests.rules.references import BertReference, LlamaReference

LENGTH, HIDDEN = 5, 7
SPEC = f"prefix_mlp:{LENGTH}(hidden={HIDDEN})"
ATTENTION = {"bert": ("attention.self", BertReference), "llama": ("self_attn", LlamaReference)}


def tensors(compiled: Any) -> dict[str, dict[str, Tensor]]:
    """Path of an attention → its parameters, by their names in the rule."""
    return {
        each.site.path: {
            parameter.name: compiled.get_parameter(parameter.path) for parameter in each.parameters
        }
        for each in compiled.peftc_plan.applications
        if each.parameters
    }


def written_out(found: dict[str, dict[str, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Path → (P_k, P_v) [kv_heads length width]: MLP(P′) with one last matrix for all layers, then taken apart."""
    first = next(iter(found.values()))
    assert all(own["P"] is first["P"] and own["W"] is first["W"] for own in found.values())
    rows = [(path, part, own[f"W_{part}"], own[f"b_{part}"]) for path, own in found.items() for part in "kv"]
    last = torch.cat([weight.reshape(-1, weight.shape[-1]) for _, _, weight, _ in rows])
    bias = torch.cat([own.reshape(-1) for *_, own in rows])
    out = torch.tanh(first["P"] @ first["W"].T + first["b"]) @ last.T + bias
    made: dict[tuple[str, str], Tensor] = {}
    start = 0
    for path, part, weight, _ in rows:
        heads, width, _ = weight.shape
        made[path, part] = out[:, start : start + heads * width].reshape(-1, heads, width).transpose(0, 1)
        start += heads * width
    return {path: (made[path, "k"], made[path, "v"]) for path in found}


@pytest.mark.parametrize(("make", "kind"), [(bert, "bert"), (llama, "llama")], ids=["bert", "llama"])
def test_one_network_for_all_layers(make: Callable[[], Any], kind: str) -> None:
    model = make()
    compiled: Any = peftc.compile(model, [SPEC], defaults=False).eval()
    randomise(compiled)
    ids, mask = tokens(model.config.vocab_size), padding()
    copied = copy.deepcopy(model)
    for path, (p_k, p_v) in written_out(tensors(compiled)).items():
        assert path.endswith(ATTENTION[kind][0])
        copied.set_submodule(path, ATTENTION[kind][1](copied.get_submodule(path), p_k, p_v, lambda: mask))
    real = mask.bool() if kind == "llama" else torch.ones(len(mask), dtype=torch.bool)
    parameters = [p for p in compiled.parameters() if p.requires_grad]
    got, want = (each(ids, attention_mask=mask).logits[real] for each in (compiled, copied))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(out.square().sum(), parameters) for out in (got, want))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max()))
    with torch.no_grad():
        assert torch.equal(compiled(ids, attention_mask=mask).logits[real], got), "folded"


def classifier(mlp: bool) -> tuple[Any, Any]:
    """A model, and it compiled with the rule for tasks of understanding, in evaluation."""
    model = bert()
    settings = f"encoder=mlp, hidden={HIDDEN}" if mlp else "drop=0.1"
    compiled: Any = peftc.compile(model, [f"p_tuning_v2:{LENGTH}({settings})"]).eval()
    randomise(compiled)
    return model, compiled


@pytest.mark.parametrize("mlp", [False, True], ids=["alone", "mlp"])
def test_p_tuning_v2(mlp: bool) -> None:
    model, compiled = classifier(mlp)
    assert set(compiled.peftc_plan.trained) == {"classifier.weight", "classifier.bias"}
    found = {
        path: {name.removeprefix("mlp_").removeprefix("prefix_"): held for name, held in own.items()}
        for path, own in tensors(compiled).items()
    }
    made = written_out(found) if mlp else {path: (own["P_k"], own["P_v"]) for path, own in found.items()}
    copied, ids, mask = copy.deepcopy(model), tokens(), padding()
    copied.classifier = compiled.classifier
    for path, (p_k, p_v) in made.items():
        copied.set_submodule(path, BertReference(copied.get_submodule(path), p_k, p_v, lambda: mask))
    parameters = [p for p in compiled.parameters() if p.requires_grad]
    got, want = (each(ids, attention_mask=mask).logits for each in (compiled, copied))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(out.square().sum(), parameters) for out in (got, want))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max()))
    compiled.train()
    assert not torch.equal(*(compiled(ids, attention_mask=mask).logits for _ in range(2))), "it drops out"


def test_hf_peft() -> None:
    from peft import PrefixTuningConfig, get_peft_model

    model = bert()
    config = PrefixTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=LENGTH, prefix_projection=True, encoder_hidden_size=HIDDEN
    )
    theirs: Any = get_peft_model(copy.deepcopy(model), config).eval()
    compiled: Any = peftc.compile(model, [f"{SPEC[:-1]}, positions=shift)"], defaults=False).eval()
    randomise(compiled)
    found, encoder = tensors(compiled), theirs.prompt_encoder["default"]
    first = next(iter(found.values()))
    with torch.no_grad():
        encoder.embedding.weight.copy_(first["P"])
        encoder.transform[0].weight.copy_(first["W"])
        encoder.transform[0].bias.copy_(first["b"])
        parts = [(own[f"W_{part}"], own[f"b_{part}"]) for own in found.values() for part in "kv"]
        encoder.transform[2].weight.copy_(torch.cat([weight.flatten(0, 1) for weight, _ in parts]))
        encoder.transform[2].bias.copy_(torch.cat([bias.flatten() for _, bias in parts]))
    given = {"input_ids": tokens(), "attention_mask": padding(), "labels": torch.tensor([0, 1, 1])}
    one, other = compiled(**given), theirs(**given)
    assert (one.logits - other.logits).abs().max() <= 1e-5
    one.loss.backward()
    other.loss.backward()
    for ours, same in (("P", encoder.embedding.weight), ("W", encoder.transform[0].weight)):
        assert (first[ours].grad - same.grad).abs().max() <= 1e-5 * same.grad.abs().max()


@pytest.mark.slow
def test_training_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    model, ids = llama(), tokens()
    compiled: Any = peftc.compile(model, [SPEC], defaults=False)
    compiled.save_pretrained(tmp_path / "begun")
    again: Any = peftc.load(model, tmp_path / "begun", trainable=True).train()
    losses: list[list[float]] = []
    for each in (compiled, again):
        optimizer = torch.optim.AdamW(peftc.param_groups(each, lr=1e-2))
        losses.append([])
        for _ in range(3):
            loss = each(ids, labels=ids).loss
            losses[-1].append(float(loss.detach()))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert losses[0] == losses[1]
    assert losses[0][2] < losses[0][0]
