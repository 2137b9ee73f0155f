"""Gradients that are wrong only beside much larger ones are named, and what cannot be told is no excuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import peftc
from peftc.certificate.gradients import captured_gradients, checkpointing, gradients_reach, is_excused
from peftc.certificate.subject import examined
from peftc.graphs.reading import is_call
from peftc.rewrite import without_adapters
from peftc.runtime import engine as engines
from tests.certificate.breaking import is_not, named
from tests.models import llama

LOUD, QUIET = 30.0, 1e-3


class Uneven(nn.Module):
    """Two maps, one of which makes most of the output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.loud, self.quiet = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        loud: Tensor = self.loud(x)
        return LOUD * loud + QUIET * torch.tanh(self.quiet(x))


def halved(x: Tensor) -> Tensor:
    """The same number, with half its gradient."""
    return 0.5 * x + 0.5 * x.detach()


def test_a_small_gradient_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*args: Any, **kwargs: Any) -> fx.Graph:
        graph = without_adapters(*args, **kwargs)
        node = next(each for each in graph.nodes if is_call(each, "tanh"))
        with graph.inserting_after(node):
            half = graph.call_function(halved, (node,))
        half.meta = dict(node.meta)
        node.replace_all_uses_with(half, delete_user_cb=is_not(half))
        return graph

    given = {"x": torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))}
    rules = ["lora:all-linear(rank=2)"]
    assert named(peftc.compile(Uneven(), rules, given), captured_gradients, **given).verdict == "pass"
    monkeypatch.setattr(engines, "without_adapters", cut)
    finding = named(peftc.compile(Uneven(), rules, given), captured_gradients, **given)
    assert finding.verdict == "fail"
    assert "quiet" in finding.detail


def test_a_small_gradient_that_checkpoints_change_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: Any = peftc.compile(llama(num_hidden_layers=1), ["lora:q,v"])
    assert named(compiled, checkpointing).verdict == "pass"
    smallest = compiled.get_parameter("model.layers.0.self_attn.q_proj.peftc.default.lora.q.A")
    enable = compiled.gradient_checkpointing_enable

    def wrong(**kwargs: Any) -> None:
        enable(**kwargs)
        smallest.register_hook(lambda gradient: 1.001 * gradient)

    monkeypatch.setattr(compiled, "gradient_checkpointing_enable", wrong)
    assert named(compiled, checkpointing).verdict == "fail"


class Failing(nn.Module):
    """A model whose own backward fails, or that no gradient goes through."""

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self.inner, self.whole = nn.Linear(6, 6), whole

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        if not self.whole:
            return out.detach()
        out.register_hook(raising)
        return out


def raising(_: Tensor) -> None:
    """A fault in the middle of a backward."""
    raise RuntimeError("a fault of the model")


def test_only_what_no_output_depends_on_is_excused() -> None:
    x = torch.randn(3, 5, 6)
    compiled = peftc.compile(Uneven(), ["bitfit"], {"x": x})
    with examined(compiled, {"x": x}) as subject:
        assert not is_excused(subject, {"x": x}, "loud.weight")
        subject.plain = Failing(whole=False)
        assert is_excused(subject, {"x": x}, "inner.weight")
        subject.plain = Failing(whole=True)
        with pytest.raises(RuntimeError, match="a fault of the model"):
            is_excused(subject, {"x": x}, "inner.weight")


class Faulty(Uneven):
    """The same two maps, and a backward that fails."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        out.register_hook(raising)
        return out


@pytest.mark.parametrize("examine", [gradients_reach, captured_gradients])
def test_what_the_model_itself_cannot_train_by_is_said(examine: Any) -> None:
    x = torch.randn(3, 5, 6)
    compiled = peftc.compile(Uneven(), ["lora:all-linear(rank=2)"], {"x": x})
    with examined(compiled, {"x": x}) as subject:
        subject.plain = Faulty()
        finding = examine(subject)
    assert finding.verdict == "not applicable"
    assert finding.detail == "the model itself cannot be trained by the call: a fault of the model"


class Writing(nn.Module):
    """Where it keeps a cache, writes into what the gradient still needs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, use_cache: bool = True) -> Tensor:
        held = torch.exp(self.inner(x))
        out: Tensor = self.outer(held)
        if use_cache:
            held.mul_(2)
        return out


def test_a_model_that_trains_without_a_cache_alone_is_examined_so() -> None:
    x = torch.randn(3, 5, 6)
    certificate = peftc.check(peftc.compile(Writing(), ["lora:all-linear(rank=2)"], {"x": x}), {"x": x})
    assert certificate.finding("gradients").verdict == "pass"
    assert certificate.finding("captured gradients").verdict == "pass"


def test_an_error_in_a_property_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def cached_decoding(_: Any) -> Any:
        raise ValueError("it gives back no cache")

    monkeypatch.setattr("peftc.certificate.PROPERTIES", (cached_decoding,))
    x = torch.randn(3, 5, 6)
    (finding,) = peftc.check(peftc.compile(Uneven(), ["bitfit"], {"x": x}), {"x": x}).findings
    assert (finding.name, finding.verdict) == ("cached decoding", "fail")
    assert finding.detail == "ValueError: it gives back no cache"


def test_a_call_of_one_token_is_trained_by_with_several() -> None:
    given = {"input_ids": torch.tensor([[5], [9]])}
    compiled = peftc.compile(llama(num_hidden_layers=1), ["lora:q,v"], given)
    assert named(compiled, gradients_reach, **given).verdict == "pass"


class Choosing(nn.Module):
    """An attention over rows of numbers, which has no choice of one."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        seen: Tensor = (self.q(x) @ self.k(x).mT).softmax(-1)
        values: Tensor = self.v(x)
        return seen @ values


def test_a_call_of_one_row_of_numbers_tells_nothing_of_gradients() -> None:
    given = {"x": torch.randn(2, 1, 6)}
    compiled = peftc.compile(Choosing(), ["lora:all-linear(rank=2)"], given)
    finding = named(compiled, gradients_reach, **given)
    assert finding.verdict == "not applicable"
    assert "one token long" in finding.detail
    given = {"x": torch.randn(2, 5, 6)}
    compiled = peftc.compile(Choosing(), ["lora:all-linear(rank=2)"], given)
    assert named(compiled, gradients_reach, **given).verdict == "pass"


def test_checkpoints_are_taken_without_advice_on_the_class(recwarn: pytest.WarningsRecorder) -> None:
    named(peftc.compile(llama(num_hidden_layers=1), ["lora:q,v"]), checkpointing)
    assert not [each for each in recwarn if issubclass(each.category, FutureWarning)]
