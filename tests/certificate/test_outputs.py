"""Every output of a call is examined, at every length that the model takes, and a loss is one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import peftc
from peftc.certificate.gradients import gradients_reach, loss_of
from peftc.certificate.outputs import difference, outputs_of
from peftc.certificate.properties import adapters_off
from peftc.certificate.subject import examined, main_output
from peftc.rewrite import without_adapters
from peftc.runtime import engine as engines
from tests.certificate.breaking import named

RULE = ["lora:all-linear(rank=2)"]


class Two(nn.Module):
    """Two outputs, by number or by name, of two maps."""

    def __init__(self, *, names: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.names = nn.Linear(6, 6), nn.Linear(6, 6), names

    def forward(self, x: Tensor) -> Any:
        one, two = self.one(x).tanh(), self.two(x).sigmoid()
        return {"loss": two.mean(), "logits": one} if self.names else (one, two)


def given() -> dict[str, Tensor]:
    """A call of it."""
    return {"x": torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))}


def spoilt(monkeypatch: pytest.MonkeyPatch, number: int, what: Any) -> None:
    """With adapters off, one of the results is what a function makes of it."""

    def made(*args: Any, **kwargs: Any) -> fx.Graph:
        graph = without_adapters(*args, **kwargs)
        output = next(iter(reversed(graph.nodes)))
        result = output.all_input_nodes[number]
        with graph.inserting_before(output):
            other = graph.call_function(what, (result,))
        other.meta = dict(result.meta)
        output.replace_input_with(result, other)
        return graph

    monkeypatch.setattr(engines, "without_adapters", made)


def thrice(x: Tensor) -> Tensor:
    """Three times as much."""
    return 3 * x


def other_at_other_lengths(x: Tensor) -> Tensor:
    """What is right for five tokens alone."""
    return x if x.shape[1] == 5 else 2 * x


@pytest.mark.parametrize("names", [False, True])
def test_every_output_is_compared_and_differentiated(names: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = peftc.compile(Two(names=names), RULE, given())
    assert named(compiled, gradients_reach, **given()).verdict == "pass"
    good = named(compiled, adapters_off, **given())
    assert good.verdict == "pass"
    assert "of 2 outputs" in good.detail
    spoilt(monkeypatch, 0 if names else 1, thrice)  # the loss, or what comes second
    assert named(peftc.compile(Two(names=names), RULE, given()), adapters_off, **given()).verdict == "fail"


def test_what_is_right_at_one_length_alone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    good = named(peftc.compile(Two(), RULE, given()), adapters_off, **given())
    assert good.detail.endswith("in calls of 3 batch sizes and 3 lengths")
    spoilt(monkeypatch, 0, other_at_other_lengths)
    assert named(peftc.compile(Two(), RULE, given()), adapters_off, **given()).verdict == "fail"


def test_nothing_compared_is_no_pass() -> None:
    compiled = peftc.compile(Two(), RULE, given())
    with examined(compiled, given()) as subject:
        subject.plain = nn.Linear(7, 7)
        finding = adapters_off(subject)
    assert finding.verdict == "fail"
    assert "the model itself takes no such call" in finding.detail


def test_outputs_are_tensors_of_numbers_at_the_top() -> None:
    one, deep = torch.ones(2, 3), torch.zeros(2)
    assert list(outputs_of({"logits": one, "cache": (deep,), "ids": one.long()})) == ["logits"]
    assert list(outputs_of((deep, [one], one))) == ["output 0", "output 2"]
    assert outputs_of([[one]])["output"] is one
    assert difference({"logits": one}, {"logits": one, "loss": deep}) == float("inf")


def test_an_output_that_is_no_number_leaves_the_others_their_gradients() -> None:
    class Broken(nn.Linear):
        """A loss that is no number."""

        def forward(self, x: Tensor) -> Any:
            return (super().forward(x).mean() / 0 * 0, super().forward(x))

    model = Broken(6, 6)
    loss_of(model, given()).backward()
    gradient = model.weight.grad
    assert gradient is not None
    assert bool(gradient.isfinite().all())


@dataclass
class Told:
    """An output of a class that torch does not know as a structure."""

    text: str
    values: Tensor


class Telling(Two):
    """It gives one output, in an object."""

    def forward(self, x: Tensor) -> Told:
        return Told("values", self.two(self.one(x).tanh()))


def test_an_output_in_an_object_is_examined() -> None:
    compiled = peftc.compile(Telling(), RULE, given()).eval()
    with examined(compiled, given()) as subject:
        assert outputs_of(subject.plain(**given())).keys() == {"values"}
        assert main_output(subject.plain(**given())).shape == (2, 5, 6)
        assert adapters_off(subject).verdict == "pass"


def test_an_output_without_numbers_is_not_blamed_on_the_model() -> None:
    with pytest.raises(peftc.errors.CaptureError, match="a str that a call gives has no tensor of numbers"):
        main_output("nothing")
