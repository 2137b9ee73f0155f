"""Shows how training goes: a bar where people watch, a line now and then where a file does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

SECONDS_BETWEEN_LINES = 10.0


class ShowProgress(TrainerCallback):
    """Prints the loss and the evaluations of the main process."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.loss: float | None = None
        self.last_line = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the bar."""
        if not state.is_world_process_zero or not self.console.is_terminal:
            return
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.task = self.bar.add_task(
            "training", total=state.max_steps, completed=state.global_step, loss="-"
        )
        self.bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Moves the bar, or prints a line where the last one is some seconds old."""
        if not state.is_world_process_zero:
            return
        loss = "-" if self.loss is None else f"{self.loss:.3f}"
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=state.global_step, loss=loss)
            return
        if time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self.console.print(f"  step {state.global_step} of {state.max_steps}, loss {loss}")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keeps the newest loss; prints an evaluation made during training."""
        logs = logs or {}
        self.loss = logs.get("loss", self.loss)
        if state.is_world_process_zero and "eval_loss" in logs and state.global_step > 0:
            accuracy = f", accuracy {logs['eval_accuracy']:.3f}" if "eval_accuracy" in logs else ""
            self.console.print(
                f"  held out after step {state.global_step}: loss {logs['eval_loss']:.3f}{accuracy}"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes the bar."""
        self.close()

    def close(self) -> None:
        """Gives the terminal back, also after an interruption."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
