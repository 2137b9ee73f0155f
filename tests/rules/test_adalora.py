"""AdaLoRA against HF PEFT over a whole training run, and against the paper's equations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import peftc
from tests.models import bert, llama, padding, randomise, tokens
from tests.rules.test_adapter_fusion import t5

RANK, TARGET, ALPHA, GAMMA, STEPS, WARMUP, COOLDOWN, EVERY = 4, 2, 8, 0.1, 12, 2, 3, 2
LONG = {"steps": 100, "warmup": 10, "cooldown": 20, "every": 5}


def spec(warmup: int = WARMUP, cooldown: int = COOLDOWN, every: int = EVERY) -> str:
    return (
        f"adalora:q,v,down(rank={RANK}, target={TARGET}, alpha={ALPHA}, gamma={GAMMA}, warmup={warmup}, "
        f"cooldown={cooldown}, every={every})"
    )


SPEC = spec()


def batch(model: Any, seed: int) -> dict[str, Tensor]:
    ids = tokens(model.config.vocab_size, seed=seed)
    mask = padding()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def pair(
    steps: int = STEPS, warmup: int = WARMUP, cooldown: int = COOLDOWN, every: int = EVERY
) -> tuple[Any, Any, dict[str, str]]:
    """Compiled model, HF PEFT's, and path in one → path in the other; the same random weights in both."""
    from peft import AdaLoraConfig, get_peft_model

    model = llama()
    config = AdaLoraConfig(
        init_r=RANK, target_r=TARGET, lora_alpha=ALPHA, lora_dropout=0.0, orth_reg_weight=GAMMA, tinit=warmup,
        tfinal=cooldown, deltaT=every, total_step=steps, target_modules=["q_proj", "v_proj", "down_proj"],
        task_type="CAUSAL_LM",  # without it peft loses the orthogonality term
    )  # fmt: skip
    theirs: Any = get_peft_model(copy.deepcopy(model), config)
    compiled: Any = peftc.compile(model, [spec(warmup, cooldown, every)], batch(model, 0), defaults=False)
    randomise(compiled, scale=0.2)
    names = {
        parameter.path: f"base_model.model.{each.site.path}.lora_{parameter.name}.default"
        for each in compiled.peftc_plan.applications
        for parameter in each.parameters
    }
    with torch.no_grad():
        for ours, other in names.items():
            held = compiled.get_parameter(ours)
            theirs.get_parameter(other).copy_(held.view_as(theirs.get_parameter(other)))
    return compiled, theirs, names


def live(compiled: Any) -> list[int]:
    return [int((p != 0).sum()) for name, p in compiled.named_parameters() if name.endswith(".E")]


def test_a_training_run_is_that_of_hf_peft() -> None:
    compiled, theirs, names = pair()
    optimizers = [
        torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=0.05)
        for each in (compiled.train(), theirs.train())
    ]
    compiled.update_schedules(0, STEPS)
    budgets = []
    for step in range(1, STEPS + 1):
        given = batch(compiled, step)
        losses = [each(**given).loss for each in (compiled, theirs)]
        assert losses[0].detach().item() == pytest.approx(losses[1].detach().item(), rel=1e-5)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            loss.backward()
            optimizer.step()
        compiled.update_schedules(step, STEPS)
        theirs.base_model.update_and_allocate(step)
        budgets.append(sum(live(compiled)))
        for ours, other in names.items():
            held = theirs.get_parameter(other).view_as(compiled.get_parameter(ours))
            assert torch.equal(held == 0, compiled.get_parameter(ours) == 0), (step, ours)
            assert (held - compiled.get_parameter(ours)).abs().max() <= 1e-5, (step, ours)
        for optimizer in optimizers:
            optimizer.zero_grad()
    sites = len(live(compiled))
    assert budgets[WARMUP - 1] == sites * RANK
    assert budgets[WARMUP] == sites * RANK, "cut every second step, not at the third"
    assert budgets[-1] == sites * TARGET
    assert len(set(live(compiled))) > 1, "some sites must end with more ranks than others"


def far(compiled: Any, theirs: Any, names: dict[str, str]) -> float:
    """The largest difference between parameters of both."""
    return max(
        float((theirs.get_parameter(other).view_as(p) - p).detach().abs().max())
        for ours, other in names.items()
        for p in (compiled.get_parameter(ours),)
    )


@pytest.mark.slow
def test_a_hundred_steps_of_a_trainer_are_those_of_hf_peft(tmp_path: Path) -> None:
    """AdamW, gradient accumulation, clipping and a falling rate, all Trainer's own; masks are compared at every step."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from peftc.finetune.schedules import RunSchedules

    compiled, theirs, names = pair(**LONG)
    masks: dict[str, list[list[bool]]] = {"ours": [], "theirs": []}

    class Allocate(TrainerCallback):
        """HF PEFT leaves this call to its user."""

        def on_optimizer_step(self, *given: Any, **_: Any) -> None:
            theirs.base_model.update_and_allocate(given[1].global_step + 1)

    class Watch(TrainerCallback):
        def __init__(self, which: str, gates: list[Tensor]) -> None:
            self.which, self.gates = which, gates

        def on_step_end(self, *_: Any, **__: Any) -> None:
            masks[self.which].append([bool(value) for gate in self.gates for value in gate.flatten()])

    rows = [{key: held[0] for key, held in batch(compiled, seed).items()} for seed in range(24)]
    ours = [name for name in names if name.endswith(".E")]
    runs = (
        (compiled, [RunSchedules(compiled), Watch("ours", [compiled.get_parameter(name) for name in ours])]),
        (theirs, [Allocate(), Watch("theirs", [theirs.get_parameter(names[name]) for name in ours])]),
    )
    for model, callbacks in runs:
        args = TrainingArguments(
            output_dir=str(tmp_path), max_steps=LONG["steps"], per_device_train_batch_size=2, report_to="none",
            gradient_accumulation_steps=2, learning_rate=5e-3, seed=3, use_cpu=True, save_strategy="no",
            disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        Trainer(model=model, args=args, train_dataset=rows, callbacks=callbacks).train()
    assert len(masks["ours"]) == LONG["steps"]
    assert masks["ours"] == masks["theirs"]
    assert far(compiled, theirs, names) <= 2e-5
    left = [sum(row) for row in masks["ours"]]
    assert left[9] == 6 * RANK
    assert left[-1] == 6 * TARGET
    assert len(set(left)) >= 8, "the budget shrinks little by little"
    # What HF PEFT would save is narrowed by its rank pattern; so is what shrink() leaves.
    pattern = theirs.peft_config["default"].rank_pattern
    smaller: Any = compiled.shrink()
    found = {each.site.path: each.parameters[0].shape[0] for each in smaller.peftc_plan.applications}
    assert found == {name.partition(".lora_E")[0]: sum(kept) for name, kept in pattern.items() if sum(kept)}
    given = batch(compiled, 99)
    outputs = [each.eval()(**given).logits for each in (compiled, smaller, theirs)]
    real = given["attention_mask"].bool()
    assert (outputs[0] - outputs[1])[real].abs().max() <= 1e-5
    assert (outputs[0] - outputs[2])[real].abs().max() <= 5e-5


def test_the_loss_is_the_papers() -> None:
    model = llama()
    compiled: Any = peftc.compile(model, [SPEC], batch(model, 0), defaults=False)
    randomise(compiled, scale=0.2)
    given = batch(model, 1)
    pushes = []
    for application in compiled.peftc_plan.applications:
        held = {each.name: compiled.get_parameter(each.path) for each in application.parameters}
        one = torch.eye(RANK)
        pushes += [
            ((held["A"] @ held["A"].T - one) ** 2).sum().sqrt(),
            ((held["B"].T @ held["B"] - one) ** 2).sum().sqrt(),
        ]
    expected = GAMMA * torch.stack(pushes).detach().mean()
    plain = compiled.eval()(**given).loss
    trained = compiled.train()(**given).loss
    assert compiled.auxiliary_loss().detach().item() == pytest.approx(expected.item(), rel=1e-6)
    assert (trained - plain).detach().item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "targets"),
    [(bert, r".*\.(query|value)|.*layer\.\d+\.output\.dense"), (t5, r".*Attention\.(q|v)|.*\.wo")],
    ids=["encoder", "both"],
)
def test_values_and_gradients_are_those_of_hf_peft(make: Callable[[], Any], targets: str) -> None:
    """With some ranks cut off. HF PEFT divides by how many there were, plus 1e-5."""
    from peft import AdaLoraConfig, get_peft_model

    model = make()
    config = AdaLoraConfig(
        init_r=RANK, target_r=TARGET, lora_alpha=ALPHA, lora_dropout=0.0, total_step=STEPS, target_modules=targets
    )  # fmt: skip
    theirs: Any = get_peft_model(copy.deepcopy(model), config).eval()
    given = {"input_ids": tokens(), "attention_mask": padding()}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = tokens(seed=8)
    compiled: Any = peftc.compile(model, [SPEC], given, defaults=False).eval()
    randomise(compiled, scale=0.2)
    pairs = []
    for each in compiled.peftc_plan.applications:
        for made in each.parameters:
            own = compiled.get_parameter(made.path)
            other = theirs.get_parameter(f"base_model.model.{each.site.path}.lora_{made.name}.default")
            with torch.no_grad():
                if made.name == "E":
                    own[::2] = 0
                other.copy_(own.view_as(other))
            pairs.append((own, other))
    assert {id(p) for p in theirs.parameters() if p.requires_grad} == {id(other) for _, other in pairs}
    got, want = compiled(**given).logits, theirs(**given).logits
    assert (got - model(**given).logits).abs().max() > 1e-3
    assert (got - want).abs().max() <= 1e-5 * max(1.0, float(want.detach().abs().max()))
    got.square().mean().backward()
    want.square().mean().backward()
    for own, other in pairs:
        assert own.grad is not None
        assert other.grad is not None
        far = (own.grad - other.grad.view_as(own)).abs().max()
        assert far <= 1e-5 * other.grad.abs().max()


@pytest.mark.slow
def test_a_cut_rank_neither_acts_nor_comes_back() -> None:
    """After the cooldown begins, the update is that of the kept ranks alone, in the equation of the paper."""
    compiled, _, _ = pair()
    optimizer = torch.optim.AdamW([p for p in compiled.parameters() if p.requires_grad], lr=0.02)
    compiled.train().update_schedules(0, STEPS)
    kept = None
    for step in range(1, STEPS + 1):
        compiled(**batch(compiled, step)).loss.backward()
        optimizer.step()
        compiled.update_schedules(step, STEPS)
        optimizer.zero_grad()
        if step >= STEPS - COOLDOWN:
            assert kept in (None, live(compiled))
            kept = live(compiled)
    application = compiled.peftc_plan.applications[0]
    held = {each.name: compiled.get_parameter(each.path) for each in application.parameters}
    chosen = held["E"] != 0
    assert 0 < int(chosen.sum()) < RANK or len(set(kept or [])) > 1
    x = torch.randn(3, held["A"].shape[1])
    dense = ALPHA / RANK * (x @ held["A"].T * held["E"]) @ held["B"].T
    small = ALPHA / RANK * (x @ held["A"][chosen].T * held["E"][chosen]) @ held["B"][:, chosen].T
    assert torch.allclose(dense, small, atol=1e-6)


def test_too_few_steps_and_missing_gradients_are_refused() -> None:
    from peftc.errors import ScheduleError

    compiled, _, _ = pair()
    with pytest.raises(ScheduleError, match="5 steps are too few for a warmup of 2 and a cooldown of 3"):
        compiled.update_schedules(0, 5)
    compiled.update_schedules(0, STEPS)
    with pytest.raises(ScheduleError, match="needs gradients"):
        compiled.update_schedules(1, STEPS)
    with pytest.raises(ScheduleError, match="step 13 is none of 12"):
        compiled.update_schedules(13, STEPS)
