"""A run of the league on a tiny encoder: what its record holds, and that it scores what `peftc finetune` trains."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from benchmarks.league.entrants import Setting, entrants
from benchmarks.league.records import bits
from benchmarks.league.running import baselines, halves, run


@pytest.fixture
def folder(reviews: Path, tmp_path: Path) -> Path:
    """train.csv and heldout.csv, which are the same here."""
    for name in ("train.csv", "heldout.csv"):
        shutil.copy(reviews, tmp_path / name)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ia3", "adapter_fusion"])
def test_a_record_holds_what_the_page_tells(name: str, folder: Path, tiny_encoder: Path) -> None:
    (entrant,) = entrants([name])
    record = run(entrant, 0, Setting(epochs=1, batch_size=16), folder, tiny_encoder)
    right = bits(record)
    assert len(right) == record["held_out_rows"] == 64
    assert sum(right) / 64 == record["accuracy"]
    assert record["steps"] == 4
    assert record["adapter_bytes"] > 0
    assert record["memory_mb"]["peak"] >= record["memory_mb"]["before"] > 0
    assert (record["method"], record["digest"]) == (name, entrant.digest)
    assert 0 < record["trainable"] < record["total"]


def test_baselines_of_balanced_reviews(folder: Path, tiny_encoder: Path) -> None:
    found = baselines(Setting(), folder, tiny_encoder)
    assert 0.4 < found["majority"] < 0.6
    assert found["probe"] >= found["majority"]
    assert found["training_rows"] == 64


def test_halves_are_all_rows_once(folder: Path, tmp_path: Path) -> None:
    parts = []
    for path in halves(folder / "train.csv", tmp_path):
        with path.open(encoding="utf-8", newline="") as file:
            parts.append(list(csv.DictReader(file)))
    assert [len(part) for part in parts] == [32, 32]
    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        whole = [row["text"] + row["movie"] for row in csv.DictReader(file)]
    assert sorted(whole) == sorted(row["text"] + row["movie"] for part in parts for row in part)
