"""Reparameterisations against HF PEFT's, with the same weights: values, gradients, dropout, merged weights, starts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import peftc
from tests.models import bert, llama, padding, tokens
from tests.rules.test_adapter_fusion import t5
from tests.rules.test_updates import shake

RANK, ALPHA = 4, 6
TARGETS = ["wide", "narrow"]


class Two(nn.Module):
    """A map to more channels and one to fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(24, 40), nn.Linear(40, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.narrow(torch.tanh(self.wide(x)))
        return out


X = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(1))


def same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Twin:
    """One method in both libraries.

    Attributes:
        spec: the rule, with room for `drop`.
        config: HF PEFT's, given the rate of dropout.
        names: parameter of the rule → suffix in HF PEFT's module, and how its tensor is written there.
    """

    spec: str
    config: Callable[[float], Any]
    names: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]]
    has_dropout: bool = True


def lora(**settings: Any) -> Callable[[float], Any]:
    return lambda drop: peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=drop, target_modules=TARGETS, **settings
    )


def skew(tensor: Tensor) -> Tensor:
    return -tensor


A_AND_B = {"A": ("lora_A.default.weight", same), "B": ("lora_B.default.weight", same)}
TWINS = {
    "rslora": Twin(
        f"rslora:path=*(rank={RANK}, alpha={ALPHA}, drop=DROP)",
        lora(use_rslora=True),
        {f"lora_{name}": told for name, told in A_AND_B.items()},
    ),
    "dora": Twin(
        f"dora:path=*(rank={RANK}, alpha={ALPHA}, drop=DROP)",
        lora(use_dora=True),
        {**A_AND_B, "m": ("lora_magnitude_vector.default.weight", same)},
    ),
    "vera": Twin(
        "vera:path=*(rank=5, drop=DROP)",
        lambda drop: peft.VeraConfig(r=5, vera_dropout=drop, target_modules=TARGETS),
        {
            "A": ("vera_A", same), "B": ("vera_B", same),
            "lambda_d": ("vera_lambda_d.default", same), "lambda_b": ("vera_lambda_b.default", same),
        },
    ),
    "loha": Twin(
        f"loha:path=*(rank={RANK}, alpha={ALPHA})",
        lambda _: peft.LoHaConfig(r=RANK, alpha=ALPHA, target_modules=TARGETS),
        {
            "A1": ("hada_w1_b.default", same), "B1": ("hada_w1_a.default", same),
            "A2": ("hada_w2_b.default", same), "B2": ("hada_w2_a.default", same),
        },
        has_dropout=False,
    ),
    "lokr": Twin(
        f"lokr:path=*(rank=2, alpha={ALPHA})",
        lambda _: peft.LoKrConfig(r=2, alpha=ALPHA, target_modules=TARGETS),
        {"C": ("lokr_w1.default", same), "A": ("lokr_w2_b.default", same), "B": ("lokr_w2_a.default", same)},
        has_dropout=False,
    ),
    "oft": Twin(
        "oft:path=*(block=8)",
        lambda _: peft.OFTConfig(oft_block_size=8, use_cayley_neumann=False, target_modules=TARGETS),
        {"S": ("oft_R.default.weight", skew)},  # its exact form turns the other way round than its series
        has_dropout=False,
    ),
    "oft in terms": Twin(
        "oft:path=*(block=8, terms=5)",
        lambda _: peft.OFTConfig(oft_block_size=8, target_modules=TARGETS),
        {"S": ("oft_R.default.weight", same)},
        has_dropout=False,
    ),
}  # fmt: skip


def pair(twin: Twin, drop: float = 0.0) -> tuple[Any, Any, Any]:
    """The plain model, the compiled one, and HF PEFT's with the same random parameters."""
    torch.manual_seed(0)
    model = Two()
    compiled: Any = peftc.compile(model, [twin.spec.replace("DROP", str(drop))], {"x": X}, defaults=False)
    shake(compiled)
    theirs: Any = peft.get_peft_model(copy.deepcopy(model), twin.config(drop))
    with torch.no_grad():
        for ours, other, turn in shared(twin, compiled, theirs):
            other.copy_(turn(ours))
    return model, compiled, theirs


def shared(twin: Twin, compiled: Any, theirs: Any) -> list[tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]]:
    """Each parameter of the rule, and HF PEFT's in its place."""
    found = []
    for application in compiled.peftc_plan.applications:
        for parameter in application.parameters:
            suffix, turn = twin.names[parameter.name]
            own = compiled.get_parameter(parameter.path)
            if suffix in ("vera_A", "vera_B"):
                found.append((own, getattr(theirs.base_model, suffix)["default"], turn))
            else:
                path = f"base_model.model.{application.site.path}.{suffix}"
                found.append((own, theirs.get_parameter(path), turn))
    return found


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max() / other.detach().abs().max())


@pytest.mark.parametrize("name", TWINS)
def test_values_and_gradients(name: str) -> None:
    twin = TWINS[name]
    model, compiled, theirs = pair(twin)
    got, want = compiled(X), theirs(X)
    assert relative(got, want) <= 1e-5
    assert relative(model(X), want) > 1e-2
    got.square().mean().backward()
    want.square().mean().backward()
    trained = {id(parameter) for parameter in theirs.parameters() if parameter.requires_grad}
    told = shared(twin, compiled, theirs)
    assert trained == {id(other) for _, other, _ in told if other.requires_grad}
    for ours, other, turn in told:
        assert ours.requires_grad == other.requires_grad
        if ours.requires_grad:
            assert ours.grad is not None
            assert other.grad is not None
            assert relative(turn(ours.grad), other.grad) <= 1e-5
    merged = dict(theirs.merge_and_unload().named_parameters())
    for path, parameter in compiled.merge_and_unload().named_parameters():
        assert relative(parameter, merged[path]) <= 1e-5, path


@pytest.mark.parametrize("name", [name for name, twin in TWINS.items() if twin.has_dropout])
def test_dropout(name: str) -> None:
    _, compiled, theirs = pair(TWINS[name], drop=0.4)
    outs = []
    for each in (compiled.train(), theirs.train()):
        torch.manual_seed(3)
        outs.append(each(X))
    assert relative(*outs) <= 1e-5
    assert relative(outs[0], compiled.eval()(X)) > 1e-2
    for out in outs:
        out.square().mean().backward()
    for ours, other, _ in shared(TWINS[name], compiled, theirs):
        if ours.requires_grad:
            assert ours.grad is not None
            assert other.grad is not None
            assert relative(ours.grad, other.grad) <= 1e-5


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_an_initial_part_of_the_matrix_is_the_same(name: str) -> None:
    """Signs of the vectors are free: the products must agree; then training must, from the same ones."""
    torch.manual_seed(0)
    model = Two()
    compiled: Any = peftc.compile(
        model, [f"{name}:path=*(rank={RANK}, alpha={ALPHA})"], {"x": X}, defaults=False
    )
    theirs: Any = peft.get_peft_model(copy.deepcopy(model), lora(init_lora_weights=name)(0.0))
    assert torch.equal(compiled(X), model(X))
    held = []
    for application in compiled.peftc_plan.applications:
        a, b = (
            next(compiled.get_parameter(each.path) for each in application.parameters if each.name == own)
            for own in "AB"
        )
        other = theirs.get_submodule(f"base_model.model.{application.site.path}")
        a_, b_ = other.lora_A.default.weight, other.lora_B.default.weight
        assert relative(b @ a, b_ @ a_) <= 1e-5
        with torch.no_grad():  # the signs of HF PEFT's columns
            sign = torch.sign((b * b_).sum(0))
            assert relative(b * sign, b_) <= 1e-4
            a_.copy_(sign[:, None] * a)
            b_.copy_(b * sign)
        held.append((a, a_, sign[:, None]))
        held.append((b, b_, sign))
    optimizers = [
        torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.5) for m in (compiled, theirs)
    ]
    for _ in range(3):
        for each, optimizer in zip((compiled, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            each(X).square().mean().backward()
            optimizer.step()
    assert relative(compiled(X), theirs(X)) <= 1e-5
    assert relative(compiled(X), model(X)) > 1e-3
    for ours, other, sign in held:
        assert relative(ours * sign, other) <= 1e-4


SCALED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "encoder": (bert, r".*\.(key|value)", r".*layer\.\d+\.output\.dense"),
    "decoder": (llama, r".*\.(k|v)_proj", r".*\.down_proj"),
    "both": (t5, r".*Attention\.(k|v)", r".*\.wo"),
}
"""A model, and what HF PEFT calls its keys and values, and the last maps of its feed-forward networks."""


@pytest.mark.parametrize("kind", SCALED)
def test_scaled_keys_values_and_inner_activations(kind: str) -> None:
    make, outer, inner = SCALED[kind]
    model = make()
    config = peft.IA3Config(target_modules=f"{outer}|{inner}", feedforward_modules=inner)
    theirs: Any = peft.get_peft_model(copy.deepcopy(model), config).eval()
    given = {"input_ids": tokens(), "attention_mask": padding()}
    if kind == "both":
        given["decoder_input_ids"] = tokens(seed=8)
    compiled: Any = peftc.compile(model, ["ia3"], given, defaults=False).eval()
    shake(compiled)
    pairs = []
    for application in compiled.peftc_plan.applications:
        (parameter,) = application.parameters
        ours = compiled.get_parameter(parameter.path)
        other = theirs.get_parameter(f"base_model.model.{application.site.path}.ia3_l.default")
        with torch.no_grad():
            other.copy_(ours.view_as(other))
        pairs.append((ours, other))
    assert {id(p) for p in theirs.parameters() if p.requires_grad} == {id(other) for _, other in pairs}
    real = padding().bool() if kind == "decoder" else slice(None)
    got, want = compiled(**given).logits[real], theirs(**given).logits[real]
    assert relative(got, want) <= 1e-5
    got.square().mean().backward()
    want.square().mean().backward()
    for ours, other in pairs:
        assert ours.grad is not None
        assert other.grad is not None
        assert relative(ours.grad, other.grad.view_as(ours.grad)) <= 1e-5
