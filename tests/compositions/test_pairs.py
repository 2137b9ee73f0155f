"""Pairs of rules: a few quickly, all of them slowly, by the laws that `benchmarks/compositions.py` measures."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest

from benchmarks.compositions import RESULTS, digest_of, measure
from benchmarks.laws import broken, unlike
from docs.making import compositions
from peftc.lang import default_library

NAMES = default_library().names()


@pytest.mark.parametrize(
    ("one", "other", "merges", "ordered"),
    [("lora", "prefix", False, False), ("ia3", "oft", True, False), ("bitfit", "lora", True, False)],
)
def test_a_few_pairs(one: str, other: str, merges: bool, ordered: bool) -> None:
    record = measure(one, other)
    assert broken(one, other, record) == []
    assert isinstance(record["merged"], float) == merges
    assert (record["order"] > 1e-5) == ordered
    assert record["beside"]
    assert min(far for fars in record["over"].values() for far in fars) <= 1e-5


def test_a_pair_that_cannot_be_is_refused_with_both_names() -> None:
    record = measure("full", "nf4")
    assert record["names both"], record
    assert broken("full", "nf4", record) == []


def test_a_rule_over_a_merged_one_is_told_apart_only_with_a_reason() -> None:
    assert unlike("bitfit", "lora", {"bitfit": [0.0, 0.5], "lora": [1e-6, 1e-6]}) == []
    assert unlike("bitfit", "lora", {"bitfit": [0.5, 0.5]}) == [
        "lora acts unlike beside bitfit over a model with bitfit in its weights"
    ]
    assert unlike("dora", "lora", {"lora": [0.5, 0.5]}) == []
    assert unlike("dora", "lora", {"lora": [0.0, 0.5]}) == [
        "dora acts like beside lora over a model with lora in its weights"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("one", NAMES)
def test_all_pairs(one: str) -> None:
    found = {(one, other): broken(one, other, measure(one, other)) for other in NAMES if other > one}
    wrong = {pair: laws for pair, laws in found.items() if laws}
    assert not wrong


@pytest.mark.slow
def test_the_records_are_of_the_rules_as_they_are() -> None:
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    for one, other in combinations(NAMES, 2):
        pair = f"{one}+{other}"
        assert kept.get(pair, {}).get("digest") == digest_of(one, other), (
            f"{pair} is to be measured: python benchmarks/compositions.py"
        )


def test_the_page_says_what_the_records_say(monkeypatch: pytest.MonkeyPatch) -> None:
    whole: dict[str, Any] = {
        "gradients": [],
        "saved": True,
        "equations": [1e-7, 1e-7],
        "beside": {"ia3": 0.0},
        "over": {"ia3": [0.0, 0.5]},
    }
    held = {
        ("ia3", "lora"): {**whole, "order": 0.0, "merged": 1e-7},
        ("ia3", "oft"): {**whole, "order": 0.3, "merged": "ia3 and oft cannot be merged together"},
        ("ia3", "rslora"): {**whole, "order": 0.0, "merged": 1e-7, "over": {"ia3": [0.5, 0.5]}},
        ("ia3", "loha"): {**whole, "order": 0.0, "merged": 1e-7, "equations": [0.0, 0.5]},
        ("ia3", "nf4"): {"refused": "MatchError: nf4 and ia3", "names both": True},
        ("ia3", "mam"): {**whole, "order": 0.0, "merged": 1e-7, "gradients": ["x.peftc.l"]},
    }
    kinds = [compositions.kind(*pair, each) for pair, each in held.items()]
    assert [*kinds, compositions.kind("ia3", "vera", None)] == [
        compositions.FREE,
        compositions.ORDERED,
        compositions.BROKEN,
        compositions.BROKEN,
        compositions.REFUSED,
        compositions.BROKEN,
        compositions.ABSENT,
    ]
    monkeypatch.setattr(compositions, "records", lambda: held)
    text = compositions.compositions()
    assert "| `ia3` `nf4` | MatchError: nf4 and ia3 |" in text
    assert "| `ia3` `oft` | ia3 and oft cannot be merged together |" in text
    assert "## Broken" in text
    assert "1 are refused" in text
    assert "#d7301f" in compositions.matrix()
