"""`peftc finetune` and `peftc predict`: the ready-made job. Decides nothing that the Python functions do not.

Longer than other files because each option of each command stands here once, with its help.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from peftc.cli.application import app
from peftc.cli.specs import CommandOfRules, SavedOption, bound, saved_adapters

MODEL, DATA, TRAINING, OUTPUT = "Model and rules", "Data", "Training", "Output"


class TaskName(enum.StrEnum):
    """What is learnt."""

    CLASSIFICATION = "classification"
    CAUSAL_LM = "causal-lm"


class PoolingName(enum.StrEnum):
    """Where a classifier's features come from."""

    MEAN = "mean"
    MODEL = "model"


class OptimizerName(enum.StrEnum):
    """What changes the weights."""

    ADAMW = "adamw"
    ADAMW_8BIT = "adamw-8bit"
    PAGED_ADAMW = "paged-adamw"
    PAGED_ADAMW_8BIT = "paged-adamw-8bit"
    LION_8BIT = "lion-8bit"
    PAGED_LION_8BIT = "paged-lion-8bit"


class KeepName(enum.StrEnum):
    """Which weights are the result."""

    LAST = "last"
    BEST = "best"


RulesOption = Annotated[
    list[str],
    typer.Option(
        "--rules",
        help="A rule with its parts, options and layers, as in [b]lora:q,v(rank=16)@4-11[/]; how it is written "
        "stands below. Give --rules again for more rules.",
        rich_help_panel=MODEL,
    ),
]
ModelOption = Annotated[
    Path, typer.Option(help="A local model folder, or a .gguf file.", rich_help_panel=MODEL)
]


@app.command(no_args_is_help=True, cls=CommandOfRules)
def finetune(
    *,
    model: ModelOption,
    rules: RulesOption,
    data: Annotated[
        Path, typer.Option(help="CSV, TSV, JSONL, Parquet or text to train on.", rich_help_panel=DATA)
    ],
    out: Annotated[
        Path, typer.Option(help="The folder for adapter, metrics and picture.", rich_help_panel=OUTPUT)
    ],
    task: Annotated[
        TaskName, typer.Option(help="What to learn.", rich_help_panel=MODEL)
    ] = TaskName.CLASSIFICATION,
    saved: SavedOption = None,
    pooling: Annotated[
        PoolingName,
        typer.Option(
            help="Classifier on the mean of the last hidden states, or the model's own.",
            rich_help_panel=MODEL,
        ),
    ] = PoolingName.MEAN,
    eval_data: Annotated[
        Path | None, typer.Option(help="Held-out data in a file of its own.", rich_help_panel=DATA)
    ] = None,
    split_by: Annotated[
        str | None,
        typer.Option(help="Hold out whole groups of rows that share this column.", rich_help_panel=DATA),
    ] = None,
    eval_fraction: Annotated[
        float,
        typer.Option(
            min=0.0, max=0.9, help="Share to hold out without --eval-data; 0 for none.", rich_help_panel=DATA
        ),
    ] = 0.2,
    text_column: Annotated[
        str, typer.Option(help="The column with the text.", rich_help_panel=DATA)
    ] = "text",
    label_column: Annotated[
        str, typer.Option(help="The column with the label.", rich_help_panel=DATA)
    ] = "label",
    max_length: Annotated[
        int,
        typer.Option(min=2, help="Tokens of a text to classify; longer ones are cut.", rich_help_panel=DATA),
    ] = 128,
    block_size: Annotated[
        int, typer.Option(min=2, help="Tokens of a block of running text (causal-lm).", rich_help_panel=DATA)
    ] = 128,
    max_rows: Annotated[
        int | None,
        typer.Option(min=2, help="Train on this many rows, drawn with the seed.", rich_help_panel=DATA),
    ] = None,
    epochs: Annotated[
        float, typer.Option(min=0.001, help="Passes over the data.", rich_help_panel=TRAINING)
    ] = 3.0,
    max_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Optimizer steps in all; overrides --epochs.", rich_help_panel=TRAINING),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a batch.", rich_help_panel=TRAINING)] = 32,
    accumulate: Annotated[
        int,
        typer.Option(min=1, help="Batches gathered before each optimizer step.", rich_help_panel=TRAINING),
    ] = 1,
    learning_rate: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Peak rate; falls linearly to 0. 5e-5 suits training every weight.",
            rich_help_panel=TRAINING,
        ),
    ] = 1e-3,
    weight_decay: Annotated[
        float, typer.Option(min=0.0, help="The optimizer's decay.", rich_help_panel=TRAINING)
    ] = 0.0,
    optimizer: Annotated[
        OptimizerName,
        typer.Option(
            help="All but adamw are bitsandbytes': those in 8 bit remember a quarter; paged ones move what they "
            "remember out of an accelerator's memory when it is short (on the CPU they are as the others).",
            rich_help_panel=TRAINING,
        ),
    ] = OptimizerName.ADAMW,
    warmup: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Share of the steps over which the rate rises.", rich_help_panel=TRAINING
        ),
    ] = 0.0,
    seed: Annotated[
        int, typer.Option(help="Draws new weights, batches and dropout.", rich_help_panel=TRAINING)
    ] = 0,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Recompute activations: less memory, slower.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    evaluate_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps between evaluations and checkpoints; an epoch without it.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    keep: Annotated[
        KeepName,
        typer.Option(
            help="The last weights, or the best on the held-out data (whose figure is then flattering).",
            rich_help_panel=TRAINING,
        ),
    ] = KeepName.LAST,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines",
            help="Also measure the majority class and a probe on frozen features.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="Leave an accelerator alone.", rich_help_panel=TRAINING)
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the last checkpoint in --out.", rich_help_panel=OUTPUT),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace the results of an earlier run in --out.", rich_help_panel=OUTPUT
        ),
    ] = False,
) -> None:
    """Train adapters on a data file; print the plan, the progress and how good the result is.

    Works as it is under [b]torchrun -m peftc finetune …[/] and [b]accelerate launch -m peftc finetune …[/].
    """
    bound(rules)
    from peftc.finetune.job import Settings

    settings = Settings(
        model=model,
        data=data,
        task=task.value,
        rules=tuple(rules),
        out=out,
        saved=saved_adapters(saved or ()),
        eval_data=eval_data,
        split_by=split_by,
        eval_fraction=eval_fraction,
        text_column=text_column,
        label_column=label_column,
        pooling=pooling.value,
        max_length=max_length,
        block_size=block_size,
        max_rows=max_rows,
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        optimizer=optimizer.value,
        warmup=warmup,
        seed=seed,
        gradient_checkpointing=gradient_checkpointing,
        evaluate_every=evaluate_every,
        keep=keep.value,
        baselines=baselines,
        cpu=cpu,
        resume=resume,
        overwrite=overwrite,
    )
    from peftc.finetune.output import is_main_process
    from peftc.finetune.run import finetune as run
    from peftc.finetune.summary import summary

    console = Console(quiet=not is_main_process())
    console.print(summary(run(settings, console)), highlight=False)


@app.command(no_args_is_help=True)
def predict(
    *,
    folder: Annotated[Path, typer.Argument(help="An output folder of peftc finetune.", metavar="DIR")],
    data: Annotated[Path, typer.Option(help="The texts: CSV, TSV, JSONL or Parquet.")],
    out: Annotated[Path | None, typer.Option(help="Write a CSV with label and probabilities.")] = None,
    model: Annotated[Path | None, typer.Option(help="The base model, where it has moved since.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file --out names.")] = False,
) -> None:
    """Predict with a trained adapter; print the accuracy where the data has labels."""
    from peftc.errors import OutputExistsError

    if out is not None and out.exists() and not overwrite:
        raise OutputExistsError("the file is there already", where=str(out), hint="--overwrite replaces it")
    from peftc.finetune.predict import predict as run
    from peftc.finetune.predict import write_predictions

    console = Console()
    predictions = run(folder, data, console, model=model)
    if out is not None:
        write_predictions(predictions, out)
        console.print(f"{len(predictions.predicted)} predictions in {out}", highlight=False)
    for text, label, row in zip(
        predictions.texts[: 0 if out else 10], predictions.predicted, predictions.probabilities, strict=False
    ):
        console.print(
            f"{label} ({max(row):.2f})  {text}",
            highlight=False,
            markup=False,
            no_wrap=True,
            overflow="ellipsis",
        )
    if predictions.accuracy is not None:
        console.print(
            f"accuracy {predictions.accuracy:.4f} on {len(predictions.predicted)} rows", highlight=False
        )
