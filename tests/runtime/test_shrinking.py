"""What gates have put to 0 is taken out: smaller matrices, fewer sections, equal outputs, gradients and merges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import peftc
from peftc.errors import MergeError, ShrinkError, SpecError
from peftc.lang import Bound, bind, flatten
from tests.models import bert, llama, padding, randomise, tokens
from tests.rules.test_adapter_fusion import call_of, t5
from tests.rules.test_stored import conv
from tests.runtime.test_training import batch

RANK, ALPHA = 6, 9
SPEC = f"adalora:q,v(rank={RANK}, target=3, alpha={ALPHA})"
LIVE = (4, 1, 0, 6)
"""Ranks that are left, in turn."""


def held(compiled: Any, application: Any) -> dict[str, Tensor]:
    return {each.name: compiled.get_parameter(each.path) for each in application.parameters}


def cut(compiled: Any) -> dict[str, Tensor]:
    """Random parameters, some of whose ranks are 0; site id → which are not."""
    randomise(compiled)
    left = {}
    for number, each in enumerate(compiled.peftc_plan.of("adalora")):
        kept = torch.randperm(RANK, generator=torch.Generator().manual_seed(number))[: LIVE[number % 4]]
        left[each.site.id] = kept.sort().values
        gate = held(compiled, each)["E"]
        with torch.no_grad():
            gate.mul_(torch.zeros(RANK, dtype=gate.dtype).index_fill(0, kept, 1.0))
    return left


@pytest.mark.parametrize(
    "make",
    [pytest.param(llama, marks=pytest.mark.slow), bert, pytest.param(t5, marks=pytest.mark.slow), conv],
    ids=["decoder", "encoder", "both", "fused"],
)
def test_matrices_have_their_live_ranks_and_compute_the_same(make: Callable[[], Any]) -> None:
    model = make().double()
    call = call_of(model)
    compiled: Any = peftc.compile(model, SPEC, defaults=False)
    left = cut(compiled)
    smaller: Any = compiled.shrink()
    assert type(smaller) is type(compiled)
    assert (smaller(**call).logits - compiled(**call).logits).abs().max() <= 1e-12
    there = {each.site.id: each for each in smaller.peftc_plan.applications}
    assert {site for site, kept in left.items() if kept.numel()} == set(there), (
        "nothing is put in for no rank"
    )
    for each in compiled.peftc_plan.applications:
        kept = left[each.site.id]
        if not kept.numel():
            continue
        before, after = held(compiled, each), held(smaller, there[each.site.id])
        assert torch.equal(after["A"], before["A"][kept])
        assert torch.equal(after["E"], before["E"][kept])
        assert torch.equal(after["B"], before["B"][:, kept])
    merged = smaller.merge_and_unload()
    assert (merged(**call).logits - compiled(**call).logits).abs().max() <= 1e-12
    with smaller.disable_adapter():
        assert torch.allclose(smaller(**call).logits, model(**call).logits, rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def decoder() -> Any:
    """A compiled decoder with ranks that are 0; tests do not change it."""
    model = llama().double()
    compiled: Any = peftc.compile(model, f"{SPEC[:-1]}; *.1.*:q: alpha=2)", batch(model), defaults=False)
    cut(compiled)
    return compiled


def test_gradients_are_those_of_the_live_ranks(decoder: Any) -> None:
    compiled, smaller = decoder, decoder.shrink()
    left = {
        each.site.id: held(compiled, each)["E"].nonzero().flatten()
        for each in compiled.peftc_plan.applications
    }
    for each in (compiled, smaller):
        each.zero_grad()
        each.eval()(**batch(compiled)).loss.backward()
    for each in smaller.peftc_plan.applications:
        (same,) = [other for other in compiled.peftc_plan.applications if other.site == each.site]
        kept, before, after = left[each.site.id], held(compiled, same), held(smaller, each)
        for name, axis in (("A", 0), ("E", 0), ("B", 1)):
            whole, own = before[name].grad, after[name].grad
            assert whole is not None
            assert own is not None
            assert (whole.index_select(axis, kept) - own).abs().max() <= 1e-8 * whole.abs().max(), name


def test_it_is_a_module_of_its_own(tmp_path: Path) -> None:
    """Mode, trained weights of the model, what trains, weights that are shared; saved, loaded, copied, shrunk again."""
    model = bert()
    compiled: Any = peftc.compile(model, SPEC)
    cut(compiled)
    with torch.no_grad():
        compiled.classifier.weight.add_(0.5)
    before = {name: parameter.clone() for name, parameter in compiled.named_parameters()}
    compiled.train()
    smaller: Any = compiled.shrink()
    assert all(module.training for module in smaller.modules())
    assert not compiled.eval().shrink().training
    assert all(torch.equal(before[name], parameter) for name, parameter in compiled.named_parameters())
    smaller.eval()
    assert torch.equal(smaller.classifier.weight, compiled.classifier.weight)
    trained = {name for name, p in smaller.named_parameters() if p.requires_grad}
    assert trained < {name for name, p in compiled.named_parameters() if p.requires_grad}
    assert "classifier.weight" in trained
    dense = "bert.encoder.layer.0.output.dense.weight"
    assert smaller.get_parameter(dense).data_ptr() == model.get_parameter(dense).data_ptr()
    want = compiled(**call_of(model)).logits
    assert torch.allclose(smaller(**call_of(model)).logits, want, atol=1e-5)
    smaller.save_pretrained(tmp_path / "adapter")
    loaded: Any = peftc.load(model, tmp_path / "adapter", trainable=True)
    assert torch.equal(loaded(**call_of(model)).logits, smaller(**call_of(model)).logits)
    assert loaded.peftc_plan.digest == smaller.peftc_plan.digest != compiled.peftc_plan.digest
    assert loaded.get_nb_trainable_parameters() == smaller.get_nb_trainable_parameters()
    again = loaded.shrink()
    assert again.peftc_plan.digest == smaller.peftc_plan.digest, "nothing more is 0"
    with torch.no_grad():
        next(p for name, p in loaded.named_parameters() if name.endswith(".E"))[0] = 0.0
    assert loaded.can_shrink()
    twice = loaded.shrink()
    assert twice.get_nb_trainable_parameters()[0] < smaller.get_nb_trainable_parameters()[0]
    assert torch.allclose(twice(**call_of(model)).logits, loaded(**call_of(model)).logits, atol=1e-5)


@pytest.mark.slow
def test_it_generates_and_trains_on_without_its_schedule(decoder: Any) -> None:
    smaller = decoder.shrink()
    ids = tokens()[:, :5]
    written = [each.generate(ids, max_new_tokens=4, do_sample=False) for each in (decoder, smaller)]
    assert torch.equal(*written)
    assert decoder.schedules.scheduled
    assert not smaller.schedules.scheduled
    assert not any("update_schedules" in note for note in smaller.peftc_plan.notes)
    smaller.train()(**batch(smaller)).loss.backward()
    smaller.update_schedules(1, 8)
    grown = [p.grad for p in smaller.parameters() if p.requires_grad]
    assert all(gradient is not None and bool(gradient.abs().max() > 0) for gradient in grown)


def test_the_plan_says_so(decoder: Any, golden: Callable[[str, str], None]) -> None:
    """Options for sites that are gone are no error either."""
    smaller = decoder.shrink()
    golden("adalora/shrunk.plan.txt", str(peftc.explain(smaller)))
    gone = {each.site.id for each in decoder.peftc_plan.applications}
    gone -= {each.site.id for each in smaller.peftc_plan.applications}
    assert gone == {"model.layers.1.self_attn.q_proj:q"}


def test_what_cannot_shrink_is_refused() -> None:
    model = llama()
    plain: Any = peftc.compile(model, ["lora:q", "bottleneck:4"], defaults=False)
    assert not plain.can_shrink()
    with pytest.raises(ShrinkError, match="no rule here has a gate: lora, bottleneck"):
        plain.shrink()
    compiled: Any = peftc.compile(model, [SPEC, "lora:o"], defaults=False)
    assert compiled.can_shrink(), "they start at 0"
    assert [bound.label for bound in compiled.shrink().peftc_plan.rules] == ["lora"]
    alone: Any = peftc.compile(model, SPEC, defaults=False)
    with pytest.raises(ShrinkError, match="nothing of the rules would be left"):
        alone.shrink()


@pytest.mark.parametrize(
    "shrunk", [3, [1], [["a"]], [["a", 0, {"rank": 0}]], [["a", 0, {}]], [["a", 0, {"R": 1}]]]
)
def test_what_is_stored_of_it_is_read_with_care(shrunk: Any) -> None:
    flat: Mapping[str, Any] = {**flatten(bind("adalora")), "shrunk": shrunk}
    with pytest.raises(SpecError, match="what was taken out of a stored rule cannot be read"):
        Bound.from_flat(flat)
    good = {**flatten(bind("adalora")), "shrunk": [["a:q", 0, {"rank": 2}], ["b:q", 0, None]]}
    assert flatten(Bound.from_flat(good)) == good


def test_what_is_no_merge_stays_none() -> None:
    model = bert()
    compiled: Any = peftc.compile(model, "adapter_drop:4", defaults=False)
    randomise(compiled)
    compiled.set_schedule(dropped=1)
    smaller: Any = compiled.shrink()
    assert len(smaller.peftc_plan.applications) == 1
    given = {"input_ids": tokens(), "attention_mask": padding()}
    assert torch.equal(smaller(**given).logits, compiled(**given).logits)
    with pytest.raises(MergeError):
        smaller.merge_and_unload()
    smaller.set_schedule(dropped=2)
    with pytest.raises(ShrinkError, match="nothing of the rules would be left"):
        smaller.shrink()
