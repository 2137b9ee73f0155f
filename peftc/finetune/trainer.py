"""transformers' Trainer for a compiled model: checkpoints hold the adapter, never the frozen backbone.

Adds nothing to the training loop itself, so launchers, accumulation and resumption work as Trainer's do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_utils import EvalPrediction

from peftc.finetune.encoding import Collator, Encoded
from peftc.finetune.sampling import LengthGrouped
from peftc.finetune.schedules import RunSchedules
from peftc.runtime import param_groups

ADAPTER_FOLDER = "adapter"
SCHEDULE_FILE = "schedules.safetensors"


class AdapterTrainer(Trainer):
    """Trainer that saves and loads adapters and groups batches by length."""

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainingArguments,
        data_collator: Collator,
        train_dataset: Encoded | None,
        eval_dataset: Encoded | None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
        )
        if self.compiled.schedules.scheduled:
            self.add_callback(RunSchedules(self.compiled))
        # Each number of tokens would be one more argument of forward, and so another call signature to
        # capture.
        self.model_accepts_loss_kwargs = False

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser, with a learning rate of its own for each parameter that a rule gives one."""
        if self.optimizer is None:
            chosen = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                self.args, self.compiled
            )
            groups = param_groups(self.compiled, self.args.learning_rate, self.args.weight_decay)
            self.optimizer_cls_and_kwargs = (chosen[0], {**chosen[1], "params": groups})
        return super().create_optimizer(model)

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int] | None:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        if not isinstance(dataset, Encoded):
            return super()._get_train_sampler(dataset)
        return LengthGrouped(dataset.lengths, self.args.train_batch_size, self.args.seed)

    def _get_eval_sampler(self, eval_dataset: Dataset[Any]) -> Sampler[int] | None:
        if not isinstance(eval_dataset, Encoded):
            return super()._get_eval_sampler(eval_dataset)
        return SequentialSampler(eval_dataset)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir if output_dir is not None else str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        self.compiled.save_pretrained(folder / ADAPTER_FOLDER, overwrite=True)
        if state := self.compiled.schedules.state_dict():
            save_file(state, folder / SCHEDULE_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        self.compiled.load_adapter_weights(folder / ADAPTER_FOLDER)
        if (folder / SCHEDULE_FILE).is_file():
            self.compiled.schedules.load_state_dict(load_file(folder / SCHEDULE_FILE), self.args.device)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None:
            self.compiled.load_adapter_weights(Path(best) / ADAPTER_FOLDER)

    @property
    def compiled(self) -> Any:
        """The compiled model without a launcher's wrapping."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of right labels. predictions: [rows labels], label_ids: [rows]."""
    logits = (
        prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    )
    return {"accuracy": float((logits.argmax(axis=-1) == prediction.label_ids).mean())}


def logits_of(
    model: nn.Module, encoded: Encoded, collator: Collator, batches: list[list[int]]
) -> torch.Tensor:
    """Logits of every example in the dataset's order, float32 [rows labels], on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    rows: list[torch.Tensor | None] = [None] * len(encoded)
    with torch.no_grad():
        for batch in batches:
            inputs = collator([encoded[index] for index in batch])
            inputs.pop("labels", None)
            logits = model(**{name: value.to(device) for name, value in inputs.items()}).logits.float().cpu()
            for index, row in zip(batch, logits, strict=True):
                rows[index] = row
    return torch.stack([row for row in rows if row is not None])
