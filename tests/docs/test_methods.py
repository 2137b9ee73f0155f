"""The pages of rules: each has one, and what is missing or too much is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.making import method
from peftc.lang import default_library


def test_every_rule_has_a_page_and_a_picture() -> None:
    made = method.pages()
    for name in default_library().names():
        assert {f"docs/methods/{name}.md", f"docs/methods/{name}.svg"} <= made.keys()


def test_a_rule_without_a_text_is_told_what_to_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(method, "TEXTS", tmp_path / "docs" / "making" / "methods")
    with pytest.raises(
        method.MissingText, match=r"the rule ia3 has no text: write docs/making/methods/ia3\.md"
    ):
        method.method(default_library().rule("ia3"))


def test_a_page_of_no_rule_is_found(tmp_path: Path) -> None:
    folder = tmp_path / method.FOLDER
    folder.mkdir(parents=True)
    for name in ("README.md", "lora.md", "lora.svg", "lara.svg"):
        (folder / name).write_text("", encoding="utf-8")
    texts = tmp_path / "docs" / "making" / "methods"
    texts.mkdir(parents=True)
    for name in ("lora.md", "lira.md"):
        (texts / name).write_text("", encoding="utf-8")
    assert [path.name for path in method.left_over(tmp_path)] == ["lira.md", "lara.svg"]


def test_costs_are_formulas_of_what_trains_at_a_site() -> None:
    rules = {rule.name: rule for rule in default_library().rules()}
    formulas = {
        name: [[str(each.size) for each in made.dimensions] for made in method.trained_at_a_site(rule)]
        for name, rule in rules.items()
    }
    assert formulas["lora"] == [["rank", "d_in"], ["d_out", "rank"]]
    assert formulas["prefix"] == [["kv_heads", "length", "head_dim"], ["kv_heads", "length", "value_dim"]]
    assert formulas["full"] == []
    assert method.merges(rules["ia3"])
    assert not method.merges(rules["mam"])
