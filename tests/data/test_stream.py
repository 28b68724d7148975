"""Rows as they come: each format gives the same ones, one by one, and every defect names its line."""

import io
from typing import BinaryIO

import pytest

from kdcache.data import stream
from kdcache.data.stream import stream_rows
from kdcache.errors import DataError

ROWS = [
    {"text": 'He said "no", twice.', "id": "a"},
    {"text": "two\nlines, one cell", "id": "b"},
    {"text": "naïve \x85 café", "id": "c"},
]
CSV = '\ufefftext,id\r\n"He said ""no"", twice.",a\r\n\r\n"two\nlines, one cell",b\r\nnaïve \x85 café,c'
JSONL = (
    '\ufeff{"text": "He said \\"no\\", twice.", "id": "a"}\n\n'
    '{"text": "two\\nlines, one cell", "id": "b"}\r\n{"text": "naïve \x85 café", "id": "c"}'
)


def rows(text: str, kind: str) -> list[tuple[str, dict]]:
    return [tuple(row) for row in stream_rows(io.BytesIO(text.encode()), "in", kind, ["text"])]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "text", "lines"),
    [
        ("csv", CSV, [2, 4, 6]),
        (
            "tsv",
            CSV.replace(",id", "\tid").replace('",', '"\t').replace("é,c", "é\tc").replace('""\t t', '"", t'),
            [2, 4, 6],
        ),
        ("jsonl", JSONL, [1, 3, 4]),
    ],
)
def test_formats_give_the_same_rows_and_their_lines(kind, text, lines):
    assert rows(text, kind) == [(f"in:{line}", row) for line, row in zip(lines, ROWS, strict=True)]


class Endless(io.RawIOBase, BinaryIO):
    """A pipe whose other end never closes; counts the lines that were asked for."""

    asked = 0

    def __init__(self, line: bytes) -> None:
        self.line = line

    def readline(self, _size: int | None = -1) -> bytes:
        self.asked += 1
        return self.line


@pytest.mark.parametrize(("kind", "line", "ahead"), [("jsonl", b'{"text": "a"}\n', 0), ("csv", b"text\n", 1)])
def test_a_row_comes_before_the_next_line_is_read(kind, line, ahead):
    pipe = Endless(line)
    found = stream_rows(pipe, "in", kind, ["text"])
    for number in range(1, 4):
        next(found)
        assert pipe.asked == number + ahead  # the header


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (
            "jsonl", '{"text": "a"}\n{"text"',
            "in:2: the line must be a JSON object, got '{\"text\"' (Expecting ':' delimiter: character 7). "
            "Repair or remove the line.",
        ),
        (
            "jsonl", "[" * 100_000,
            f"in:1: the line must be a JSON object, got '{'[' * 56}... (nested too deeply). "
            "Repair or remove the line.",
        ),
        ("jsonl", "5", "in:1: the line must be a JSON object, got '5'."),
        (
            "jsonl", '{"text": "a"}\n{"txt": "a"}',
            "in:2: the column 'text' must be there, got none of that name. Did you mean txt?",
        ),
        (
            "csv", "texts,b\n1,2\n",
            "in: the column 'text' must be there, got none of that name. Did you mean texts?",
        ),
        ("csv", "text,text\n", "in: the columns must have different names, got 'text' twice."),
        (
            "csv", "text,b\n1,2\n\n1\n",
            "in:4: the row must have 2 cells, as the header has, got 1. Check the delimiter.",
        ),
        (
            "tsv", 'text\na\n"b\nc',
            "in:3: the row must be cells between '\\t', got an error: unexpected end of data. Close the "
            "quote; where quotes are text, send JSON lines.",
        ),
        (
            "csv", "text\n" + 11 * "a",
            "in:2: a line must be at most 10 bytes, got more. Check the file's format.",
        ),
    ],
)  # fmt: skip
def test_a_defect_is_one_line_that_names_its_place(kind, text, message, monkeypatch):
    if "10 bytes" in message:
        monkeypatch.setattr(stream, "MAX_CHARACTERS", 10)
    with pytest.raises(DataError) as refusal:
        rows(text, kind)
    assert str(refusal.value) == message


def test_bytes_that_are_no_utf_8_are_named():
    found = stream_rows(io.BytesIO(b'{"text": "a"}\n{"text": "\xe9"}\n'), "in", "jsonl", ["text"])
    assert next(found).where == "in:1"
    with pytest.raises(DataError, match=r"^in:2: the text must be UTF-8, got byte 0xe9. Convert the file.$"):
        next(found)
