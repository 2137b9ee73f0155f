"""The examples run, as they are, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(script: str, folder: Path, *arguments: str) -> str:
    """The output of an example that was run in `folder`."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_quickstart(tmp_path: Path) -> None:
    said = run("quickstart.py", tmp_path)
    assert "trainable" in said
    assert "256 reviews, loss" in said
    assert (tmp_path / "runs" / "quickstart" / "adapter.safetensors").is_file()


def test_quickstart_is_short() -> None:
    assert len((EXAMPLES / "quickstart.py").read_text(encoding="utf-8").splitlines()) < 40


@pytest.mark.slow
def test_the_first_rule(tmp_path: Path) -> None:
    said = run("first_rule/train.py", tmp_path)
    assert "linear down" in said
    assert "loaded again: [1, 0, 1, 0, 1, 0, 1, 0]" in said


def test_the_first_rule_is_its_equations(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", str(EXAMPLES / "first_rule" / "test_ia3.py")]
    done = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "2 passed" in done.stdout


@pytest.mark.slow
def test_causal_language_model(tmp_path: Path) -> None:
    said = run("causal_lm.py", tmp_path, "--steps", "4")
    assert "perplexity" in said
