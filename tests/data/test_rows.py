"""Rows of files: each format gives the same rows, every defect names file and line."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdcache.data import rows as rows_module
from kdcache.data.rows import Layout, read_rows
from kdcache.errors import DataError, ParamsError

ROWS = [
    {"text": 'He said "no", twice.', "label": "a"},
    {"text": "two\nlines, one cell", "label": "b"},
    {"text": "naïve café", "label": "a"},
]


def values(path: Path, layout: Layout | None = None, columns=("text", "label")) -> list[dict]:
    return [row.values for row in read_rows(path, layout or Layout(), columns)]


def test_csv_jsonl_and_parquet_give_the_same_rows(tmp_path: Path):
    quoted = 'text,label\r\n"He said ""no"", twice.",a\r\n"two\nlines, one cell",b\r\nnaïve café,a\r\n'
    (tmp_path / "rows.csv").write_bytes(quoted.encode())
    (tmp_path / "rows.tsv").write_bytes(quoted.replace(",a\r", "\ta\r").replace(",b\r", "\tb\r")
                                        .replace("text,label", "text\tlabel").encode())  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    for ending in ("csv", "tsv", "jsonl", "parquet"):
        assert values(tmp_path / f"rows.{ending}") == ROWS, ending


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path):
    for encoding in ("utf-8", "utf-16", "utf-16-le"):
        (tmp_path / "rows.csv").write_bytes("\ufefftext,label\nx,y\n".encode(encoding))
        assert values(tmp_path / "rows.csv", Layout(encoding=encoding)) == [{"text": "x", "label": "y"}]


def test_file_without_header_takes_the_given_names(tmp_path: Path):
    (tmp_path / "rows.tsv").write_text('one "\ta\ntwo\tb')
    layout = Layout(header=("text", "label"), quotes=False)
    assert values(tmp_path / "rows.tsv", layout) == [
        {"text": 'one "', "label": "a"},
        {"text": "two", "label": "b"},
    ]


def test_only_a_newline_ends_a_line(tmp_path: Path):
    text = "0 a\x85b \n1 c\u2028d\x0b\n"
    (tmp_path / "rows.all").write_bytes(text.encode("utf-8"))
    layout = Layout(pattern="{label} {text}")
    assert values(tmp_path / "rows.all", layout) == [
        {"label": "0", "text": "a\x85b "},
        {"label": "1", "text": "c\u2028d\x0b"},
    ]


def test_rows_know_the_line_they_begin_on(tmp_path: Path):
    (tmp_path / "rows.csv").write_text('text,label\n"one\ntwo",a\n\nx,b\n')
    path = (tmp_path / "rows.csv").as_posix()
    found = read_rows(tmp_path / "rows.csv", Layout(), ["text"])
    assert [row.where for row in found] == [f"{path}:2", f"{path}:5"]


@pytest.mark.parametrize(
    ("name", "content", "layout", "message"),
    [
        ("no.csv", None, {}, ": it must be a file, got no such file. Check the paths in the task file."),
        ("r.dat", b"x", {}, ": its ending must be one of .csv, .tsv, .jsonl, .parquet, got '.dat'. "
         "Set read.format or read.pattern in the task file."),
        ("r.csv", b"", {}, ": the file must hold at least one row, got none."),
        ("r.csv", b"text,label\n", {}, ": the file must hold at least one row, got none."),
        ("r.jsonl", b"\n\n", {}, ": the file must hold at least one row, got none."),
        ("r.csv", b"texts,label\nx,y\n", {}, ": the column 'text' must be there, got none of that name. "
         "Did you mean texts? If the file has no header, name its columns in read.header."),
        ("r.csv", b"x,y\n", {"header": ("a", "label")},
         ": the column 'text' must be there, got none of that name. Known: a, label."),
        ("r.csv", b"text,label,text\nx,y,z\n", {},
         ": the columns must have different names, got 'text' twice."),
        ("r.csv", b"text,label\nx,y\nx\n", {}, ":3: the row must have 2 cells, as the header has, got 1. "
         "Check the delimiter; where quotes are text, set read.quotes = false."),
        ("r.csv", b'text,label\nx,y\n"x,y\nx,y\n', {},
         ":3: the row must be cells between ',', got an error: unexpected end of data. "
         "Close the quote; where quotes are text, set read.quotes = false."),
        ("r.csv", b'text,label\n"x" z,y\n', {},
         """:2: the row must be cells between ',', got an error: ',' expected after '"'. """
         "Close the quote; where quotes are text, set read.quotes = false."),
        ("r.csv", "text,label\nx,y\ncafé,y\n".encode("latin-1"), {},
         ":3: the text must be utf-8, got byte 0xe9. "
         "Set read.encoding in the task file, for example to latin-1, or convert the file."),
        ("r.csv", "text,label\nx,y\n".encode("utf-16-le"), {}, ":1: the text must be utf-8, got a zero byte. "
         "Set read.encoding in the task file, for example to utf-16."),
        ("r.jsonl", b'{"text": "x", "label": "y"}\n{"text": \n', {},
         ":2: the line must be a JSON object, got '{\"text\": ' (Expecting value: character 9). "
         "Repair or remove the line."),
        ("r.jsonl", b'["text"]\n', {}, ":1: the line must be a JSON object, got '[\"text\"]'."),
        ("r.jsonl", b'{"text": "x", "label": "y"}\n' + b"[" * 100_000 + b"\n", {},
         f":2: the line must be a JSON object, got '{'[' * 56}... (nested too deeply). "
         "Repair or remove the line."),
        ("r.jsonl", b'{"text": "x", "text": "y"}\n', {},
         """:1: the line must be a JSON object, got '{"text": "x", "text": "y"}' (a key stands twice). """
         "Repair or remove the line."),
        ("r.jsonl", b'{"text": "\\ud800"}\n', {},
         r":1: the text must be whole characters, got half a pair, \ud800. Repair or remove the line."),
        ("r.jsonl", b'{"text": ' + b"1" * 5000 + b"}\n", {},
         f""":1: the line must be a JSON object, got '{{"text": {'1' * 47}... (Exceeds the limit (4300 """
         "digits) for integer string conversion: value has 5000 digits). Repair or remove the line."),
        ("r.jsonl", b'{"text": "x", "label": "y"}\n{"text": "x", "lable": "y"}\n', {},
         ":2: the column 'label' must be there, got none of that name. Did you mean lable?"),
        ("r.all", b"0 x\n1\n", {"pattern": "{label} {text}"},
         ":2: the line must look like '{label} {text}', got '1'. Repair the line or change read.pattern."),
        ("r.csv", b"text,label\n" + b"x" * 10_000_000 + b",y\n", {},
         ":2: a line must be at most 1000000 characters, got 10000003. "
         "Check read.format and the line's end."),
        ("r.csv", b'text,label\nx,y\n"' + b"x,y\n" * 300_000, {},
         ":3: the row must be cells between ',', got an error: field larger than field limit (1000000). "
         "Close the quote; where quotes are text, set read.quotes = false."),
    ],
)  # fmt: skip
def test_bad_file_names_file_line_and_remedy(tmp_path: Path, name, content, layout, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_rows(path, Layout(**layout), ["text", "label"])
    assert str(caught.value) == f"{path}{message}"


def test_parquet_defects_name_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"text,label\n")
    with pytest.raises(DataError, match=r"rows.parquet: it must be a Parquet file, got: "):
        read_rows(path, Layout(), ["text"])
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    with pytest.raises(DataError, match=r"rows.parquet: the column 'txt' must .* Did you mean text\?"):
        read_rows(path, Layout(), ["txt"])
    monkeypatch.setattr(rows_module, "MAX_CHARACTERS", 19)
    with pytest.raises(DataError, match=r"rows.parquet row 1: text must be at most 19 characters, got 20."):
        read_rows(path, Layout(), ["text"])


def test_only_the_asked_columns_of_parquet_are_read(tmp_path: Path):
    pq.write_table(pa.Table.from_pylist([row | {"big": [0.0] * 9} for row in ROWS]), tmp_path / "r.parquet")
    found = read_rows(tmp_path / "r.parquet", Layout(), ["text"], optional=["label", "absent"])
    assert [row.values for row in found] == ROWS


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"encoding": "utf9"}, "t.read.encoding: it must be an encoding that Python knows, got 'utf9'. "
         "For example: utf-8, latin-1, cp1252, utf-16."),
        ({"delimiter": "||"}, "t.read.delimiter: it must be one character, got '||'."),
        ({"pattern": "{a}", "format": "csv"}, "t.read.pattern: it must stand in place of a format, got '{a}' "
         "with csv. Remove one."),
    ],
)  # fmt: skip
def test_impossible_layout_is_refused(layout, message):
    with pytest.raises(ParamsError) as caught:
        Layout(**layout).check("t.read")
    assert str(caught.value) == message
