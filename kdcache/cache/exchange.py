"""Files of any teacher's outputs, to import and export: CSV, JSON lines, Parquet and npz.

A file holds, per example id, one number per label: logits, probabilities or log-probabilities.
The numbers are in one column per label (``logit_0``, ``probability_true``, ``logprob_2``; the label
by index or by name), or in one list (``logits``, ``probabilities``, ``logprobs``), or, in JSON
lines, in a mapping from label to number under one of these names.
"""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.ids import name_some, repeated
from kdcache.errors import DataError

KINDS = {"logits": "logit", "probabilities": "probability", "logprobs": "logprob"}
MIN_PROBABILITY = 1e-6  # the smallest probability of a label, so that its logit is finite
SUM_TOLERANCE = 1e-3

FILE_ENDINGS = (".csv", ".jsonl", ".parquet", ".npz")
# What the readers of the four formats raise on broken files.
READ_ERRORS = (
    ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile, pa.ArrowException,
)  # fmt: skip

MissingMass = Literal["refuse", "renormalise", "spread"]


@dataclass(frozen=True)
class Outputs:
    """The content of a file.

    Args:
        example_id: of each row; ids are unique.
        kind: a key of ``KINDS``.
        values: float64 array of shape (rows, num_labels), NaN for a label without a number.
        features: float32 array of shape (rows, dim); dim is 0 if the file has no features.
        content_hash: of each row, if the file has them.
    """

    example_id: list[str]
    kind: str
    values: np.ndarray
    features: np.ndarray
    content_hash: list[str] | None


def read_outputs(path: Path, labels: Sequence[str], id_column: str = "example_id") -> Outputs:
    """Read a teacher's outputs. The file's ending decides the format.

    Args:
        path: a .csv, .jsonl, .parquet or .npz file.
        labels: the task's label names, in index order.
        id_column: name of the column of ids.

    Raises:
        DataError: the file is missing, has another ending, lacks ids or numbers, or repeats an id.
    """
    readers = {
        ".csv": lambda: _read_csv(path, id_column), ".jsonl": lambda: _read_jsonl(path),
        ".parquet": lambda: pq.read_table(path).to_pydict(), ".npz": lambda: _read_npz(path),
    }  # fmt: skip
    _require_ending(path)
    if not path.is_file():
        raise DataError(f"{path}: the file does not exist.")
    try:
        columns = readers[path.suffix]()
        kind, values = _find_values(path, columns, labels)
        features = np.array(columns.get("features", np.empty((len(values), 0))), dtype=np.float32)
    except READ_ERRORS as error:
        raise DataError(
            f"{path}: the numbers cannot be read: {str(error).splitlines()[0].rstrip('.')}."
        ) from None
    if id_column not in columns:
        raise DataError(
            f"{path}: the column {id_column} must hold the ids, got columns {', '.join(columns)}. "
            "Name the column of ids with --id-column."
        )
    ids = [str(i) for i in columns[id_column]]
    if twice := repeated(ids):
        raise DataError(f"{path}: ids must be unique, got twice {name_some(twice)}.")
    hashes = columns.get("content_hash")
    return Outputs(ids, kind, values, features, None if hashes is None else [str(h) for h in hashes])


def to_logits(outputs: Outputs, policy: MissingMass, where: str) -> np.ndarray:
    """Turn outputs into logits: logits stay as they are, probabilities become their logarithms.

    A row has missing mass if its probabilities do not sum to 1 (a language model's label words are
    only a few of all words) or if a label has no number (an API that returns the top few).
    ``refuse`` rejects such rows. ``renormalise`` scales the given probabilities to a sum of 1; a label
    without a number gets 1e-6. ``spread`` adds the missing mass evenly to the labels without a
    number, or to all labels if each has one.

    Args:
        outputs: see ``read_outputs``.
        policy: for missing mass.
        where: name of the file, for messages.

    Returns:
        float32 array of shape (rows, num_labels), finite.

    Raises:
        DataError: a number is not a probability, or mass is missing under ``refuse``; names the ids.

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
            " Choose a policy: --missing-mass renormalise or spread.",
        )
    if policy == "spread":
        takers = np.where(given.all(axis=1, keepdims=True), True, ~given)
        p = p + takers * np.clip(1 - total, 0, None)[:, None] / takers.sum(axis=1, keepdims=True)
    p = np.clip(p, MIN_PROBABILITY, None)
    return np.log(p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def write_outputs(rows: CacheRows, path: Path) -> None:
    """Write cached rows as a file that ``read_outputs`` reads.

    Args:
        rows: of one or more splits.
        path: a .csv or .jsonl file (logits only), or a .parquet or .npz file (features too).

    Raises:
        DataError: the file has another ending.
    """
    _require_ending(path)
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
    else:
        kept = {name: values for name, values in rows.vectors.items() if values.shape[1]}
        np.savez(path, allow_pickle=False, **{k: np.array(v) for k, v in flat.items()}, **kept)


def _require_ending(path: Path) -> None:
    if path.suffix not in FILE_ENDINGS:
        raise DataError(
            f"{path}: the file must end in {', '.join(FILE_ENDINGS)}, got {path.suffix or 'no ending'}."
        )


def _read_csv(path: Path, id_column: str) -> dict[str, Any]:
    text = pa.csv.ConvertOptions(column_types={id_column: pa.string(), "content_hash": pa.string()})
    return pa.csv.read_csv(path, convert_options=text).to_pydict()


def _read_jsonl(path: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = {name: None for row in rows for name in row}
    return {name: [row.get(name) for row in rows] for name in names}


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays}


def _find_values(path: Path, columns: dict[str, Any], labels: Sequence[str]) -> tuple[str, np.ndarray]:
    """Find the kind of the numbers, and the numbers in shape (rows, num_labels)."""
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
        f"{path}: the file must hold {', '.join(KINDS)} or columns {shown} for {', '.join(labels)}, "
        f"got {', '.join(columns)}."
    )
