"""The output folder: refused, resumed, replaced, and never half written."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftc.errors import DataError, OutputExistsError
from peftc.finetune.job import read_job
from peftc.finetune.output import abandon, open_output, publish, resume_from


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text("{}", encoding="utf-8")
    return path


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputExistsError, match="not empty") as caught:
        open_output(tmp_path / "out", resume=False, overwrite=False)
    assert "thesis.txt" in str(caught.value)
    assert not (tmp_path / "out.unfinished").exists()


def test_an_empty_folder_and_a_new_one_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        output = open_output(tmp_path / name, resume=False, overwrite=False)
        (output.work / "metrics.json").write_text("{}", encoding="utf-8")
        publish(output)
        assert [entry.name for entry in (tmp_path / name).iterdir()] == ["metrics.json"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "new"]


def test_overwriting_replaces_results_and_keeps_what_is_not_ours(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("thesis.txt", "metrics.json", "loss.png"):
        (out / name).write_text("old", encoding="utf-8")
    output = open_output(out, resume=False, overwrite=True)
    assert (out / "metrics.json").read_text(encoding="utf-8") == "old"  # until the new run is complete
    (output.work / "metrics.json").write_text("new", encoding="utf-8")
    publish(output)
    assert {entry.name: entry.read_text(encoding="utf-8") for entry in out.iterdir()} == {
        "metrics.json": "new",
        "thesis.txt": "old",
    }
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_run_is_resumed_or_refused(tmp_path: Path) -> None:
    output = open_output(tmp_path / "out", resume=False, overwrite=False)
    checkpoint(output.checkpoints, 9)
    newest = checkpoint(output.checkpoints, 10)
    (output.checkpoints / "checkpoint-11").mkdir()  # killed while it was written
    abandon(output)
    with pytest.raises(OutputExistsError, match="interrupted"):
        open_output(tmp_path / "out", resume=False, overwrite=False)
    assert resume_from(open_output(tmp_path / "out", resume=True, overwrite=False)) == newest
    assert resume_from(open_output(tmp_path / "out", resume=False, overwrite=True)) is None


def test_a_run_that_failed_before_its_first_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    abandon(open_output(tmp_path / "out", resume=False, overwrite=False))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_no_job(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_job(tmp_path / "none")
    with pytest.raises(DataError, match=r"has no job\.json"):
        read_job(tmp_path)
    (tmp_path / "job.json").write_text('{"format": 1', encoding="utf-8")
    with pytest.raises(DataError, match="is not JSON"):
        read_job(tmp_path)
    (tmp_path / "job.json").write_text('{"format": 1}', encoding="utf-8")
    with pytest.raises(DataError, match="field 'model'"):
        read_job(tmp_path)
