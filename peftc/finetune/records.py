"""Turns a table into checked records: text and label of each row, and which rows are held out.

Never touches a tokenizer or a model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from peftc.errors import DataError
from peftc.finetune.readers import Row, Table, shorten


@dataclass(frozen=True)
class Record:
    """One text, its label as written in the file (None where the file has no labels), and where it stood."""

    text: str
    label: str | None
    where: str


def text_of(table: Table, row: Row, column: str) -> str:
    """The row's text. Raises DataError where it is missing, empty or not text."""
    value = row.values[column]
    if not isinstance(value, str):
        found = "nothing" if value is None else f"{type(value).__name__} {shorten(repr(value), 40)}"
        raise DataError(f"must be text, but is {found}", where=table.where(row, column))
    if not value.strip():
        raise DataError("is empty", where=table.where(row, column), hint="drop the row or fill in its text")
    return value


def label_of(table: Table, row: Row, column: str) -> str:
    """The row's label, as text.

    Raises DataError where it is missing, empty, or a fraction, list or object.
    """
    value = row.values[column]
    if isinstance(value, bool | int | str) and str(value).strip():
        return str(value).strip()
    if isinstance(value, float) and value.is_integer():  # Parquet of a nullable integer column
        return str(int(value))
    found = "is empty" if value is None or value == "" else f"cannot be a label: {shorten(repr(value), 40)}"
    raise DataError(found, where=table.where(row, column), hint="a label is a word or a whole number")


def records(
    table: Table, text_column: str, label_column: str | None, reason: str = "--text-column"
) -> tuple[Record, ...]:
    """Every row as a record. `label_column=None` leaves labels out. Raises DataError.

    `reason` says where the name of the text column comes from.
    """
    table.require_column(text_column, reason)
    if label_column is not None:
        if table.is_plain_text:
            raise DataError(
                "is plain text, which has no labels", where=str(table.path), hint="use CSV, JSONL or Parquet"
            )
        table.require_column(label_column, "--label-column")
    return tuple(
        Record(
            text=text_of(table, row, text_column),
            label=None if label_column is None else label_of(table, row, label_column),
            where=table.where(row) if label_column is None else table.where(row, label_column),
        )
        for row in table.rows
    )


def label_names(training: Sequence[Record]) -> tuple[str, ...]:
    """The classes, sorted (as numbers where all are whole numbers).

    Raises DataError where there is only one.
    """
    names = {record.label for record in training if record.label is not None}
    if len(names) < 2:
        raise DataError(
            f"every training row has the same label, {next(iter(names), None)!r}",
            where=training[0].where,
            hint="classification needs two classes or more",
        )
    if all(name.lstrip("-").isdigit() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def label_index(record: Record, names: Sequence[str]) -> int:
    """The position of the record's label among the classes.

    Raises DataError for a label training never saw.
    """
    if record.label not in names:
        raise DataError(
            f"label {record.label!r} is in no training row",
            where=record.where,
            detail=(f"known labels: {', '.join(map(repr, names))}",),
        )
    return names.index(record.label)


def split_rows(table: Table, by: str | None, fraction: float, seed: int) -> tuple[Table, Table | None]:
    """Holds out about `fraction` of the rows: whole groups of equal `by`, or single rows where `by` is None.

    The same file, column, fraction and seed always give the same split. Raises DataError where nothing is
    left
    to train on or to hold out.
    """
    if by is not None:
        table.require_column(by, "--split-by")
    if fraction == 0.0:
        return table, None
    groups: dict[str, list[Row]] = {}
    for row in table.rows:
        groups.setdefault(str(row.number if by is None else row.values[by]), []).append(row)
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    wanted, held_out = fraction * len(table.rows), set[int]()
    for name in names[:-1]:
        if len(held_out) >= wanted:
            break
        held_out.update(row.number for row in groups[name])
    if not held_out:
        what = "one row" if by is None else f"one value of {by!r}"
        raise DataError(
            f"has only {what}, so nothing can be held out",
            where=str(table.path),
            hint="use --eval-data, or --eval-fraction 0 to train without evaluation",
        )
    training = tuple(row for row in table.rows if row.number not in held_out)
    evaluation = tuple(row for row in table.rows if row.number in held_out)
    return Table(table.path, table.columns, training), Table(table.path, table.columns, evaluation)


def sample_rows(table: Table, limit: int | None, seed: int) -> Table:
    """At most `limit` rows, drawn once with the seed and kept in the file's order."""
    if limit is None or limit >= len(table.rows):
        return table
    chosen = sorted(random.Random(seed).sample(range(len(table.rows)), limit))
    return Table(table.path, table.columns, tuple(table.rows[index] for index in chosen), table.is_plain_text)
