"""Two stages of `peftc finetune`: adapters are trained, then a rule that is made of them; and what is refused."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from peftc.cli import main
from peftc.cli.specs import saved_adapters
from peftc.errors import OutputExistsError, SavedAdapterError, SpecError
from peftc.finetune.job import Settings
from peftc.finetune.predict import predict
from peftc.finetune.run import finetune

QUIET = Console(file=io.StringIO(), width=120)


@pytest.fixture
def settings(tiny_encoder: Path, reviews: Path, tmp_path: Path) -> Settings:
    return Settings(
        model=tiny_encoder, data=reviews, task="classification", rules=("bottleneck:4",), out=tmp_path / "one",
        split_by="movie", epochs=1, batch_size=16, learning_rate=0.01, max_length=16, cpu=True,
    )  # fmt: skip


@pytest.mark.slow
def test_adapters_then_their_fusion(settings: Settings, tmp_path: Path) -> None:
    finetune(settings, QUIET)
    finetune(replace(settings, out=tmp_path / "two", seed=1), QUIET)
    saved = {"one": tmp_path / "one", "two": tmp_path / "two" / "adapter"}
    with pytest.raises(SavedAdapterError, match="no rule reads saved adapters"):
        finetune(replace(settings, out=tmp_path / "none", saved=saved), QUIET)
    assert not (tmp_path / "none").exists()
    second = replace(settings, rules=("adapter_fusion",), out=tmp_path / "both", saved=saved)
    finetune(second, QUIET)
    tensors = load_file(tmp_path / "both" / "adapter" / "adapter.safetensors")
    for place, name in enumerate(("one", "two")):
        alone = load_file(tmp_path / name / "adapter" / "adapter.safetensors")
        downs = {path: held for path, held in alone.items() if path.endswith("down_w")}
        assert len(downs) == 2
        for path, held in downs.items():
            owner = path.partition(".bottleneck.")[0]
            (fused,) = [
                t for other, t in tensors.items() if other.startswith(owner) and other.endswith("down_w")
            ]
            assert torch.equal(fused[place], held), "adapters stay as they were"
    queries = [held for path, held in tensors.items() if path.endswith("fusion_value")]
    assert queries
    assert all(bool((held != torch.eye(16)).any()) for held in queries)

    with pytest.raises(OutputExistsError, match="saved was"):
        finetune(replace(second, saved={**saved, "two": tmp_path / "one"}, resume=True), QUIET)
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "one", tmp_path / "moved" / "one")
    moved = {**saved, "one": tmp_path / "moved" / "one"}
    finetune(replace(second, saved=moved, resume=True), QUIET)  # the same tensors, wherever they lie
    shutil.rmtree(tmp_path / "moved")
    shutil.rmtree(tmp_path / "two")
    assert predict(tmp_path / "both", settings.data, QUIET).accuracy is not None
    job = json.loads((tmp_path / "both" / "job.json").read_text(encoding="utf-8"))
    assert set(job["saved"]) == {"one", "two"}


def test_the_command_line_takes_them(
    tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert saved_adapters(["a=x/y", " b = z=1 "]) == {"a": Path("x/y"), "b": Path("z=1")}
    for given, said in (
        (["a"], "'a' is not NAME=FOLDER"),
        (["a="], "is not"),
        (["a=1", "a=2"], "a is given twice"),
    ):
        with pytest.raises(SpecError, match=said):
            saved_adapters(given)
    with pytest.raises(SystemExit) as caught:
        main(["plan", str(tiny_encoder), "adapter_fusion", "--saved", f"one={tmp_path}"])
    assert caught.value.code == 2
    assert "the folder has no adapter.json" in capsys.readouterr().err
