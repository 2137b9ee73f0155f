"""The command line: help, and bad input as one clear line with exit code 2."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from peftc.cli import main

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str | Path) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        code = caught.value.code
        return (code if isinstance(code, int) else 0), printed.err if code else printed.out

    return call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text", "lable"], ["good film", "x"], ["bad film", "y"]] * 1)
    return path


@pytest.mark.parametrize("command", ["finetune", "predict", "rules", "plan"])
def test_every_command_has_help(run: Run, command: str) -> None:
    code, text = run(command, "--help")
    assert code == 0
    assert command in text


def test_a_missing_model(run: Run, data: Path, tmp_path: Path) -> None:
    code, text = run(
        "finetune", "--model", tmp_path / "none", "--data", data, "--rules", "lora", "--out", tmp_path / "o"
    )
    assert code == 2
    assert text.startswith(f"error {tmp_path}/none: no such folder or .gguf file\n")
    assert not (tmp_path / "o").exists()


def test_a_folder_without_a_model(run: Run, data: Path, tmp_path: Path) -> None:
    code, text = run(
        "finetune", "--model", tmp_path, "--data", data, "--rules", "lora", "--out", tmp_path / "o"
    )
    assert code == 2
    assert "has no config.json" in text


def test_a_broken_weights_file(run: Run, tiny_encoder: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_encoder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, text = run("plan", broken, "lora:q,v")
    assert code == 2
    assert text.startswith(f"error {broken}: cannot be loaded")


def test_a_missing_column(run: Run, tiny_encoder: Path, data: Path, tmp_path: Path) -> None:
    code, text = run(
        "finetune", "--model", tiny_encoder, "--data", data, "--rules", "lora", "--out", tmp_path / "o"
    )
    assert code == 2
    assert "data.csv: has no column 'label' (--label-column)" in text
    assert "did you mean 'lable'?" in text
    assert list(tmp_path.iterdir()) == [data]


def test_an_output_folder_that_is_not_empty(run: Run, tiny_encoder: Path, data: Path, tmp_path: Path) -> None:
    options = ["--model", tiny_encoder, "--data", data, "--label-column", "lable", "--eval-fraction", "0"]
    code, text = run("finetune", *options, "--rules", "lora", "--out", tmp_path)
    assert code == 2
    assert "the output folder is not empty" in text
    assert "--overwrite" in text


@pytest.mark.parametrize(
    ("rule", "message"),
    [("lroa:q", "lora"), ("lora(rnak=4)", "rank"), ("lora:router", "router"), ("lora(rank=no)", "rank")],
)
def test_bad_rules(run: Run, tiny_encoder: Path, data: Path, tmp_path: Path, rule: str, message: str) -> None:
    options = ["--model", tiny_encoder, "--data", data, "--label-column", "lable", "--eval-fraction", "0"]
    code, text = run("finetune", *options, "--rules", rule, "--out", tmp_path / "o")
    assert code == 2, text
    assert message in text
    assert list(tmp_path.iterdir()) == [data]


def test_predict_wants_an_output_folder(run: Run, data: Path, tmp_path: Path) -> None:
    code, text = run("predict", tmp_path, "--data", data)
    assert code == 2
    assert "has no job.json, so it is not an output folder of peftc finetune" in text


def test_usage_errors_are_two_as_well(run: Run) -> None:
    assert run("finetune", "--epochs", "many")[0] == 2
    assert run("no-such-command")[0] == 2


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    from peftc.errors import DataError

    with pytest.raises(DataError):
        main(["predict", str(tmp_path), "--data", "none.csv", "--debug"])
