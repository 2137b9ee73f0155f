"""One run of `peftc finetune`, from settings to a complete output folder.

The order matters: data and rules are checked before weights are read, and the output appears last, all at
once.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import TrainingArguments, set_seed

from peftc import api
from peftc.errors import OutputExistsError
from peftc.finetune.baselines import frozen_probe, majority
from peftc.finetune.data import Data, EncodedData, encode, load_data
from peftc.finetune.encoding import batches_by_length, collator_for
from peftc.finetune.job import Job, Settings, difference, job_of, read_job, write_job
from peftc.finetune.models import Loaded, check_model_path, example_inputs, load_for, untrained
from peftc.finetune.optimizers import OPTIMIZERS, check_optimizer, noted, notes_on
from peftc.finetune.output import (
    Output,
    abandon,
    is_main_process,
    open_output,
    process_count,
    publish,
    resume_from,
)
from peftc.finetune.picture import draw_loss
from peftc.finetune.predict import PREDICTIONS_FILE, Predictions, write_predictions
from peftc.finetune.progress import ShowProgress
from peftc.finetune.trainer import ADAPTER_FOLDER, AdapterTrainer, accuracy, logits_of

METRICS_FILE = "metrics.json"
PICTURE_FILE = "loss.png"


@dataclass(frozen=True)
class Result:
    """What a run gives back: its figures and the folder they are in."""

    out: Path
    metrics: Mapping[str, Any]


def finetune(settings: Settings, console: Console) -> Result:
    """Trains and writes the output folder. Raises PeftcError for anything the user can put right."""
    check_model_path(settings.model)
    check_optimizer(settings.optimizer)
    api.bound_rules(settings.rules, settings.saved)
    data = load_data(settings)
    output = open_output(settings.out, resume=settings.resume, overwrite=settings.overwrite)
    try:
        return trained(settings, data, output, console)
    except BaseException:
        abandon(output)
        raise


def trained(settings: Settings, data: Data, output: Output, console: Console) -> Result:
    """The run itself, in an output that is open."""
    job = job_of(settings, data.labels)
    checkpoint = begin(job, settings, output, console)
    set_seed(settings.seed)
    loaded = load_for(settings.task, settings.model, settings.pooling, len(data.labels))
    encoded = encode(settings, data, loaded.tokenizer, loaded.input_names)
    report_data(settings, data, encoded, console)
    metrics: dict[str, Any] = {"task": settings.task, "rules": settings.rules}
    metrics |= measured_baselines(settings, data, encoded, loaded, console)

    loaded.model.train()
    set_seed(settings.seed)  # the same start of new parameters, whatever was measured before
    compiled: Any = api.compile(
        loaded.model,
        list(settings.rules),
        example_inputs(loaded, settings.task),
        saved=settings.saved,
        data=first_batch(settings, encoded, loaded),
    )
    # Let go of the model that came: where rules keep weights in fewer bits, it is the last to hold them whole.
    loaded = replace(loaded, model=compiled)
    console.print(api.explain(compiled).table())
    for name in untrained(compiled, loaded.new):
        console.print(
            f"[yellow]note[/] {name} is new and no rule trains it: it stays as it was drawn", highlight=False
        )
    trainable = sum(parameter.numel() for parameter in compiled.parameters() if parameter.requires_grad)
    metrics["parameters"] = {"trainable": trainable, "total": compiled.peftc_plan.total_count}
    accelerator = torch.accelerator.is_available() and not settings.cpu
    for note in notes_on(settings.optimizer, accelerator=accelerator):
        console.print(f"[yellow]note[/] {note}", highlight=False)

    trainer = make_trainer(settings, compiled, loaded, encoded, output, console)
    if settings.task == "causal-lm" and encoded.evaluation is not None:
        with compiled.disable_adapter():
            metrics["perplexity_before"] = math.exp(trainer.evaluate()["eval_loss"])
        console.print(f"perplexity before: {metrics['perplexity_before']:.2f}")
    started = time.perf_counter()
    with noted():
        summary = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    metrics["training"] = {
        "rows": len(encoded.training),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "seconds": round(time.perf_counter() - started, 1),
        "loss": summary.training_loss,
    }
    if encoded.evaluation is not None:
        scores = last_evaluation(settings, trainer)
        metrics["evaluation"] = {"rows": len(encoded.evaluation), "loss": scores["eval_loss"]}
        if settings.task == "causal-lm":
            metrics["perplexity_after"] = math.exp(scores["eval_loss"])
        else:
            metrics["evaluation"]["accuracy"] = scores["eval_accuracy"]
    metrics["history"] = trainer.state.log_history
    if is_main_process():
        write_results(settings, job, data, encoded, loaded, trainer, metrics, output, console)
    return Result(output.out, metrics)


def last_evaluation(settings: Settings, trainer: AdapterTrainer) -> Mapping[str, float]:
    """The scores of the final weights: those of the last step where it has them, else a new evaluation."""
    history = trainer.state.log_history
    scored = [
        entry for entry in history if "eval_loss" in entry and entry["step"] == trainer.state.global_step
    ]
    if scored and settings.keep == "last":
        return scored[-1]
    return trainer.evaluate()


def begin(job: Job, settings: Settings, output: Output, console: Console) -> Path | None:
    """The checkpoint to resume from, if any; leaves job.json beside the checkpoints for the next time."""
    if settings.resume and is_main_process():
        for folder in (output.work, output.out):
            changed = difference(read_job(folder), job) if (folder / "job.json").is_file() else None
            if changed is not None:
                raise OutputExistsError(
                    f"the run to resume is another one: {changed}",
                    where=str(folder),
                    hint="give the same options again, or start anew with --overwrite",
                )
    if is_main_process():
        write_job(job, output.work)
    checkpoint = resume_from(output) if settings.resume else None
    if settings.resume:
        console.print(
            f"resuming from {checkpoint}" if checkpoint else "no checkpoint yet: starting from the beginning"
        )
    return checkpoint


def first_batch(settings: Settings, encoded: EncodedData, loaded: Loaded) -> dict[str, Any]:
    """The first training rows, for rules whose parameters start from what the model computes on data.

    The longest is first, and padding behind: so that whoever takes the first tokens gets some.
    """
    rows = [encoded.training[row] for row in range(min(settings.batch_size, len(encoded.training)))]
    rows.sort(key=lambda row: len(row["input_ids"]), reverse=True)
    batch = replace(collator_for(loaded.tokenizer), pad_left=False)(rows)
    device = next(loaded.model.parameters()).device
    return {name: held.to(device) for name, held in batch.items() if name != "labels"}


def report_data(settings: Settings, data: Data, encoded: EncodedData, console: Console) -> None:
    """What is trained on and what is held out, in one or two lines."""
    unit = "blocks" if settings.task == "causal-lm" else "rows"
    held_out = "nothing" if encoded.evaluation is None else f"{len(encoded.evaluation)} {unit}"
    labels = f"; labels: {', '.join(data.labels)}" if data.labels else ""
    console.print(
        f"data: {len(encoded.training)} {unit} to train on, {held_out} held out{labels}", highlight=False
    )
    cut = encoded.training.cut + (encoded.evaluation.cut if encoded.evaluation else 0)
    if cut:
        console.print(
            f"[yellow]note[/] {cut} texts are longer than --max-length {settings.max_length} and were cut"
        )


def measured_baselines(
    settings: Settings, data: Data, encoded: EncodedData, loaded: Loaded, console: Console
) -> dict[str, float]:
    """Majority class and frozen probe on the held-out rows, where they were asked for."""
    if not settings.baselines or not data.labels or encoded.evaluation is None or not is_main_process():
        return {}
    training = [example["labels"] for example in encoded.training.examples]
    evaluation = [example["labels"] for example in encoded.evaluation.examples]
    console.print("measuring the baselines (majority class, logistic regression on frozen features)")
    probe = frozen_probe(loaded.model, encoded.training, encoded.evaluation, collator_for(loaded.tokenizer))
    return {"majority": majority(training, evaluation), "frozen_probe": probe}


def make_trainer(
    settings: Settings, compiled: Any, loaded: Loaded, encoded: EncodedData, output: Output, console: Console
) -> AdapterTrainer:
    """The trainer with what Trainer is told."""
    from transformers.trainer_callback import PrinterCallback

    causal = settings.task == "causal-lm"
    rows_per_step = settings.batch_size * settings.accumulate * process_count()
    steps_per_epoch = math.ceil(len(encoded.training) / rows_per_step)
    total = settings.max_steps or math.ceil(steps_per_epoch * settings.epochs)
    cadence = "steps" if settings.evaluate_every is not None or settings.max_steps is not None else "epoch"
    every = settings.evaluate_every or max(1, total // 3)
    keep_best = settings.keep == "best" and encoded.evaluation is not None
    args = TrainingArguments(
        output_dir=str(output.checkpoints),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        optim=OPTIMIZERS[settings.optimizer].trainer,
        warmup_steps=round(settings.warmup * total),
        lr_scheduler_type="linear",
        seed=settings.seed,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        eval_strategy=cadence if encoded.evaluation is not None else "no",
        eval_steps=every,
        save_strategy=cadence,
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=keep_best,
        metric_for_best_model="eval_loss" if keep_best else None,
        greater_is_better=False if keep_best else None,
        logging_steps=max(1, total // 100),
        prediction_loss_only=causal,
        label_names=["labels"],
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        # Said outright: launched processes find no backend to meet over unless they are told that it is the CPU.
        use_cpu=settings.cpu or not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.cuda.is_available() and not settings.cpu,
    )
    trainer = AdapterTrainer(
        model=compiled,
        args=args,
        data_collator=collator_for(loaded.tokenizer, labels_from_inputs=causal),
        train_dataset=encoded.training,
        eval_dataset=encoded.evaluation,
        compute_metrics=None if causal else accuracy,
        callbacks=[ShowProgress(console)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def write_results(
    settings: Settings,
    job: Job,
    data: Data,
    encoded: EncodedData,
    loaded: Loaded,
    trainer: AdapterTrainer,
    metrics: Mapping[str, Any],
    output: Output,
    console: Console,
) -> None:
    """Adapter, job, figures, picture and held-out predictions, then the one rename that makes them the
    output.
    """
    compiled = trainer.compiled
    if compiled.can_shrink():
        compiled = compiled.shrink()
        left = compiled.get_nb_trainable_parameters()[0]
        console.print(f"shrunk: {left:,} parameters are left of what was trained; it computes the same")
        metrics = {**metrics, "parameters": {**metrics["parameters"], "after_shrinking": left}}
    compiled.save_pretrained(output.work / ADAPTER_FOLDER, overwrite=True)
    write_job(job, output.work)
    draw_loss(
        trainer.state.log_history,
        output.work / PICTURE_FILE,
        f"{settings.model.name}: {', '.join(job.rules)}",
    )
    if data.labels and encoded.evaluation is not None:
        batches = list(batches_by_length(encoded.evaluation, job.batch_size))
        logits = logits_of(compiled, encoded.evaluation, collator_for(loaded.tokenizer), batches)
        predictions = Predictions.of(logits, data.labels, data.evaluation)
        write_predictions(predictions, output.work / PREDICTIONS_FILE)
    (output.work / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    publish(output)
