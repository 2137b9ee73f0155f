"""Predicts with a finished output folder: base model + adapter in a new process. Trains nothing."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from peftc.errors import DataError
from peftc.finetune.encoding import batches_by_length, collator_for, encode_texts
from peftc.finetune.job import read_job
from peftc.finetune.readers import read_table
from peftc.finetune.records import Record, records

PREDICTIONS_FILE = "predictions.csv"


@dataclass(frozen=True)
class Predictions:
    """One row a text: the predicted label, each label's probability, and the true label where the data has
    it.
    """

    labels: tuple[str, ...]
    predicted: tuple[str, ...]
    probabilities: tuple[tuple[float, ...], ...]
    truth: tuple[str | None, ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, logits: torch.Tensor, labels: tuple[str, ...], rows: Sequence[Record]) -> Predictions:
        """From logits [rows labels]."""
        probabilities = logits.double().softmax(dim=-1)
        return cls(
            labels,
            tuple(labels[index] for index in logits.argmax(dim=-1).tolist()),
            tuple(tuple(row) for row in probabilities.tolist()),
            tuple(row.label for row in rows),
            tuple(row.text for row in rows),
        )

    @property
    def accuracy(self) -> float | None:
        """Share of right labels; None where the data has none."""
        if any(label is None for label in self.truth):
            return None
        return sum(map(str.__eq__, self.predicted, map(str, self.truth))) / len(self.predicted)


def write_predictions(predictions: Predictions, path: Path) -> None:
    """A CSV with label, one probability column a class, the true label where known, and the text; atomic."""
    with_truth = predictions.accuracy is not None
    header = [
        "predicted",
        *(f"p({name})" for name in predictions.labels),
        *(["label"] if with_truth else []),
        "text",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            columns = zip(
                predictions.predicted,
                predictions.probabilities,
                predictions.truth,
                predictions.texts,
                strict=True,
            )
            for predicted, probabilities, truth, text in columns:
                row = [predicted, *(f"{value:.6f}" for value in probabilities)]
                writer.writerow([*row, truth, text] if with_truth else [*row, text])
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp makes it private; this is an ordinary file
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def predict(folder: Path, data: Path, console: Console, *, model: Path | None = None) -> Predictions:
    """The folder's adapter on its base model (or on `model`, where it has moved), over the data's rows.

    Raises DataError, ModelError or StoreError.
    """
    job = read_job(folder)
    if job.task != "classification":
        raise DataError(f"was made for {job.task}: predict is for classification", where=str(folder))
    table = read_table(data)
    label_column = job.label_column if job.label_column in table.columns else None
    rows = records(table, job.text_column, label_column, "which held the texts that it was trained on")

    from transformers import set_seed

    from peftc import api
    from peftc.finetune.models import example_inputs, load_for
    from peftc.finetune.trainer import ADAPTER_FOLDER, logits_of

    set_seed(job.seed)
    loaded = load_for(job.task, model or Path(job.model), job.pooling, len(job.labels))
    loaded.model.eval()
    inputs = example_inputs(loaded, job.task)
    del inputs["labels"]
    compiled = api.load(loaded.model, folder / ADAPTER_FOLDER, inputs)
    encoded = encode_texts(
        loaded.tokenizer, [row.text for row in rows], None, loaded.input_names, max_length=job.max_length
    )
    if encoded.cut:
        console.print(
            f"[yellow]note[/] {encoded.cut} texts are longer than {job.max_length} tokens and were cut"
        )
    if torch.cuda.is_available():
        compiled.to("cuda")
    batches = list(batches_by_length(encoded, job.batch_size))
    logits = logits_of(compiled, encoded, collator_for(loaded.tokenizer), batches)
    return Predictions.of(logits, job.labels, rows)
