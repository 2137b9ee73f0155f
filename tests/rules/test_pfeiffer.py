"""One bottleneck to a block with the block's own norm before it, against the equation written out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from tests.models import bert, llama, padding, randomise, tokens
from tests.zoo import entry, inputs

Call = dict[str, Any]


class Behind(nn.Module):
    """h + W_u ReLU(W_d z + b_d) + b_u of the output h of a module; z is norm(h + r), h + r, or h without a stream r."""

    def __init__(
        self, own: nn.Module, held: dict[str, Tensor], norm: nn.Module | None, stream: list[Tensor] | None
    ) -> None:
        super().__init__()
        self.own, self.held, self.norm, self.stream = own, held, norm, stream

    @property
    def weight(self) -> Any:
        """Models look at the dtype of it."""
        return self.own.weight

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.own(x)
        z = h if self.stream is None else h + self.stream[0]
        z = z if self.norm is None else self.norm(z)
        inner = (z @ self.held["down_w"].T + self.held["down_b"]).clamp(min=0)
        return h + inner @ self.held["up_w"].T + self.held["up_b"]


PLACES = {
    "bert": ("output.dense", "intermediate.dense", "output.LayerNorm"),
    "bart": ("fc2", "fc1", "final_layer_norm"),
    "llama": ("mlp", "post_attention_layernorm", ""),
    "t5": ("DenseReluDense", "layer_norm", ""),
}
"""What the bottleneck stands behind, what reads the stream, and the norm that takes the sum, below a block's path."""


def blocks(model: Any, kind: str) -> list[str]:
    """Paths of the modules that have all three places."""
    end, reader, _ = PLACES[kind]
    paths = {path for path, _ in model.named_modules()}
    found = [path for path in paths if {f"{path}.{end}", f"{path}.{reader}"} <= paths]
    return [path for path in found if ".attention.output" not in path]


def by_hand(model: Any, kind: str, compiled: Any, reads: str) -> Any:
    """A copy of the model with the equation written into every block."""
    made = copy.deepcopy(model)
    held = {
        application.site.path: {p.name: compiled.get_parameter(p.path) for p in application.parameters}
        for application in compiled.peftc_plan.applications
    }
    paths = blocks(model, kind)
    assert len(held) == len(paths)
    end, reader, norm = PLACES[kind]
    for path in paths:
        own = held.get(path) or held.get(f"{path}.{end}")
        assert own is not None, path
        stream: list[Tensor] = []

        def keep(_: Any, given: tuple[Tensor, ...], stream: list[Tensor] = stream) -> None:
            stream[:] = [given[0]]

        made.get_submodule(f"{path}.{reader}").register_forward_pre_hook(keep)
        inner = made.get_submodule(f"{path}.{end}")
        normed = made.get_submodule(f"{path}.{norm}") if norm else None
        made.set_submodule(
            f"{path}.{end}", Behind(inner, own, normed, stream if norm or reads == "sum" else None)
        )
    return made


def text(model: Any) -> Call:
    return {"input_ids": tokens(), "attention_mask": padding()}


CASES: dict[str, tuple[Callable[[], Any], str, str, Callable[[Any], Call]]] = {
    "post-norm": (bert, "bert", "branch", text),
    "pre-norm": (llama, "llama", "branch", text),
    "pre-norm, the sum": (llama, "llama", "sum", text),
    "two sequences": (lambda: entry("t5").model(), "t5", "branch", inputs),
    "two sequences, post-norm": (lambda: entry("bart").model(), "bart", "branch", inputs),
}


@pytest.mark.parametrize("case", CASES)
def test_the_equation(case: str) -> None:
    make, kind, reads, call = CASES[case]
    model = make().double()
    given = call(model)
    compiled: Any = peftc.compile(model, [f"pfeiffer:8(reads={reads})"], given, defaults=False)
    with torch.no_grad():
        assert torch.equal(compiled(**given).logits, model(**given).logits)
    randomise(compiled)
    want_of = by_hand(model, kind, compiled, reads)
    got, want = compiled(**given).logits, want_of(**given).logits
    assert (got - model(**given).logits).abs().max() > 1e-3
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)
    own = {name: p for name, p in compiled.named_parameters() if p.requires_grad}
    weights = torch.randn_like(want)
    ours = torch.autograd.grad((got * weights).sum(), list(own.values()))
    theirs = torch.autograd.grad((want * weights).sum(), list(own.values()))
    for name, one, other in zip(own, ours, theirs, strict=True):
        assert other.abs().max() > 0, name
        assert (one - other).abs().max() <= 1e-8 * other.abs().max(), name


def test_it_is_once_to_a_block_and_trains_no_norm() -> None:
    for model_type in ("gpt_neox", "bert", "deepseek_v3"):
        model = entry(model_type).model()
        plan = peftc.plan(model, ["pfeiffer:8"], inputs(model), defaults=False)
        assert [each.site.layer for each in plan.applications] == [0, 1], model_type
        assert not plan.trained


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model = bert()
    compiled: Any = peftc.compile(model, ["pfeiffer:8"], defaults=False)
    randomise(compiled)
    compiled.save_pretrained(tmp_path / "adapter")
    loaded: Any = peftc.load(model, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(loaded(tokens()).logits, compiled(tokens()).logits)


def test_the_papers_numbers_are_the_defaults() -> None:
    plan = peftc.plan(bert(), ["pfeiffer"], defaults=False)
    assert plan.bound("pfeiffer").options == {"size": 48, "act": "relu", "reads": "branch"}


def test_what_it_puts_in(golden: Callable[[str, str], None]) -> None:
    model = bert(num_hidden_layers=1)
    golden(
        "pfeiffer/bert_tiny.diff.txt", str(peftc.diff(peftc.compile(model, ["pfeiffer:8"], defaults=False)))
    )
