"""What a rule folds: computed once for evaluation, again when a parameter changed, never where a gradient is wanted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.lang import Source, check, read_mapping
from tests.models import llama, randomise, tokens

DATA: dict[str, Any] = {
    "format": 1,
    "name": "made",
    "summary": "Add a map that is made of two matrices.",
    "options": {"rank": {"default": 3, "min": 1}},
    "match": {"role": "linear", "part": ["q"], "values": {"x": "* d_in", "y": "* d_out"}},
    "parameters": {
        "A": {"axes": "rank d_in", "init": "kaiming_uniform"},
        "B": {"axes": "d_out rank", "init": "zeros", "share": "model"},
    },
    "let": {"delta": "dropout(tanh(B @ A), p=0.5)"},
    "fold": ["delta"],
    "rewrite": {"y": "y + x @ delta"},
}
RULE = check(read_mapping(DATA, Source("made")))


@pytest.fixture
def compiled() -> Any:
    made: Any = peftc.compile(llama(), [RULE], defaults=False).eval()
    randomise(made)
    return made


def evaluated(compiled: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = compiled(tokens()).logits
    return out


def states(compiled: Any) -> list[str]:
    return [entry.state for entry in compiled._peftc.entries]


def test_it_is_computed_once_and_to_the_same_bits(compiled: Any) -> None:
    live = compiled(tokens()).logits
    assert torch.equal(evaluated(compiled), live)
    assert states(compiled) == ["on", "folded"]
    on, folded = (
        [node.name for node in entry.rewritten.nodes if "tanh" in node.name]
        for entry in compiled._peftc.entries
    )
    assert len(on) == 2
    assert not folded
    kept = dict(compiled.named_buffers())
    assert torch.equal(evaluated(compiled), live)
    assert all(kept[name] is buffer for name, buffer in compiled.named_buffers())


def in_place(compiled: Any) -> None:
    optimizer = torch.optim.SGD([p for p in compiled.parameters() if p.requires_grad], lr=0.5)
    compiled(tokens()).logits.square().mean().backward()
    optimizer.step()


def replaced(compiled: Any) -> None:
    for path, parameter in list(compiled.named_parameters()):
        if parameter.requires_grad and path.endswith(".A"):
            owner, _, name = path.rpartition(".")
            setattr(compiled.get_submodule(owner), name, nn.Parameter(parameter.detach() * 2))


def other_data(compiled: Any) -> None:
    for parameter in compiled.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data * 2


def cast(compiled: Any) -> None:
    compiled.double()


@pytest.mark.parametrize("change", [in_place, replaced, other_data, cast])
def test_a_parameter_that_changed_is_seen(compiled: Any, change: Any) -> None:
    before = evaluated(compiled)
    change(compiled)
    after = evaluated(compiled)
    assert not torch.equal(after, before)
    assert torch.equal(after, compiled(tokens()).logits)


def test_gradients_and_training_see_the_parameters(compiled: Any) -> None:
    evaluated(compiled)
    compiled(tokens()).logits.sum().backward()
    assert all(bool(p.grad.abs().max() > 0) for p in compiled.parameters() if p.requires_grad)
    compiled.train()
    one, other = evaluated(compiled), evaluated(compiled)
    assert not torch.equal(one, other), "its dropout acts"
    assert states(compiled).count("folded") == 1


def test_without_the_adapter_nothing_is_read(compiled: Any) -> None:
    evaluated(compiled)
    with compiled.disable_adapter():
        assert torch.equal(evaluated(compiled), evaluated(llama()))


def test_a_copy_has_values_of_its_own(compiled: Any) -> None:
    before = evaluated(compiled)
    copied = copy.deepcopy(compiled)
    other_data(copied)
    assert not torch.equal(evaluated(copied), before)
    assert torch.equal(evaluated(compiled), before)


def test_the_parameters_are_saved_and_the_values_not(compiled: Any, tmp_path: Path) -> None:
    before = evaluated(compiled)
    assert not [name for name in compiled.state_dict() if name.endswith("delta")]
    compiled.save_pretrained(tmp_path / "adapter")
    again: Any = peftc.load(llama(), tmp_path / "adapter", trainable=True).eval()
    assert torch.equal(evaluated(again), before)
    again.train()(tokens()).logits.sum().backward()
    assert all(p.grad is not None for p in again.parameters() if p.requires_grad)


def test_decoding_reads_them(compiled: Any) -> None:
    out = compiled.generate(tokens(batch=1), max_new_tokens=3, do_sample=False)
    ids = tokens(batch=1)
    for _ in range(3):
        ids = torch.cat([ids, compiled(ids).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(out, ids)
    assert "folded" in states(compiled)


def test_a_traced_call_computes_them(compiled: Any) -> None:
    evaluated(compiled)
    traced: Any = torch.compile(compiled, backend="eager")
    with torch.no_grad():
        traced(tokens())
        other_data(compiled)
        torch.testing.assert_close(traced(tokens()).logits, evaluated(compiled))
