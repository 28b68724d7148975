"""Rows of files: CSV, TSV, JSON lines, Parquet, plain lines → values by column, each row with its place.

Nothing is guessed and nothing dropped: what cannot be read as the layout says is an error that
names file and line, since a row lost in silence shifts or empties a class that nobody looks at.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.errors import DataError, ParamsError, nearest, shorten

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
DELIMITERS = {"csv": ",", "tsv": "\t"}
MAX_CHARACTERS = 1_000_000  # of a line or a field: longer is a quote left open, or no text
PLACE = re.compile(r"\{([^{}]+)\}")  # {column} in a pattern or template


@dataclass(frozen=True)
class Layout:
    """How rows lie in a file: the table ``read`` of a task file.

    Args:
        format: None goes by the file's ending.
        encoding: of text files; a byte-order mark at the start is dropped in any.
        delimiter: of cells, one character; None is a comma, or a tab in TSV.
        header: names of the columns where the file has none; None takes its first row.
        quotes: whether ``"`` encloses cells; false reads it as text.
        pattern: for plain lines, in place of a format: how to cut each into columns, such as
            ``{label} {text}``; all columns but the last are as short as they can be.
    """

    format: Literal["csv", "tsv", "jsonl", "parquet"] | None = None
    encoding: str = "utf-8"
    delimiter: str | None = None
    header: tuple[str, ...] | None = None
    quotes: bool = True
    pattern: str | None = None

    def check(self, where: str) -> None:
        """Refuse what no file can be read by.

        Raises:
            ParamsError: an unknown encoding, a long delimiter, a pattern beside a format.
        """
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ParamsError(
                f"{where}.encoding: it must be an encoding that Python knows, got {self.encoding!r}. "
                "For example: utf-8, latin-1, cp1252, utf-16."
            ) from None
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ParamsError(f"{where}.delimiter: it must be one character, got {self.delimiter!r}.")
        if self.pattern is not None and self.format is not None:
            raise ParamsError(
                f"{where}.pattern: it must stand in place of a format, got {self.pattern!r} with "
                f"{self.format}. Remove one."
            )


class Row(NamedTuple):
    """One row: where it stands, for messages, and its values by column."""

    where: str
    values: dict[str, Any]


def read_rows(path: Path, layout: Layout, columns: Sequence[str], optional: Sequence[str] = ()) -> list[Row]:
    """Read the rows of one file, in its order.

    Args:
        path: the file.
        layout: how it is written.
        columns: those that every row must have.
        optional: those to read too where they are.

    Returns:
        At least one row; values as the format has them: text in all but JSON lines and Parquet.

    Raises:
        DataError: no such file, no row, or a row that is not as the layout says.
    """
    if not path.is_file():
        raise DataError(f"{path}: it must be a file, got no such file. Check the paths in the task file.")
    kind = "lines" if layout.pattern else layout.format or FORMATS.get(path.suffix)
    if kind is None:
        raise DataError(
            f"{path}: its ending must be one of {', '.join(FORMATS)}, got {path.suffix!r}. "
            "Set read.format or read.pattern in the task file."
        )
    if kind == "parquet":
        found = _parquet_rows(path, columns, optional)
    elif kind == "jsonl":
        found = _json_rows(path, layout, columns)
    elif kind == "lines":
        found = _pattern_rows(path, layout, columns)
    else:
        found = _cell_rows(path, layout, layout.delimiter or DELIMITERS[kind], columns)
    rows = list(found)
    if not rows:
        raise DataError(f"{path}: the file must hold at least one row, got none.")
    return rows


def _numbered_lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1. Only a newline ends one: U+0085 and its like are text."""
    data = path.read_bytes()
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{number}: the text must be {encoding}, got byte {data[error.start]:#04x}. "
            "Set read.encoding in the task file, for example to latin-1, or convert the file."
        ) from None
    for number, line in enumerate(io.StringIO(text, newline="\n"), start=1):
        if len(line) > MAX_CHARACTERS:
            raise DataError(
                f"{path}:{number}: a line must be at most {MAX_CHARACTERS} characters, got {len(line)}. "
                "Check read.format and the line's end."
            )
        if "\0" in line:
            raise DataError(
                f"{path}:{number}: the text must be {encoding}, got a zero byte. "
                "Set read.encoding in the task file, for example to utf-16."
            )
        yield number, line


def _cell_rows(path: Path, layout: Layout, delimiter: str, columns: Sequence[str]) -> Iterator[Row]:
    records = _records(path, layout, delimiter)
    header = layout.header or next(records, ("", columns))[1]  # an empty file lacks rows, not columns
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the columns must have different names, got {twice[0]!r} twice.")
    hint = " If the file has no header, name its columns in read.header." if layout.header is None else ""
    check_columns(path, header, columns, hint)
    for where, cells in records:
        if len(cells) != len(header):
            raise DataError(
                f"{where}: the row must have {len(header)} cells, as the header has, got {len(cells)}. "
                "Check the delimiter; where quotes are text, set read.quotes = false."
            )
        yield Row(where, dict(zip(header, cells, strict=True)))


def _records(path: Path, layout: Layout, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Cells, not yet named; blank lines between records are none."""
    reached = 0

    def lines() -> Iterator[str]:
        nonlocal reached
        for number, line in _numbered_lines(path, layout.encoding):
            reached = number
            yield line

    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if layout.quotes else csv.QUOTE_NONE
    reader = csv.reader(lines(), delimiter=delimiter, quoting=quoting, strict=True)
    limit = csv.field_size_limit(MAX_CHARACTERS)
    where = f"{path}:1"
    try:
        for cells in reader:
            if cells:
                yield where, cells
            where = f"{path}:{reached + 1}"  # a quoted cell may span lines: name the first
    except csv.Error as error:
        raise DataError(
            f"{where}: the row must be cells between {delimiter!r}, got an error: {error}. "
            "Close the quote; where quotes are text, set read.quotes = false."
        ) from None
    finally:
        csv.field_size_limit(limit)


def check_columns(where: Any, there: Sequence[str], columns: Sequence[str], hint: str = "") -> None:
    """Refuse a place without one of the columns.

    Raises:
        DataError: naming the first that lacks, and the nearest there.
    """
    for column in columns:
        if column not in there:
            raise DataError(
                f"{where}: the column {column!r} must be there, got none of that name. "
                f"{nearest(column, there)}{hint}"
            )


def _json_rows(path: Path, layout: Layout, columns: Sequence[str]) -> Iterator[Row]:
    for number, line in _numbered_lines(path, layout.encoding):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        values = parse_whole(line, where)
        check_columns(where, list(values), columns)
        yield Row(where, values)


def parse_whole(line: str, where: str) -> dict[str, Any]:
    """Parse a line of JSON lines whose texts can be stored: half a surrogate pair is none.

    Raises:
        DataError: as ``parse_object``.
    """
    values = parse_object(line, where)
    if "\\u" in line:
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start : error.end].encode("unicode_escape").decode()
            raise DataError(
                f"{where}: the text must be whole characters, got half a pair, {half}. "
                "Repair or remove the line."
            ) from None
    return values


def parse_object(line: str, where: str) -> dict[str, Any]:
    """Parse a line of JSON lines.

    Raises:
        DataError: it is no JSON object; names ``where``.
    """
    try:
        values = json.loads(line.rstrip("\r\n"), object_pairs_hook=_keys_once)
    except json.JSONDecodeError as error:
        reason = f"{error.msg}: character {error.pos}"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:
        reason = str(error).partition(";")[0]
    else:
        if isinstance(values, dict):
            return values
        raise DataError(f"{where}: the line must be a JSON object, got {shorten(line)}.")
    raise DataError(
        f"{where}: the line must be a JSON object, got {shorten(line)} ({reason}). Repair or remove the line."
    )


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice")
    return values


def _pattern_rows(path: Path, layout: Layout, columns: Sequence[str]) -> Iterator[Row]:
    assert layout.pattern is not None
    names = PLACE.findall(layout.pattern)
    check_columns("read.pattern", names, columns)
    literals = [re.escape(text) for text in PLACE.split(layout.pattern)[::2]]
    groups = ["(.+?)"] * (len(names) - 1) + ["(.+)"]
    pattern = re.compile("".join(a + b for a, b in zip(literals, [*groups, ""], strict=True)))
    for number, line in _numbered_lines(path, layout.encoding):
        text = line.removesuffix("\n").removesuffix("\r")
        if not text.strip():
            continue
        found = pattern.fullmatch(text)
        if found is None:
            raise DataError(
                f"{path}:{number}: the line must look like {layout.pattern!r}, got {shorten(text)}. "
                "Repair the line or change read.pattern."
            )
        yield Row(f"{path}:{number}", dict(zip(names, found.groups(), strict=True)))


def _parquet_rows(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    try:
        there = pq.read_schema(path).names
        check_columns(path, there, columns)
        wanted = [name for name in there if name in columns or name in optional]
        table = pq.read_table(path, columns=wanted)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: it must be a Parquet file, got: {str(error).splitlines()[0]}") from None
    for number, values in enumerate(table.to_pylist(), start=1):
        for name, value in values.items():
            if isinstance(value, str) and len(value) > MAX_CHARACTERS:
                raise DataError(
                    f"{path} row {number}: {name} must be at most {MAX_CHARACTERS} characters, "
                    f"got {len(value)}."
                )
        yield Row(f"{path} row {number}", values)
