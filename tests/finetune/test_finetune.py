"""The whole job on a tiny encoder: train, predict the same, resume to the same bits, fail without a trace."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from peftc.errors import OutputExistsError
from peftc.finetune.job import Settings
from peftc.finetune.predict import predict
from peftc.finetune.run import finetune
from peftc.finetune.trainer import AdapterTrainer


@pytest.fixture
def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


@pytest.fixture
def settings(tiny_encoder: Path, reviews: Path, tmp_path: Path) -> Settings:
    return Settings(
        model=tiny_encoder,
        data=reviews,
        task="classification",
        rules=("lora:q,v",),
        out=tmp_path / "out",
        split_by="movie",
        epochs=3,
        batch_size=8,
        learning_rate=0.01,
        max_length=16,
        cpu=True,
    )


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(folder / "adapter" / "adapter.safetensors")
    return tensors


def test_train_then_predict(settings: Settings, quiet: Console) -> None:
    result = finetune(replace(settings, rules=("full",), baselines=True, epochs=8), quiet)
    names = sorted(entry.name for entry in settings.out.iterdir())
    assert names == ["adapter", "checkpoints", "job.json", "loss.png", "metrics.json", "predictions.csv"]
    assert (settings.out / "loss.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((settings.out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["evaluation"]["accuracy"] > metrics["majority"] + 0.2
    assert metrics["training"]["steps"] == 48
    assert 0 < metrics["parameters"]["trainable"] < metrics["parameters"]["total"]
    assert {"majority", "frozen_probe"} <= set(metrics)
    assert result.metrics["evaluation"] == metrics["evaluation"]

    again = predict(settings.out, settings.data, quiet)
    assert again.accuracy is not None
    by_text = dict(zip(again.texts, zip(again.predicted, again.probabilities, strict=True), strict=True))
    with (settings.out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            predicted, probabilities = by_text[row["text"]]
            assert row["predicted"] == predicted
            assert float(row["p(fresh)"]) == pytest.approx(probabilities[0], abs=1e-5)


@pytest.mark.parametrize(
    "rule",
    [
        "lora:q,v(lr_ratio=4)",
        pytest.param("adalora:q,v(rank=4, target=2, warmup=2, cooldown=3)", marks=pytest.mark.slow),
        pytest.param("adapter_drop:8(most=2)", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_ends_in_the_same_bits(
    rule: str, settings: Settings, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(
        settings, rules=(rule,), epochs=2, evaluate_every=4
    )  # in the middle of an epoch of 6 steps
    whole = finetune(replace(settings, out=settings.out.with_name("whole")), quiet)

    step_of: Any = AdapterTrainer.training_step

    def stopping_step(self: AdapterTrainer, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == 10:
            raise KeyboardInterrupt
        return step_of(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", stopping_step)
        with pytest.raises(KeyboardInterrupt):
            finetune(settings, quiet)
    assert not settings.out.exists()
    with pytest.raises(OutputExistsError, match="interrupted"):
        finetune(settings, quiet)
    with pytest.raises(OutputExistsError, match="batch_size was 8 and is now 4"):
        finetune(replace(settings, resume=True, batch_size=4), quiet)
    resumed = finetune(replace(settings, resume=True), quiet)
    assert not settings.out.with_name("out.unfinished").exists()
    first, second = adapter(whole.out), adapter(resumed.out)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    states = [
        sorted(out.glob("checkpoints/*/schedules.safetensors"))[-1:] for out in (whole.out, resumed.out)
    ]
    for one, other in zip(*states, strict=True):
        averages, again = load_file(one), load_file(other)
        assert averages.keys() == again.keys()
        assert all(torch.equal(tensor, again[name]) for name, tensor in averages.items())
    assert bool(states[0]) == rule.startswith("adalora"), "importances are averages of all steps"


@pytest.mark.slow
def test_what_training_put_to_0_is_not_saved(settings: Settings, quiet: Console) -> None:
    spec = "adalora:q,v(rank=4, target=2, warmup=2, cooldown=3)"
    result = finetune(replace(settings, rules=(spec,)), quiet)
    gates = [tensor for name, tensor in adapter(result.out).items() if name.endswith(".E")]
    assert sum(map(len, gates)) == 4 * 2
    assert all(bool((gate != 0).all()) for gate in gates)
    figures = json.loads((result.out / "metrics.json").read_text(encoding="utf-8"))["parameters"]
    assert figures["after_shrinking"] < figures["trainable"]
    again = predict(result.out, settings.data, quiet)
    with (result.out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        told = {row["text"]: row["predicted"] for row in csv.DictReader(file)}
    assert all(
        told.get(text, label) == label for text, label in zip(again.texts, again.predicted, strict=True)
    )


@pytest.mark.slow
def test_rules_give_learning_rates(
    settings: Settings, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.Optimizer] = []
    make_of: Any = AdapterTrainer.create_optimizer

    def kept(self: AdapterTrainer, *arguments: Any) -> torch.optim.Optimizer:
        made.append(make_of(self, *arguments))
        return made[-1]

    monkeypatch.setattr(AdapterTrainer, "create_optimizer", kept)
    finetune(replace(settings, rules=("lora:q,v(lr_ratio=8)",), max_steps=2, weight_decay=0.1), quiet)
    groups = made[0].param_groups
    assert {(group["initial_lr"], group["weight_decay"]) for group in groups} == {
        (0.01, 0.1),
        (0.08, 0.1),
        (0.01, 0.0),
    }
    assert all(group["lr"] == pytest.approx(group["initial_lr"] * groups[0]["lr"] / 0.01) for group in groups)


@pytest.mark.slow
def test_parameters_can_start_from_the_data(settings: Settings, quiet: Console, tmp_path: Path) -> None:
    from tests.runtime.test_starting import PREFIX

    (tmp_path / "texts.toml").write_text(PREFIX)
    rules = (str(tmp_path / "texts.toml"),)
    out = settings.out
    result = finetune(replace(settings, rules=rules, max_steps=1, learning_rate=1e-9), quiet)
    started = [tensor for name, tensor in adapter(result.out).items() if name.endswith("P_k")]
    assert started
    assert all(float(tensor.abs().mean()) > 1e-3 for tensor in started)
    assert predict(out, settings.data, quiet).accuracy is not None


def test_a_failure_leaves_no_folder(
    settings: Settings, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_step(self: AdapterTrainer, *arguments: Any, **options: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(AdapterTrainer, "training_step", failing_step)
    with pytest.raises(RuntimeError, match="out of memory"):
        finetune(settings, quiet)
    assert [entry.name for entry in settings.out.parent.iterdir()] == ["reviews.csv"]


@pytest.mark.slow
def test_the_models_own_head_and_checkpointing(settings: Settings, quiet: Console) -> None:
    result = finetune(replace(settings, pooling="model", gradient_checkpointing=True, max_steps=3), quiet)
    assert result.metrics["training"]["steps"] == 3
    assert predict(settings.out, settings.data, quiet).accuracy is not None


@pytest.mark.slow
def test_causal_language_model_reports_perplexity(tiny_encoder: Path, tmp_path: Path, quiet: Console) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "causal"
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    text = tmp_path / "text.txt"
    text.write_text("the film is good\nthe story is dull\n" * 40, encoding="utf-8")
    settings = Settings(
        model=folder,
        data=text,
        task="causal-lm",
        rules=("lora:attention",),
        out=tmp_path / "out",
        block_size=16,
        batch_size=4,
        max_steps=6,
        learning_rate=0.05,
        cpu=True,
    )
    metrics = finetune(settings, quiet).metrics
    assert metrics["perplexity_after"] < metrics["perplexity_before"]
