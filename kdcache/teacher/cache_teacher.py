"""Stage cache_teacher: the teacher's logits and features of every prepared row, written as a cache."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.location import Location
from kdcache.cache.manifest import read_identity_of
from kdcache.cache.schema import TOLERANCE
from kdcache.cache.teacher_pooling import check_teacher_pooling
from kdcache.cache.writer import CacheWriter
from kdcache.data.metrics import compute_metrics
from kdcache.data.splits import TEST, metric_columns, read_tables
from kdcache.data.task import Task
from kdcache.digests import file_digest
from kdcache.encoder.forward import Dtype
from kdcache.encoder.load import setup
from kdcache.errors import ModelError
from kdcache.params import Count
from kdcache.project import Project, require, require_task
from kdcache.teacher.extraction import Teacher
from kdcache.teacher.folder import COST, PROBE, read_identity


@dataclass(frozen=True)
class CacheTeacherParams:
    """Section ``cache_teacher``.

    Args:
        batch_size: rows per forward pass.
        dtype: of the computation. The manifest records how far bfloat16 moved the logits.
    """

    batch_size: Count
    dtype: Dtype = "float32"


def cache_teacher(project: Project, task_name: str) -> None:
    """Run the teacher on every prepared row and write the cache.

    With folds, the logits of a training row come from the teacher that was trained without its fold;
    the logits and features of any other row are means over the teachers of all folds. The logits of
    the teacher trained on all rows are stored too. An ensemble's logits and features are means over
    its members, and the logits of each member are stored too. An interrupted run resumes after the
    last stored part.

    Raises:
        ModelError: there is no teacher, its weights do not have the digests in its identity, or it pools in
            another way than the parameters say.
        DataError: there are no prepared data, or the training rows are not those of the teacher.
        CacheError: the cache cannot be written.
    """
    params = project.section("cache_teacher", CacheTeacherParams)
    require_task(project, task_name)
    check_teacher_pooling(project, task_name, read_identity_of(_require_teacher(project, task_name)) or {})
    task, tables = read_tables(project.paths.data, task_name)
    teacher = open_teacher(project, task, params, tables)
    cost = json.loads((teacher.folder / COST).read_text(encoding="utf-8"))
    of_probe = teacher.folder / PROBE  # teachers had none before they started from it
    probe = json.loads(of_probe.read_text(encoding="utf-8")) if of_probe.is_file() else None

    location = Location.parse(project.paths.cache, task_name)
    data = Path(project.paths.data) / task_name
    digests = [file_digest(data / f"{split}.parquet") for split in tables]
    scratch = project.scratch(
        __name__, teacher.identity, params.batch_size, params.dtype, project.threads, digests
    )
    metrics, all_rows_metrics = {}, {}
    with CacheWriter(location, scratch) as writer:
        for split, table in tables.items():
            teacher.run(writer, split)
            scored: list[tuple[np.ndarray, np.ndarray]] = []
            writer.write(split, _record(teacher.rows(writer, split), scored))
            logits, all_rows_logits = (np.concatenate(part) for part in zip(*scored, strict=True))
            if split == TEST:
                continue
            labels = table["label"].to_numpy()
            names, columns = task.metrics_of(split), metric_columns(table, task)
            metrics[split] = compute_metrics(names, labels, logits, columns)
            all_rows_metrics[split] = compute_metrics(names, labels, all_rows_logits, columns)
        truncated = {split: int(encoded.truncated.sum()) for split, encoded in teacher.encoded.items()}
        forward = sum(teacher.passes(split) * len(tables[split]) for split in tables)
        manifest = writer.finish(
            teacher.identity, dtype=params.dtype, tolerance=TOLERANCE[params.dtype],
            drift={} if params.dtype == "float32" else teacher.drift("train"),
            metrics={k: v for k, v in metrics.items() if v},
            all_rows_teacher={k: v for k, v in all_rows_metrics.items() if v},
            probe=probe,
            cost={f"training_{key}": value for key, value in cost.items()}
            | {"forward_examples": forward, "truncated_examples": sum(truncated.values())},
        )  # fmt: skip
    rows = sum(entry["rows"] for entry in manifest.files.values())
    size = sum(entry["bytes"] for entry in manifest.files.values())
    print(f"{task_name}: cached {rows} rows, {size / rows:.0f} bytes/row")
    for split, count in truncated.items():
        if count:
            print(f"{task_name} {split}: {count / len(tables[split]):.1%} of rows are cut at max_length")


def open_teacher(
    project: Project, task: Task, params: CacheTeacherParams, tables: Mapping[str, pa.Table],
    train_rows: str | None = None,
) -> Teacher:  # fmt: skip
    """Open the teacher of a task for prepared rows.

    Args:
        project: where it lies.
        task: the task.
        params: of the computation.
        tables: split → rows.
        train_rows: digest of all training rows, where ``tables`` has some of them.

    Raises:
        ModelError: there is no teacher, or its weights do not have the digests in its identity.
        DataError: the training rows are not those of the teacher.
    """
    folder = _require_teacher(project, task.name)
    return Teacher(
        folder, task, read_identity(folder), tables, params.batch_size, params.dtype, setup(project.threads),
        train_rows,
    )  # fmt: skip


def _record(chunks: Iterator[CacheRows], scored: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[CacheRows]:
    """Pass rows on, and record their cached logits and those of the teacher trained on all rows."""
    for chunk in chunks:
        scored.append((chunk.logits, chunk.all_rows_teacher().logits))
        yield chunk


def _require_teacher(project: Project, task_name: str) -> Path:
    folder = Path(project.paths.teacher) / task_name
    return require(folder, "the teacher", f"kdcache teach --task {task_name}", ModelError)
