"""The league's book-keeping: who takes part, what is run again, how differences and their noise are put together."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.league import records
from benchmarks.league.entrants import CHOICES, DEFAULT, Entrant, Setting, entrants
from benchmarks.methods import is_missing, keep
from peftc.lang import default_library

SETTING = Setting(rows=8)


def run(right: list[int], **more: Any) -> dict[str, Any]:
    bits = "".join(map(str, right))
    held_out = len(right)
    return {
        "accuracy": sum(right) / held_out,
        "held_out_rows": held_out,
        "right": f"{int(bits, 2):0{(held_out + 3) // 4}x}",
        **more,
    }


def standing(name: str, *runs: dict[str, Any]) -> records.Standing:
    entrant = Entrant(name, (name,), "", 1e-3, "")
    return records.Standing(entrant, records.KINDS[0], dict(enumerate(runs)), older=False)


def test_every_rule_takes_part() -> None:
    found = entrants()
    assert sorted(each.name for each in found) == list(default_library().names())
    assert [each.name for each in entrants(["lora"])] == ["lora"]
    with pytest.raises(SystemExit, match="no rule is called lara"):
        entrants(["lara"])


def test_every_choice_of_a_rate_says_where_it_comes_from() -> None:
    for name, chosen in tomllib.loads(CHOICES.read_text(encoding="utf-8")).items():
        assert name in (*default_library().names(), DEFAULT)
        assert chosen["why"], name
        assert 1e-6 < chosen["learning_rate"] < 1, name


def test_which_rows_were_right_is_kept_to_the_bit() -> None:
    right = [0, 0, 1, 1, 0, 1, 1, 1, 0]
    assert records.bits(run(right)) == right


def test_a_difference_is_paired_by_seed_and_row() -> None:
    one = standing("one", run([1, 1, 0, 1]), run([1, 1, 1, 1]))
    other = standing("other", run([1, 0, 0, 1]), run([1, 1, 0, 1]), run([0, 0, 0, 0]))
    found = records.difference(one, other)
    assert found is not None
    assert found[0] == pytest.approx(0.25)
    assert found[1] == pytest.approx(0.5 / 3**0.5 / 2)  # rows 0, ½, ½, 0 → sd 0.2887 over √4
    assert records.difference(one, standing("none")) is None
    assert one.spread == pytest.approx(0.125 * 2**0.5)
    assert standing("once", run([1, 0])).spread is None


def test_what_has_a_record_is_not_run_again(tmp_path: Path) -> None:
    entrant, path = Entrant("lora", ("lora",), "now", 1e-3, ""), tmp_path / "deep" / "lora-0.json"
    assert is_missing(path, entrant, again=False)
    keep(path, run([1], digest="before", learning_rate=1e-3))
    assert json.loads(path.read_text(encoding="utf-8"))["accuracy"] == 1.0
    assert not list(tmp_path.rglob("*.partial"))
    assert not is_missing(path, entrant, again=False)
    assert is_missing(path, entrant, again=True)
    keep(path, run([1], digest="now", learning_rate=1e-3))
    assert not is_missing(path, entrant, again=True)


def test_kinds_are_told_by_what_rules_do() -> None:
    rules = {rule.name: records.kind_of(rule) for rule in default_library().rules()}
    assert rules["full"] == rules["bitfit"] == records.KINDS[0]
    assert rules["lora"] == rules["ia3"] == records.KINDS[1]
    assert rules["prefix"] == rules["houlsby"] == records.KINDS[2]
