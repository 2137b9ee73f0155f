"""Data files: what is read, and the exact row and column of what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftc.errors import DataError
from peftc.finetune.readers import Table, read_table
from peftc.finetune.records import label_names, records, sample_rows, split_rows


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def failure(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_table(path)
    return caught.value


def table_of(folder: Path, content: str, name: str = "a.csv") -> Table:
    return read_table(written(folder, name, content))


def test_csv_with_quotes_line_breaks_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", '\ufefftext,label\r\n"two\nlines, ""quoted""",x\r\nplain,y\r\n')
    table = read_table(path)
    assert table.columns == ("text", "label")
    assert [dict(row.values) for row in table.rows] == [
        {"text": 'two\nlines, "quoted"', "label": "x"},
        {"text": "plain", "label": "y"},
    ]
    assert [(row.number, row.line) for row in table.rows] == [(1, 2), (2, 4)]


def test_jsonl_parquet_tsv_and_text_give_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"text": "one", "label": "x"}, {"text": "two", "label": "y"}]
    written(tmp_path, "a.jsonl", '{"text": "one", "label": "x"}\n\n{"text": "two", "label": "y"}\n')
    written(tmp_path, "a.tsv", "text\tlabel\none\tx\ntwo\ty\n")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for suffix in ("jsonl", "tsv", "parquet"):
        assert [dict(row.values) for row in read_table(tmp_path / f"a.{suffix}").rows] == rows, suffix
    text = read_table(written(tmp_path, "a.txt", "to be\nor not"))
    assert text.is_plain_text
    assert text.rows[0].values == {"text": "to be\nor not"}


@pytest.mark.parametrize(
    ("name", "content", "where", "message"),
    [
        ("a.csv", "text,label\none,x\ntwo\n", "a.csv, row 2 (line 3), column 'label'", "has 1 fields where"),
        ("a.csv", "text,label\none,x,z\n", "a.csv, row 1 (line 2)", "has 3 fields where the header has 2"),
        ("a.csv", 'text,label\none,x\n"two,y\n', "a.csv, row 2 (line 3)", "is not well-formed"),
        ("a.csv", b"text,label\none,x\nt\xe9,y\n", "a.csv, line 3", "is not UTF-8: byte 0xe9"),
        ("a.csv", "text,text\none,x\n", "a.csv, header (line 1)", "names column 'text' twice"),
        ("a.csv", "text,\none,x\n", "a.csv, header (line 1)", "column 2 of the header has no name"),
        ("a.csv", "", "a.csv", "has no rows"),
        ("a.csv", "text,label\n", "a.csv", "has no rows"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "a.jsonl, row 2 (line 2)", "is not JSON"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', "a.jsonl, row 2 (line 2)", "must be a JSON object, but is list"),
        ("a.jsonl", '{"text": "a"}\n\n{"txt": 1}\n', "a.jsonl, row 2 (line 3), column 'text'", "is missing"),
        ("a.parquet", "no parquet", "a.parquet", "is not a readable Parquet file"),
        ("a.docx", "x", "a.docx", "files of kind '.docx' cannot be read"),
        ("a.txt", " \n", "a.txt", "has no rows"),
    ],
)
def test_malformed_files_name_row_and_column(
    tmp_path: Path, name: str, content: str | bytes, where: str, message: str
) -> None:
    error = failure(written(tmp_path, name, content))
    assert error.where is not None
    assert error.where.removeprefix(f"{tmp_path}/") == where
    assert message in error.message


def test_a_missing_file_shows_its_neighbour(tmp_path: Path) -> None:
    written(tmp_path, "reviews.csv", "text\nx\n")
    error = failure(tmp_path / "review.csv")
    assert error.message == "no such file"
    assert "reviews.csv" in str(error.hint)
    assert "folder" in failure(tmp_path).message


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        ('{"text": "a", "label": 1}\n{"text": 3, "label": 1}', "text", "must be text, but is int 3"),
        ('{"text": "a", "label": 1}\n{"text": null, "label": 1}', "text", "must be text, but is nothing"),
        ('{"text": "a", "label": 1}\n{"text": " ", "label": 1}', "text", "is empty"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": null}', "label", "is empty"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": [1]}', "label", "cannot be a label: [1]"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": 0.5}', "label", "cannot be a label: 0.5"),
    ],
)
def test_values_that_cannot_be_used(tmp_path: Path, content: str, column: str, message: str) -> None:
    table = table_of(tmp_path, content, "a.jsonl")
    with pytest.raises(DataError) as caught:
        records(table, "text", "label")
    assert caught.value.message == message
    assert caught.value.where == f"{tmp_path}/a.jsonl, row 2 (line 2), column {column!r}"


def test_a_missing_column_shows_the_nearest(tmp_path: Path) -> None:
    table = table_of(tmp_path, "text,lable\none,x\n")
    with pytest.raises(DataError) as caught:
        records(table, "text", "label")
    assert caught.value.message == "has no column 'label' (--label-column)"
    assert "did you mean 'lable'?" in str(caught.value.hint)


def test_labels_sort_as_numbers_where_they_are(tmp_path: Path) -> None:
    table = table_of(tmp_path, "text,label\na,10\nb,9\nc,-1\n")
    assert label_names(records(table, "text", "label")) == ("-1", "9", "10")
    with pytest.raises(DataError, match="every training row has the same label"):
        label_names(records(table_of(tmp_path, "text,label\na,x\nb,x\n"), "text", "label"))


def test_a_split_keeps_groups_whole_and_repeats(reviews: Path) -> None:
    table = read_table(reviews)
    training, evaluation = split_rows(table, "movie", 0.2, seed=0)
    assert evaluation is not None
    movies = [{row.values["movie"] for row in part.rows} for part in (training, evaluation)]
    assert not movies[0] & movies[1]
    assert len(training.rows) + len(evaluation.rows) == 64
    assert len(evaluation.rows) == 16
    assert split_rows(table, "movie", 0.2, seed=0) == (training, evaluation)
    assert split_rows(table, None, 0.0, seed=0) == (table, None)


def test_one_group_cannot_be_split(tmp_path: Path) -> None:
    table = table_of(tmp_path, "text,label,movie\na,x,m\nb,y,m\n")
    with pytest.raises(DataError, match="only one value of 'movie'"):
        split_rows(table, "movie", 0.5, seed=0)


def test_a_sample_keeps_the_order_of_the_file(reviews: Path) -> None:
    table = read_table(reviews)
    numbers = [row.number for row in sample_rows(table, 10, seed=1).rows]
    assert len(numbers) == 10
    assert numbers == sorted(numbers)
    assert sample_rows(table, 100, seed=1) is table
