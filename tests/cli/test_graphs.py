"""`peftc passes` and `peftc graph`, as a person at a terminal uses them."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from peftc.cli.application import app
from peftc.cli.graphs import pass_names
from peftc.errors import UnknownOptionError
from tests.models import bert

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    bert().save_pretrained(path)
    return path


def told(*arguments: str) -> str:
    done = RUNNER.invoke(app, arguments, env={"COLUMNS": "160"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_passes_are_listed_in_order_with_their_options() -> None:
    text = told("passes")
    assert text.index("remove_asserts") < text.index("fold_masks") < text.index("group_heads")
    assert "longest=2048" in text


def test_a_graph_is_printed_with_what_rules_put_in(folder: Path) -> None:
    lines = told("graph", str(folder), "lora:q").splitlines()
    added = [line for line in lines if line.startswith("+ ")]
    assert all(line.endswith(":q") and "# lora" in line for line in added if "head" not in line)
    assert any("__lora_linear" in line for line in added)
    assert any(line.startswith("  input_ids: int64") for line in lines)
    assert len(told("graph", str(folder), "lora:q", "--diff").splitlines()) < len(lines) / 2


def test_without_rules_it_is_the_model_as_it_came(folder: Path) -> None:
    text = told("graph", str(folder))
    assert "input_ids: int64" in text
    assert "lora" not in text


def test_graphs_are_printed_between_passes(folder: Path) -> None:
    text = told("graph", str(folder), "--print-after", "spell_attention", "--times")
    assert text.count("# after ") == 1
    assert "# after spell_attention, which changed 2 places" in text
    assert "ms" in text
    every = told("graph", str(folder), "--print-after", "all", "--diff")
    assert every.count("# after ") >= 3
    assert "changed nothing" not in every


def test_passes_are_set_and_turned_off(folder: Path) -> None:
    text = told("graph", str(folder), "--pass", "-fold_masks", "--pass", "-group_heads", "--times", "--diff")
    assert "spell_attention" in text
    assert "fold_masks" not in text


def test_an_unknown_pass_is_told_before_anything_is_loaded() -> None:
    with pytest.raises(UnknownOptionError, match="did you mean 'fold_masks'"):
        pass_names(["foldmasks"])
