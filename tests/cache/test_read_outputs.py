"""Files of any teacher: every format and kind gives the same logits, and each number has a plain label."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdcache.cache.exchange import to_logits
from kdcache.cache.read_outputs import read_outputs
from kdcache.errors import DataError

LABELS = ("false", "true")
P = np.array([[0.25, 0.75], [0.9, 0.1]])
IDS = ["007", "b"]


def write_file(path: Path, kind: str, values: np.ndarray, style: str) -> Path:
    prefix = {"logits": "logit", "probabilities": "probability", "logprobs": "logprob"}[kind]
    if style == "list":
        columns = {kind: values.tolist()}
    elif style == "mapping":
        columns = {kind: [dict(zip(LABELS, row, strict=True)) for row in values.tolist()]}
    else:
        names = LABELS if style == "by name" else range(len(LABELS))
        columns = {f"{prefix}_{n}": values[:, k].tolist() for k, n in enumerate(names)}
    columns = {"example_id": IDS, **columns}
    if path.suffix == ".csv":
        lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix == ".jsonl":
        made = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
    elif path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        np.savez(path, **{name: np.array(column) for name, column in columns.items()})
    return path


@pytest.mark.parametrize("kind", ["logits", "probabilities", "logprobs"])
@pytest.mark.parametrize(
    ("suffix", "style"),
    [
        (".csv", "by index"), (".csv", "by name"),
        (".jsonl", "list"), (".jsonl", "mapping"), (".jsonl", "by name"),
        (".parquet", "list"), (".parquet", "mapping"), (".parquet", "by index"),
        (".npz", "list"), (".npz", "by name"),
    ],
)  # fmt: skip
def test_every_format_and_kind_gives_the_same_softmax(tmp_path: Path, kind: str, suffix: str, style: str):
    values = P if kind == "probabilities" else np.log(P)
    path = write_file(tmp_path / f"x{suffix}", kind, values, style)
    outputs = read_outputs(path, LABELS)
    assert outputs.example_id == IDS  # 007 is no number
    assert outputs.kind == kind
    logits = to_logits(outputs, "refuse", str(path))
    assert logits.dtype == np.float32
    assert np.allclose(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), P, atol=1e-7)


def refusal(path: Path, labels: tuple[str, ...] = LABELS) -> str:
    with pytest.raises(DataError) as error:
        read_outputs(path, labels)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def write_row(folder: Path, names: tuple[str, ...], style: str) -> Path:
    """One row whose k-th named number is k."""
    if style == "mapping":
        row = {"example_id": "a", "logits": {name: k for k, name in enumerate(names)}}
        (folder / "x.jsonl").write_text(json.dumps(row) + "\n")
        return folder / "x.jsonl"
    header, cells = [f"logit_{name}" for name in names], [*map(str, range(len(names)))]
    (folder / "x.csv").write_text(f"example_id,{','.join(header)}\na,{','.join(cells)}\n")
    return folder / "x.csv"


@pytest.mark.parametrize("style", ["columns", "mapping"])
@pytest.mark.parametrize(
    ("labels", "names", "wanted"),
    [
        (("1", "2", "3"), ("1", "2", "3"), [0, 1, 2]),
        (("1", "2", "3", "4", "5"), ("5", "4", "3", "2", "1"), [4, 3, 2, 1, 0]),
        (("-1", "0", "1"), ("-1", "0", "1"), [0, 1, 2]),
        (("-1", "0", "1"), ("1", "0", "-1"), [2, 1, 0]),
        (("1", "0"), ("0", "1"), [1, 0]),
        (("0", "1", "2"), ("2", "0", "1"), [1, 2, 0]),
        (("0.0", "1.0"), ("1", "0"), [1, 0]),  # 0 and 0.0 are the same place
        (("no", "yes"), ("yes", "no"), [1, 0]),
        (("no", "yes"), ("1", "0"), [1, 0]),
        (("01", "1"), ("1", "01"), [1, 0]),
        (("1", "no"), ("1", "no"), [0, 1]),
    ],
)
def test_a_name_is_a_label_where_one_reads_so_and_else_an_index(tmp_path, labels, names, wanted, style):
    outputs = read_outputs(write_row(tmp_path, names, style), labels)
    assert outputs.values.tolist() == [wanted]


@pytest.mark.parametrize("style", ["columns", "mapping"])
@pytest.mark.parametrize(
    ("labels", "names", "told"),
    [
        (("1", "2", "3"), ("0", "1", "2"), "0"),  # by index: the label 1 would be meant twice
        (("-1", "0", "1"), ("0", "1", "2"), "2"),
        (("2", "3"), ("0", "1"), "2, 3"),  # numbers of their own, that are no indices
        (("1.0", "0.0"), ("0", "1"), "1.0, 0.0"),
        (("01", "00"), ("0", "1"), "01, 00"),
        (("no", "yes"), ("0", "1", "2"), "2"),
        (("no", "yes"), ("no", "yes", "maybe"), "maybe"),
        (("no", "yes"), ("no", "yes", "0"), "0"),  # no twice
        (("no", "yes"), ("LABEL_0", "LABEL_1"), "LABEL_0, LABEL_1"),
        (("no", "yes"), ("No", "Yes"), "No, Yes"),
        (("no", "yes"), ("1", "2"), "2"),
    ],
)
def test_a_name_that_is_ambiguous_or_surplus_is_refused(tmp_path, labels, names, told, style):
    message = refusal(write_row(tmp_path, names, style), labels)
    assert told in message
    assert ", ".join(labels) in message


def test_a_label_without_a_column_is_refused_and_one_without_a_number_has_none(tmp_path):
    assert "yes" in refusal(write_row(tmp_path, ("no",), "columns"), ("no", "yes"))
    assert np.isnan(read_outputs(write_row(tmp_path, ("no",), "mapping"), ("no", "yes")).values[0, 1])
    (tmp_path / "x.csv").write_text("example_id,probability_no,probability_yes\na,0.5,\n")
    assert np.isnan(read_outputs(tmp_path / "x.csv", ("no", "yes")).values[0, 1])


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_what_stands_twice_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("example_id,logit_0,logit_1,logit_1\na,0,1,2\n")
    assert "logit_1" in refusal(tmp_path / "x.csv")
    (tmp_path / "y.csv").write_text("example_id,logit_0,logit_1,probability_0,probability_1\na,0,1,0,1\n")
    assert "probability_0" in refusal(tmp_path / "y.csv")
    (tmp_path / "x.jsonl").write_text('{"example_id": "a", "logits": [1, 2], "logits": [2, 1]}\n')
    assert "twice" in refusal(tmp_path / "x.jsonl")
    (tmp_path / "y.jsonl").write_text('{"example_id": "a", "logits": [1, 2], "logit_0": 1, "logit_1": 2}\n')
    assert "logits" in refusal(tmp_path / "y.jsonl")
    (tmp_path / "z.jsonl").write_text('{"example_id": "a", "logits": {"true": 1, "false": 2, "true": 3}}\n')
    assert "twice" in refusal(tmp_path / "z.jsonl")
    columns = [pa.array(["a"]), pa.array([0.0]), pa.array([1.0]), pa.array([2.0])]
    pq.write_table(
        pa.Table.from_arrays(columns, ["example_id", "logit_0", "logit_1", "logit_1"]), tmp_path / "x.parquet"
    )
    assert "logit_1" in refusal(tmp_path / "x.parquet")
    path, array = npz(tmp_path / "x.npz", example_id=np.array(["a"]), logits=np.zeros((1, 2))), io.BytesIO()
    np.save(array, np.ones((1, 2)))
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("logits.npy", array.getvalue())
    assert "logits" in refusal(path)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"logits": np.zeros((1, 2))}, ("2", "1")),
        ({"logits": np.zeros((4, 2))}, ("2", "4")),
        ({"logit_0": np.zeros(2), "logit_1": np.zeros(3)}, ("2", "3")),
        ({"logits": np.zeros((2, 2)), "features": np.zeros((1, 4))}, ("2", "1")),
        ({"logits": np.zeros((2, 2)), "content_hash": np.array(["a"])}, ("2", "1")),
        ({"logits": np.float64(1)}, ("2", "None")),
        ({"logits": np.zeros((2, 2, 1))}, ("logits",)),
        ({"logits": np.zeros((2, 3))}, ("2 numbers", "row 1")),
    ],
)
def test_arrays_of_another_length_are_refused_with_both(tmp_path, arrays, told):
    message = refusal(npz(tmp_path / "x.npz", example_id=np.array(IDS), **arrays))
    assert all(part in message for part in told)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (['{"example_id": "a", "logits": [1, 2]}', '{"example_id": "b", "error": "timed out"}'], ":2"),
        (['{"example_id": "a", "error": "timed out"}', '{"example_id": "b", "logits": [1, 2]}'], ":1"),
        (['{"example_id": "a", "logits": [1, 2]}', '{"example_id": "b", "logits": null}'], ":2"),
        (['{"example_id": "a", "logits": [1, 2]}', '{"example_id": "b", "logits": [1]}'], ":2"),
        (['{"example_id": "a", "logits": [1, 2]}', '{"example_id": "b", "probabilities": [0, 1]}'], ":2"),
        (['{"example_id": "a", "logits": [1, true]}'], "True"),
        (['{"example_id": "a", "logits": [1, [2]]}'], "[2]"),
        (['{"example_id": "a", "logits": "1 2"}'], "1 2"),
        (['{"example_id": "a", "logits": {"false": 1, "true": "high"}}'], "high"),
        (['{"example_id": "a", "logits": [1, 2], "features": 1.0}'], "features"),
        (['{"example_id": "a", "logits": [1, 2], "features": [[1.0], [2.0]]}'], "features"),
        (['{"example_id": "a", "logits": [1, 2], "features": [[1.0], 2.0]}'], "features"),
        (['{"example_id": "a", "logits": [1, 2], "features": [1]}',
          '{"example_id": "b", "logits": [1, 2], "features": [1, 2]}'], ":2"),
        (['{"example_id": "a", "logits": [1, 2], "features": [1]}',
          '{"example_id": "b", "logits": [1, 2]}'], ":2"),
        (['{"example_id": "a", "logits": [1, 2]}', '{"example_id": null, "logits": [1, 2]}'], ":2"),
        (['{"example_id": "a", "logits": [1, 2], "content_hash": "x"}',
          '{"example_id": "b", "logits": [1, 2]}'], "content_hash"),
    ],
)  # fmt: skip
def test_a_row_unlike_the_others_is_named(tmp_path, lines, told):
    (tmp_path / "x.jsonl").write_text("\n".join(lines) + "\n")
    assert told in refusal(tmp_path / "x.jsonl")


@pytest.mark.parametrize("text", ['\ufeff{"example_id": "a", "logits": [1, 2]}\n',
                                  '{"example_id": "a", "logits": [1, 2], "text": "x\u2028y"}\n',
                                  '\n{"example_id": "a", "logits": [1, 2]}\r\n'])  # fmt: skip
def test_marks_and_line_breaks_within_strings_are_read(tmp_path, text):
    (tmp_path / "x.jsonl").write_bytes(text.encode())
    assert read_outputs(tmp_path / "x.jsonl", LABELS).values.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "", "x.txt: the file must end in .csv, .jsonl, .parquet, .npz, got .txt."),
        ("x.csv", "example_id,label\na,0\n", "the row must hold logits, probabilities, logprobs or columns"),
        ("x.csv", "id,logit_0,logit_1\na,0,1\n", "example_id must hold the id, got columns id, logit_0"),
        ("x.csv", "example_id,logit_0,logit_1\na,0,1\na,0,1\n", "ids must be unique, got twice a."),
        ("x.csv", "example_id,logit_0,logit_1\na,0,one\n", "logit_1 must be a number, got 'one'."),
        ("x.csv", "example_id;logit_0;logit_1\na;0,5;1\n", "x.csv:2: "),
        ("x.csv", "", "x.csv: "),
        ("x.jsonl", "{", "x.jsonl:1: "),
        ("x.jsonl", '[{"example_id": "a", "logits": [1, 2]}]\n', "x.jsonl:1: the line must be a JSON object"),
        ("x.parquet", "PAR1", "x.parquet: "),
        ("x.npz", "", "x.npz: the arrays cannot be read: "),
    ],
)  # fmt: skip
def test_unreadable_files_are_one_line(tmp_path: Path, name, content, message):
    (tmp_path / name).write_text(content)
    assert message in refusal(tmp_path / name)


def test_missing_file_is_one_line(tmp_path: Path):
    assert refusal(tmp_path / "x.csv").endswith("x.csv: the file does not exist.")


def test_a_map_of_arrow_names_its_numbers(tmp_path: Path):
    numbers = pa.array([[("yes", 2.0), ("no", 1.0)]], pa.map_(pa.string(), pa.float64()))
    pq.write_table(pa.table({"example_id": ["a"], "logits": numbers}), tmp_path / "x.parquet")
    assert read_outputs(tmp_path / "x.parquet", ("no", "yes")).values.tolist() == [[1, 2]]
    for pairs, key, told in (
        ([("yes", 2.0), ("yes", 1.0)], pa.string(), "twice yes"),
        ([(7, 2.0)], pa.int32(), "7"),
    ):
        numbers = pa.array([pairs], pa.map_(key, pa.float64()))
        pq.write_table(pa.table({"example_id": ["a"], "logits": numbers}), tmp_path / "x.parquet")
        with pytest.raises(DataError, match=told):
            read_outputs(tmp_path / "x.parquet", ("no", "yes"))


@pytest.mark.parametrize(
    ("labels", "given", "index"),
    [
        (("no", "yes"), np.array([1, 0]), [1, 0]),
        (("no", "yes"), np.array([1.0, np.nan]), [1, -1]),
        (("no", "yes"), np.array(["no", "yes"], object), [-1, -1]),
        (("no", "yes"), np.arange(3), [-1, -1]),
        (("1", "2"), np.array([1, 1]), [-1, -1]),  # an index or a name
    ],
)
def test_a_label_is_an_index_where_it_can_be_nothing_else(tmp_path: Path, labels, given, index):
    np.savez(tmp_path / "x.npz", example_id=np.array(["a", "b"]), logits=np.eye(2), label=given)
    assert read_outputs(tmp_path / "x.npz", labels).label.tolist() == index


def test_complex_numbers_are_no_numbers(tmp_path: Path):
    np.savez(tmp_path / "x.npz", example_id=np.array(["a"]), logits=np.array([[1 + 2j, 0]]))
    with pytest.raises(DataError, match="must be a number"):
        read_outputs(tmp_path / "x.npz", ("no", "yes"))
