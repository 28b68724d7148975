"""A teacher's outputs from and to other people's files: CSV, JSON lines, Parquet, npz.

A file gives, per example id, one number per label: logits, probabilities or log-probabilities.
They stand in one column each (``logit_0``, ``probability_true``, ``logprob_2``; the label by
index or by name), or all in one list (``logits``, ``probabilities``, ``logprobs``), or, in JSON
lines, in a mapping from label to number under one of these names.
"""

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from kdcache.cache.ids import name_some
from kdcache.cache.rows import CacheRows
from kdcache.errors import DataError

KINDS = {"logits": "logit", "probabilities": "probability", "logprobs": "logprob"}
FLOOR = 1e-6  # the least probability a label can have: a logit must be finite
SUM_TOLERANCE = 1e-3

MissingMass = Literal["refuse", "renormalise", "spread"]


@dataclass(frozen=True)
class Outputs:
    """What a file says of its examples.

    Args:
        example_id: of each row; ids are unique.
        kind: a key of ``KINDS``.
        values: float64 array of shape (rows, num_labels), NaN where a label has no number.
        features: float32 array of shape (rows, dim); dim 0 where the file has none.
        content_hash: of each row, where the file has them.
    """

    example_id: list[str]
    kind: str
    values: np.ndarray
    features: np.ndarray
    content_hash: list[str] | None


def read_outputs(path: Path, labels: Sequence[str], id_column: str = "example_id") -> Outputs:
    """Read a teacher's outputs; the format follows from the file's ending.

    Args:
        path: a .csv, .jsonl, .parquet or .npz file.
        labels: the task's label names, in index order.
        id_column: the column that holds the ids.

    Raises:
        DataError: no such file, another ending, no ids or none of the columns, an id twice.
    """
    readers: dict[str, Callable[[Path, str], dict[str, Any]]] = {
        ".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet, ".npz": _read_npz,
    }  # fmt: skip
    if path.suffix not in readers:
        raise DataError(
            f"{path}: the file must end in {', '.join(readers)}, got {path.suffix or 'no ending'}."
        )
    if not path.is_file():
        raise DataError(f"{path}: the file must exist, got nothing there.")
    try:
        columns = readers[path.suffix](path, id_column)
        kind, values = _values(path, columns, labels)
        features = np.array(columns.get("features", np.empty((len(values), 0))), dtype=np.float32)
    except (
        ValueError,
        TypeError,
        KeyError,
        OSError,
        EOFError,
        zipfile.BadZipFile,
        pa.ArrowException,
    ) as error:
        # each reader has errors of its own
        raise DataError(
            f"{path}: the numbers must be readable, got: {str(error).splitlines()[0].rstrip('.')}."
        ) from None
    if id_column not in columns:
        raise DataError(
            f"{path}: the column {id_column} must hold the ids, got columns {', '.join(columns)}. "
            "Name another with --id-column."
        )
    ids = [str(i) for i in columns[id_column]]
    seen: set[str] = set()
    twice = [i for i in ids if i in seen or seen.add(i)]  # type: ignore[func-returns-value]
    if twice:
        raise DataError(f"{path}: ids must be unique, got twice {name_some(twice)}.")
    hashes = columns.get("content_hash")
    return Outputs(ids, kind, values, features, None if hashes is None else [str(h) for h in hashes])


def to_logits(outputs: Outputs, policy: MissingMass, where: str) -> np.ndarray:
    """Turn outputs into logits whose softmax they are: logits as they are, the rest by log.

    A row lacks mass where its probabilities do not sum to 1 (label words are a few of all the
    words a language model could say) or where labels have no number (an API that shows the top
    few). The policies: ``refuse`` such rows; ``renormalise`` what is given, a label without a
    number getting 1e-6; ``spread`` the missing mass evenly over the labels without a number, or
    over all where each has one.

    Args:
        outputs: see ``read_outputs``.
        policy: what to do with missing mass.
        where: the file, for messages.

    Returns:
        float32 array of shape (rows, num_labels), finite.

    Raises:
        DataError: numbers that are no probabilities, or missing mass under ``refuse``; names ids.

    >>> some = Outputs(["a"], "probabilities", np.array([[0.5, 0.3]]), np.empty((1, 0)), None)
    >>> np.exp(to_logits(some, "spread", "x.csv")).round(3).tolist()
    [[0.6000000238418579, 0.4000000059604645]]
    """

    def refuse(what: str, wrong: np.ndarray, remedy: str = "") -> None:
        ids = [outputs.example_id[i] for i in np.flatnonzero(wrong)]
        if ids:
            raise DataError(f"{where}: {what} {name_some(ids)}.{remedy}")

    values, given = outputs.values, ~np.isnan(outputs.values)
    if outputs.kind == "logits":
        refuse("each label must have a finite logit, got others for", ~np.isfinite(values).all(axis=1))
        return values.astype(np.float32)
    p = np.where(given, np.exp(values) if outputs.kind == "logprobs" else values, 0.0)
    total = p.sum(axis=1)
    refuse(
        f"{outputs.kind} must lie between 0 and 1 and sum to at most 1, got others for",
        (p < 0).any(axis=1) | ~(total <= 1 + SUM_TOLERANCE) | (total <= 0),
    )
    if policy == "refuse":
        refuse(
            f"{outputs.kind} must be given for each label and sum to 1, got less for",
            ~given.all(axis=1) | (total < 1 - SUM_TOLERANCE),
            " Choose what becomes of the rest: --missing-mass renormalise or spread.",
        )
    if policy == "spread":
        takers = np.where(given.all(axis=1, keepdims=True), True, ~given)
        p = p + takers * np.clip(1 - total, 0, None)[:, None] / takers.sum(axis=1, keepdims=True)
    p = np.clip(p, FLOOR, None)
    return np.log(p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def write_outputs(rows: CacheRows, path: Path) -> None:
    """Write cached rows as a file that ``read_outputs`` reads; features only where they are vectors.

    Args:
        rows: of one or more splits.
        path: a .csv or .jsonl (flat, logits alone), .parquet or .npz file (features too).

    Raises:
        DataError: another ending.
    """
    flat = {"example_id": rows.example_id, "label": rows.label.tolist(), "content_hash": rows.content_hash}
    logits = {f"logit_{k}": rows.logits[:, k] for k in range(rows.logits.shape[1])}
    if path.suffix == ".csv":
        pa.csv.write_csv(pa.table({**flat, **logits}), path)
    elif path.suffix == ".jsonl":
        lines = zip(*flat.values(), rows.logits.tolist(), strict=True)
        text = "".join(json.dumps(dict(zip((*flat, "logits"), line, strict=True))) + "\n" for line in lines)
        path.write_text(text, encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(rows.to_table(), path)
    elif path.suffix == ".npz":
        kept = {name: values for name, values in rows.vectors.items() if values.shape[1]}
        np.savez(path, allow_pickle=False, **{k: np.array(v) for k, v in flat.items()}, **kept)
    else:
        raise DataError(f"{path}: the file must end in .csv, .jsonl, .parquet, .npz, got {path.suffix!r}.")


def _read_csv(path: Path, id_column: str) -> dict[str, Any]:
    text = pa.csv.ConvertOptions(column_types={id_column: pa.string(), "content_hash": pa.string()})
    return pa.csv.read_csv(path, convert_options=text).to_pydict()


def _read_jsonl(path: Path, _id_column: str) -> dict[str, Any]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = {name: None for row in rows for name in row}
    return {name: [row.get(name) for row in rows] for name in names}


def _read_parquet(path: Path, _id_column: str) -> dict[str, Any]:
    return pq.read_table(path).to_pydict()


def _read_npz(path: Path, _id_column: str) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays}


def _values(path: Path, columns: dict[str, Any], labels: Sequence[str]) -> tuple[str, np.ndarray]:
    """Find the numbers: (kind, array of shape (rows, num_labels))."""
    for kind, prefix in KINDS.items():
        flat = [next((n for n in (f"{prefix}_{k}", f"{prefix}_{name}") if n in columns), None)
                for k, name in enumerate(labels)]  # fmt: skip
        if all(flat):
            return kind, np.array([columns[name] for name in flat if name], dtype=np.float64).T
        if kind in columns:
            rows = columns[kind]
            if len(rows) and isinstance(rows[0], dict):
                rows = [[row.get(name) for name in labels] for row in rows]
            values = np.array(rows, dtype=np.float64)
            if values.shape[1:] != (len(labels),):
                raise DataError(
                    f"{path}: {kind} must hold {len(labels)} numbers per row ({', '.join(labels)}), "
                    f"got shape {values.shape}."
                )
            return kind, values
    shown = ", ".join(f"{prefix}_{labels[0]} …" for prefix in KINDS.values())
    raise DataError(
        f"{path}: it must hold {', '.join(KINDS)} or columns {shown} for {', '.join(labels)}, "
        f"got {', '.join(columns)}."
    )
