"""The formats of rows: CSV, TSV, JSON lines, plain lines and Parquet, each parsed from an open file.

Nothing is guessed or dropped: a line that does not fit its layout is an error that names file and line,
because a row lost in silence empties a class that nobody looks at.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, NamedTuple

from kdcache.data.line_pattern import cut_line
from kdcache.data.parquet_claims import NOT_WHOLE, find_impossible, read_claims
from kdcache.errors import DataError, ParamsError, nearest, reason_of, shorten
from kdcache.on_disk import open_parquet

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
DELIMITERS = {"csv": ",", "tsv": "\t"}
MAX_CHARACTERS = 1_000_000  # of a line or a field; a longer one is an unclosed quote, or no text
BATCH_ROWS = 1024  # of Parquet, held at a time
PLACE = re.compile(r"\{([^{}]+)\}")  # {column} in a pattern or template
QUOTES_HINT = "If quotes are text, use JSON lines or set read.quotes = false in the task file."

Values = Mapping[str, Any]  # by column
Lines = Iterator[tuple[int, str]]  # with their numbers, from 1


@dataclass(frozen=True)
class Layout:
    """How rows lie in a file: the table ``read`` of a task file.

    Args:
        format: None takes the file's ending.
        encoding: of text files. A byte-order mark at the start is dropped.
        delimiter: of cells, one character. None is a comma, or a tab in TSV.
        header: names of the columns, for a file without a header. None takes the first row.
        quotes: whether ``"`` encloses cells; false reads it as text.
        pattern: cuts plain lines into columns, in place of a format: ``{label} {text}``. All columns
            but the last are as short as they can be.
    """

    format: Literal["csv", "tsv", "jsonl", "parquet"] | None = None
    encoding: str = "utf-8"
    delimiter: str | None = None
    header: tuple[str, ...] | None = None
    quotes: bool = True
    pattern: str | None = None

    def check(self, where: str) -> None:
        """Refuse a layout that no file can have.

        Raises:
            ParamsError: an unknown encoding, a long delimiter, or a pattern beside a format.
        """
        try:
            io.TextIOWrapper(io.BytesIO(), encoding=self.encoding)
        except LookupError:
            raise ParamsError(
                f"{where}.encoding: it must be an encoding that Python knows, got {self.encoding!r}. "
                "For example: utf-8, latin-1, cp1252, utf-16."
            ) from None
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ParamsError(f"{where}.delimiter: it must be one character, got {self.delimiter!r}.")
        if self.pattern is not None and self.format is not None:
            raise ParamsError(f"{where}: set either pattern or format = {self.format!r}, not both.")


class Row(NamedTuple):
    """One row: its place, for messages, and its values by column."""

    where: str
    values: dict[str, Any]


def parse_rows(
    file: BinaryIO,
    name: str,
    kind: str,
    layout: Layout,
    columns: Sequence[str],
    optional: Sequence[str] | None = (),
    whole: bool = True,
) -> Iterator[Row]:
    """Parse the rows of an open file as they come.

    Args:
        file: open, in binary.
        name: of the file, for messages.
        kind: ``csv``, ``tsv``, ``jsonl``, ``parquet`` or ``lines``.
        layout: how the file is written.
        columns: those that every row must have.
        optional: those of Parquet to read as well; None reads all.
        whole: whether to refuse half a surrogate pair, which JSON can spell and no file can store.

    Raises:
        DataError: a row that does not fit the layout; the rows before it have been yielded.
    """
    if kind == "parquet":
        return _parquet_rows(file, name, columns, optional)
    lines = _lines(file, name, layout.encoding)
    if kind == "jsonl":
        return _json_rows(lines, name, columns, whole)
    if layout.pattern:
        return _pattern_rows(lines, name, layout.pattern, columns)
    return _cell_rows(lines, name, layout, layout.delimiter or DELIMITERS[kind], columns)


def _lines(file: BinaryIO, name: str, encoding: str) -> Lines:
    """Decode line by line, so that a line is there before the next one is read."""
    decoder = codecs.getincrementaldecoder(encoding)()
    number, text, data = 1, "", b"-"
    while data:
        data = file.readline(MAX_CHARACTERS + 1)
        try:
            text += decoder.decode(data, final=not data)
        except UnicodeError as error:  # UTF-16 may also lack the mark that tells its two orders apart
            at = error.start if isinstance(error, UnicodeDecodeError) else None
            found = error if at is None else f"byte {error.args[1][at]:#04x}"
            raise DataError(
                f"{name}:{number}: the text must be {encoding}, got {found}. Convert the file to UTF-8, or "
                "set read.encoding in the task file, for example to latin-1 or utf-16-le."
            ) from None
        # Only a newline ends a line: U+0085 and its like are text.
        while "\n" in text or (text and not data) or len(text) > MAX_CHARACTERS:
            line, newline, text = text.partition("\n")
            if len(line) > MAX_CHARACTERS:
                raise DataError(
                    f"{name}:{number}: a line must be at most {MAX_CHARACTERS} characters, got more. "
                    "Check the file's format and the ends of its lines."
                )
            if "\0" in line:
                raise DataError(
                    f"{name}:{number}: the text must be {encoding}, got a zero byte. "
                    "Convert the file to UTF-8, or set read.encoding in the task file, for example to utf-16."
                )
            yield number, (line.removeprefix("\ufeff") if number == 1 else line) + newline
            number += 1


def _cell_rows(
    lines: Lines, name: str, layout: Layout, delimiter: str, columns: Sequence[str]
) -> Iterator[Row]:
    records = _records(lines, name, layout.quotes, delimiter)
    header = layout.header or next(records, ("", columns))[1]  # an empty file lacks rows, not columns
    _refuse_twice(name, header)
    hint = (
        "" if layout.header else " A task file can name the columns of a file without a header: read.header."
    )
    check_columns(name, header, columns, hint)
    for where, cells in records:
        if len(cells) != len(header):
            raise DataError(
                f"{where}: the row must have {len(header)} cells, as the header has, got {len(cells)}. "
                f"Check the delimiter. {QUOTES_HINT}"
            )
        yield Row(where, dict(zip(header, cells, strict=True)))


def _records(lines: Lines, name: str, quotes: bool, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Cells, not yet named, with the line each record begins on. Blank lines between records are skipped."""
    reached = 0

    def texts() -> Iterator[str]:
        nonlocal reached
        for number, line in lines:
            reached = number
            yield line

    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(texts(), delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        where = f"{name}:{reached + 1}"  # a quoted cell may span lines: name the first
        limit = csv.field_size_limit(MAX_CHARACTERS)  # of the whole process, so never across a yield
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{where}: the row must be cells between {delimiter!r}, got an error: {error}. "
                f"Close the quote. {QUOTES_HINT}"
            ) from None
        finally:
            csv.field_size_limit(limit)
        if cells is None:
            return
        if cells:
            yield where, cells


def _refuse_twice(name: str, header: Sequence[str]) -> None:
    named = [column for column in header if column.strip()]  # spreadsheets leave blank ones
    twice = sorted({column for column in named if named.count(column) > 1})
    if twice:
        raise DataError(f"{name}: the columns must have different names, got {twice[0]!r} twice.")


def check_columns(where: str, there: Sequence[str], columns: Sequence[str], hint: str = "") -> None:
    """Refuse a place without one of the columns.

    Raises:
        DataError: naming the first that is missing, and the nearest that is there.
    """
    for column in columns:
        if column not in there:
            raise DataError(
                f"{where}: the column {column!r} must be there, got none of that name. "
                f"{nearest(column, there)}{hint}"
            )


def _json_rows(lines: Lines, name: str, columns: Sequence[str], whole: bool) -> Iterator[Row]:
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{name}:{number}"
        values = _parse_object(line, where)
        if whole and "\\u" in line:
            _refuse_half_characters(values, where)
        check_columns(where, list(values), columns)
        yield Row(where, values)


def _parse_object(line: str, where: str) -> dict[str, Any]:
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


def _refuse_half_characters(values: dict[str, Any], where: str) -> None:
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end].encode("unicode_escape").decode()
        raise DataError(
            f"{where}: the text must be whole characters, got half of a surrogate pair, {half}. "
            "Repair or remove the line."
        ) from None


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is there twice")
    return values


def _pattern_rows(lines: Lines, name: str, pattern: str, columns: Sequence[str]) -> Iterator[Row]:
    names = PLACE.findall(pattern)
    check_columns("read.pattern", names, columns)
    literals = PLACE.split(pattern)[::2]
    for number, line in lines:
        text = line.removesuffix("\n").removesuffix("\r")
        if not text.strip():
            continue
        found = cut_line(text, literals)
        if found is None:
            raise DataError(
                f"{name}:{number}: the line must look like {pattern!r}, got {shorten(text)}. "
                "Repair the line or change read.pattern."
            )
        yield Row(f"{name}:{number}", dict(zip(names, found, strict=True)))


def _parquet_rows(
    file: BinaryIO, name: str, columns: Sequence[str], optional: Sequence[str] | None
) -> Iterator[Row]:
    number = 0
    try:
        parquet = open_parquet(file)
        if problem := find_impossible(read_claims(file)):
            raise DataError(f"{name}: it must be a whole Parquet file, got a claim of {problem}.")
        there = parquet.schema_arrow.names
        _refuse_twice(name, there)
        check_columns(name, there, columns)
        wanted = [c for c in there if optional is None or c in columns or c in optional]
        for batch in parquet.iter_batches(BATCH_ROWS, columns=wanted):
            for values in batch.to_pylist():
                number += 1
                for column, value in values.items():
                    if isinstance(value, str) and (size := len(value)) > MAX_CHARACTERS:
                        most = f"at most {MAX_CHARACTERS} characters, got {size}"
                        raise DataError(f"{name} row {number}: {column} must be {most}.")
                yield Row(f"{name} row {number}", values)
    except NOT_WHOLE as error:
        raise DataError(f"{name}: it must be a Parquet file, got: {reason_of(error)}.") from None
