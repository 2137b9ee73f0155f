"""The choice of an optimizer: each runs, what a CPU lacks is said, and a resumed run ends in the same bits."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers.training_args import OptimizerNames

from peftc.cli.training import OptimizerName
from peftc.errors import ModelError, OutputExistsError
from peftc.finetune.job import Settings
from peftc.finetune.optimizers import OPTIMIZERS, check_optimizer, noted, notes_on
from peftc.finetune.run import finetune
from peftc.finetune.trainer import AdapterTrainer


@pytest.fixture
def settings(tiny_encoder: Path, reviews: Path, tmp_path: Path) -> Settings:
    return Settings(
        model=tiny_encoder, data=reviews, task="classification", rules=("nf4", "lora:all-linear(rank=4)"),
        out=tmp_path / "out", split_by="movie", max_steps=6, evaluate_every=3, batch_size=8, learning_rate=0.01,
        max_length=16, cpu=True,
    )  # fmt: skip


def quiet() -> Console:
    return Console(file=io.StringIO(), width=500)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(folder / "adapter" / "adapter.safetensors")
    return tensors


def test_the_command_line_has_them_all() -> None:
    assert [each.value for each in OptimizerName] == list(OPTIMIZERS)
    assert all(OptimizerNames(each.trainer) for each in OPTIMIZERS.values())
    assert {each.unpaged for each in OPTIMIZERS.values()} - {None} <= set(OPTIMIZERS)


@pytest.mark.parametrize("name", [name for name, each in OPTIMIZERS.items() if each.packaged])
def test_each_runs_on_a_cpu(name: str) -> None:
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    model = torch.nn.Linear(128, 64)
    args = TrainingArguments(
        output_dir="unused", optim=OPTIMIZERS[name].trainer, use_cpu=True, report_to="none"
    )
    kind, given = Trainer.get_optimizer_cls_and_kwargs(args)
    optimizer: Any = kind(model.parameters(), **{**given, "lr": 0.01})
    x = torch.randn(32, 128)
    losses = []
    with noted():
        for _ in range(8):
            optimizer.zero_grad()
            loss = (model(x) - 1).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    eight = {held.dtype for held in optimizer.state[model.weight].values() if isinstance(held, torch.Tensor)}
    assert (torch.uint8 in eight) == ("8bit" in name)
    said = " ".join(notes_on(name, accelerator=False))
    assert ("pages are an accelerator's" in said) == OPTIMIZERS[name].paged
    assert ("remembers 32 bits, not 8" in said) == ("8bit" in name)
    assert "pages" not in " ".join(notes_on(name, accelerator=True))


@pytest.mark.slow
def test_a_run_with_packed_weights_pages_and_eight_bits(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(settings, optimizer="paged-adamw-8bit")
    console = quiet()
    result = finetune(settings, console)
    assert "keeps W in nf4" in printed(console)
    assert "note --optimizer paged-adamw-8bit: pages are an accelerator's" in printed(console)
    assert result.metrics["parameters"]["total"] > result.metrics["parameters"]["trainable"] > 0
    whole = adapter(settings.out)
    step_of: Any = AdapterTrainer.training_step

    def stopping_step(self: AdapterTrainer, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step_of(self, *arguments, **options)

    broken = replace(settings, out=settings.out.with_name("broken"))
    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", stopping_step)
        with pytest.raises(KeyboardInterrupt):
            finetune(broken, quiet())
    with pytest.raises(OutputExistsError, match="optimizer was 'paged-adamw-8bit' and is now 'adamw'"):
        finetune(replace(broken, resume=True, optimizer="adamw"), quiet())
    finetune(replace(broken, resume=True), quiet())
    again = adapter(broken.out)
    assert again.keys() == whole.keys()
    assert all(torch.equal(held, whole[name]) for name, held in again.items())


def test_without_bitsandbytes_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peftc.finetune.optimizers.find_spec", lambda _: None)
    check_optimizer("adamw")
    with pytest.raises(ModelError, match=r"adamw-8bit is bitsandbytes'"):
        check_optimizer("adamw-8bit")
