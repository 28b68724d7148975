"""Rows that come one by one, from a file or a pipe that need not end: UTF-8 JSON lines, CSV or TSV."""

import csv
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Literal

from kdcache.data.rows import DELIMITERS, MAX_CHARACTERS, Row, check_columns, parse_object
from kdcache.errors import DataError

Kind = Literal["jsonl", "csv", "tsv"]


def stream_rows(file: BinaryIO, name: str, kind: Kind, columns: Sequence[str]) -> Iterator[Row]:
    """Read rows as they come; no more than one is held.

    Args:
        file: open, in binary.
        name: of the file, for messages.
        kind: how it is written. CSV and TSV name their columns in the first row.
        columns: those that every row must have.

    Yields:
        Rows with their place, ``name:line``.

    Raises:
        DataError: a line that is no row; those before it have been yielded.
    """
    lines = _lines(file, name)
    return _objects(lines, name, columns) if kind == "jsonl" else _cells(lines, name, kind, columns)


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """Numbered from 1; of a line too long, no more than that is read."""
    number = 0
    while data := file.readline(MAX_CHARACTERS + 1):
        number += 1
        if len(data) > MAX_CHARACTERS:
            raise DataError(
                f"{name}:{number}: a line must be at most {MAX_CHARACTERS} bytes, got more. "
                "Check the file's format."
            )
        try:
            yield number, data.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}:{number}: the text must be UTF-8, got byte {data[error.start]:#04x}. "
                "Convert the file."
            ) from None


def _objects(lines: Iterator[tuple[int, str]], name: str, columns: Sequence[str]) -> Iterator[Row]:
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{name}:{number}"
        values = parse_object(line, where)
        check_columns(where, list(values), columns)
        yield Row(where, values)


def _cells(lines: Iterator[tuple[int, str]], name: str, kind: str, columns: Sequence[str]) -> Iterator[Row]:
    records = _records(lines, name, DELIMITERS[kind])
    _, header = next(records, ("", list(columns)))
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise DataError(f"{name}: the columns must have different names, got {twice[0]!r} twice.")
    check_columns(name, header, columns)
    for where, cells in records:
        if len(cells) != len(header):
            raise DataError(
                f"{where}: the row must have {len(header)} cells, as the header has, got {len(cells)}. "
                "Check the delimiter."
            )
        yield Row(where, dict(zip(header, cells, strict=True)))


def _records(lines: Iterator[tuple[int, str]], name: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Cells, not yet named; blank lines between records are none."""
    reached = 0

    def texts() -> Iterator[str]:
        nonlocal reached
        for number, line in lines:
            reached = number
            yield line

    where = f"{name}:1"
    try:
        for cells in csv.reader(texts(), delimiter=delimiter, strict=True):
            if cells:
                yield where, cells
            where = f"{name}:{reached + 1}"  # a quoted cell may span lines: name the first
    except csv.Error as error:
        raise DataError(
            f"{where}: the row must be cells between {delimiter!r}, got an error: {error}. "
            "Close the quote; where quotes are text, send JSON lines."
        ) from None
