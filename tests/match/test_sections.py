"""Rules of several sections: what a user chooses narrows all of them, what accompanies others stays, the rest is said."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from torch import nn

import peftc
from peftc.analyse import Analysis
from peftc.api import analysis
from peftc.errors import NoMatchError, UnknownPartError
from peftc.lang import Rule, Shrunk, bind, default_library, goes_along
from peftc.match import Plan, make_plan
from tests.models import bert, llama
from tests.zoo import entry, inputs

LIBRARY = default_library()
SEVERAL = [rule.name for rule in LIBRARY.rules() if len(rule.sections) > 1]
BY_PATH = {"p_tuning": "model.encoder", "prompt": "model.encoder"}  # what they go to is the encoder itself
IN_NO_LAYER = ("p_tuning", "prompt")
SMALL: dict[str, dict[str, Any]] = {"compacter": {"reduction": 4}}


@cache
def seen(name: str) -> tuple[Analysis, nn.Module]:
    """What there is in a tiny model."""
    made = {"llama": llama, "bert": bert}
    model: nn.Module = made[name]() if name in made else entry(name).model()
    return analysis(model, None if name in made else inputs(model)), model


def planned(given: Any, model: str) -> Plan:
    found, root = seen(model)
    return make_plan([bind(given)], found, root, budget=2**63)


def acting(plan: Plan) -> set[tuple[int, str, str]]:
    """Sections with the scopes and parts, or roles, that they go to."""
    return {(each.section, each.site.scope, each.site.part or each.site.role) for each in plan.applications}


def variants(name: str) -> Iterable[dict[str, Any]]:
    """A rule with its defaults, and with each choice of its options that switches sections on or off."""
    rule, usual = LIBRARY.rule(name), {"rule": name, **SMALL.get(name, {})}
    read = {word for section in rule.sections for text in section.match.where for word in text.split()}
    choices = [
        {option: choice}
        for option, told in rule.options.items()
        for choice in told.choices
        if option in read and choice != told.default
    ]
    return [usual, *({**usual, **choice} for choice in choices)]


CASES = [
    pytest.param(given, id=" ".join(map(str, given.values()))) for name in SEVERAL for given in variants(name)
]


def outside(plan: Plan, **chosen: Any) -> list[str]:
    """Sites of a plan that are not what was chosen; what goes along with others is held to its scope alone."""
    (bound,) = plan.rules
    wrong = []
    for each in plan.applications:
        along = goes_along(bound.rule, plan.section(each))
        if "scope" in chosen and each.site.scope != chosen["scope"]:
            wrong.append(each.site.id)
        if "glob" in chosen and not along and not fnmatch.fnmatchcase(each.site.path, chosen["glob"]):
            wrong.append(each.site.id)
        if "layer" in chosen and not along and each.site.layer != chosen["layer"]:
            wrong.append(each.site.id)
    return wrong


@pytest.mark.parametrize("given", CASES)
def test_no_section_goes_beyond_what_is_chosen(given: dict[str, Any]) -> None:
    name = given["rule"]
    everywhere = {each[1:] for each in acting(planned(given, "bart"))}
    scoped = planned({**given, "part": "encoder"}, "bart")
    assert outside(scoped, scope="encoder") == []
    assert {each[1:] for each in acting(scoped)} == {each for each in everywhere if each[0] == "encoder"}
    glob = BY_PATH.get(name, "model.encoder.layers.*")
    assert outside(planned({**given, "path": glob}, "bart"), glob=glob, scope="encoder") == []
    if name in IN_NO_LAYER:
        with pytest.raises(NoMatchError, match="outside of any layer, not in 1"):
            planned({**given, "layers": "1"}, "bart")
    else:
        assert outside(planned({**given, "layers": "1"}, "bart"), layer=1) == []


@pytest.mark.parametrize(
    ("given", "model", "want"),
    [
        ("pfeiffer:encoder", "t5", {(1, "encoder", "ffn")}),
        ("pfeiffer:attention", "llama", {(1, "", "attention")}),
        ("pfeiffer:attention", "bert", {(0, "", "attention")}),
        ("parallel:encoder(place=attention)", "t5", {(1, "encoder", "attention")}),
        ("parallel:ffn(place=both)", "llama", {(0, "", "ffn")}),
        ("houlsby:encoder", "t5", {(0, "encoder", "o"), (1, "encoder", "ffn"), (2, "encoder", "norm")}),
        ("houlsby:ffn", "llama", {(1, "", "ffn"), (2, "", "norm")}),
        ("houlsby:attention", "llama", {(0, "", "o"), (2, "", "norm")}),
        ("houlsby:ffn(norms=freeze)", "llama", {(1, "", "ffn")}),
        ({"rule": "mam", "path": "encoder.*"}, "t5", {(0, "encoder", "attention"), (3, "encoder", "ffn")}),
        (
            {"rule": "ia3", "path": "encoder.*"},
            "t5",
            {(0, "encoder", "k"), (0, "encoder", "v"), (1, "encoder", "down")},
        ),
        ({"rule": "ia3", "part": "v"}, "llama", {(0, "", "v")}),
        ({"rule": "unipelt", "part": "q"}, "llama", {(0, "", "q")}),
        ("prefix@1(positions=shift)", "llama", {(0, "", "attention"), (2, "", "positions")}),
        (
            "prefix:encoder(positions=shift)",
            "bart",
            {(0, "encoder", "attention"), (2, "encoder", "positions")},
        ),
        ({"rule": "mam", "part": "ffn", "prefix_positions": "shift"}, "llama", {(3, "", "ffn")}),
        ("houlsby:cross", "t5", {(0, "cross", "o"), (2, "decoder", "norm")}),
        ("prefix:cross(positions=shift)", "bart", {(0, "cross", "attention"), (2, "decoder", "positions")}),
    ],
)
def test_what_is_chosen_is_what_acts(given: Any, model: str, want: set[tuple[int, str, str]]) -> None:
    assert acting(planned(given, model)) == want


def test_weights_in_fewer_bits_accompany_what_trains_beside_them() -> None:
    uses = [{"rule": "nf4"}, {"rule": "lora"}]
    rule = Rule.model_validate({"format": 1, "name": "both", "summary": "Both.", "use": uses})
    plan = planned({"rule": rule, "part": "q", "layers": "1", "nf4_blocksize": 32}, "llama")
    found = {
        number: {each.site.part for each in plan.applications if each.section == number} for number in (0, 1)
    }
    assert found == {0: {"q", "k", "v", "o", "gate", "up", "down"}, 1: {"q"}}
    assert {each.site.layer for each in plan.applications} == {1}


def test_what_goes_along_stays_where_gates_took_all_the_rest_out() -> None:
    """Else positions would jump back when a prefix is taken out that had come to nothing."""
    bound = bind("prefix:encoder(positions=shift)")
    found, root = seen("bart")
    gone = [site.id for site in found.sites if site.role == "attention" and site.scope == "encoder"]
    kept = gone.pop()
    for left in (gone, [*gone, kept]):
        shrunk = replace(bound, shrunk=tuple(Shrunk(site, 0, gone=True) for site in left))
        plan = make_plan([shrunk], found, root)
        assert (2, "encoder", "positions") in acting(plan)
        assert not any(note for note in plan.notes if "nothing" in note)


@pytest.mark.parametrize(
    ("given", "model", "kind", "said"),
    [
        ("houlsby:encoder", "llama", UnknownPartError, "this model has no part 'encoder'"),
        ("pfeiffer:cross", "t5", NoMatchError, "part decoder.ffn is not among cross.ffn, cross.both"),
        ("parallel:attention", "llama", NoMatchError, r"place != 'ffn' is not so \(ffn against ffn\)"),
        ("parallel:ffn,attention", "llama", NoMatchError, "does nothing at 'attention' with these options"),
        ("compacter:ffn(terms=7)", "llama", NoMatchError, "compacter matches nothing"),
        (
            {"rule": "pfeiffer", "path": "*.self_attn"},
            "llama",
            NoMatchError,
            "2 × part attention is not among ffn, both",
        ),
        ("lora:q@0,99", "llama", NoMatchError, "this model has no layer 99\nit has: 0-1"),
        ("lora:q@0-3", "llama", NoMatchError, "no layers 2-3\nit has: 0-1"),
        ({"rule": "mam", "layers": [1, 4, 6]}, "bert", NoMatchError, "no layers 4, 6\nit has: 0-1"),
        ("lora:q@4-", "llama", NoMatchError, "layer 0, not in 4-"),
    ],
)
def test_what_cannot_be_done_is_refused(given: Any, model: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        planned(given, model)


@pytest.mark.parametrize(
    ("given", "model", "want"),
    [
        ("prefix(positions=shift)", "t5", "positions=shift of prefix does nothing here: this model has no positions"),
        ("prefix(positions=shift)", "bart", None),
        ("prefix", "t5", None),
        (
            "houlsby:cross",
            "t5",
            "houlsby goes to no ffn: 2 × part encoder.ffn is not among cross; 2 × part decoder.ffn is not among cross",
        ),
        (
            {"rule": "mam", "part": "ffn", "prefix_positions": "shift"},
            "llama",
            "prefix_positions=shift of mam does nothing here: 1 × nothing acts that it goes along with",
        ),
        (
            "pfeiffer(reads=sum)",
            "bert",
            "reads=sum of pfeiffer does nothing here: 2 × post_norms < 1 is not so (1 against 1)",
        ),
        ("pfeiffer(reads=sum)", "llama", None),
        ("parallel:ffn(place=both)", "llama", "place=both of parallel does nothing here: no residual is among ffn"),
        (
            "lora:q,embedding@1",
            "llama",
            "lora changes nothing of embedding: 1 × outside of any layer, not in 1",
        ),
        ("lora:path=*.q_proj", "llama", None),
        (
            {"rule": "ia3", "path": "*_proj"},
            "bart",
            "ia3 goes to no linear (down): 4 × path does not match *_proj",
        ),
        (
            {"rule": "mam", "path": "*.self_attn"},
            "llama",
            "mam goes to no ffn: 2 × path does not match *.self_attn",
        ),
    ],
)  # fmt: skip
def test_what_comes_to_nothing_is_said(given: Any, model: str, want: str | None) -> None:
    told = [note for note in planned(given, model).notes if "nothing" in note or " goes to no " in note]
    assert told == ([] if want is None else [want])


def test_what_comes_to_nothing_is_in_the_explanation() -> None:
    plan = peftc.plan(llama(), "parallel:ffn(place=both)", defaults=False)
    assert "note: place=both of parallel does nothing here" in str(peftc.explain(plan))
