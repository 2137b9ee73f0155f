"""Every shipped rule file, by being there; and what a rule is as data."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from peftc.errors import RuleError, UnknownRuleError
from peftc.lang import (
    Constant,
    Rule,
    check,
    default_library,
    is_on,
    read_mapping,
    read_text,
    signature,
    unmet,
)
from peftc.lang.source import Source

LIBRARY = default_library()


@pytest.mark.parametrize("name", LIBRARY.names())
def test_it_loads_and_survives_storage(name: str) -> None:
    rule = LIBRARY.rule(name)
    stored = check(read_mapping(json.loads(json.dumps(rule.content)), Source(name)))
    assert stored == rule
    assert hash(stored) == hash(rule)
    assert rule.summary.endswith(".")


def test_the_library_has_the_first_five() -> None:
    assert set(LIBRARY.names()) >= {"bitfit", "full", "head", "lora", "prefix"}


@pytest.mark.parametrize("name", ["nothing", "../rules/lora", "Lora", ""])
def test_a_rule_is_found_by_name_only(name: str) -> None:
    with pytest.raises(UnknownRuleError):
        LIBRARY.rule(name)


def test_language_imports_no_torch() -> None:
    code = "import sys, peftc.lang; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_equal_by_content_not_by_file() -> None:
    text = (LIBRARY.folders[0] / "lora.toml").read_text()
    assert read_text(text, "a.toml") == read_text("# a comment\n" + text, "b.toml")
    assert read_text(text, "a.toml") != read_text(text.replace("default = 8,", "default = 4,"), "a.toml")


def test_a_section_is_on_by_its_options() -> None:
    rule = LIBRARY.rule("prefix")
    text, shift = rule.also
    plain: dict[str, Constant] = {"length": 3, "positions": "keep", "init": "random"}
    assert [is_on(rule, each, plain) for each in rule.sections] == [True, False, False]
    assert is_on(rule, shift, {**plain, "positions": "shift"})
    assert is_on(rule, text, {**plain, "init": "text"})
    assert not is_on(rule, rule, {**plain, "init": "text"})


def test_a_site_is_left_out_with_its_reason() -> None:
    rule = LIBRARY.rule("lora")
    options = {"rank": 40, "alpha": 16.0, "drop": 0.0}
    assert unmet(rule, rule, options, {"d_in": 64, "d_out": 64}) is None
    assert unmet(rule, rule, options, {"d_in": 32, "d_out": 64}) == "rank < d_in is not so (40 against 32)"


def renamed(values: str) -> Rule:
    text = (LIBRARY.folders[0] / "lora.toml").read_text()
    text = text.replace('{ x = "* d_in", W = "d_out d_in", y = "* d_out" }', values)
    return check(read_text(text, "lora.toml"))


def test_ports_without_values_have_the_axes_of_the_role() -> None:
    said = signature(renamed("{}"), "linear")
    assert said.ports["b"] == ("d_out",)
    assert said.sizes_at({"d_in": 3, "d_out": 4}) == {"d_in": 3, "d_out": 4}


def test_leading_axes_can_be_named() -> None:
    said = signature(renamed('{ x = "batch seq d_in", W = "d_out d_in", y = "batch seq d_out" }'), "linear")
    assert said.ports["x"] == ("batch", "seq", "d_in")
    assert said.moving == {"batch", "seq"}
    assert set(said.sizes) - said.moving == {"d_in", "d_out"}


TOKENS = ("alpha", "rank", "drop", "x,", " A ", " B)", "d_in", "d_out", "scale *", "y +", "linear")


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("name", ["lora"])
def test_one_token_changed_is_caught(name: str, token: str) -> None:
    text = (LIBRARY.folders[0] / f"{name}.toml").read_text()
    body = text.index("[match]")
    at = text.index(token, body)
    changed = text[:at] + token.replace(token.strip()[0], "z", 1) + text[at + len(token) :]
    with pytest.raises(RuleError):
        check(read_text(changed, f"{name}.toml"))
