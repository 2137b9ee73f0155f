"""Lets a Trainer carry out the schedules of a compiled model's rules."""

from __future__ import annotations

from typing import Any

from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from peftc.runtime.compiled import CompiledModule


class RunSchedules(TrainerCallback):
    """Updates schedules before the first step and after every one, when gradients are still there."""

    def __init__(self, compiled: CompiledModule) -> None:
        self.compiled = compiled

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the first step of this run, which is a later one where it resumes."""
        if state.global_step == 0:
            self.compiled.update_schedules(0, state.max_steps)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After a step; `state` counts it only afterwards."""
        self.compiled.update_schedules(state.global_step + 1, state.max_steps)
