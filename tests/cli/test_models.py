"""`peftc sites` and `peftc check-model`, as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftc.certificate import properties
from peftc.certificate.findings import Finding
from peftc.cli import main
from tests.models import llama
from tests.zoo import entry


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("model")
    llama().save_pretrained(path)
    return str(path)


def run(arguments: list[str], capsys: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_sites(folder: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "220")
    code, out, _ = run(["sites", folder], capsys)
    assert code == 0
    assert "model.layers.0.self_attn.q_proj:q" in out
    assert "reach operand q" in out
    code, out, _ = run(["sites", folder, "--role", "attention", "--json"], capsys)
    rows = json.loads(out)
    assert [row["layer"] for row in rows] == [0, 1]
    assert rows[0]["sizes"]["kv_heads"] == 2
    assert "no site" not in out
    code, _, err = run(["sites", folder, "--role", "atention"], capsys)
    assert code == 2
    assert "attention" in err


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_weights_that_no_site_has_are_named_apart_from_what_programs_read(
    how: list[str], tmp_path: Path, capsys: Any
) -> None:
    entry("wav2vec2").model().save_pretrained(tmp_path)
    said = (
        "weight.original1:conv: its weight is part of one that weight_norm computes, which goes into conv1d"
    )
    code, out, err = run(["sites", str(tmp_path), *how], capsys)
    assert code == 0
    assert said in err.rpartition("weights that are no site:")[2]
    assert said not in out
    _, _, err = run(["sites", str(tmp_path), "--role", "norm", *how], capsys)
    assert said not in err


@pytest.mark.parametrize("on_terminal", [False, True])
def test_ids_are_whole_however_narrow_it_is(
    folder: str, on_terminal: bool, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"COLUMNS": "40", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    if on_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    _, out, _ = run(["sites", folder, "--json"], capsys)
    ids = [row["id"] for row in json.loads(out)]
    assert max(map(len, ids)) > 30
    _, out, _ = run(["sites", folder], capsys)
    lines = out.splitlines()[1:]
    assert [line.split()[0] for line in lines if not line.startswith("  ")] == ids
    assert (len(lines) == len(ids)) != on_terminal  # a line for each site where programs read it
    assert (max(map(len, lines)) < 110) == on_terminal


def test_check_model(folder: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run(["check-model", folder, "lora:q,v", "--json"], capsys)
    assert code == 0
    assert json.loads(out)["passed"] is True
    failing = (lambda _: Finding("batch", "fail", 1.0, 0.0, "rows mix"),)
    monkeypatch.setattr("peftc.certificate.PROPERTIES", failing)
    assert properties.PROPERTIES is not failing
    code, out, _ = run(["check-model", folder, "lora:q,v"], capsys)
    assert code == 1
    assert "rows mix" in out


def test_why_a_model_has_no_attention_is_said(tmp_path: Path, capsys: Any) -> None:
    entry("openai-gpt").model().save_pretrained(tmp_path)  # whose scores are multiplied with its mask
    code, _, err = run(["sites", str(tmp_path), "--role", "attention"], capsys)
    assert code == 2
    assert "this model has no 'attention'" in err
    assert "not read as attention: softmax in transformer.h.0.attn" in err
    _, _, err = run(["sites", str(tmp_path), "--role", "atention"], capsys)
    assert "not read" not in err


def test_a_bug_has_an_exit_code_of_its_own(folder: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("a fault of peftc")

    monkeypatch.setattr("peftc.api.analysis_and_unread", broken)
    code, _, err = run(["sites", folder], capsys)
    assert code == 3
    assert "internal error IndexError: a fault of peftc" in err
