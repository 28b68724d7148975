"""Import of any teacher's outputs as a cache, and export of a cache to such a file."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.exchange import (
    MIN_PROBABILITY,
    MissingMass,
    to_logits,
    write_outputs,
)
from kdcache.cache.ids import name_some, repeated
from kdcache.cache.join import Batches, Keys, batches_of, hash_ids, name_chosen
from kdcache.cache.location import Location
from kdcache.cache.manifest import EXTERNAL, Manifest, read_manifest
from kdcache.cache.read_outputs import require_ending, stream_outputs
from kdcache.cache.reader import load_cache
from kdcache.cache.schema import ALL_ROWS_TEACHER
from kdcache.cache.spill import Spill
from kdcache.cache.writer import CacheWriter
from kdcache.data.metrics import COLUMNS_READ, compute_metrics
from kdcache.data.splits import TEST, metric_columns, open_tables
from kdcache.data.task import Task
from kdcache.digests import file_digest
from kdcache.errors import DataError
from kdcache.places import replacing
from kdcache.project import Project, require_task


def import_cache(
    project: Project, task_name: str, path: Path, missing_mass: MissingMass = "refuse",
    id_column: str = "example_id",
) -> Manifest:  # fmt: skip
    """Make a cache from the outputs of a teacher that kdcache did not run.

    Rows are joined to the prepared data by id, in all splits. A split without any row in the file is
    left out, except train. A split with only some of its rows in the file is refused.

    Args:
        project: the project.
        task_name: the task.
        path: see ``cache.read_outputs``.
        missing_mass: see ``cache.exchange.to_logits``.
        id_column: name of the column of ids.

    Returns:
        The manifest. Its identity is of kind ``external`` and holds the digest of the file.

    Raises:
        DataError: there are no prepared data, or the file does not fit them.
        CacheError: the cache cannot be written.
    """
    require_task(project, task_name)
    task, files = open_tables(project.paths.data, task_name)
    scratch = Path(project.paths.scratch)
    with contextlib.closing(Spill(scratch)) as logits, contextlib.closing(Spill(scratch)) as features:
        given = _read_given(path, task, missing_mass, id_column, logits, features)
        _refuse_unknown(path, f"{project.paths.data}/{task_name}", files, given, id_column, task)
        identity = {
            "kind": EXTERNAL, "task": task.name, "template": task.template, "labels": list(task.labels),
            "num_labels": task.num_labels, "source": path.name, "source_sha256": file_digest(path),
            "given": given.kind, "missing_mass": missing_mass, "floor": MIN_PROBABILITY,
        }  # fmt: skip
        metrics: dict[str, dict[str, float]] = {}
        location = Location.parse(project.paths.cache, task_name)
        with CacheWriter(location, project.scratch(__name__, identity)) as writer:
            for split, file in files.items():
                keys = Keys.of(batches_of(file))
                row = given.keys.find(keys.ids)
                if split != "train" and not (row >= 0).any():
                    continue
                _require_rows(path, split, batches_of(file), keys, given, row)
                scores = _write_split(writer, task, split, file, row, logits, features)
                if split != TEST:
                    metrics[split] = scores
            metrics = {split: scores for split, scores in metrics.items() if scores}
            cost = dict.fromkeys(("training_steps", "training_examples", "forward_examples"), 0)
            return writer.finish(identity, metrics=metrics, all_rows_teacher=metrics, cost=cost)


def export_cache(project: Project, task_name: str, splits: list[str], path: Path) -> int:
    """Write cached rows as a file that ``import_cache`` reads.

    Args:
        project: the project.
        task_name: the task.
        splits: to write; empty writes all.
        path: a .csv, .jsonl, .parquet or .npz file.

    Returns:
        Number of rows written.

    Raises:
        CacheError: there is no such cache or split.
        DataError: the file has another ending.
    """
    require_task(project, task_name)
    require_ending(path)
    location = Location.parse(project.paths.cache, task_name)
    manifest = read_manifest(location)
    chosen = splits or manifest.splits
    cached = [load_cache(location, split) for split in chosen]
    vectors = None if path.suffix in (".parquet", ".npz") else ("logits",)
    with replacing(path) as part:
        return write_outputs(
            lambda: (rows for split in cached for rows in split.stream(vectors)),
            manifest.identity["labels"], part,
        )  # fmt: skip


@dataclass(frozen=True)
class _Given:
    """What a file holds, besides its numbers: the kind of these, and its rows by hashes."""

    kind: str
    keys: Keys
    hashed: bool


def _read_given(
    path: Path, task: Task, policy: MissingMass, id_column: str, logits: Spill, features: Spill
) -> _Given:
    """Read a file once, a part at a time; its numbers go to disk in the order of the file."""
    ids, texts, kind, hashed = [], [], "", False
    for part in stream_outputs(path, task.labels, id_column):
        logits.append(to_logits(part, policy, str(path)))
        features.append(part.features)
        ids.append(hash_ids(part.example_id))
        texts.append(hash_ids(part.content_hash or [""] * len(part.example_id)))
        kind, hashed = part.kind, part.content_hash is not None
    keys = Keys(np.concatenate(ids), np.concatenate(texts), np.empty(0, np.int64))
    ordered = np.sort(keys.ids)
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if suspects:
        parts = stream_outputs(path, task.labels, id_column)
        if twice := repeated(i for part in parts for i in part.example_id if hash(i) in suspects):
            raise DataError(f"{path}: ids must be unique, got twice {name_some(twice)}.")
    return _Given(kind, keys, hashed)


def _refuse_unknown(
    path: Path, data: str, files: dict[str, pq.ParquetFile], given: _Given, id_column: str, task: Task
) -> None:
    known = np.concatenate([Keys.of(batches_of(file)).ids for file in files.values()])
    strange = ~np.isin(given.keys.ids, known)
    if not strange.any():
        return
    example = next(iter(next(iter(files.values())).iter_batches(1, columns=["example_id"])))["example_id"][0]
    ids: list[str] = []
    start = 0
    for part in stream_outputs(path, task.labels, id_column):
        ids += [part.example_id[i] for i in np.flatnonzero(strange[start : start + len(part.example_id)])]
        start += len(part.example_id)
    raise DataError(
        f"{path}: every id must be in {data}, got unknown {name_some(ids)}. The ids there look like "
        f"{example.as_py()!r}."
    )


def _write_split(
    writer: CacheWriter, task: Task, split: str, file: pq.ParquetFile, row: np.ndarray, logits: Spill,
    features: Spill,
) -> dict[str, float]:  # fmt: skip
    """Write the rows of a split in the order of the data; return the metrics of their logits."""
    names = task.metrics_of(split)
    ranked = any(name in COLUMNS_READ for name in names)
    answers: list[np.ndarray] = []
    labels: list[np.ndarray] = []

    def chunks() -> Iterator[CacheRows]:
        start = 0
        for batch in batches_of(file)():
            rows = row[start : start + len(batch)]
            start += len(batch)
            found = logits.take(rows)
            labels.append(batch["label"].to_numpy())
            answers.append(found if ranked else found.argmax(axis=1).astype(np.int32))
            yield CacheRows(
                batch["example_id"].to_pylist(), batch["content_hash"].to_pylist(), labels[-1],
                np.full(len(batch), ALL_ROWS_TEACHER, np.int8), found, features.take(rows),
            )  # fmt: skip

    writer.write(split, chunks())
    columns = file.read(columns=list(task.columns))
    return compute_metrics(
        names, np.concatenate(labels), np.concatenate(answers), metric_columns(columns, task)
    )


def _require_rows(path: Path, split: str, data: Batches, keys: Keys, given: _Given, row: np.ndarray) -> None:
    missing = row < 0
    if missing.any():
        raise DataError(
            f"{path}: every row of {split} must be in the file, got none for {name_chosen(data, missing)}."
        )
    changed = given.keys.texts[row] != keys.texts
    if given.hashed and changed.any():
        raise DataError(
            f"{path}: the texts must be those of the prepared data, got another content_hash for "
            f"{name_chosen(data, changed)}."
        )
