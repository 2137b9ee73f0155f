"""Launched as several processes, `peftc finetune` trains one model on all of the data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

LAUNCHERS = {
    "one": ["-m", "peftc"],
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "peftc"],
    # Without MPI, accelerate starts one process on the CPU; several are started as for several accelerators.
    "accelerate": [
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "peftc"),
    ],
}


def launch(name: str, model: Path, data: Path, out: Path) -> dict[str, torch.Tensor]:
    """Train three steps on every training row at once; the adapter's tensors."""
    rows = 48 if name == "one" else 24  # of each process
    command = [
        *(sys.executable, *LAUNCHERS[name], "finetune", "--model", str(model), "--data", str(data)),
        *("--split-by", "movie", "--eval-fraction", "0.25", "--rules", "lora:q,v", "--out", str(out)),
        *("--batch-size", str(rows), "--max-steps", "3", "--seed", "1", "--cpu"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("held out after step 3") == 1  # one process speaks for all
    return load_file(out / "adapter" / "adapter.safetensors")


@pytest.fixture
def without_dropout(tiny_encoder: Path, tmp_path: Path) -> Path:
    """The tiny encoder, deterministic: processes that draw their own dropout could not be compared with one."""
    folder = tmp_path / "without-dropout"
    shutil.copytree(tiny_encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
def test_two_processes_train_as_one_does(without_dropout: Path, reviews: Path, tmp_path: Path) -> None:
    trained = {name: launch(name, without_dropout, reviews, tmp_path / name) for name in LAUNCHERS}
    for name in ("torchrun", "accelerate"):
        for key, tensor in trained["one"].items():
            torch.testing.assert_close(trained[name][key], tensor, atol=1e-5, rtol=1e-4)
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        assert metrics["training"]["steps"] == 3
