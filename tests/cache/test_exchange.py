"""Files of any teacher: every format and kind gives the same logits, and nothing is guessed."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import rows

from kdcache.cache.exchange import Outputs, read_outputs, to_logits, write_outputs
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


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".npz"])
def test_what_export_writes_import_reads_bit_for_bit(tmp_path: Path, suffix: str):
    whole = rows()
    write_outputs(whole, tmp_path / f"x{suffix}")
    outputs = read_outputs(tmp_path / f"x{suffix}", LABELS)
    assert outputs.example_id == whole.example_id
    assert outputs.content_hash == whole.content_hash
    assert (to_logits(outputs, "refuse", "x") == whole.logits).all()
    if suffix in (".parquet", ".npz"):
        assert (outputs.features == whole.features).all()


def outputs(values, kind: str = "probabilities") -> Outputs:
    array = np.array(values, dtype=float)
    return Outputs([f"id-{i}" for i in range(len(array))], kind, array, np.empty((len(array), 0)), None)


NAN = float("nan")


@pytest.mark.parametrize(
    ("policy", "given", "wanted"),
    [
        ("renormalise", [0.3, 0.1, 0.0], [0.75, 0.25, 0.0]),
        ("renormalise", [0.3, 0.1, NAN], [0.75, 0.25, 0.0]),
        ("spread", [0.3, 0.1, 0.0], [0.5, 0.3, 0.2]),
        ("spread", [0.3, 0.1, NAN], [0.3, 0.1, 0.6]),
        ("spread", [0.3, NAN, NAN], [0.3, 0.35, 0.35]),
    ],
)
def test_missing_mass_goes_where_the_policy_says(policy, given, wanted):
    with np.errstate(divide="ignore"):
        for kind, values in (("probabilities", given), ("logprobs", np.log(given))):
            found = np.exp(to_logits(outputs([values], kind), policy, "x.csv"))
            assert np.allclose(found, [wanted], atol=3e-6), kind
            assert np.isfinite(to_logits(outputs([values], kind), policy, "x.csv")).all()


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ([[0.5, 0.5], [0.5, 0.4]], "probabilities",
         "x.csv: probabilities must be given for each label and sum to 1, got less for id-1. "
         "Choose a policy: --missing-mass renormalise or spread."),
        ([[0.5, NAN]], "probabilities", "got less for id-0"),
        ([[0.9, 0.2]], "probabilities",
         "x.csv: probabilities must lie between 0 and 1 and sum to at most 1, got others for id-0."),
        ([[-0.1, 1.1]], "probabilities", "got others for id-0"),
        ([[NAN, NAN]], "probabilities", "got others for id-0"),
        ([[0.1, 0.2]], "logprobs", "sum to at most 1, got others for id-0"),
        ([[1.0, NAN]], "logits", "x.csv: each label must have a finite logit, got others for id-0."),
        ([[1.0, float("inf")]], "logits", "got others for id-0"),
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_named(given, kind, message):
    with pytest.raises(DataError) as error:
        to_logits(outputs(given, kind), "refuse", "x.csv")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "", "x.txt: the file must end in .csv, .jsonl, .parquet, .npz, got .txt."),
        ("x.csv", "example_id,label\na,0\n", "the file must hold logits, probabilities, logprobs or columns"),
        ("x.csv", "id,logit_0,logit_1\na,0,1\n", "example_id must hold the ids, got columns id, logit_0"),
        ("x.csv", "example_id,logit_0,logit_1\na,0,1\na,0,1\n", "ids must be unique, got twice a."),
        ("x.csv", "example_id,logit_0,logit_1\na,0,one\n", "cannot be read: could not convert"),
        ("x.csv", "", "the numbers cannot be read: Empty CSV file."),
        ("x.jsonl", '{"example_id": 1, "logits": [1, 2, 3]}\n', "2 numbers per row (false, true), got shape"),
        ("x.jsonl", "{", "the numbers cannot be read: "),
        ("x.parquet", "PAR1", "the numbers cannot be read: "),
        ("x.npz", "", "the numbers cannot be read: "),
    ],
)  # fmt: skip
def test_unreadable_files_are_one_line(tmp_path: Path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        read_outputs(tmp_path / name, LABELS)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_missing_file_is_one_line(tmp_path: Path):
    with pytest.raises(DataError, match=r"x.csv: the file does not exist\."):
        read_outputs(tmp_path / "x.csv", LABELS)
