"""Plans with weights in fewer bits: which are, which are not and why, and what cannot be trained any more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import peftc
from peftc.errors import MatchError, NoMatchError, QuantiseError
from tests.models import bert, llama
from tests.rules.test_stored import conv

LINEAR = 7  # linear maps in a layer of the decoder


def small(**settings: Any) -> Any:
    return llama(num_hidden_layers=1, **settings)


def reasons(plan: Any, rule: str = "nf4") -> dict[str, str]:
    return {skip.site.id: skip.reason for skip in plan.skips if skip.rule == rule}


def test_every_linear_map_but_the_head_and_a_router() -> None:
    plan = peftc.plan(small(), "nf4")
    assert len(plan.quantised) == LINEAR
    assert set(reasons(plan)) == {"lm_head:head"}
    assert plan.trainable_count == 0
    assert plan.total_count == sum(p.numel() for p in small().parameters())
    (note,) = plan.notes
    assert note.startswith(
        "nf4 keeps 7 weights, 4,608 numbers in 0.0 MB (nf4 blocksize=64 double=true, 4.13 bits"
    )


def test_a_head_that_is_tied_to_a_table_is_left_alone() -> None:
    with pytest.raises(
        NoMatchError, match=r"tied to model.embed_tokens:embedding, which reads it row by row"
    ):
        peftc.plan(small(), "nf4:head")
    untied = small(tie_word_embeddings=False)
    assert list(peftc.plan(untied, "nf4:head").quantised) == ["lm_head.weight"]


def test_parts_of_one_matrix_are_kept_together_or_not_at_all() -> None:
    plan = peftc.plan(conv(), "nf4")
    assert len(plan.quantised) == 2 * 4
    assert {turned for _, turned in plan.quantised.values()} == {True}
    assert sum(each.rule == "nf4" for each in plan.applications) == 2 * 6
    with pytest.raises(
        NoMatchError, match=r"its W also holds transformer.h.0.attn.c_attn:k, which is not chosen"
    ):
        peftc.plan(conv(), "nf4:q")


@pytest.mark.parametrize("order", [["nf4", "full"], ["full", "nf4"]])
def test_what_trains_is_not_packed_and_what_is_packed_does_not_train(order: list[str]) -> None:
    if order[0] == "full":
        with pytest.raises(NoMatchError, match="full trains its W"):
            peftc.plan(small(), order)
        return
    plan = peftc.plan(small(), order)
    assert not set(plan.trained) & set(plan.quantised)
    assert "model.layers.0.input_layernorm.weight" in plan.trained
    assert "nf4 keeps its W in fewer bits, so it cannot be trained" in reasons(plan, "full").values()


def test_the_head_of_a_task_trains_beside_packed_weights() -> None:
    plan = peftc.plan(bert(), "nf4")
    assert set(plan.trained) == {"classifier.weight", "classifier.bias"}
    assert "classifier.weight" not in plan.quantised


def test_a_weight_is_packed_once() -> None:
    plan = peftc.plan(small(), ["nf4:q", "nf4:q,k(double=false)"])
    assert "nf4 keeps its W in fewer bits already" in reasons(plan, "nf4_2").values()
    assert [packing.settings["double"] for packing, _ in plan.quantised.values()] == [True, False]


def test_a_setting_between_those_allowed_is_refused() -> None:
    with pytest.raises(MatchError, match=r"blocksize of nf4 must be one of 32, 64, .*, not 100"):
        peftc.plan(small(), "nf4(blocksize=100)")


def test_weights_without_values_are_refused_when_they_are_packed() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    given = {"input": torch.zeros(2, 8, device="meta")}
    assert len(peftc.plan(model, "nf4", given).quantised) > 0
    with pytest.raises(QuantiseError, match="load the model's values first"):
        peftc.compile(model, "nf4", given)


def test_the_explanation_says_how_weights_are_kept() -> None:
    said = str(peftc.explain(peftc.plan(small(), ["nf4(compute=bfloat16)", "lora:q"])))
    assert "keeps W in nf4 blocksize=64 double=true, products in bfloat16" in said


def test_a_rule_can_choose_among_formats() -> None:
    rule = peftc.Rule.model_validate(
        {
            "format": 1, "name": "packed", "summary": "Any format.", "match": {"role": "linear", "part": ("up",)},
            "options": {"kind": {"default": "int8", "choices": ("int8", "nf4")}},
            "quantise": {"W": {"format": "kind"}},
        }
    )  # fmt: skip
    plan = peftc.plan(small(), rule)
    assert {packing.text for packing, _ in plan.quantised.values()} == {"int8"}
    assert "8.00 bits" in plan.notes[0]
    compiled: Any = peftc.compile(small(), rule)
    assert compiled.model.layers[0].mlp.up_proj.weight.dtype == torch.int8
