"""teacher + data → cache/<task>/: extraction meets the writer here, and nowhere else."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from kdcache.cache.location import Location
from kdcache.cache.writer import CacheWriter
from kdcache.data.metrics import compute_metrics
from kdcache.data.splits import existing_splits, metric_columns, read_split
from kdcache.data.task import Task, read_task
from kdcache.digests import file_digest
from kdcache.encoder.forward import Dtype
from kdcache.encoder.load import setup
from kdcache.errors import ModelError
from kdcache.params import Count
from kdcache.project import COST, Project, require, require_task
from kdcache.teacher.folder import read_identity
from kdcache.teacher.rows import Teacher

# How far a logit may move when it is computed again in another batch, as measured with a margin.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}


@dataclass(frozen=True)
class CacheTeacherParams:
    """Section ``cache_teacher``.

    Args:
        batch_size: rows per forward pass.
        dtype: what the teacher computes in; the manifest says how far bfloat16 moved the logits.
    """

    batch_size: Count
    dtype: Dtype = "float32"


def cache_teacher(project: Project, task_name: str) -> None:
    """Run every prepared row through the teacher and write the cache.

    With folds, a training row goes through the one fold teacher that never saw it, and a row
    of another split through all of them, its logits and features being their means; beside these
    stands what the teacher on all rows says. An ensemble speaks as the mean of its members, beside
    which stands what each of them says.
    Interrupted, the next run goes on after the last whole part.

    Raises:
        ModelError: no teacher in place, or one with other weights than its identity names.
        DataError: no prepared data, or other training rows than the teacher's.
        CacheError: the cache cannot be written.
    """
    params = project.section("cache_teacher", CacheTeacherParams)
    require_task(project, task_name)
    _teacher_folder(project, task_name)
    data = Path(project.paths.data) / task_name
    task = read_task(data, task_name)
    tables = {split: read_split(data, split, task) for split in existing_splits(data, task)}
    teacher = open_teacher(project, task, params, tables)
    cost = json.loads((teacher.folder / COST).read_text(encoding="utf-8"))

    location = Location.parse(project.paths.cache, task_name)
    digests = [file_digest(data / f"{split}.parquet") for split in tables]
    scratch = project.scratch(
        __name__, teacher.identity, params.batch_size, params.dtype, project.threads, digests
    )
    metrics, all_rows = {}, {}
    with CacheWriter(location, scratch) as writer:
        for split, table in tables.items():
            teacher.run(writer, split)
            scored: list[tuple[np.ndarray, np.ndarray]] = []
            writer.write(split, teacher.rows(writer, split, scored))
            ours, whole = (np.concatenate(part) for part in zip(*scored, strict=True))
            labels = table["label"].to_numpy()
            names, columns = task.metrics_of(split), metric_columns(table, task)
            metrics[split] = compute_metrics(names, labels, ours, columns)
            all_rows[split] = compute_metrics(names, labels, whole, columns)
        truncated = {split: int(encoded.truncated.sum()) for split, encoded in teacher.encoded.items()}
        forward = sum(teacher.passes(split) * len(tables[split]) for split in tables)
        manifest = writer.finish(
            teacher.identity, dtype=params.dtype, tolerance=TOLERANCE[params.dtype],
            drift={} if params.dtype == "float32" else teacher.drift("train"),
            metrics={k: v for k, v in metrics.items() if v},
            all_rows_teacher={k: v for k, v in all_rows.items() if v},
            cost={f"training_{key}": value for key, value in cost.items()}
            | {"forward_examples": forward, "truncated_examples": sum(truncated.values())},
        )  # fmt: skip
    rows = sum(entry["rows"] for entry in manifest.files.values())
    size = sum(entry["bytes"] for entry in manifest.files.values())
    print(f"{task_name}: cached {rows} rows, {size / rows:.0f} bytes/row")
    for split, count in truncated.items():
        if count:
            share = count / len(tables[split])
            print(f"{task_name} {split}: {share:.1%} of the rows lost tokens to max_length")


def open_teacher(
    project: Project, task: Task, params: CacheTeacherParams, tables: Mapping[str, pa.Table]
) -> Teacher:
    """The teacher of a task, ready for the prepared rows ``tables`` (split → table).

    Raises:
        ModelError: no teacher in place, or one with other weights than its identity names.
        DataError: other training rows than the teacher's.
    """
    folder = _teacher_folder(project, task.name)
    return Teacher(
        folder, task, read_identity(folder), tables, params.batch_size, params.dtype, setup(project.threads)
    )


def _teacher_folder(project: Project, task_name: str) -> Path:
    folder = Path(project.paths.teacher) / task_name
    return require(folder, "the teacher", f"kdcache teach --task {task_name}", ModelError)
