"""What a plan says of itself, as text, as a table and as data."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from peftc import api
from peftc.inspect.explanation import ranges
from tests.models import bert, llama

MODELS: dict[str, Callable[[], Any]] = {"bert_tiny": bert, "llama_tiny": llama}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("folder", "rules"),
    [
        ("lora", "lora:q,v"),
        ("prefix", "prefix:5"),
        ("prefix_mlp", "prefix_mlp:5(hidden=8)"),
        ("prompt", "prompt:5"),
        ("p_tuning", "p_tuning:5(hidden=4)"),
        ("bitfit", "bitfit"),
        ("layernorm", "layernorm"),
        ("pfeiffer", "pfeiffer:8"),
        ("bottleneck", "bottleneck:8"),
        ("mam", "mam(prefix_length=5, bottleneck_size=8)"),
        ("unipelt", "unipelt(lora_rank=4, prefix_length=5, bottleneck_size=8)"),
        ("adalora", "adalora:q,v(rank=4, target=2)"),
        ("adapter_drop", "adapter_drop:8(most=1)"),
    ],
)
def test_text_of_a_plan(name: str, folder: str, rules: str, golden: Callable[[str, str], None]) -> None:
    golden(f"{folder}/{name}.plan.txt", str(api.explain(api.plan(MODELS[name](), rules))))


def test_text_names_every_rule_and_note() -> None:
    explanation = api.explain(api.plan(bert(), ["lora:q,v@1(rank=4)", "prefix:5"]))
    text = str(explanation)
    assert "lora (lora:q,v@1(rank=4))  rank=4" in text
    assert "2 × layer 0, not in 1" in text
    assert "note: head acts by default" in text
    assert explanation.rules[0].groups[0].layers == (1,)


def test_the_numbers_add_up() -> None:
    compiled: Any = api.compile(bert(), ["bitfit", "lora:attention", "full"])
    explanation = api.explain(compiled)
    counted = sum(group.count for rule in explanation.rules for group in rule.groups)
    trainable = sum(parameter.numel() for parameter in compiled.parameters() if parameter.requires_grad)
    assert counted == explanation.trainable == trainable
    assert explanation.total == sum(parameter.numel() for parameter in compiled.parameters())


def test_every_site_is_told_of_once() -> None:
    plan = api.plan(llama(), "lora:q,v")
    rule = api.explain(plan).rules[0]
    groups = [group.sites for group in rule.groups] + [group.sites for group in rule.skips]
    told = [site for sites in groups for site in sites]
    assert sorted(told) == sorted(site.id for site in plan.sites if site.role == "linear")


def test_data_is_json() -> None:
    data = json.loads(json.dumps(api.explain(api.plan(bert(), "lora:q,v")).as_dict()))
    assert data["rules"][0]["groups"][0]["parameters"] == {"A": [8, 24], "B": [24, 8]}
    assert data["rules"][0]["options"]["rank"] == 8


def test_the_table_holds_what_the_text_holds() -> None:
    explanation = api.explain(api.plan(bert(), "lora:q,v"))
    console = Console(file=io.StringIO(), width=200)
    console.print(explanation.table())
    shown = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    for cells in (group.cells for rule in explanation.rules for group in rule.groups):
        assert " ".join(cells) in shown
    assert explanation.totals in shown


def test_ranges_of_layers() -> None:
    assert ranges([0, 1, 2, 4, 7, 8]) == "0-2, 4, 7-8"
    assert ranges([]) == ""


def test_only_plans_are_explained() -> None:
    with pytest.raises(TypeError, match="Linear is neither a plan nor a compiled module"):
        api.explain(nn.Linear(1, 1))
