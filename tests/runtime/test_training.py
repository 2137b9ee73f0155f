"""What rules add to a loss and do in the course of training: loss terms, policies, and a Trainer that runs them."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import peftc
from peftc.errors import ScheduleError
from peftc.lang import Rule, read_text
from peftc.store import load_adapter
from tests.analyse.test_roles import D, Fused, X, contiguous
from tests.models import bert, llama, padding, randomise, tokens

LORA = """
format = 1
name = "small"
summary = "A low-rank update that is kept small."
[options]
rank = { default = 4, min = 1 }
[match]
role = "linear"
part = ["q", "v"]
values = { x = "* d_in", W = "d_out d_in", y = "* d_out" }
[parameters]
A = { axes = "rank d_in", init = "kaiming_uniform" }
B = { axes = "d_out rank", init = "zeros" }
[rewrite]
y = "y + x @ A @ B"
"""
SUM_OF_SQUARES = "sum(sum(square(A), axis='rank'), axis='d_in')"
NEAR_THE_WEIGHT = "mean(mean(square(B @ A - W), axis='d_in'), axis='d_out')"


def rule(*more: str) -> Rule:
    return read_text("\n".join((LORA, *more)), "small.toml")


def with_loss() -> Rule:
    return rule(
        "[options.strength]",
        "default = 0.25",
        "[loss]",
        f'size = {{ value = "{SUM_OF_SQUARES}", weight = "strength" }}',
        f'near = {{ value = "{NEAR_THE_WEIGHT}", weight = 2, reduce = "sum" }}',
    )


def batch(model: Any, seed: int = 0) -> dict[str, Tensor]:
    ids, mask = tokens(model.config.vocab_size, seed=seed), padding()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def expected_loss(model: Any, compiled: Any) -> Tensor:
    sizes, near = [], []
    for application in compiled.peftc_plan.applications:
        held = {each.name: compiled.get_parameter(each.path) for each in application.parameters}
        weight = model.get_parameter(application.site.weights["W"])
        sizes.append((held["A"] ** 2).sum())
        near.append(((held["B"] @ held["A"] - weight) ** 2).mean())
    return 0.25 * torch.stack(sizes).mean() + 2 * torch.stack(near).sum()


def test_terms_are_added_to_the_loss_while_training() -> None:
    model = llama()
    compiled: Any = peftc.compile(model, with_loss(), batch(model), defaults=False)
    randomise(compiled, scale=0.1)
    expected = expected_loss(model, compiled)
    own = compiled.eval()(**batch(model)).loss
    assert torch.equal(own, compiled(**batch(model)).loss)
    compiled.train()
    assert torch.allclose(compiled(**batch(model)).loss - own, expected, atol=1e-5)
    assert torch.allclose(compiled.auxiliary_loss(), expected, atol=1e-6)
    with compiled.disable_adapter():
        assert torch.allclose(compiled(**batch(model)).loss, own, atol=0.2), "no term with the adapters off"
        assert torch.equal(compiled(**batch(model)).loss, model.train()(**batch(model)).loss)


def test_gradients_are_those_of_both_losses() -> None:
    model = llama()
    compiled: Any = peftc.compile(model, with_loss(), batch(model), defaults=False)
    randomise(compiled, scale=0.1)
    trained = [parameter for parameter in compiled.parameters() if parameter.requires_grad]
    compiled.eval()
    parts = compiled(**batch(model)).loss + expected_loss(model, compiled)
    expected = torch.autograd.grad(parts, trained)
    compiled.train()
    compiled(**batch(model)).loss.backward()
    for parameter, gradient in zip(trained, expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)
    alone: tuple[Tensor, ...] = torch.autograd.grad(compiled.auxiliary_loss(), trained)
    assert all(bool(gradient.abs().max() > 0) for gradient in alone)


def test_a_slice_of_a_weight_is_read_as_the_sites_own() -> None:
    """The weight of a part of a fused projection is its rows alone: in a loss, and in a rewrite."""
    model = Fused(contiguous)
    text = LORA + f'[loss]\nnear = {{ value = "{NEAR_THE_WEIGHT}", reduce = "sum" }}\n'
    compiled: Any = peftc.compile(model, read_text(text, "small.toml"), {"x": X}, defaults=False)
    randomise(compiled, scale=0.1)
    expected = torch.zeros(())
    for application, start in zip(compiled.peftc_plan.applications, (0, 2 * D), strict=True):
        held = {each.name: compiled.get_parameter(each.path) for each in application.parameters}
        own = model.c_attn.weight[start : start + D]
        expected = expected + ((held["B"] @ held["A"] - own) ** 2).mean()
    assert torch.allclose(compiled.auxiliary_loss(), expected)


def test_a_rewrite_can_read_a_weight() -> None:
    model = Fused(contiguous)
    text = LORA.replace("y + x @ A @ B", "y + x @ A @ B + x @ W / 2")
    compiled: Any = peftc.compile(model, read_text(text, "small.toml"), {"x": X}, defaults=False)
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        doubled.c_attn.weight[:D] *= 1.5
        doubled.c_attn.weight[2 * D :] *= 1.5
    assert torch.allclose(compiled(X)[0], doubled(X)[0], atol=1e-5)


def test_without_terms_nothing_is_added() -> None:
    model = llama()
    compiled: Any = peftc.compile(model, "lora", batch(model), defaults=False)
    assert compiled.auxiliary_loss().item() == 0
    assert torch.equal(compiled.train()(**batch(model)).loss, model.train()(**batch(model)).loss)


def test_a_loss_and_its_nodes_go_through_torch_compile() -> None:
    model = llama()
    compiled: Any = peftc.compile(model, with_loss(), batch(model), defaults=False)
    randomise(compiled, scale=0.1)
    eager = compiled.train()(**batch(model)).loss
    trace: Any = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    traced = trace(**batch(model)).loss
    assert torch.allclose(eager, traced, atol=1e-5)
    added = [node for node in peftc.graph(compiled).graph.nodes if "add_loss" in node.name]
    assert len(added) == 1


RAMP = """
[schedule.warm]
policy = "ramp"
parameters = { value = "A" }
settings = { start = 2, stop = 6, SHAPE begin = 0.25, end = 0.75 }
"""


@pytest.mark.parametrize(
    ("shape", "halfway"),
    [("", 3.0), ("shape = 'cosine',", 4 - 2 * math.cos(math.pi / 4)), ("shape = 'cubic',", 6 - 4 * 0.75**3)],
)
def test_a_ramp_moves_a_number(shape: str, halfway: float) -> None:
    model = llama()
    text = LORA.replace('init = "kaiming_uniform" }', 'init = "ones", trainable = false }')
    frozen = read_text(text + RAMP.replace("SHAPE", shape), "small.toml")
    compiled: Any = peftc.compile(model, frozen, batch(model), defaults=False)
    values = [p for name, p in compiled.named_parameters() if name.endswith(".A")]
    for step, expected in ((0, 2.0), (2, 2.0), (3, halfway), (6, 6.0), (8, 6.0)):
        compiled.update_schedules(step, 8)
        assert all(torch.allclose(value, torch.full_like(value, expected)) for value in values), step
    assert not any(value.requires_grad for value in values)


def test_a_ramp_that_goes_backwards_is_refused() -> None:
    model = llama()
    text = LORA.replace('init = "kaiming_uniform" }', 'init = "ones", trainable = false }')
    turned = text + RAMP.replace("SHAPE", "").replace("0.25", "0.9")
    with pytest.raises(ScheduleError, match=r"begin = 0.9 is not before end = 0.75"):
        peftc.compile(model, read_text(turned, "small.toml"), batch(model), defaults=False)


def test_adapters_of_the_first_layers_are_dropped_while_training() -> None:
    model = bert()
    given = {"input_ids": tokens(model.config.vocab_size), "attention_mask": padding()}
    compiled: Any = peftc.compile(model, "adapter_drop:8(most=2)", given, defaults=False)
    randomise(compiled)
    whole = compiled.eval()(**given).logits
    keep = [p for name, p in compiled.named_parameters() if name.endswith("keep")]
    layers = model.config.num_hidden_layers
    assert len(keep) == layers
    seen = set()
    for step in range(20):
        compiled.update_schedules(step, 20)
        seen.add(tuple(int(p) for p in keep))
        assert torch.equal(compiled.eval()(**given).logits, whole), "evaluation has all of them"
    assert seen == {tuple([0] * n + [1] * (layers - n)) for n in range(min(2, layers - 1) + 1)}
    compiled.update_schedules(20, 20)
    assert all(int(p) == 1 for p in keep)
    dropped = next(step for step in range(20) if (compiled.update_schedules(step, 20), int(keep[0]))[1] == 0)
    compiled.update_schedules(dropped, 20)
    compiled.train()
    compiled(**given).logits.sum().backward()
    for name, parameter in compiled.named_parameters():
        if parameter.requires_grad and parameter.grad is not None and ".layer.0." in name:
            assert bool((parameter.grad == 0).all()), f"{name} is off and must get no gradient"


def test_a_copy_has_a_schedule_of_its_own() -> None:
    compiled, twin = adalora(), None
    steps(compiled, range(1, 4))
    twin = copy.deepcopy(compiled)
    before = {name: held.clone() for name, held in twin.schedules.state_dict().items()}
    steps(compiled, range(4, 6))
    assert before.keys() == twin.schedules.state_dict().keys()
    assert all(torch.equal(held, twin.schedules.state_dict()[name]) for name, held in before.items())
    assert any(not torch.equal(held, compiled.schedules.state_dict()[name]) for name, held in before.items())


def adalora() -> Any:
    model = llama()
    spec = "adalora:q,v(rank=4, target=2, warmup=1, cooldown=2)"
    compiled: Any = peftc.compile(model, spec, batch(model), defaults=False)
    randomise(compiled, scale=0.2)
    return compiled


def steps(compiled: Any, numbers: range) -> None:
    optimizer = torch.optim.SGD([p for p in compiled.parameters() if p.requires_grad], lr=0.05)
    for step in numbers:
        compiled.train()(**batch(compiled, step)).loss.backward()
        optimizer.step()
        compiled.update_schedules(step, 8)
        optimizer.zero_grad()


@pytest.mark.slow
def test_training_goes_on_from_saved_state(tmp_path: Path) -> None:
    whole = adalora()
    whole.update_schedules(0, 8)
    steps(whole, range(1, 9))

    first = adalora()
    first.update_schedules(0, 8)
    steps(first, range(1, 5))
    first.save_pretrained(tmp_path / "adapter")
    second: Any = load_adapter(llama(), tmp_path / "adapter", batch(first), trainable=True)
    second.schedules.load_state_dict(first.schedules.state_dict(), torch.device("cpu"))
    steps(second, range(5, 9))
    for name, parameter in whole.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, second.get_parameter(name)), name


def test_a_trainer_runs_schedules(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from peftc.finetune.schedules import RunSchedules

    compiled = adalora()
    rows = [{key: held[0] for key, held in batch(compiled, seed).items()} for seed in range(8)]
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=2, report_to="none", use_cpu=True,
        save_strategy="no", gradient_accumulation_steps=2, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    Trainer(model=compiled, args=args, train_dataset=rows, callbacks=[RunSchedules(compiled)]).train()
    values = [p for name, p in compiled.named_parameters() if name.endswith(".E")]
    assert sum(int((value != 0).sum()) for value in values) == 2 * len(values)


def test_a_budget_that_knows_nothing_of_earlier_steps_is_refused() -> None:
    for step in (3, 7):  # the budget shrinks, and has shrunk
        compiled = adalora()
        compiled.train()(**batch(compiled)).loss.backward()
        with pytest.raises(
            ScheduleError, match=f"step {step} of 8, but nothing is known of the steps before"
        ):
            compiled.update_schedules(step, 8)


def test_a_budget_of_more_ranks_than_there_are_is_refused() -> None:
    compiled: Any = peftc.compile(llama(), "adalora:q(rank=4, target=5)", batch(llama()), defaults=False)
    with pytest.raises(ScheduleError, match="a target of 5 ranks on average is more than there are: 8 at 2"):
        compiled.update_schedules(0, 8)


def test_the_last_layer_stays_on_however_many_may_be_off() -> None:
    compiled: Any = peftc.compile(llama(), "adapter_drop(most=99)", batch(llama()), defaults=False)
    seen = set()
    for step in range(40):
        compiled.update_schedules(step, 99)
        seen.add(tuple(float(p) for name, p in compiled.named_parameters() if name.endswith("keep")))
    assert seen == {(1.0, 1.0), (0.0, 1.0)}
