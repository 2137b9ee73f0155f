"""Groups for optimisers: learning rates that rules give, what does not decay, and training as HF PEFT's LoRA+ does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import peftc
from peftc.lang import check, default_library, read_text
from tests.models import bert, llama, padding, tokens
from tests.rules.test_stored import conv


def names_of(compiled: Any, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups with the names of their parameters."""
    named = {id(parameter): name for name, parameter in compiled.named_parameters()}
    return [{**group, "params": [named[id(each)] for each in group["params"]]} for group in groups]


def test_every_trained_parameter_is_in_one_group() -> None:
    compiled: Any = peftc.compile(bert(), ["lora:q,v(lr_ratio=16)", "bitfit:o"])
    groups = names_of(compiled, peftc.param_groups(compiled, lr=1e-3, weight_decay=0.1))
    told = [name for group in groups for name in group["params"]]
    assert sorted(told) == sorted(n for n, p in compiled.named_parameters() if p.requires_grad)
    rates = {name: group["lr"] for group in groups for name in group["params"]}
    assert {name for name, rate in rates.items() if rate == pytest.approx(16e-3)} == {
        name for name in told if name.endswith(".B")
    }
    assert set(rates.values()) == {1e-3, 16e-3}
    decays = {name: group["weight_decay"] for group in groups for name in group["params"]}
    assert decays["classifier.weight"] == 0.1
    assert {name for name, decay in decays.items() if not decay} == {n for n in told if n.endswith("bias")}
    torch.optim.AdamW(peftc.param_groups(compiled, lr=1e-3))


@pytest.mark.parametrize("make", [bert, llama, conv])
def test_what_decays_is_what_decays_in_a_trainer(make: Callable[[], Any], tmp_path: Any) -> None:
    from transformers import Trainer, TrainingArguments

    model = make()
    trainer = Trainer(model, TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))
    compiled: Any = peftc.compile(model, ["full"])
    groups = names_of(compiled, peftc.param_groups(compiled, lr=1e-3, weight_decay=0.1))
    ours = {name for group in groups for name in group["params"] if group["weight_decay"]}
    assert ours == set(trainer.get_decay_parameter_names(model)) - {"lm_head.weight"}


def test_scales_do_not_decay() -> None:
    compiled: Any = peftc.compile(llama(), ["ia3", "dora:q"])
    groups = names_of(compiled, peftc.param_groups(compiled, lr=1e-3, weight_decay=0.1))
    kept = {
        name.rpartition(".")[2] for group in groups if not group["weight_decay"] for name in group["params"]
    }
    assert kept == {"l", "m"}


@pytest.mark.slow
def test_training_is_that_of_hf_pefts_lora_plus() -> None:
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    model = llama()
    theirs: Any = get_peft_model(
        copy.deepcopy(model), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    )
    compiled: Any = peftc.compile(model, ["lora:q,v(rank=4, alpha=8, lr_ratio=4)"], defaults=False)
    pairs = []
    for application in compiled.peftc_plan.applications:
        for parameter in application.parameters:
            path = f"base_model.model.{application.site.path}.lora_{parameter.name}.default.weight"
            pairs.append((compiled.get_parameter(parameter.path), theirs.get_parameter(path)))
    with torch.no_grad():
        for ours, other in pairs:
            other.copy_(ours)
    settings: dict[str, Any] = {"lr": 1e-2}
    optimizers = [
        torch.optim.AdamW(peftc.param_groups(compiled, **settings)),
        create_loraplus_optimizer(theirs, torch.optim.AdamW, loraplus_lr_ratio=4, **settings),
    ]
    batch: dict[str, Tensor] = {"input_ids": tokens(), "attention_mask": padding(), "labels": tokens()}
    for _ in range(4):
        for each, optimizer in zip((compiled, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            each(**batch).loss.backward()
            optimizer.step()
    for ours, other in pairs:
        assert (ours - other).abs().max() <= 1e-4 * other.abs().max()
    assert all(bool(ours.abs().max() > 1e-3) for ours, _ in pairs)


def test_the_plan_says_so() -> None:
    notes = peftc.plan(llama(), ["lora:q(lr_ratio=16)"]).notes
    assert [note for note in notes if "trains B at 16 times the learning rate" in note]
    assert not [note for note in peftc.plan(llama(), ["lora:q"]).notes if "learning rate" in note]


def test_a_factor_is_a_number_or_an_option_of_any_rule() -> None:
    text = (default_library().folders[0] / "ia3.toml").read_text()
    rule = check(read_text(text.replace('init = "ones"', 'init = "ones", lr = 0.5', 1), "ia3.toml"))
    compiled: Any = peftc.compile(llama(), rule)
    groups = names_of(compiled, peftc.param_groups(compiled, lr=1.0))
    assert {group["lr"]: len(group["params"]) for group in groups} == {0.5: 4, 1.0: 2}
    composite: Any = peftc.compile(llama(), ["rslora:q(lr_ratio=3)"])
    assert {group["lr"] for group in peftc.param_groups(composite, lr=1.0)} == {1.0, 3.0}
