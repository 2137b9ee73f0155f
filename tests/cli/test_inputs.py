"""`--inputs FILE`: a call that commands read from a file, and what is said of a file that is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from peftc.cli.application import app
from peftc.cli.inputs import load_with_inputs
from peftc.errors import DataError
from tests.models import bert, llama
from tests.zoo import entry

RUNNER = CliRunner()
IDS = torch.arange(18).reshape(2, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    bert().save_pretrained(path)
    return path


def written(path: Path, **tensors: Tensor) -> Path:
    """A file of inputs."""
    save_file(tensors, path)
    return path


def told(*arguments: object) -> str:
    """What a command prints."""
    done = RUNNER.invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.slow
def test_the_graph_is_that_of_the_call_in_the_file(folder: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "in.safetensors", inputs_embeds=torch.randn(2, 9, 24))
    assert "inputs_embeds: float32" in told("graph", folder, "--inputs", file)
    assert "inputs_embeds: float32" in told("graph", folder, "lora:q", "--inputs", file)
    assert "inputs_embeds" not in told("graph", folder)
    rows = json.loads(told("sites", folder, "--inputs", file, "--json"))
    assert "word_embeddings" not in " ".join(row["id"] for row in rows)  # no ids, so nothing is looked up
    assert "word_embeddings" in told("sites", folder)


@pytest.mark.slow
def test_a_plan_and_a_certificate_are_of_a_model_that_needs_the_file(tmp_path: Path) -> None:
    # In its tokens as many ids lie side by side as it has codebooks: no config of others tells so.
    entry("kyutai_speech_to_text", "speech").model().save_pretrained(tmp_path)
    file = written(tmp_path / "in.safetensors", input_ids=torch.randint(4, 90, (2, 12, 5)))
    assert "lora" in told("plan", tmp_path, "lora:q,v(rank=2)", "--inputs", file)
    done = RUNNER.invoke(app, ["plan", str(tmp_path), "lora:q,v(rank=2)"])
    assert done.exit_code == 1
    assert "--inputs FILE.safetensors" in str(done.exception)


def test_a_certificate_is_of_the_call_in_the_file(folder: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "in.safetensors", input_ids=IDS, attention_mask=torch.ones_like(IDS))
    assert json.loads(told("check-model", folder, "lora:q(rank=2)", "--inputs", file, "--json"))["passed"]


def test_files_that_are_no_inputs_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file") as caught:
        load_with_inputs(tmp_path / "no model", tmp_path / "absent.safetensors")  # before the model is loaded
    assert "save_file" in str(caught.value)
    (tmp_path / "broken.safetensors").write_text("not tensors")
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        load_with_inputs(folder, tmp_path / "broken.safetensors")
    with pytest.raises(DataError, match="holds no tensor"):
        load_with_inputs(folder, written(tmp_path / "empty.safetensors"))
    with pytest.raises(DataError, match="takes no 'input_id'") as caught:
        load_with_inputs(folder, written(tmp_path / "near.safetensors", input_id=IDS))
    assert "did you mean 'input_ids'?" in str(caught.value)
    assert "inputs_embeds" in str(caught.value)


@pytest.mark.parametrize("flag", [torch.tensor(False), torch.zeros(2, 9, dtype=torch.bool)])
def test_a_flag_is_no_tensor(flag: Tensor, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    llama(num_hidden_layers=1).save_pretrained(folder)
    with pytest.raises(DataError, match="'use_cache' is a flag") as caught:
        load_with_inputs(folder, written(tmp_path / "in.safetensors", input_ids=IDS, use_cache=flag))
    assert "leave it out" in str(caught.value)
    mask = torch.ones(2, 9, dtype=torch.bool)
    _, given = load_with_inputs(
        folder, written(tmp_path / "mask.safetensors", input_ids=IDS, attention_mask=mask)
    )
    assert given is not None
    assert given["attention_mask"].dtype == torch.bool
