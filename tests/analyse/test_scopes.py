"""Which side of a model with two sequences a site is on; and that two projections of one sequence are no two."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest

import peftc
from peftc.analyse import Site
from peftc.api import sites
from peftc.errors import UnknownPartError
from tests.models import llama
from tests.zoo import entry, inputs


@cache
def found(name: str) -> tuple[Site, ...]:
    model = entry(name).model()
    return sites(model, inputs(model))


def scopes(of: Iterable[Site]) -> dict[str, set[str]]:
    told: dict[str, set[str]] = {}
    for site in of:
        told.setdefault(site.scope, set()).add(site.path)
    return told


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_attentions_of_encoders_and_decoders(name: str) -> None:
    told = scopes(site for site in found(name) if site.role == "attention")
    assert set(told) == {"encoder", "decoder", "cross"}
    assert all("encoder." in path for path in told["encoder"])
    assert all("decoder." in path and "EncDec" not in path for path in told["decoder"])
    assert all("encoder_attn" in path or "EncDecAttention" in path for path in told["cross"])


def test_parts_of_each_side() -> None:
    told = {
        (site.scope, site.part): site.path for site in found("bart") if site.role == "linear" and site.part
    }
    assert "encoder.layers" in told["encoder", "up"]
    assert "decoder.layers" in told["decoder", "up"]
    assert told["cross", "q"].endswith("encoder_attn.q_proj")
    assert told["decoder", "q"].endswith("self_attn.q_proj")
    norms = scopes(site for site in found("bart") if site.role == "norm")
    assert any(path.endswith("encoder_attn_layer_norm") for path in norms["decoder"])


@pytest.mark.parametrize("name", ["llama", "bert", "deepseek_v3", "deberta-v2", "albert"])
def test_a_model_of_one_sequence_has_no_sides(name: str) -> None:
    assert {site.scope for site in found(name)} == {""}


def test_a_scope_alone_means_the_rules_own_parts() -> None:
    model = entry("bart").model()
    plan = peftc.plan(model, ["lora:decoder(rank=2)"], inputs(model), defaults=False)
    acted = {(each.site.scope, each.site.part) for each in plan.applications}
    assert acted == {("decoder", "q"), ("decoder", "v")}
    with pytest.raises(UnknownPartError, match="no part 'encoder'") as caught:
        peftc.plan(llama(), ["prefix:encoder"])
    assert "attention" in str(caught.value)


@pytest.mark.slow
def test_a_prefix_for_each_attention_or_for_one_scope() -> None:
    model: Any = entry("bart").model()
    for spec, want in (
        ("prefix:3", {"encoder", "decoder", "cross"}),
        ("prefix:encoder(length=3)", {"encoder"}),
        ("prefix:cross.attention,decoder(length=3)", {"cross", "decoder"}),
    ):
        plan = peftc.plan(model, [spec], inputs(model), defaults=False)
        assert {each.site.scope for each in plan.applications} == want
    plan = peftc.plan(model, ["prefix_mlp:3(hidden=4)"], inputs(model), defaults=False)
    shared = {each.shared for each in plan.new_parameters if each.name == "W"}
    assert len(shared) == 3, "a network for each scope"
