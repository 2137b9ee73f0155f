"""Three methods behind gates of their own, against all equations written out at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import peftc
from peftc.lang import default_library
from tests.models import bert, llama, padding, randomise, tokens
from tests.rules.composites import applied, check_equal, check_saved

SPEC = "unipelt(lora_rank=4, prefix_length=5, bottleneck_size=8)"


@pytest.mark.parametrize(("make", "kind"), [(bert, "bert"), (llama, "llama")], ids=["bert", "llama"])
def test_all_equations_at_once(make: Callable[[], Any], kind: str) -> None:
    model = make().double()
    compiled = peftc.compile(model, [SPEC], defaults=False)
    randomise(compiled)
    check_equal(model, kind, compiled)


@pytest.mark.parametrize(("make", "kind"), [(bert, "bert"), (llama, "llama")], ids=["bert", "llama"])
def test_gates_can_be_the_mean_over_padding_too(make: Callable[[], Any], kind: str) -> None:
    model = make().double()
    compiled = peftc.compile(model, [SPEC.replace("(", "(mean=all, ")], defaults=False)
    randomise(compiled)
    check_equal(model, kind, compiled, padded=True)


@pytest.mark.slow
def test_padding_changes_no_gate() -> None:
    """A row gives the same beside longer ones as alone, which a mean over padding does not."""
    model = bert().double().eval()
    ids, mask = tokens(), padding()
    short = int(mask[1].sum())
    alone = {"input_ids": ids[1:2, :short], "attention_mask": mask[1:2, :short]}
    told = []
    for mean in ("tokens", "all"):
        compiled: Any = peftc.compile(model, [SPEC.replace("(", f"(mean={mean}, ")], defaults=False).eval()
        randomise(compiled)
        batched = compiled(input_ids=ids, attention_mask=mask).logits[1:2]
        told.append(torch.allclose(batched, compiled(**alone).logits, atol=1e-9))
    assert told == [True, False]


def test_every_place_has_a_gate_of_its_own() -> None:
    compiled = peftc.compile(bert(), [SPEC], defaults=False)
    gates = [
        tensors["gate_w"] for role in ("linear", "attention", "ffn") for _, tensors in applied(compiled, role)
    ]
    assert len({id(gate) for gate in gates}) == len(gates) == 2 * (2 + 1 + 1)


def test_a_closed_gate_leaves_the_update_and_the_bottleneck_out() -> None:
    model = llama()
    compiled: Any = peftc.compile(model, [SPEC], defaults=False)
    randomise(compiled)
    with torch.no_grad():
        for role in ("linear", "ffn"):
            for _, tensors in applied(compiled, role):
                tensors["gate_b"].fill_(-1e4)
        alone = peftc.compile(model, ["prefix:5"], defaults=False)
        for (_, own), (_, other) in zip(
            applied(compiled, "attention"), applied(alone, "attention"), strict=True
        ):
            own["gate_b"].fill_(1e4)
            other["P_k"].copy_(own["prefix_P_k"])
            other["P_v"].copy_(own["prefix_P_v"])
        ids = tokens()
        torch.testing.assert_close(compiled(ids).logits, alone(ids).logits, atol=1e-5, rtol=1e-5)


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model = llama()
    compiled = peftc.compile(model, [SPEC], defaults=False)
    randomise(compiled)
    check_saved(compiled, model, tmp_path / "adapter")


def test_where_a_token_axis_is_missing_the_plan_says_so() -> None:
    content = default_library().rule("unipelt").written.content
    content["use"][0]["match"]["part"] = ["all-linear"]
    rule = peftc.Rule.model_validate(content)
    plan = peftc.plan(bert(), [{"rule": rule, "lora_rank": 4}], defaults=False)
    reasons = {skip.site.path: skip.reason for skip in plan.skips if skip.site.role == "linear"}
    assert reasons["bert.pooler.dense"] == "x has 2 axes here, not those of [batch seq d_in]"


def test_the_plan_says_that_gates_read_all_tokens() -> None:
    said = "computes some numbers from all tokens of a call"
    assert any(said in note for note in peftc.plan(llama(), ["unipelt"]).notes)
    assert not any(said in note for note in peftc.plan(llama(), ["mam", "lora", "loreft"]).notes)


def test_the_papers_numbers_are_the_defaults() -> None:
    plan = peftc.plan(bert(), ["unipelt"], defaults=False)
    options = plan.bound("unipelt").options
    assert (options["lora_rank"], options["prefix_length"], options["bottleneck_size"]) == (8, 10, 48)
    assert {p.settings["std"] for p in plan.new_parameters if p.name == "gate_w"} == {0.02}
