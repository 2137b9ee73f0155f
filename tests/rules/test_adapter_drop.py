"""AdapterDrop: adapters for the upper layers alone, below which backward stops; and adapters that do without any first n."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import peftc
from peftc.errors import ScheduleError
from tests.models import bert, llama, randomise, tokens
from tests.rules.composites import check_equal
from tests.rules.test_adapter_fusion import call_of
from tests.runtime.test_training import batch

LAYERS = 4


def decoder() -> Any:
    return llama(num_hidden_layers=LAYERS)


def encoder() -> Any:
    return bert(num_hidden_layers=LAYERS)


CASES = pytest.mark.parametrize(
    "make", [pytest.param(decoder, id="decoder", marks=pytest.mark.slow), pytest.param(encoder, id="encoder")]
)


def blocks(compiled: Any) -> list[Any]:
    """The repeated layers of a model."""
    return list(compiled.model.layers if hasattr(compiled, "model") else compiled.bert.encoder.layer)


def traced(compiled: Any) -> tuple[list[bool], list[int], list[int]]:
    """For each layer: whether an output wants a gradient, how many tensors it saves for backward, and how many of its
    outputs backward comes to.
    """
    wants, saved, ran, inside = [False] * LAYERS, [0] * LAYERS, [0] * LAYERS, [-1]
    handles = []

    def pack(tensor: Tensor) -> Tensor:
        if inside[0] >= 0:
            saved[inside[0]] += 1
        return tensor

    for number, block in enumerate(blocks(compiled)):

        def before(_module: Any, _args: Any, number: int = number) -> None:
            inside[0] = number

        def after(_module: Any, _args: Any, out: Any, number: int = number) -> None:
            inside[0] = -1
            for value in out if isinstance(out, tuple) else (out,):  # a block may hand several values on
                if value.requires_grad:
                    wants[number] = True
                    value.register_hook(lambda _: ran.__setitem__(number, ran[number] + 1))

        handles += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compiled(**call_of(compiled)).logits.square().sum().backward()
    for handle in handles:
        handle.remove()
    return wants, saved, ran


@CASES
def test_backward_stops_below_the_lowest_adapter(make: Callable[[], Any]) -> None:
    model = make()
    compiled: Any = peftc.compile(model, "bottleneck:8@2-", defaults=False)
    randomise(compiled)
    wants, saved, ran = traced(compiled)
    assert wants == [False, False, True, True]
    assert saved[:2] == [0, 0], "nothing is kept for a backward that does not come"
    assert ran[:2] == [0, 0]
    assert min(saved[2:]) > 0
    assert min(ran[2:]) > 0
    grown = {name for name, p in compiled.named_parameters() if p.grad is not None}
    assert grown == {name for name, p in compiled.named_parameters() if p.requires_grad}
    # Its twin has adapters everywhere.
    everywhere: Any = peftc.compile(model, "bottleneck:8", defaults=False)
    wants, saved, _ = traced(everywhere)
    assert wants == [True] * LAYERS
    assert min(saved) > 0


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        pytest.param(decoder, "llama", id="decoder", marks=pytest.mark.slow),
        pytest.param(encoder, "bert", id="encoder"),
    ],
)
def test_the_layers_below_are_the_models_own(make: Callable[[], Any], kind: str) -> None:
    model = make().double()
    compiled: Any = peftc.compile(model, "bottleneck:8@2-", defaults=False)
    randomise(compiled)
    assert [each.site.layer for each in compiled.peftc_plan.applications] == [2, 3]
    check_equal(model, kind, compiled)


@pytest.mark.slow
@CASES
def test_one_model_serves_any_n(make: Callable[[], Any], tmp_path: Path) -> None:
    model = make()
    compiled: Any = peftc.compile(model, "adapter_drop:8(most=2)", defaults=False)
    randomise(compiled)
    for name, parameter in compiled.named_parameters():
        if name.endswith(("keep", "kept")):
            parameter.data.fill_(1.0)
    call = call_of(model)
    whole = compiled(**call).logits
    seen = [whole]
    for dropped in (3, 1, LAYERS, 9, 0):
        # As if the up-projections of the first n layers were 0.
        held = {
            p.path: compiled.get_parameter(p.path).detach().clone()
            for each in compiled.peftc_plan.applications
            for p in each.parameters
            if each.site.layer < dropped and "_up_" in p.name
        }
        for path in held:
            compiled.get_parameter(path).data.zero_()
        want = compiled(**call).logits
        for path, tensor in held.items():
            compiled.get_parameter(path).data.copy_(tensor)
        compiled.set_schedule(dropped=dropped)
        seen.append(compiled(**call).logits)
        assert torch.equal(seen[-1], want), dropped
        compiled.set_schedule(dropped=0)
    assert torch.equal(seen[0], seen[-1])
    assert torch.allclose(seen[3], model(**call).logits, atol=1e-6), "none is left"
    assert (seen[1] - seen[2]).abs().max() > 1e-3

    compiled.set_schedule("adapter_drop", dropped=2)
    compiled.save_pretrained(tmp_path / "adapter")
    loaded: Any = peftc.load(model, tmp_path / "adapter")
    assert torch.equal(loaded(**call).logits, compiled(**call).logits), "n is saved"
    loaded.set_schedule(dropped=0)
    assert torch.equal(loaded(**call).logits, whole)


@pytest.mark.slow
def test_an_n_of_its_own_holds_while_training_too() -> None:
    model = decoder()
    compiled: Any = peftc.compile(model, "adapter_drop:8(most=3)", batch(model), defaults=False)
    randomise(compiled)
    compiled.set_schedule(dropped=2)
    kept = {name: p.clone() for name, p in compiled.named_parameters() if name.endswith("kept")}
    compiled.update_schedules(0, 8)
    for step in range(1, 9):
        compiled.update_schedules(step, 8)
    assert all(torch.equal(p, compiled.get_parameter(name)) for name, p in kept.items()), "no step changes it"
    compiled.train()(**batch(model)).loss.backward()
    for name, parameter in compiled.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            off = ".layers.0." in name or ".layers.1." in name
            assert bool((parameter.grad == 0).all()) == off, name


@CASES
def test_what_is_dropped_for_good_is_not_computed(make: Callable[[], Any]) -> None:
    model = make()
    compiled: Any = peftc.compile(model, "adapter_drop:8", defaults=False)
    randomise(compiled)
    compiled.set_schedule(dropped=2)
    smaller: Any = compiled.shrink()
    assert [each.site.layer for each in smaller.peftc_plan.applications] == [2, 3]
    call = call_of(model)
    assert torch.equal(smaller(**call).logits, compiled(**call).logits)
    wants, saved, _ = traced(smaller)
    assert wants == [False, False, True, True]
    assert saved[:2] == [0, 0]
    smaller.set_schedule(dropped=3)
    compiled.set_schedule(dropped=3)
    assert torch.equal(smaller(**call).logits, compiled(**call).logits)


def test_what_cannot_be_set_is_refused() -> None:
    compiled: Any = peftc.compile(bert(), ["adapter_drop:4", "adalora:q"], defaults=False)
    before = {name: p.clone() for name, p in compiled.named_parameters()}
    for arguments, said in (
        (((), {"dropped": -1}), "dropped of adapter_drop must be at least 0, not -1"),
        (((), {"dropped": 1.5}), "dropped must be a whole number of layers, not 1.5"),
        (((), {"dropped": "two"}), "dropped of adapter_drop must be a number"),
        (((), {"droped": 1}), r"no schedule here has 'droped' to set\ndid you mean 'dropped'"),
        ((("adalora",), {"dropped": 1}), "no schedule here has 'dropped' to set"),
        ((("lora",), {"dropped": 1}), "lora has no schedule here"),
    ):
        with pytest.raises(ScheduleError, match=said):
            compiled.set_schedule(*arguments[0], **arguments[1])
    assert all(torch.equal(p, compiled.get_parameter(name)) for name, p in before.items())
    plain: Any = peftc.compile(llama(), "lora", defaults=False)
    with pytest.raises(ScheduleError, match="no schedule here has 'dropped' to set"):
        plain.set_schedule(dropped=1)


def test_a_ramp_can_be_set_by_hand() -> None:
    rule = {
        "format": 1, "name": "warm", "summary": "A factor that is raised.", "match": {"role": "ffn"},
        "parameters": {"t": {"axes": "", "init": "ones", "trainable": False}}, "rewrite": {"y": "y * t"},
        "schedule": {"up": {"policy": "ramp", "parameters": {"value": "t"}, "settings": {"start": 0, "stop": 2}}},
    }  # fmt: skip
    compiled: Any = peftc.compile(llama(), peftc.Rule.model_validate(rule), defaults=False)
    held = [p for name, p in compiled.named_parameters() if name.endswith(".t")]
    compiled.set_schedule(value=0.25)
    assert [float(p) for p in held] == [0.25] * 2
    compiled.update_schedules(4, 4)
    assert [float(p) for p in held] == [2.0] * 2
    assert compiled(input_ids=tokens()).logits.isfinite().all()
