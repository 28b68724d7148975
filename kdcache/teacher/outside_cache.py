"""Import of outside teachers' outputs as a cache, and export of a cache to such a file."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.exchange import MissingMass, write_outputs
from kdcache.cache.join import Keys, batches_of
from kdcache.cache.manifest import Manifest, read_manifest
from kdcache.cache.read_outputs import require_ending
from kdcache.cache.reader import load_cache
from kdcache.cache.schema import ALL_ROWS_TEACHER, top_k_of
from kdcache.cache.writer import CacheWriter
from kdcache.data.ids import name_some
from kdcache.data.metrics import COLUMNS_READ, compute_metrics
from kdcache.data.splits import TEST, metric_columns, open_tables
from kdcache.data.task import Task
from kdcache.places import replacing
from kdcache.project import Project, require_task
from kdcache.store.location import Location
from kdcache.teacher.outside_outputs import OutsideTeachers, open_outside, refuse_unknown


def import_cache(
    project: Project, task_name: str, path: Path, missing_mass: MissingMass = "refuse",
    id_column: str = "example_id", weights: Mapping[str, float] | None = None,
) -> Manifest:  # fmt: skip
    """Make a cache from the outputs of a teacher that kdcache did not run, or of several, averaged.

    Rows are joined to the prepared data by id, in all splits. A split without any row in the files is
    left out, except train. A split with only some of its rows in a file is refused.

    Args:
        project: the project.
        task_name: the task.
        path: a file, see ``cache.read_outputs``, or a folder with one per teacher.
        missing_mass: see ``cache.exchange.to_logits``.
        id_column: name of the column of ids.
        weights: name of a file without its ending → weight of that teacher's probabilities; without weights
            all count alike.

    Returns:
        The manifest. Its identity is of kind ``external``, with the files' digests and the weights.

    Raises:
        DataError: there are no prepared data, or a file does not fit them, or the weights not the files.
        CacheError: the cache cannot be written.
    """
    require_task(project, task_name)
    task, files = open_tables(project.paths.data, task_name)
    scratch = Path(project.paths.scratch)
    with open_outside(path, weights or {}, task, missing_mass, id_column, scratch) as outside:
        refuse_unknown(outside, f"{project.paths.data}/{task_name}", files, id_column, task)
        identity = outside.identity(task, missing_mass)
        metrics: dict[str, dict[str, float]] = {}
        location = Location.parse(project.paths.cache, task_name)
        made = project.scratch(__name__, identity, project.paths.cache, goes_on=False)
        with CacheWriter(location, made, parts=project.paths.parts) as writer:
            for split, file in files.items():
                keys = Keys.of(batches_of(file))
                rows = outside.rows(keys.ids)
                if split != "train" and not (rows >= 0).any():
                    continue
                outside.require_rows(split, batches_of(file), keys, rows)
                del keys  # of its arrays only ``rows`` are needed to write the split
                metrics[split] = _write_split(writer, task, split, file, rows, outside)
            metrics = {split: scores for split, scores in metrics.items() if scores}
            cost = dict.fromkeys(("training_steps", "training_examples", "forward_examples"), 0)
            if without := [str(teacher.path) for teacher in outside.teachers if not teacher.hashed]:
                print(
                    f"{task_name}: no content_hash in {name_some(without)}, so outputs are matched to rows "
                    "by id alone. Make them anew when texts or the order of rows change.", file=sys.stderr,
                )  # fmt: skip
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
    if top_k := top_k_of(manifest.schema):
        print(
            f"export: {location} keeps {top_k} logits of a row; its other labels have one in common, and a "
            "cache imported from the file takes that for theirs.", file=sys.stderr,
        )  # fmt: skip
    vectors = None if path.suffix in (".parquet", ".npz") else ("logits",)
    with replacing(path) as part:
        return write_outputs(
            lambda: (rows for split in cached for rows in split.stream(vectors)),
            manifest.identity["labels"], part,
        )  # fmt: skip


def _write_split(
    writer: CacheWriter, task: Task, split: str, file: pq.ParquetFile, rows: np.ndarray,
    outside: OutsideTeachers,
) -> dict[str, float]:  # fmt: skip
    """Write the rows of a split in the order of the data; return metrics of its logits, but for test."""
    names = task.metrics_of(split)
    ranked = any(name in COLUMNS_READ for name in names)
    answers: list[np.ndarray] = []
    labels: list[np.ndarray] = []  # as little as is needed for scores is held of each row

    def chunks() -> Iterator[CacheRows]:
        start = 0
        for batch in batches_of(file)():
            of = rows[:, start : start + len(batch)]
            start += len(batch)
            found = outside.logits(of)
            label = batch["label"].to_numpy()
            labels.append(label.astype(np.int32))
            answers.append(found if ranked else found.argmax(axis=1).astype(np.int32))
            yield CacheRows(
                batch["example_id"].to_pylist(), batch["content_hash"].to_pylist(), label,
                np.full(len(batch), ALL_ROWS_TEACHER, np.int8), found, outside.features(of),
            )  # fmt: skip

    writer.write(split, chunks())
    if split == TEST:
        return {}
    columns = file.read(columns=list(task.columns))
    return compute_metrics(
        names, np.concatenate(labels), np.concatenate(answers), metric_columns(columns, task)
    )
