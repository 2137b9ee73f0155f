"""The grammar of rule specs, what they bind to, and every way they are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftc.errors import (
    OptionValueError,
    PeftcError,
    RuleError,
    SpecError,
    UnknownOptionError,
    UnknownRuleError,
)
from peftc.lang import Bound, Rule, bind, bind_all, default_library, flatten, read_layers

LORA_FILE = default_library().folders[0] / "lora.toml"


@pytest.mark.parametrize(
    ("text", "options", "parts", "layers", "path"),
    [
        ("lora", {}, [], None, None),
        ("lora:q,v", {}, ["q", "v"], None, None),
        (" lora : q , v ", {}, ["q", "v"], None, None),
        ("lora:attention(rank=16)@4-11", {"rank": 16}, ["attention"], "4-11", None),
        ("lora:attention@4-11(rank=16)", {"rank": 16}, ["attention"], "4-11", None),
        ("lora(rank=4, alpha=8, drop=1e-1)", {"rank": 4, "alpha": 8.0, "drop": 0.1}, [], None, None),
        ("lora()", {}, [], None, None),
        ("lora:decoder.q,cross.v", {}, ["decoder.q", "cross.v"], None, None),
        ("lora:decoder", {}, ["decoder"], None, None),
        ("prefix:encoder(length=20)", {"length": 20}, ["encoder"], None, None),
        ("prefix:cross.attention, decoder", {}, ["cross.attention", "decoder"], None, None),
        ("lora:all-linear@0,3,5-7", {}, ["all-linear"], "0,3,5-7", None),
        ("lora:path=*.out_proj@6-", {}, [], "6-", "*.out_proj"),
        ("prefix:20", {"length": 20}, [], None, None),
        ("prefix(positions='shift')", {"positions": "shift"}, [], None, None),
        ("bitfit:norm,q(insert=always)", {"insert": "always"}, ["norm", "q"], None, None),
        (f"{LORA_FILE}:q(rank=2)", {"rank": 2}, ["q"], None, None),
    ],
)
def test_reads(
    text: str, options: dict[str, Any], parts: list[str], layers: str | None, path: str | None
) -> None:
    bound = bind(text)
    defaults = {name: option.default for name, option in bound.rule.options.items()}
    assert bound.options == {**defaults, **options}
    assert [selector.text for selector in bound.parts] == parts
    assert (bound.layers.text if bound.layers else None) == layers
    assert bound.path_glob == path


REFUSED = [
    "", "Lora", "lorra", "lora:", "lora:qq", "lora:left.q", "lora:q,,v", "lora:q v", "lora@x", "lora@7-4",
    "lora@3@4", "lora()()", "lora(rank=4", "lora(rank)", "lora(rank=)", "lora(rank=4 alpha=3)", "lora(rnk=4)",
    "lora(rank=0)", "lora(rank=4.5)", "lora(rank='4')", "lora(alpha=nan)", "lora(alpha=1e400)",
    "lora(drop=2)", "lora(rank=4,rank=5)", "lora(rank=4)x", "prefix:abc", "prefix:5(length=6)",
    "prefix(positions=shfit)", "full:3", "lora:path=", "lora:path=a b", "missing/rule.toml", "lora[q]",
    "lora-q", "lora(rank=4; rank=5)", "lora(rank=4;)", "lora(*: rnk=4)", "lora(*.0.*: rank=0)", "lora(*: rank=4; *: rank=5)",
    "lora(*: rank)", "adalora(*: gamma=1)",
]  # fmt: skip


def refused(given: Any) -> PeftcError:
    with pytest.raises(PeftcError) as caught:
        bind(given)
    return caught.value


def test_refusals(golden: Callable[[str, str], None]) -> None:
    told = [f"{type(error := refused(text)).__name__}: {error}" for text in REFUSED]
    golden("lang/spec_errors.txt", "\n\n".join(told))


def test_kinds_of_refusal() -> None:
    assert isinstance(refused("lorra"), UnknownRuleError)
    assert isinstance(refused("lora(rnk=4)"), UnknownOptionError)
    assert isinstance(refused("lora(rank=0)"), OptionValueError)
    assert isinstance(refused("lora@x"), SpecError)


MAPPINGS: list[Any] = [
    {}, {"rule": 3}, {"rule": "lora", "rnk": 3}, {"rule": "lora", "rank": True}, {"rule": "lora", "part": 3},
    {"rule": "lora", "part": ["qq"]}, {"rule": "lora", "layers": 1.5}, {"rule": "lora", "label": "a.b"},
    {"rule": "lora", "path": 3}, 3, {"rule": "lora", "sites": ["*"]}, {"rule": "lora", "sites": {"*": {}}},
    {"rule": "lora", "sites": {"*": {"rnk": 3}}},
]  # fmt: skip


def test_refused_mappings(golden: Callable[[str, str], None]) -> None:
    golden("lang/mapping_errors.txt", "\n\n".join(str(refused(given)) for given in MAPPINGS))


def test_mapping_and_spec_say_the_same() -> None:
    spec = bind("lora:q@0-3(rank=4)")
    for given in (
        {"rule": "lora", "part": ["q"], "rank": 4, "layers": "0-3"},
        {"rule": LORA_FILE, "part": "q", "rank": 4, "layers": "0-3"},
        {"rule": spec.rule, "part": "q", "rank": 4, "layers": "0-3"},
    ):
        assert bind(given) == spec
    sites = {"*.0.*": {"rank": 4, "alpha": 2}, "*:v": {"drop": 0.5}}
    assert bind({"rule": "lora", "sites": sites}) == bind("lora(*.0.*: rank=4, alpha=2; *:v: drop=0.5)")
    assert bind({"rule": "lora", "layers": [0, 2]}).layers == read_layers("0,2")
    assert bind(Path(LORA_FILE)) == bind("lora") == bind(spec.rule)


def test_of_options_for_some_sites_the_later_ones_win() -> None:
    bound = bind("lora(rank=4; *.0.*: rank=5, alpha=2; *:q: rank=6; a.0.b:q: rank=4)")
    assert bound.options_at("x.0.y", "x.0.y:v") == {"rank": 5, "alpha": 2.0}
    assert bound.options_at("x.0.y", "x.0.y:q") == {"rank": 6, "alpha": 2.0}
    assert bound.options_at("a.0.b", "a.0.b:q") == {"alpha": 2.0}, "as everywhere else"
    assert bound.options_at("x.1.y", "x.1.y:v") == {}


def test_labels_are_unique() -> None:
    labels = [
        bound.label for bound in bind_all(["lora", "lora:q", {"rule": "lora", "label": "lora_2"}, "full"])
    ]
    assert labels == ["lora", "lora_2", "lora_2_2", "full"]
    assert [bound.label for bound in bind_all("lora")] == ["lora"]


@pytest.mark.parametrize(
    "text",
    [
        "lora:q,v@1-(rank=3)",
        "prefix:7(positions=shift)",
        "lora:path=*.x",
        "head",
        "lora(rank=3; *.0.*:q: rank=4, drop=1)",
    ],
)
def test_survives_storage(text: str) -> None:
    (bound,) = bind_all([text])
    again = Bound.from_flat(json.loads(json.dumps(flatten(bound))))
    assert again == bound


def test_a_stored_rule_is_proved_again() -> None:
    flat = flatten(bind("lora"))
    with pytest.raises(OptionValueError):
        Bound.from_flat({**flat, "options": {"rank": -1}})
    with pytest.raises(RuleError):
        Bound.from_flat({**flat, "rule": {**flat["rule"], "rewrite": {"y": "y + nothing"}}})
    for wrong in ({}, {**flat, "label": "../x"}, {**flat, "options": 3}, {**flat, "part": 3}):
        with pytest.raises(SpecError):
            Bound.from_flat(wrong)


def test_layers() -> None:
    assert [layer for layer in range(10) if layer in read_layers("0,3,5-7")] == [0, 3, 5, 6, 7]
    assert [layer for layer in range(10) if layer in read_layers("-2,8-")] == [0, 1, 2, 8, 9]
    assert None not in read_layers("0-")


def test_parts_choose_sites() -> None:
    bound = bind("lora:attention,decoder.up")
    attention, up = bound.parts_of(bound.rule)
    assert attention.accepts("linear", "o", "encoder")
    assert not attention.accepts("linear", "up", "decoder")
    assert up.accepts("linear", "up", "decoder")
    assert not up.accepts("linear", "up", "encoder")
    assert [selector.text for selector in bind("lora").parts_of(bind("lora").rule)] == ["q", "v"]
    everything = bind("lora:all-linear").parts[0]
    assert everything.accepts("linear", "")
    assert not everything.accepts("linear", "head")


def told(given: Any) -> list[str | None]:
    """What each section of a rule is for; None for one that does not act."""
    bound = bind(given)
    return [
        " ".join(each.text for each in bound.parts_of(section)) if bound.wants(section) else None
        for section in bound.rule.sections
    ]


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("pfeiffer:attention", ["attention"] * 3),
        ("pfeiffer:encoder", ["encoder.ffn encoder.both"] * 3),
        ({"rule": "pfeiffer", "path": "a.*"}, ["ffn both"] * 3),
        ({"rule": "prefix", "part": "decoder.attention"}, ["decoder.attention", "decoder.attention", ""]),
        ("lora:q,embedding", ["q", "embedding"]),
        ("lora:path=*.out_proj", ["", ""]),
        ({"rule": "lora", "part": "q", "path": "*"}, ["q", None]),
        ("compacter:decoder.ffn", ["decoder.ffn", "decoder"]),
    ],
)
def test_parts_choose_in_every_section_that_can_have_them(given: Any, parts: list[str | None]) -> None:
    assert told(given) == parts


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("houlsby:attention", ["o", None, ""]),
        ("houlsby:ffn", [None, "ffn", ""]),
        ("houlsby:decoder.ffn,encoder.o", ["encoder.o", "decoder.ffn", "decoder encoder"]),
        ("houlsby:encoder", ["encoder.o", "encoder", "encoder"]),
        ("parallel:attention", [None, "attention"]),
        ({"rule": "ia3", "part": ["ffn", "v"]}, ["v", "down"]),
        ({"rule": "ia3", "part": "decoder"}, ["decoder.k decoder.v", "decoder.down"]),
        ({"rule": "ia3", "path": "a.*"}, ["k v", "down"]),
        ({"rule": "unipelt", "part": "attention"}, ["q v", "attention", "attention", "", None]),
    ],
)
def test_sections_that_place_different_things_keep_to_their_own(given: Any, parts: list[str | None]) -> None:
    assert told(given) == parts


@pytest.mark.parametrize("follows", [False, True])
def test_a_section_that_follows_is_for_what_the_first_is_for(follows: bool) -> None:
    sections = [
        {"match": {"role": "linear", "part": part}, "train": {"b": {}}} for part in (["q"], ["v", "up"])
    ]
    rule = Rule.model_validate(
        {
            "format": 1,
            "name": "two",
            "summary": "Two.",
            **sections[0],
            "also": [{**sections[1], "follows": follows}],
        }
    )
    assert told({"rule": rule, "part": "attention"}) == (
        ["attention", "attention"] if follows else ["q", "v"]
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("houlsby:gate", "all-linear, attention, ffn, linear, o;"),
        ("houlsby:norm", "all-linear, attention, ffn, linear, o;"),
        ({"rule": "ia3", "part": "q"}, "all-linear, attention, down, ffn, k, linear, v;"),
        ("pfeiffer:q", "attention, both, ffn, residual;"),
        ({"rule": "mam", "part": "positions"}, "attention, ffn;"),
    ],
)
def test_a_part_that_no_section_can_have_is_refused_with_those_that_some_can(given: Any, words: str) -> None:
    with pytest.raises(SpecError, match="has no part") as caught:
        bind(given)
    assert f"there is: {words}" in str(caught.value)


def test_layers_that_are_not_there() -> None:
    assert read_layers("0,99").beyond({0, 1}) == (99,)
    assert read_layers("4-11").beyond(range(6)) == (6, 7, 8, 9, 10, 11)
    assert read_layers("-3,1").beyond({0, 1}) == (2, 3)
    assert read_layers("0-1,4-").beyond({0, 1}) == ()
    assert read_layers("0-4,1").beyond({0, 2, 4}) == (1,), (
        "a range may go over one in which nothing was found"
    )
