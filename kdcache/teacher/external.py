"""Import of any teacher's outputs as a cache, and export of a cache to such a file."""

from pathlib import Path

import numpy as np

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.exchange import (
    MIN_PROBABILITY,
    MissingMass,
    to_logits,
    write_outputs,
)
from kdcache.cache.ids import name_some
from kdcache.cache.location import Location
from kdcache.cache.manifest import EXTERNAL, Manifest, read_manifest
from kdcache.cache.read_outputs import Outputs, read_outputs, require_ending
from kdcache.cache.reader import load_cache
from kdcache.cache.schema import ALL_ROWS_TEACHER
from kdcache.cache.writer import CacheWriter
from kdcache.data.metrics import compute_metrics
from kdcache.data.splits import TEST, metric_columns, read_tables
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
    task, tables = read_tables(project.paths.data, task_name)
    outputs = read_outputs(path, task.labels, id_column)
    logits = to_logits(outputs, missing_mass, str(path))
    row_of = {example_id: row for row, example_id in enumerate(outputs.example_id)}
    known = dict.fromkeys(i for table in tables.values() for i in table["example_id"].to_pylist())
    if unknown := [i for i in outputs.example_id if i not in known]:
        raise DataError(
            f"{path}: every id must be in {project.paths.data}/{task_name}, got unknown "
            f"{name_some(unknown)}. The ids there look like {next(iter(known), '')!r}."
        )

    identity = {
        "kind": EXTERNAL, "task": task.name, "template": task.template, "labels": list(task.labels),
        "num_labels": task.num_labels, "source": path.name, "source_sha256": file_digest(path),
        "given": outputs.kind, "missing_mass": missing_mass, "floor": MIN_PROBABILITY,
    }  # fmt: skip
    metrics = {}
    scratch = project.scratch(__name__, identity)
    with CacheWriter(Location.parse(project.paths.cache, task_name), scratch) as writer:
        for split, table in tables.items():
            ids, hashes = table["example_id"].to_pylist(), table["content_hash"].to_pylist()
            if split != "train" and not any(i in row_of for i in ids):
                continue
            _require_rows(path, split, ids, hashes, outputs, row_of)
            rows, labels = [row_of[i] for i in ids], table["label"].to_numpy()
            folds = np.full(len(ids), ALL_ROWS_TEACHER, np.int8)
            writer.write(split, [CacheRows(ids, hashes, labels, folds, logits[rows], outputs.features[rows])])
            if split != TEST:
                metrics[split] = compute_metrics(
                    task.metrics_of(split), labels, logits[rows], metric_columns(table, task)
                )
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
    rows = CacheRows.joined([load_cache(location, split).rows for split in chosen])
    with replacing(path) as part:
        write_outputs(rows, manifest.identity["labels"], part)
    return len(rows)


def _require_rows(
    path: Path, split: str, ids: list[str], hashes: list[str], outputs: Outputs, row_of: dict[str, int]
) -> None:
    missing = [i for i in ids if i not in row_of]
    if missing:
        raise DataError(
            f"{path}: every row of {split} must be in the file, got none for {name_some(missing)}."
        )
    found = outputs.content_hash
    if found is None:
        return
    changed = [i for i, expected in zip(ids, hashes, strict=True) if found[row_of[i]] != expected]
    if changed:
        raise DataError(
            f"{path}: the texts must be those of the prepared data, got another content_hash for "
            f"{name_some(changed)}."
        )
