"""Reads a data file (CSV, TSV, JSONL, Parquet, text) into rows that remember where they stood.

Knows nothing of tasks or models, and never repairs a file: what is malformed is a DataError with row and
column.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftc.errors import DataError, first_line, instead

TEXT_COLUMN_OF_PLAIN_TEXT = "text"


@dataclass(frozen=True)
class Row:
    """One record: `number` counts records from 1; `line` is the line of the file it starts on, where there is
    one.
    """

    number: int
    line: int | None
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A data file as read.

    `columns` in the file's order; `is_plain_text` where the file is one running text.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    is_plain_text: bool = False

    def where(self, row: Row, column: str | None = None) -> str:
        """Where a value stands, for people: `reviews.csv, row 7 (line 9), column 'label'`."""
        return place(self.path, row.number, row.line, column)

    def require_column(self, column: str, option: str) -> None:
        """Raises DataError with the nearest names where the file has no such column."""
        if column in self.columns:
            return
        raise DataError(
            f"has no column {column!r} ({option})",
            where=str(self.path),
            hint=instead(column, self.columns, "its columns are"),
        )


def place(path: Path, number: int, line: int | None, column: str | None = None) -> str:
    """The file, the record's number, its line where it has one, and the column."""
    text = f"{path}, row {number}"
    if line is not None:
        text += f" (line {line})"
    return text if column is None else f"{text}, column {column!r}"


def read_table(path: Path) -> Table:
    """The file's rows, by its suffix.

    Raises DataError where it is missing, of no known kind, empty or malformed.
    """
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.6)
        hint = f"in that folder there is {', '.join(near)}" if near else None
        raise DataError("no such file", where=str(path), hint=hint)
    if not path.is_file():
        raise DataError("is a folder, not a data file", where=str(path))
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"files of kind {path.suffix or '(no suffix)'!r} cannot be read",
            where=str(path),
            hint=f"known kinds: {', '.join(READERS)}",
        )
    table = reader(path)
    if not table.rows:
        raise DataError("has no rows", where=str(path))
    return table


def read_text(path: Path) -> str:
    """The file as UTF-8 (a byte-order mark is dropped).

    Raises DataError with the line of the first byte that is not.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"is not UTF-8: byte 0x{data[error.start]:02x}",
            where=f"{path}, line {line}",
            hint="save the file as UTF-8",
        ) from error


def read_delimited(path: Path, delimiter: str) -> Table:
    """CSV or TSV with a header. Every record must have as many fields as the header."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    columns: tuple[str, ...] = ()
    rows: list[Row] = []
    line = 1
    try:
        for fields in reader:
            start, line = line, reader.line_num + 1
            if not columns:
                columns = check_header(path, fields)
                continue
            if not fields:  # an empty line
                continue
            number = len(rows) + 1
            if len(fields) != len(columns):
                raise DataError(
                    f"has {len(fields)} fields where the header has {len(columns)}",
                    where=place(
                        path, number, start, columns[len(fields)] if len(fields) < len(columns) else None
                    ),
                    detail=(
                        f"header: {delimiter.join(columns)}",
                        f"row:    {shorten(delimiter.join(fields))}",
                    ),
                )
            rows.append(Row(number, start, dict(zip(columns, fields, strict=True))))
    except csv.Error as error:
        raise DataError(
            f"is not well-formed: {error}",
            where=place(path, len(rows) + 1, line),
            hint="a quote that is opened must be closed, and a quote inside a field is doubled",
        ) from error
    return Table(path, columns, tuple(rows))


def check_header(path: Path, fields: list[str]) -> tuple[str, ...]:
    """The header's names, each there once and none empty; raises DataError otherwise."""
    for position, name in enumerate(fields, start=1):
        if not name.strip():
            raise DataError(f"column {position} of the header has no name", where=f"{path}, header (line 1)")
        if fields.count(name) > 1:
            raise DataError(f"the header names column {name!r} twice", where=f"{path}, header (line 1)")
    return tuple(fields)


def read_csv(path: Path) -> Table:
    """Comma-separated values with a header."""
    return read_delimited(path, ",")


def read_tsv(path: Path) -> Table:
    """Tab-separated values with a header."""
    return read_delimited(path, "\t")


def read_jsonl(path: Path) -> Table:
    """One JSON object a line; the columns are those of the first, and every line must have them."""
    columns: tuple[str, ...] = ()
    rows: list[Row] = []
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        number = len(rows) + 1
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(
                f"is not JSON: {error.msg} (character {error.colno})",
                where=place(path, number, line),
                detail=(shorten(text),),
            ) from error
        if not isinstance(values, dict):
            raise DataError(
                f"must be a JSON object, but is {type(values).__name__}: {shorten(text)}",
                where=place(path, number, line),
                hint='JSONL has one object a line, such as {"text": "…", "label": "…"}',
            )
        columns = columns or tuple(values)
        for column in columns:
            if column not in values:
                raise DataError(
                    "is missing, though the first row has it",
                    where=place(path, number, line, column),
                    detail=(f"this row has: {', '.join(map(repr, values))}",),
                )
        rows.append(Row(number, line, values))
    return Table(path, columns, tuple(rows))


def read_parquet(path: Path) -> Table:
    """A Parquet file, through pyarrow."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            "reading Parquet needs pyarrow", where=str(path), hint='pip install "peftc[finetune]"'
        ) from error
    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"is not a readable Parquet file: {first_line(error)}", where=str(path)) from error
    rows = tuple(Row(number, None, values) for number, values in enumerate(table.to_pylist(), start=1))
    return Table(path, tuple(table.column_names), rows)


def read_plain_text(path: Path) -> Table:
    """One running text: a table of a single row."""
    text = read_text(path)
    rows = (Row(1, 1, {TEXT_COLUMN_OF_PLAIN_TEXT: text}),) if text.strip() else ()
    return Table(path, (TEXT_COLUMN_OF_PLAIN_TEXT,), rows, is_plain_text=True)


READERS: Mapping[str, Callable[[Path], Table]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".parquet": read_parquet,
    ".txt": read_plain_text,
    ".text": read_plain_text,
}


def shorten(text: str, width: int = 90) -> str:
    """The text on one line, cut with an ellipsis where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
