"""Puts the references of feed-forward and attention methods into a model, and compares it with a compiled one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.models import BATCH, padding, tokens
from tests.rules.references import (
    BertFeedForward,
    BertReference,
    Bottleneck,
    Gate,
    GatedUpdate,
    LlamaFeedForward,
    LlamaReference,
)

ATTENTION: dict[str, Any] = {"bert": BertReference, "llama": LlamaReference}


def applied(compiled: Any, role: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Path of each site of a role, and the new parameters there by their names in the rule."""
    for each in compiled.peftc_plan.applications:
        if each.site.role == role and each.parameters:
            yield each.site.path, {p.name: compiled.get_parameter(p.path) for p in each.parameters}


def gate_of(tensors: dict[str, Tensor], real: Callable[[], Tensor] | None) -> Gate | None:
    """The gate among some parameters."""
    return Gate(tensors["gate_w"], tensors["gate_b"], real) if "gate_w" in tensors else None


def reference(
    model: Any,
    kind: str,
    compiled: Any,
    given: Callable[[], Tensor],
    *,
    scale: float = 1.0,
    parallel: bool = False,
    padded: bool = False,
) -> Any:
    """A copy of `model` with every method of `compiled` written out; `given` is the mask of the call.

    With `padded`, gates take their mean over padding too.
    """
    real = None if padded else given
    copied = copy.deepcopy(model)
    for path, tensors in applied(compiled, "linear"):
        gate = gate_of(tensors, real)
        assert gate is not None
        own = copied.get_submodule(path)
        copied.set_submodule(path, GatedUpdate(own, tensors["lora_A"], tensors["lora_B"], gate))
    for path, tensors in applied(compiled, "attention"):
        p_k, p_v = tensors["prefix_P_k"], tensors["prefix_P_v"]
        own = copied.get_submodule(path)
        copied.set_submodule(path, ATTENTION[kind](own, p_k, p_v, given, gate_of(tensors, real)))
    for path, tensors in applied(compiled, "ffn"):
        plain = {name.removeprefix("bottleneck_"): tensor for name, tensor in tensors.items()}
        added = Bottleneck(plain, scale, parallel, gate_of(tensors, real))
        if kind == "bert":
            output = copied.get_submodule(f"{path}.output")
            copied.set_submodule(f"{path}.output", BertFeedForward(output, added))
        else:
            copied.set_submodule(path, LlamaFeedForward(copied.get_submodule(path), added))
    return copied


def check_equal(model: Any, kind: str, compiled: Any, **settings: Any) -> None:
    """Outputs and gradients of a compiled model are those of its reference, with and without padding.

    In float64, where a difference is a fault: a gate's one bias gathers the rounding of all tokens.
    """
    assert model.dtype == torch.float64
    ids = tokens(model.config.vocab_size)
    now = [torch.ones_like(ids)]
    want_of = reference(model, kind, compiled, lambda: now[0], **settings)
    trained = {name: p for name, p in compiled.named_parameters() if p.requires_grad}
    for mask in (None, padding()):
        now[0] = torch.ones_like(ids) if mask is None else mask
        call = {} if mask is None else {"attention_mask": mask}
        real = now[0].bool() if kind == "llama" else torch.ones(BATCH, dtype=torch.bool)
        got, want = compiled(ids, **call).logits[real], want_of(ids, **call).logits[real]
        assert (got - model(ids, **call).logits[real]).abs().max() > 1e-3
        assert (got - want).abs().max() <= 1e-9 * max(1.0, float(want.detach().abs().max()))
        weights = torch.randn(want.shape, generator=torch.Generator().manual_seed(0))
        ours = torch.autograd.grad((got * weights).sum(), list(trained.values()))
        theirs = torch.autograd.grad((want * weights).sum(), list(trained.values()))
        for name, one, other in zip(trained, ours, theirs, strict=True):
            assert other.abs().max() > 0, name
            assert (one - other).abs().max() <= 1e-8 * other.abs().max(), name


def check_saved(compiled: Any, model: Any, folder: Any) -> None:
    """What was saved is loaded bit by bit, with the flattened rules of the folder."""
    import peftc

    compiled.save_pretrained(folder)
    loaded: Any = peftc.load(model, folder)
    for name, parameter in compiled.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name
    assert not any(bound.rule.use or bound.rule.define for bound in loaded.peftc_plan.rules)
    ids = tokens(model.config.vocab_size)
    with torch.no_grad():
        assert torch.equal(compiled(ids).logits, loaded(ids).logits)
