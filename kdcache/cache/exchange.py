"""Outputs of any teacher: to logits, and from a cache to a file that other tools read."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.npz import write_npz
from kdcache.cache.read_outputs import Outputs
from kdcache.data.ids import name_some
from kdcache.errors import DataError

MIN_PROBABILITY = 1e-6  # the smallest probability of a label, so that its logit is finite
SUM_TOLERANCE = 1e-3

MissingMass = Literal["refuse", "renormalise", "spread"]


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

    >>> some = Outputs(["a"], "probabilities", np.array([[0.5, 0.3]]), np.empty((1, 0)), None, np.array([-1]))
    >>> np.exp(to_logits(some, "spread", "x.csv")).round(3).tolist()
    [[0.6000000238418579, 0.4000000059604645]]
    """

    def refuse(what: str, wrong: np.ndarray, remedy: str = "") -> None:
        ids = [outputs.example_id[i] for i in np.flatnonzero(wrong)]
        if ids:
            raise DataError(f"{where}: {what} {name_some(ids)}.{remedy}")

    values, given = outputs.values, ~np.isnan(outputs.values)
    if outputs.kind == "logits":
        fits = (np.abs(values) <= np.finfo(np.float32).max).all(axis=1)
        refuse("each label must have a finite logit, got others for", ~fits)
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
    if policy == "renormalise":  # before any is raised to the smallest: all of a row may be below that
        p /= total[:, None]
    return _log(p)


def mean_logits(logits: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Average several teachers' probabilities, and return the logarithms of the mean.

    Probabilities, not logits: a teacher of large logits would drown the others, and one probability of 0
    would decide on a label alone.

    Args:
        logits: one float32 array of shape (rows, num_labels) per teacher.
        weights: of the teachers; they sum to 1.

    Returns:
        float32 array of shape (rows, num_labels), finite.

    >>> sure, unsure = np.log([[0.9, 0.1]]), np.log([[0.5, 0.5]])
    >>> np.exp(mean_logits([sure, unsure], [0.75, 0.25])).round(3).tolist()
    [[0.800000011920929, 0.20000000298023224]]
    """
    mean = np.zeros(logits[0].shape)
    for given, weight in zip(logits, weights, strict=True):
        z = given.astype(np.float64)
        p = np.exp(z - z.max(axis=1, keepdims=True))
        mean += weight * p / p.sum(axis=1, keepdims=True)
    return _log(mean)


def _log(p: np.ndarray) -> np.ndarray:
    """The logarithms of probabilities, none smaller than that of ``MIN_PROBABILITY``; float32."""
    p = np.clip(p, MIN_PROBABILITY, None)
    return np.log(p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def write_outputs(stream: Callable[[], Iterable[CacheRows]], labels: Sequence[str], path: Path) -> int:
    """Write cached rows, part by part, as a file that ``read_outputs`` reads.

    Args:
        stream: opens the rows of one or more splits.
        labels: their names, in index order; CSV names its columns by them.
        path: a .csv or .jsonl file (logits only), or a .parquet or .npz file (features too).

    Returns:
        Number of rows.
    """
    if path.suffix == ".npz":
        return _write_arrays(stream, path)
    count = 0
    writer: Any = None
    with contextlib.ExitStack() as open_files:
        for rows in stream():
            count += len(rows)
            table = rows.to_table() if path.suffix == ".parquet" else _flat_table(rows, labels)
            if path.suffix == ".jsonl":
                writer = writer or open_files.enter_context(path.open("w", encoding="utf-8"))
                lines = zip(
                    rows.example_id, rows.label.tolist(), rows.content_hash, rows.logits.tolist(), strict=True
                )
                names = ("example_id", "label", "content_hash", "logits")
                writer.writelines(json.dumps(dict(zip(names, line, strict=True))) + "\n" for line in lines)
                continue
            kind: Any = pq.ParquetWriter if path.suffix == ".parquet" else pa.csv.CSVWriter
            writer = writer or open_files.enter_context(kind(path, table.schema))
            writer.write_table(table)
    return count


def _flat_table(rows: CacheRows, labels: Sequence[str]) -> pa.Table:
    flat = {"example_id": rows.example_id, "label": rows.label.tolist(), "content_hash": rows.content_hash}
    return pa.table({**flat, **{f"logit_{name}": rows.logits[:, k] for k, name in enumerate(labels)}})


def _write_arrays(stream: Callable[[], Iterable[CacheRows]], path: Path) -> int:
    count, widths = 0, {"example_id": 1, "content_hash": 1}
    columns: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    for rows in stream():
        count += len(rows)
        for name in widths:
            widths[name] = max(widths[name], max(map(len, getattr(rows, name)), default=1))
        columns = {name: (v.dtype, v.shape[1:]) for name, v in rows.vectors.items() if v.shape[1]}
    texts = {name: (np.dtype(f"<U{width}"), ()) for name, width in widths.items()}
    label: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {"label": (np.dtype(np.int64), ())}

    def parts(name: str) -> Iterator[Any]:
        for rows in stream():
            yield rows.vectors[name] if name in columns else getattr(rows, name)

    write_npz(path, count, {**texts, **label, **columns}, parts)
    return count
