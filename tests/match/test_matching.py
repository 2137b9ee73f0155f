"""Plans: every site is an application or a skip; what cannot be done is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.errors import BudgetError, ConflictError, NoMatchError, UnknownPartError
from tests.models import bert as tiny_bert
from tests.models import llama as tiny_llama

SCALE = {
    "format": 1,
    "name": "scale",
    "summary": "Scale the queries.",
    "match": {"role": "linear", "part": ["q"]},
    "parameters": {"g": {"axes": "d_out", "init": "ones"}},
    "rewrite": {"y": "y * g"},
}


def made(name: str, **changes: Any) -> Any:
    """The rule above under another name, with some of its keys replaced."""
    return peftc.Rule.model_validate({**SCALE, "name": name, **changes})


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    model: nn.Module = tiny_bert()
    return model


def test_every_site_of_a_role_is_applied_to_or_skipped(bert: nn.Module) -> None:
    plan = peftc.plan(bert, ["lora:q,v@1"])
    linears = {site.id for site in plan.sites if site.role == "linear"}
    applied = {each.site.id for each in plan.of("lora")}
    skipped = {skip.site.id: skip.reason for skip in plan.skips if skip.rule == "lora"}
    assert applied | set(skipped) == linears
    assert not applied & set(skipped)
    assert all(each.site.layer == 1 and each.site.part in ("q", "v") for each in plan.of("lora"))
    assert {reason for site, reason in skipped.items() if site.endswith((":q", ":v"))} == {
        "layer 0, not in 1"
    }


def test_a_part_that_no_site_has_is_refused_even_when_another_matched(bert: nn.Module) -> None:
    with pytest.raises(UnknownPartError) as caught:
        peftc.plan(bert, ["lora:q,gate"])
    assert "this model has no part 'gate'" in str(caught.value)
    assert "down, embedding, head, k, o, other, position, q, table, up, v" in str(caught.value)


def test_a_rule_that_matches_nothing_shows_why_and_the_nearest(bert: nn.Module) -> None:
    with pytest.raises(NoMatchError) as caught:
        peftc.plan(bert, ["lora(rank=4000)"])
    assert "rank < d_in is not so (4000 against" in str(caught.value)
    with pytest.raises(NoMatchError, match=r"nearest: .*query"):
        peftc.plan(bert, ["lora:path=*.quary"])


def test_parameters_are_counted_before_they_are_made(bert: nn.Module) -> None:
    with pytest.raises(BudgetError, match="the budget is 100"):
        peftc.plan(bert, ["prefix:20"], budget=100)


def test_rules_that_exclude_each_other_are_both_named(bert: nn.Module) -> None:
    with pytest.raises(ConflictError, match="one and two cannot act together"):
        peftc.plan(bert, [made("one", conflicts=["two"]), made("two")])


def test_a_circle_of_orders_is_named(bert: nn.Module) -> None:
    with pytest.raises(ConflictError, match=r"one before two before one|two before one before two"):
        peftc.plan(bert, [made("one", before=["two"]), made("two", before=["one"])])


def test_before_and_after_move_rules_and_nothing_else_does(bert: nn.Module) -> None:
    assert [b.label for b in peftc.plan(bert, [made("one"), made("two")]).rules] == ["one", "two", "head"]
    plan = peftc.plan(bert, [made("one", after=["two"]), made("two")])
    assert [bound.label for bound in plan.rules] == ["two", "one", "head"]


def test_a_rule_that_throws_away_anothers_work_is_refused(bert: nn.Module) -> None:
    deaf = made(
        "deaf",
        match={"role": "linear", "part": ["q"], "values": {"x": "* d_in"}},
        parameters={"M": {"axes": "d_out d_in", "init": "zeros"}},
        rewrite={"y": "x @ M"},
    )
    with pytest.raises(ConflictError, match="deaf would overwrite what lora makes of y"):
        peftc.plan(bert, ["lora:q", deaf])
    plan = peftc.plan(bert, [deaf, "lora:q"])  # its twin: the later one reads what the earlier one made
    assert [bound.label for bound in plan.rules] == ["deaf", "lora", "head"]


def test_default_rules_act_can_be_turned_off_and_say_so(bert: nn.Module) -> None:
    plan = peftc.plan(bert, ["lora:q"])
    assert "classifier.weight" in plan.trained
    assert any(note.startswith("head acts by default") for note in plan.notes)
    assert peftc.plan(bert, ["lora:q"], defaults=False).trained == ()
    assert peftc.plan(tiny_llama(), ["lora:q"]).trained == ()  # a vocabulary head is not a task's


def test_what_full_trains_head_does_not_train_again(bert: nn.Module) -> None:
    plan = peftc.plan(bert, ["full"])
    assert not list(plan.of("head"))
    assert plan.trainable_count == sum(parameter.numel() for parameter in bert.parameters())


def test_digests_differ_with_the_plan_and_with_nothing_else(bert: nn.Module) -> None:
    assert peftc.plan(bert, ["lora:q"]).digest == peftc.plan(tiny_bert(), ["lora:q"]).digest
    assert peftc.plan(bert, ["lora:q"]).digest != peftc.plan(bert, ["lora:v"]).digest


UPDATE = {"rule": "lora", "let": {"scale": "0.5"}, "merge": False}


def composite(*uses: dict[str, Any]) -> Any:
    """Several uses of one rule in one."""
    return peftc.Rule.model_validate(
        {"format": 1, "name": "several", "summary": "Several updates.", "use": list(uses)}
    )


def test_every_used_rule_must_find_a_place(bert: nn.Module) -> None:
    rule = composite(UPDATE, {**UPDATE, "match": {"part": "router"}})
    with pytest.raises(NoMatchError, match="section 2 of several matches nothing: it leaves out all 14"):
        peftc.plan(bert, [rule])
    plan = peftc.plan(bert, [composite(UPDATE, {**UPDATE, "match": {"part": "o"}})], defaults=False)
    assert [each.section for each in plan.applications] == [0, 0, 0, 0, 1, 1]


def test_two_uses_of_one_rule_at_one_site_have_parameters_of_their_own(bert: nn.Module) -> None:
    plan = peftc.plan(bert, [composite(UPDATE, UPDATE)], defaults=False)
    paths = [parameter.path for parameter in plan.new_parameters]
    assert len(set(paths)) == len(paths) == 2 * 2 * 4
    assert {path.rpartition(".")[2] for path in paths} == {"lora_A", "lora_B", "lora_2_A", "lora_2_B"}


def test_a_value_of_other_axes_than_a_rule_names_is_a_skip_with_its_reason(bert: nn.Module) -> None:
    values = {"x": "batch seq d_in", "y": "batch seq d_out"}
    given = {"rule": composite({**UPDATE, "match": {"values": values}}), "part": ["q", "other"]}
    plan = peftc.plan(bert, [given], defaults=False)
    (skip,) = [skip for skip in plan.skips if skip.site.part == ""]
    assert skip.reason == "x has 2 axes here, not those of [batch seq d_in]"
    # Its twin: where the rule names no leading axes, the same site is taken.
    taken = peftc.plan(bert, [{**given, "rule": composite(UPDATE)}], defaults=False)
    assert [each.site.path for each in taken.applications if each.site.part == ""] == ["bert.pooler.dense"]


class OneForBoth(nn.Module):
    """Attention whose keys are its values: one product, without a cast or a turn between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, kv = (each(x).unflatten(-1, (2, 8)).transpose(1, 2) for each in (self.a, self.b))
        mixed = nn.functional.scaled_dot_product_attention(q, kv, kv)
        back: Tensor = self.c(mixed.transpose(1, 2).flatten(2))
        return x + back


def test_one_product_that_is_keys_and_values_is_changed_once() -> None:
    given = {"x": torch.randn(2, 5, 16)}
    compiled: Any = peftc.compile(OneForBoth(), ["lora:k,v(rank=2)"], given, defaults=False)
    plan = compiled.peftc_plan
    assert [each.site.id for each in plan.applications] == ["b:k"]
    (skip,) = [each for each in plan.skips if each.site.part == "v"]
    assert skip.reason == "it is the product of b:k, changed there"
    both: Any = peftc.compile(
        OneForBoth(), ["lora:k(rank=2)", "lora:v(rank=3)"], given, defaults=False
    )  # as asked for, by two rules
    assert [each.site.id for each in both.peftc_plan.applications] == ["b:k", "b:v"]


class Renormalised(OneForBoth):
    """What looks like attention, but the largest weights alone are summed: no softmax attention can do that."""

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.a(x), self.b(x)
        weights = (q @ k.transpose(1, 2)).softmax(-1)
        largest = weights.topk(2, -1).values.sum(-1, keepdim=True)
        values: Tensor = self.c(x)
        by_size: Tensor = (weights / largest).sort(-1).values
        return x + by_size @ values


def test_a_softmax_that_is_not_read_is_named_where_attention_is_wanted() -> None:
    given = {"x": torch.randn(2, 5, 16)}
    with pytest.raises(UnknownPartError, match="no part 'q'") as caught:
        peftc.compile(Renormalised(), ["lora:q"], given, defaults=False)
    (told,) = caught.value.detail
    assert told.startswith("not read as attention: softmax in the model itself: ")
    assert "not read as attention" in str(caught.value)


class OneMapTwice(OneForBoth):
    """One linear map makes the queries, and again the keys, of other values."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            each.unflatten(-1, (2, 8)).transpose(1, 2) for each in (self.a(x), self.a(x.tanh()), self.b(x))
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        back: Tensor = self.c(mixed.transpose(1, 2).flatten(2))
        return x + back


@pytest.mark.parametrize("part", ["q", "k"])
def test_a_map_that_plays_two_parts_is_found_by_either(part: str) -> None:
    given = {"x": torch.randn(2, 5, 16)}
    model = OneMapTwice()
    (site,) = [each for each in peftc.sites(model, given) if each.path == "a" and each.role == "linear"]
    assert (site.part, site.also) == ("q", ("k",))
    assert site.evidence.endswith("; elsewhere k")
    compiled: Any = peftc.compile(model, [f"lora:{part}(rank=2)"], given, defaults=False)
    (application,) = compiled.peftc_plan.applications
    assert application.site.id == "a:q"
    for parameter in compiled.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        got, merged = compiled(**given), compiled.merge_and_unload()(**given)
    torch.testing.assert_close(got, merged, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("pissa(alpha=0)", "alpha > 0 is not so"),
        ("oft(block=4, terms=1)", "terms != 1 is not so"),
        ("loreft(first=0, last=0)", "first \\+ last > 0 is not so"),
        ("p_tuning_v2(encoder=mlp, init=text)", "init == 'random' is not so"),
    ],
)
def test_options_with_which_a_rule_would_do_nothing_are_named(spec: str, reason: str) -> None:
    with pytest.raises(NoMatchError, match=f"does nothing with these options\n(.*\n)*.*{reason}"):
        peftc.compile(tiny_llama(), spec, defaults=False)
