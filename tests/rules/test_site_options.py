"""Options that differ from site to site: HF PEFT's rank and alpha patterns, plans, errors, storage, finetuning specs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import peftc
from peftc.errors import MatchError, NoMatchError, OptionValueError, SpecError, UnknownOptionError
from peftc.lang import Rule, bind
from tests.models import bert, llama, padding, randomise, tokens
from tests.rules.composites import check_saved
from tests.rules.test_stored import IDS, conv

Q0, V1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
SPEC = f"lora:q,v(rank=4, alpha=8; *.layers.0.*: alpha=20; {Q0}: rank=6; {V1}: rank=2, alpha=3)"
MAPPING = {
    "rule": "lora",
    "part": ["q", "v"],
    "rank": 4,
    "alpha": 8,
    "sites": {"*.layers.0.*": {"alpha": 20}, Q0: {"rank": 6}, V1: {"rank": 2, "alpha": 3}},
}


def held(compiled: Any, application: Any) -> dict[str, Tensor]:
    return {each.name: compiled.get_parameter(each.path) for each in application.parameters}


def test_they_are_hf_pefts_patterns() -> None:
    from peft import LoraConfig, get_peft_model

    model = llama()
    config = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM",
        rank_pattern={Q0: 6, V1: 2}, alpha_pattern={r".*layers\.0\..*": 20, V1: 3},
    )  # fmt: skip
    theirs: Any = get_peft_model(copy.deepcopy(model), config)
    compiled: Any = peftc.compile(model, MAPPING, defaults=False)
    randomise(compiled)
    pairs = []
    for each in compiled.peftc_plan.applications:
        own = theirs.get_submodule(f"base_model.model.{each.site.path}")
        for name, parameter in held(compiled, each).items():
            other = own.get_submodule(f"lora_{name}.default").weight
            assert other.shape == parameter.shape, each.site.id
            other.data.copy_(parameter.data)
            pairs.append((parameter, other))
    ids, mask = tokens(), padding()
    outputs = [each(input_ids=ids, attention_mask=mask).logits for each in (compiled, theirs)]
    real = mask.bool()
    assert (outputs[0] - outputs[1])[real].abs().max() <= 1e-5
    assert (outputs[0] - model(input_ids=ids, attention_mask=mask).logits)[real].abs().max() > 1e-2
    for output in outputs:
        output[real].square().sum().backward()
    for parameter, other in pairs:
        assert parameter.grad is not None
        assert (parameter.grad - other.grad).abs().max() <= 1e-5 * other.grad.abs().max()


@pytest.mark.parametrize("make", [bert, llama])
def test_the_update_of_each_site_is_scaled_by_its_own_numbers(make: Callable[[], Any]) -> None:
    """Merged and unmerged, W + alpha / rank · B A with the site's rank and alpha."""
    model = make().double()
    layer = "*.layer.0.*" if make is bert else "*.layers.0.*"
    spec = f"lora:q,v(rank=3, alpha=6; {layer}: rank=2; *:v: alpha=5; {layer[:-1]}*:v: alpha=7)"
    compiled: Any = peftc.compile(model, spec, defaults=False)
    randomise(compiled)
    expected = copy.deepcopy(model)
    seen = set()
    for each in compiled.peftc_plan.applications:
        rank = 2 if each.site.layer == 0 else 3
        alpha = 6 if each.site.part == "q" else (7 if each.site.layer == 0 else 5)
        own = held(compiled, each)
        assert own["A"].shape[0] == own["B"].shape[1] == rank
        seen.add((rank, alpha))
        with torch.no_grad():
            expected.get_submodule(each.site.path).weight += alpha / rank * own["B"] @ own["A"]
    assert len(seen) == 4
    call = {"input_ids": tokens(), "attention_mask": padding()}
    assert torch.allclose(compiled(**call).logits, expected(**call).logits, atol=1e-9)
    assert torch.allclose(compiled.merge_and_unload()(**call).logits, expected(**call).logits, atol=1e-9)


def test_parts_of_one_fused_projection_are_told_apart_by_their_ids() -> None:
    model = conv()
    spec = "lora:q,v(rank=3, alpha=6; *.0.attn.c_attn:v: rank=5)"
    compiled: Any = peftc.compile(model, spec, defaults=False)
    ranks = {each.site.id: each.parameters[0].shape[0] for each in compiled.peftc_plan.applications}
    assert {site for site, rank in ranks.items() if rank == 5} == {"transformer.h.0.attn.c_attn:v"}
    assert sorted(ranks.values()) == [3, 3, 3, 5]
    assert torch.allclose(compiled(IDS).logits, model(IDS).logits, atol=1e-6)


def test_the_plan_shows_them(golden: Callable[[str, str], None]) -> None:
    plan = peftc.plan(llama(), SPEC, defaults=False)
    assert plan.digest == peftc.plan(llama(), MAPPING, defaults=False).digest
    assert plan.digest != peftc.plan(llama(), "lora:q,v(rank=4, alpha=8)", defaults=False).digest
    golden("lora/site_options.plan.txt", str(peftc.explain(plan)))
    assert {each.site.id: dict(each.options) for each in plan.applications} == {
        f"{Q0}:q": {"alpha": 20.0, "rank": 6},
        f"{Q0.replace('q_', 'v_')}:v": {"alpha": 20.0},
        f"{V1.replace('v_', 'q_')}:q": {},
        f"{V1}:v": {"rank": 2, "alpha": 3.0},
    }


def test_they_are_saved_and_loaded(tmp_path: Path) -> None:
    model = llama()
    compiled = peftc.compile(model, [SPEC, "bottleneck:4(*.1.*: scale=2.0)"], defaults=False)
    randomise(compiled)
    check_saved(compiled, model, tmp_path / "adapter")
    other: Any = peftc.compile(model, ["lora:q,v(rank=4, alpha=8)", "bottleneck:4"], defaults=False)
    with pytest.raises(peftc.errors.ForeignAdapterError, match=r"differs at model\.layers\.0"):
        other.load_adapter_weights(tmp_path / "adapter")


def test_a_composites_options_can_differ_in_each_of_its_sections() -> None:
    compiled: Any = peftc.compile(
        llama(), "mam(bottleneck_size=4; *.layers.1.*: bottleneck_size=3, prefix_length=2)"
    )
    shapes = {
        (each.site.role, each.site.layer): each.parameters[0].shape
        for each in compiled.peftc_plan.applications
    }
    assert shapes["ffn", 0] == (4, 24)
    assert shapes["ffn", 1] == (3, 24)
    assert shapes["attention", 0][1] == 30
    assert shapes["attention", 1][1] == 2
    assert compiled(input_ids=tokens()).logits.shape[-1] == 61


def test_options_for_sites_that_a_rule_does_not_go_to_are_refused_with_the_reason() -> None:
    model = llama()
    for spec, said in (
        ("lora:q(*.layers.9.*: rank=3)", r"no such site\nnearest: model\.layers\.\d\.self_attn\.q_proj:q"),
        ("lora:q(*k_proj: rank=3)", r"self_attn\.k_proj:k: part k is not among q"),
        ("lora:q(rank=4; *.0.*: rank=40)", r"rank < d_in is not so \(40 against 24\)"),
    ):
        with pytest.raises(NoMatchError, match=said):
            peftc.plan(model, spec, defaults=False)


@pytest.mark.parametrize(
    ("spec", "kind", "said"),
    [
        ("lora:q(*: rnk=3)", UnknownOptionError, "did you mean 'rank'"),
        ("lora:q(*: rank=0)", OptionValueError, r"\*: rank of lora must be at least 1"),
        ("lora:q(rank=3; rank=4)", SpecError, "here glob: option=value is due"),
        ("lora:q(*: rank=3; *: rank=4)", SpecError, "is given twice"),
        ("lora:q(rank=3;)", SpecError, "here glob: option=value is due"),
        ("adalora:q(*: gamma=0.5)", OptionValueError, "one for all sites: the weight of the loss orthogonality"),
        ("adalora:q(*: target=1)", OptionValueError, "one for all sites: the schedule budget reads it"),
        ("houlsby(*: norms=freeze)", OptionValueError, "one for all sites: a condition on the whole section"),
        ({"rule": "lora", "sites": ["*"]}, SpecError, "sites is a mapping from globs to options"),
        ({"rule": "lora", "sites": {"*": {}}}, SpecError, "sites is a mapping from globs to options"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(spec: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        bind(spec)


def test_one_tensor_for_all_sites_has_one_size_and_one_start() -> None:
    one = {
        "format": 1, "name": "one", "summary": "One vector for all.", "match": {"role": "linear", "part": ["q"]},
        "options": {"start": {"default": 1.0}, "size": {"default": 2, "min": 1}},
        "parameters": {"g": {"axes": "size", "init": "constant(value=start)", "share": "model"}},
        "rewrite": {"y": "y * sum(g, axis='size')"},
    }  # fmt: skip
    rule = Rule.model_validate(one)
    for options in ({"start": 2.0}, {"size": 3}):
        with pytest.raises(MatchError, match="g is shared, but its places"):
            peftc.plan(llama(), {"rule": rule, "sites": {"*.0.*": options}}, defaults=False)
