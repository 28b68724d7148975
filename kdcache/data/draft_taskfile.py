"""Drafting a task from a table: its name, its task file and its files of rows."""

import csv
import io
import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from kdcache.data.guess_columns import Guess, is_number
from kdcache.data.parsers import FORMATS, Layout, Values
from kdcache.data.readers import read_rows
from kdcache.data.taskfile_schema import spell_label
from kdcache.errors import DataError, shorten

HEADER_CHARACTERS = 60  # of a column's name; longer is a text
HEADER_WORDS = 6
SHOWN_LABELS = 8


def read_table(path: Path) -> tuple[list[Values], Layout]:
    """Read all rows and columns of a CSV, TSV, JSON lines or Parquet file.

    The delimiter of a CSV file is the most frequent of , ; | and the tab in its first line.

    Returns:
        The rows, and how they are written.

    Raises:
        DataError: no such file, another ending, a CSV or TSV file without a header; see ``read_rows``.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    if path.suffix not in FORMATS:
        raise DataError(f"{path}: a table must end in {', '.join(FORMATS)}. Rename or convert the file.")
    layout = Layout()
    kind = FORMATS[path.suffix]
    if kind == "csv":
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.readline()
        delimiter = max(",;\t|", key=first.count)
        layout = Layout(delimiter=None if delimiter == "," else delimiter)
    rows: list[Values] = [row.values for row in read_rows(path, layout, (), optional=None)]
    if kind in ("csv", "tsv"):
        _require_header(path, rows)
    return rows, layout


def _require_header(path: Path, rows: Sequence[Values]) -> None:
    """Refuse a first row that holds data: a number, a sentence, or a value that recurs in its column."""
    for name in filter(str.strip, rows[0]):  # a blank one heads a column that is not read
        sentence = len(name) > HEADER_CHARACTERS or len(name.split()) > HEADER_WORDS
        if is_number(name) or sentence or sum(row[name] == name for row in rows) > 1:
            raise DataError(
                f"{path}:1: the first row must name the columns, but {shorten(name)} looks like data. "
                "Add a header, for example: text,label"
            )


def task_name(path: Path) -> str:
    """Return a file's name as a task's: lower case, without accents, others than a-z, 0-9, _ and - as -.

    >>> task_name(Path("Ärger im Büro (2).csv"))
    'arger-im-buro-2'

    Raises:
        DataError: nothing is left of the name.
    """
    plain = (
        unicodedata.normalize("NFKD", path.stem.lower().replace("ß", "ss")).encode("ascii", "ignore").decode()
    )
    name = "".join(c if c.isalnum() or c in "_-" else "-" for c in plain)
    name = "-".join(filter(None, name.split("-"))).lstrip("_")
    if not name:
        raise DataError(
            f"{path}: a task is named after its file, in a-z, 0-9, _ and -, but {path.stem!r} has none "
            "of them. Rename the file."
        )
    return name


def task_file_text(guess: Guess, origin: str, layout: Layout, files: Mapping[str, str]) -> str:
    """Write a guess as a task file.

    Args:
        guess: the columns.
        origin: name of the file they were guessed from.
        layout: how the files are written.
        files: split → file.
    """
    splits = ", ".join(f"{split} = {_quoted(name)}" for split, name in files.items())
    shown = ", ".join(list(guess.labels)[:SHOWN_LABELS])
    more = ", …" if len(guess.labels) > SHOWN_LABELS else ""
    lines = [
        f"# Guessed from {_one_line(origin)}. Correct what is wrong.",
        f"splits = {{{splits}}}",
        "holdout = {fraction = 0.2}  # share of train for validation; test = 0.2 takes a test split too",
        f"text = {_quoted(guess.text)}",
    ]
    if guess.text_pair:
        lines.append(f"text_pair = {_quoted(guess.text_pair)}")
    lines.append(f"label = {_quoted(guess.label)}  # {len(guess.labels)} labels: {_one_line(shown)}{more}")
    if guess.id:
        lines.append(f"id = {_quoted(guess.id)}")
    if guess.group:
        lines.append(f"group = {_quoted(guess.group)}  # rows that agree in it stay in one split")
    if layout.delimiter:
        lines.append(f"read = {{delimiter = {_quoted(layout.delimiter)}}}")
    if guess.unused:
        lines.append(f"# Not used: {_one_line(', '.join(guess.unused))}")
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    """A comment's text: TOML allows no control characters there either."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _quoted(text: str) -> str:
    """A TOML string; JSON's escapes are TOML's too, but for U+007F."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def split_unlabelled(path: Path, rows: Sequence[Values], label: str, layout: Layout) -> tuple[bytes, bytes]:
    """Return a file's rows with a label, and those without one, each as a file of the same format.

    Args:
        path: the file.
        rows: all of its rows.
        label: the column.
        layout: how the file is written.
    """
    has_label = [bool(spell_label(row.get(label))) for row in rows]
    labelled = _render_rows(path, rows, has_label, layout)
    return labelled, _render_rows(path, rows, [not has for has in has_label], layout)


def _render_rows(path: Path, rows: Sequence[Values], keep: Sequence[bool], layout: Layout) -> bytes:
    kept = [row for row, wanted in zip(rows, keep, strict=True) if wanted]
    kind = FORMATS[path.suffix]
    if kind == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pq.read_table(path).filter(pa.array(keep)), buffer)
        return buffer.getvalue()
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept).encode()
    text = io.StringIO()
    delimiter = layout.delimiter or ("\t" if kind == "tsv" else ",")
    # csv quotes what the line's end holds, and a lone carriage return is none.
    lone = any("\r" in str(cell) for row in kept for cell in row.values())
    quoting: Literal[0, 1] = csv.QUOTE_ALL if lone else csv.QUOTE_MINIMAL
    writer = csv.DictWriter(text, list(kept[0]), delimiter=delimiter, lineterminator="\n", quoting=quoting)
    writer.writeheader()
    writer.writerows(kept)
    return text.getvalue().encode()
