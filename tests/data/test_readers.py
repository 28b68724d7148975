"""The reader: every format and every way in give the same rows, and every defect names its line."""

import io
import json
import time
from pathlib import Path
from typing import BinaryIO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdcache.data import parsers as formats
from kdcache.data import readers
from kdcache.data.examples import read_examples
from kdcache.data.parsers import Layout
from kdcache.data.readers import Hub, hub_rows, read_rows, stream_rows
from kdcache.data.taskfile import read_task_file
from kdcache.errors import DataError, ParamsError

ROWS = [
    {"text": 'He said "no", twice.', "label": "a"},
    {"text": "two\nlines, one cell", "label": "b"},
    {"text": "naïve \x85 café", "label": "a"},
]
CSV = '\ufefftext,label\r\n"He said ""no"", twice.",a\r\n\r\n"two\nlines, one cell",b\r\nnaïve \x85 café,a'
TSV = CSV.replace(",label", "\tlabel").replace('",a', '"\ta').replace('",b', '"\tb').replace("é,a", "é\ta")
JSONL = "\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
CONTENT = {"csv": (CSV, [2, 4, 6]), "tsv": (TSV, [2, 4, 6]), "jsonl": (JSONL, [1, 3, 5])}


def read(path: Path, layout: Layout | None = None, columns=("text", "label")) -> list[dict]:
    return [row.values for row in read_rows(path, layout or Layout(), columns)]


@pytest.mark.parametrize("kind", CONTENT)
def test_file_and_stream_give_the_same_rows_with_the_lines_they_begin_on(kind, tmp_path: Path):
    text, lines = CONTENT[kind]
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(text.encode())
    found = list(read_rows(path, Layout(), ["text"]))
    assert found == [(f"{path}:{line}", row) for line, row in zip(lines, ROWS, strict=True)]
    assert list(stream_rows(io.BytesIO(text.encode()), str(path), kind, Layout())) == found


def test_parquet_gives_the_same_rows_and_reads_only_the_columns_asked_for(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([row | {"big": {"a": [0.0] * 9}} for row in ROWS]), path)
    found = list(read_rows(path, Layout(), ["text"], optional=["label", "absent"]))
    assert found == [(f"{path} row {number}", row) for number, row in enumerate(ROWS, start=1)]
    (first, *_) = read_rows(path, Layout(), ["text"], optional=None)
    assert first.values["big"] == {"a": [0.0] * 9}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32-be", "cp1252"])
def test_encodings_give_the_same_rows_without_a_byte_order_mark(encoding, tmp_path: Path):
    mark = "" if encoding == "cp1252" else "\ufeff"
    (tmp_path / "rows.csv").write_bytes(f"{mark}text,label\né,y\n".encode(encoding))
    assert read(tmp_path / "rows.csv", Layout(encoding=encoding)) == [{"text": "é", "label": "y"}]


def test_file_without_header_takes_the_given_names(tmp_path: Path):
    (tmp_path / "rows.tsv").write_text('one "\ta\ntwo\tb')
    layout = Layout(header=("text", "label"), quotes=False)
    assert read(tmp_path / "rows.tsv", layout) == [
        {"text": 'one "', "label": "a"},
        {"text": "two", "label": "b"},
    ]


def test_only_a_newline_ends_a_line(tmp_path: Path):
    text = "0 a\x85b \n1 c\u2028d\x0b\n"
    (tmp_path / "rows.all").write_bytes(text.encode("utf-8"))
    assert read(tmp_path / "rows.all", Layout(pattern="{label} {text}")) == [
        {"label": "0", "text": "a\x85b "},
        {"label": "1", "text": "c\u2028d\x0b"},
    ]


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
    found = stream_rows(pipe, "in", kind, Layout())
    for number in range(1, 4):
        next(found)
        assert pipe.asked == number + ahead  # the header


DEFECTS = [  # ending, content, what the line says after the file's name
    ("csv", b"texts,label\nx,y\n", ": the column 'text' must be there, .* Did you mean texts\\?"),
    ("csv", b"text,label,text\nx,y,z\n", ": the columns must have different names, got 'text' twice"),
    ("csv", b"text,label\nx,y\n\nx\n", ":4: the row must have 2 cells, as the header has, got 1"),
    ("csv", b'text,label\nx,y\n"x,y\nx,y\n', ":3: the row must be cells .*unexpected end of data"),
    ("tsv", b'text\tlabel\n"x" z\ty\n', ":2: the row must be cells between '\\\\t', .*expected after '\"'"),
    ("csv", "text,label\nx,y\ncafé,y\n".encode("latin-1"), ":3: the text must be utf-8, got byte 0xe9"),
    ("jsonl", b'{"text": "x", "label": "y"}\n"\xe9"\n', ":2: the text must be utf-8, got byte 0xe9"),
    ("csv", "text,label\nx,y\n".encode("utf-16-le"), ":1: the text must be utf-8, got a zero byte"),
    ("jsonl", b'{"text": "x", "label": "y"}\n{"text": \n', r":2: .* JSON object, .* \(Expecting value"),
    ("jsonl", b'["text"]\n', r":1: the line must be a JSON object, got '\[\"text\"\]'"),
    ("jsonl", b"[" * 100_000 + b"\n", r":1: the line must be a JSON object, got .*\(nested too deeply\)"),
    ("jsonl", b'{"text": "x", "text": "y"}\n', r":1: .* a JSON object, .*\(a key is there twice\)"),
    ("jsonl", b'{"text": ' + b"1" * 5000 + b"}\n", ":1: the line must be a JSON object, .*has 5000 digits"),
    ("jsonl", b'{"text": "x", "label": "y"}\n{"text": "x", "lable": "y"}\n',
     ":2: the column 'label' must be there, .* Did you mean lable\\?"),
    ("csv", b"text,label\n" + b"x" * 10_000_000 + b",y\n", ":2: a line must be at most 1000000 characters"),
    ("csv", b'text,label\nx,y\n"' + b"x,y\n" * 300_000, ":3: the row must be cells .*larger than"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "content", "message"), DEFECTS)
def test_defect_is_one_line_with_its_place_in_a_file_and_in_a_stream(kind, content, message, tmp_path: Path):
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(content)
    refusals = []
    readings = [read_rows(path, Layout(), ["text", "label"])]
    if "the column '" not in message:  # a stream's rows may lack any
        readings.append(stream_rows(io.BytesIO(content), str(path), kind, Layout()))
    for rows in readings:
        with pytest.raises(DataError, match=rf"^{path}{message}") as refusal:
            list(rows)
        refusals.append(str(refusal.value))
    assert len(set(refusals)) == 1
    assert "\n" not in refusals[0]


@pytest.mark.parametrize(
    ("name", "content", "layout", "message"),
    [
        ("no.csv", None, {}, ": it must be a file, got no such file"),
        ("r.dat", b"x", {}, ": its ending must be one of .csv, .tsv, .jsonl, .parquet, got '.dat'"),
        ("r.csv", b"", {}, ": the file must hold at least one row, got none"),
        ("r.csv", b"text,label\n", {}, ": the file must hold at least one row, got none"),
        ("r.jsonl", b"\n\n", {}, ": the file must hold at least one row, got none"),
        ("r.csv", b"x,y\n", {"header": ("a", "label")}, ": the column 'text' must be .* Known: a, label.$"),
        ("r.all", b"0 x\n1\n", {"pattern": "{label} {text}"},
         ":2: the line must look like '{label} {text}', got '1'"),
        ("r.jsonl", b'{"text": "\\ud800", "label": "y"}\n', {}, r":1: the text must be whole .*\\ud800"),
        ("r.parquet", b"text,label\n", {}, ": it must be a Parquet file, got: "),
    ],
)  # fmt: skip
def test_defect_of_a_file_is_one_line(name, content, layout, message, tmp_path: Path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^{path}{message}") as refusal:
        read(path, Layout(**layout))
    assert "\n" not in str(refusal.value)


def test_rows_before_a_defect_are_yielded():
    for kind, good, bad in (
        ("jsonl", b'{"text": "a"}\n', b'{"text": "\xe9"}\n'),
        ("csv", b"text\na\n", b"a,b\n"),
    ):
        found = stream_rows(io.BytesIO(good + bad), "in", kind, Layout())  # type: ignore[arg-type]
        assert next(found).values == {"text": "a"}
        with pytest.raises(DataError, match=r"^in:[23]: "):
            next(found)


def test_a_long_line_is_cut_short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(formats, "MAX_CHARACTERS", 10)
    file = io.BytesIO(b"text\n0123456789\n" + b"x" * 1000)
    found = stream_rows(file, "in", "csv", Layout())
    assert next(found).values == {"text": "0123456789"}
    with pytest.raises(DataError, match=r"^in:3: a line must be at most 10 characters"):
        next(found)
    assert file.tell() < 100


def test_parquet_defects_name_the_row_or_the_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    with pytest.raises(DataError, match=r"rows.parquet: the column 'txt' must .* Did you mean text\?"):
        read(path, columns=["txt"])
    monkeypatch.setattr(formats, "MAX_CHARACTERS", 19)
    with pytest.raises(DataError, match=r"rows.parquet row 1: text must be at most 19 characters, got 20."):
        read(path)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"encoding": "utf9"}, r"t.read.encoding: it must be an encoding that Python knows, got 'utf9'"),
        ({"encoding": "rot13"}, r"t.read.encoding: it must be an encoding that Python knows, got 'rot13'"),
        ({"delimiter": "||"}, r"t.read.delimiter: it must be one character, got '\|\|'"),
        ({"pattern": "{a}", "format": "csv"}, r"t.read: set either pattern or format = 'csv', not both"),
    ],
)
def test_impossible_layout_is_refused(layout, message):
    with pytest.raises(ParamsError, match=f"^{message}"):
        Layout(**layout).check("t.read")


CARD = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/train.parquet}
  - {split: dev, path: small/dev.parquet}
  - {split: blind, path: small/blind.parquet}
---
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A folder in a layout that ``datasets`` reads stands in for the hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"]),
         "more": datasets.Value("int64")}
    )  # fmt: skip
    for name, labels in (("train", [1, 0]), ("dev", [0, 1]), ("blind", [-1, -1])):
        rows = {"text": [f"{name} a", f"{name} b"], "label": labels, "more": [1, 2]}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(str(tmp_path / "set" / "small" / f"{name}.parquet"))
    (tmp_path / "set" / "README.md").write_text(CARD)
    return Hub(name=str(tmp_path / "set"), config="small", revision="main")


def test_class_labels_of_the_hub_come_as_names_and_missing_ones_as_none(hub):
    rows = list(hub_rows(hub, "train", ["text"], optional=["label"]))
    assert rows == [
        (f"{hub.name} train row 1", {"text": "train a", "label": "yes"}),
        (f"{hub.name} train row 2", {"text": "train b", "label": "no"}),
    ]
    assert [row.values["label"] for row in hub_rows(hub, "blind", ["text", "label"])] == [None, None]


def test_task_file_may_name_a_data_set_on_the_hub(hub, tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'splits = {train = "train", validation = "dev", test = "blind"}\ntext = "text"\n'
        f'hub = {{name = "{hub.name}", config = "small", revision = "main"}}\nlabels = ["no", "yes"]\n'
    )
    _, splits = read_examples("mine", read_task_file(path), tmp_path)
    labels = {split: [e.label for e in rows] for split, rows in splits.items()}
    assert labels == {"train": [1, 0], "validation": [0, 1], "test": [-1, -1]}


def test_what_the_hub_lacks_is_one_line(hub):
    with pytest.raises(DataError, match=r"set dev: the column 'txt' must be there, .* Did you mean text\?"):
        list(hub_rows(hub, "dev", ["txt"]))
    for wrong, split in ((hub, "nope"), (Hub(hub.name, "main", "big"), "train")):
        with pytest.raises(DataError, match=r"it must be a split of a data set within reach, got ") as caught:
            list(hub_rows(wrong, split, ["text"]))
        assert "\n" not in str(caught.value)


def test_hub_out_of_reach_fails_at_once_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"^nobody/no-such-set train: it must be a split of a data set") as e:
        list(hub_rows(Hub("nobody/no-such-set", "main"), "train", ["text"]))
    assert "\n" not in str(e.value)
    assert time.perf_counter() - start < 10


def test_blank_headers_are_columns_that_nobody_names(tmp_path):
    path = tmp_path / "sheet.csv"
    path.write_text("label,text,,,\nham,one,,,\nspam,two,x,,\n")
    rows = list(read_rows(path, Layout(), ["text", "label"]))
    assert [(row.values["text"], row.values["label"]) for row in rows] == [("one", "ham"), ("two", "spam")]
    path.write_text("label,text,text,,\nham,one,two,,\n")
    with pytest.raises(DataError, match="'text'"):
        list(read_rows(path, Layout(), ["text"]))


def test_a_cached_data_set_is_read_offline_without_asking_the_hub(monkeypatch):
    def ask(*_: object) -> None:
        raise ConnectionError("offline")

    rows = datasets.Dataset.from_dict({"text": ["a bank", "a boat"]})
    monkeypatch.setattr(readers, "ask_hub", ask)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    with pytest.raises(DataError, match="within reach"):
        list(hub_rows(Hub("somebody/rows", "main"), "train", ["text"]))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    read = hub_rows(Hub("somebody/rows", "main"), "train", ["text"])
    assert [row.values["text"] for row in read] == ["a bank", "a boat"]
