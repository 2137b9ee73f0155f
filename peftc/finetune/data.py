"""From settings to encoded training and evaluation examples: reads, splits, labels and tokenizes, in that
order.

Everything about the data that can be wrong is found here, before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftc.errors import DataError
from peftc.finetune.encoding import Encoded, encode_blocks, encode_texts
from peftc.finetune.job import Settings
from peftc.finetune.readers import Table, read_table
from peftc.finetune.records import Record, label_index, label_names, records, sample_rows, split_rows


@dataclass(frozen=True)
class Data:
    """Checked records. A causal job has no labels; `evaluation` is empty where nothing is held out."""

    training: tuple[Record, ...]
    evaluation: tuple[Record, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class EncodedData:
    """The same as token ids."""

    training: Encoded
    evaluation: Encoded | None


def load_data(settings: Settings) -> Data:
    """Reads and checks the data files. Raises DataError."""
    table = read_table(settings.data)
    label_column = settings.label_column if settings.task == "classification" else None
    if table.is_plain_text and label_column is None:
        return plain_text_data(settings, table)
    evaluation: Table | None
    if settings.eval_data is not None:
        training, evaluation = table, read_table(settings.eval_data)
    else:
        training, evaluation = split_rows(table, settings.split_by, settings.eval_fraction, seed=0)
    training = sample_rows(training, settings.max_rows, settings.seed)
    training_records = records(training, settings.text_column, label_column)
    evaluation_records = () if evaluation is None else records(evaluation, settings.text_column, label_column)
    labels = label_names(training_records) if label_column is not None else ()
    for record in evaluation_records if label_column is not None else ():
        label_index(record, labels)
    return Data(training_records, evaluation_records, labels)


def plain_text_data(settings: Settings, table: Table) -> Data:
    """Running text: the evaluation file, or the last part of the text cut at a line's end, is held out."""
    if settings.split_by is not None:
        raise DataError(
            "is plain text, which has no columns to split by", where=str(table.path), hint="drop --split-by"
        )
    (record,) = records(table, "text", None)
    if settings.eval_data is not None:
        return Data((record,), records(read_table(settings.eval_data), "text", None), ())
    if settings.eval_fraction == 0.0:
        return Data((record,), (), ())
    cut = record.text.find("\n", round(len(record.text) * (1 - settings.eval_fraction))) + 1
    if cut == 0 or not record.text[cut:].strip():
        raise DataError(
            "is too short to hold out its last part",
            where=str(table.path),
            hint="use --eval-data, or --eval-fraction 0 to train without evaluation",
        )
    held_out = Record(record.text[cut:], None, record.where)
    return Data((Record(record.text[:cut], None, record.where),), (held_out,), ())


def encode(settings: Settings, data: Data, tokenizer: Any, input_names: Sequence[str]) -> EncodedData:
    """Token ids of both parts. Raises DataError."""

    def encoded(part: Sequence[Record]) -> Encoded:
        texts = [record.text for record in part]
        if settings.task == "causal-lm":
            return encode_blocks(tokenizer, texts, settings.block_size)
        labels = [label_index(record, data.labels) for record in part]
        return encode_texts(tokenizer, texts, labels, input_names, settings.max_length)

    return EncodedData(encoded(data.training), encoded(data.evaluation) if data.evaluation else None)
